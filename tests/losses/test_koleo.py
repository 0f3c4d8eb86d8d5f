import pytest
import torch
from torch import Tensor

from tests.losses import textbook
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.losses import KoLeoLoss, koleo_loss


def _features(n: int = 7, width: int = 5) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('n', [2, 3, 17])
def test_equals_the_textbook_with_its_gradient(n: int) -> None:
    plain, slow = _features(n).requires_grad_(), _features(n).double().requires_grad_()
    found, expected = koleo_loss(plain), textbook.koleo(slow)
    (slope,) = torch.autograd.grad(found, plain)
    (expected_slope,) = torch.autograd.grad(expected, slow)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert (slope - expected_slope).norm() <= 1e-5 * expected_slope.norm()


def test_the_length_of_features_does_not_matter() -> None:
    x = _features()
    scale = torch.arange(1.0, 8.0)[:, None]
    torch.testing.assert_close(koleo_loss(x * scale), koleo_loss(x))


def test_a_step_against_the_gradient_spreads_the_features() -> None:
    x = (_features() * 0.1 + 1).requires_grad_()
    loss = koleo_loss(x)
    (slope,) = torch.autograd.grad(loss, x)
    assert koleo_loss(x - 1e-3 * slope) < loss


def test_identical_features_give_a_large_finite_loss() -> None:
    x = torch.ones(4, 5, requires_grad=True)
    loss = koleo_loss(x)
    loss.backward()
    assert 15 < float(loss.detach()) < 20
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_is_float32_under_autocast() -> None:
    x = _features().bfloat16()
    expected = koleo_loss(x.float())
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(koleo_loss(x), expected)


def test_module_equals_function() -> None:
    assert torch.equal(KoLeoLoss(1e-4)(_features()), koleo_loss(_features(), 1e-4))


@pytest.mark.parametrize('n', [0, 1])
def test_a_feature_alone_has_no_neighbour(n: int) -> None:
    with pytest.raises(ConfigError, match=rf'received {n} feature.*at least 2.*larger batch'):
        koleo_loss(torch.ones(n, 5))
