import pytest
import torch
from torch import Tensor

from tests.losses import textbook
from torchgeo_explora.losses import IBOTPatchLoss, ibot_patch_loss, mask_weights

MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)


def _patches(n: int, k: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, k, generator=generator)
    return logits, torch.randn(n, k, generator=generator).softmax(dim=-1)


def test_weights_are_shares_of_a_crop_in_the_order_of_the_patches() -> None:
    torch.testing.assert_close(mask_weights(MASK), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]))
    assert mask_weights(torch.zeros(3, 5, dtype=torch.bool)).shape == (0,)


def test_equals_the_textbook_with_its_gradient() -> None:
    logits, targets = _patches(int(MASK.sum()))
    plain, slow = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = ibot_patch_loss(plain, targets, mask_weights(MASK), len(MASK))
    expected = textbook.ibot(slow, targets, MASK, 0.1)
    (slope,) = torch.autograd.grad(found, plain)
    (expected_slope,) = torch.autograd.grad(expected, slow)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    assert (slope - expected_slope).norm() <= 1e-5 * expected_slope.norm()


def test_crops_without_a_mask_count_in_the_divisor() -> None:
    logits, targets = _patches(int(MASK.sum()))
    loss = IBOTPatchLoss()
    masked_only = loss(logits, targets, MASK[[0, 2]])
    torch.testing.assert_close(loss(logits, targets, MASK), masked_only / 2)


@pytest.mark.parametrize('temperature', [0.1, 0.3])
def test_module_equals_function(temperature: float) -> None:
    logits, targets = _patches(int(MASK.sum()))
    expected = ibot_patch_loss(logits, targets, mask_weights(MASK), len(MASK), temperature)
    assert torch.equal(IBOTPatchLoss(temperature)(logits, targets, MASK), expected)


def test_no_masked_patch_gives_zero() -> None:
    logits = torch.empty(0, 9, requires_grad=True)
    loss = IBOTPatchLoss()(logits, torch.empty(0, 9), torch.zeros(2, 4, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
