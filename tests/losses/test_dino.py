import math

import torch
from torch import Tensor

from tests.losses import textbook
from torchgeo_explora.losses import DINOLoss, dino_loss, sinkhorn_knopp


def _crops(student: int, teacher: int, images: int = 3, k: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(student, images, k, generator=generator)
    targets = torch.randn(teacher, images, k, generator=generator).softmax(dim=-1)
    return logits, targets


def test_equals_the_textbook_with_its_gradient() -> None:
    for student, teacher in [(1, 1), (3, 2), (8, 2)]:
        logits, targets = _crops(student, teacher)
        plain, slow = logits.clone().requires_grad_(), logits.double().requires_grad_()
        found, expected = dino_loss(plain, targets, 0.1), textbook.dino(slow, targets, 0.1)
        (slope,) = torch.autograd.grad(found, plain)
        (expected_slope,) = torch.autograd.grad(expected, slow)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
        assert (slope - expected_slope).norm() <= 1e-5 * expected_slope.norm()


def test_uniform_student_gives_the_log_of_the_prototypes() -> None:
    _, targets = _crops(1, 2, k=65536)
    pairs = 8 * 2
    loss = dino_loss(torch.zeros(8, 3, 65536), targets) / pairs
    assert math.isclose(float(loss), math.log(65536), rel_tol=1e-5)


def test_swapped_global_crops_are_the_pairs_of_different_crops() -> None:
    logits, _ = _crops(2, 2, images=4)
    targets = sinkhorn_knopp(logits.flatten(0, 1), 0.07).unflatten(0, (2, 4))
    stacked = dino_loss(logits.flatten(0, 1)[None], targets.flip(0).flatten(0, 1)[None])
    pairs = dino_loss(logits[:1], targets[1:]) + dino_loss(logits[1:], targets[:1])
    torch.testing.assert_close(2 * stacked, pairs)


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits, targets = _crops(2, 2)
    found = dino_loss(logits.bfloat16(), targets.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, dino_loss(logits.bfloat16().float(), targets), rtol=1e-2, atol=0
    )


def test_module_equals_function() -> None:
    logits, targets = _crops(2, 2)
    assert torch.equal(DINOLoss(0.2)(logits, targets), dino_loss(logits, targets, 0.2))
