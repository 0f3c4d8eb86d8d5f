from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchgeo_explora.losses import (
    dino_loss,
    ibot_patch_loss,
    mask_weights,
    prototype_cross_entropy,
)

TEMPERATURE = 0.1
_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm_.default}


def _plain(f: Tensor, p: Tensor, targets: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted losses with all logits in memory."""
    log_p = torch.log_softmax(f @ p.T / TEMPERATURE, dim=1)
    return -weights * (targets[rows] * log_p).sum(dim=1)


def _case(
    n: int, k: int, d: int = 6, m: int = 4, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + k)
    features = F.normalize(torch.randn(n, d, generator=generator, dtype=dtype), dim=1)
    prototypes = F.normalize(torch.randn(k, d, generator=generator, dtype=dtype), dim=1)
    targets = 2 * torch.rand(m, k, generator=generator, dtype=dtype) / k  # sums are not 1
    rows = torch.randint(m, (n,), generator=generator)
    weights = torch.rand(n, generator=generator, dtype=dtype)
    return features.requires_grad_(), prototypes.requires_grad_(), targets, rows, weights


@pytest.mark.parametrize('chunk', [1, 4, 5, 100])
@pytest.mark.parametrize(('n', 'k'), [(1, 7), (10, 33), (13, 5)])
def test_equals_the_plain_form_with_its_gradients(n: int, k: int, chunk: int) -> None:
    case = _case(n, k)
    total, per_row = prototype_cross_entropy(*case, TEMPERATURE, chunk)
    expected = _plain(*case)
    torch.testing.assert_close(per_row, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-5, atol=1e-6)
    assert not per_row.requires_grad
    _assert_same(3 * total, 3 * expected.sum(), *case[:2])


def test_gradients_agree_with_finite_differences() -> None:
    features, prototypes, targets, rows, weights = _case(7, 9, dtype=torch.float64)

    def total(f: Tensor, p: Tensor) -> Tensor:
        return prototype_cross_entropy(f, p, targets, rows, weights, 0.5, 3)[0]

    assert torch.autograd.gradcheck(total, (features, prototypes))


@pytest.mark.parametrize('wanted', [(True, False), (False, True), (False, False)])
def test_only_wanted_gradients_are_computed(wanted: tuple[bool, bool]) -> None:
    features, prototypes, targets, rows, weights = _case(10, 33)
    leaves = features, prototypes = (
        features.detach().requires_grad_(wanted[0]),
        prototypes.detach().requires_grad_(wanted[1]),
    )
    with _LargestTensor() as forward:
        total, _ = prototype_cross_entropy(features, prototypes, targets, rows, weights)
    assert total.requires_grad == any(wanted)
    if total.requires_grad:
        total.backward()
    assert tuple(x.grad is not None for x in leaves) == wanted
    assert forward.products == 1 + sum(wanted)


def test_no_graph_without_gradients_enabled() -> None:
    case = _case(10, 33)
    expected, _ = prototype_cross_entropy(*case, TEMPERATURE)
    with torch.no_grad(), _LargestTensor() as largest:
        total, _ = prototype_cross_entropy(*case, TEMPERATURE)
    assert torch.equal(total, expected)
    assert not total.requires_grad
    assert largest.products == 1  # the logits, and no gradient


def test_without_rows_the_loss_and_the_gradients_are_zero() -> None:
    case = _case(0, 33)
    total, per_row = prototype_cross_entropy(*case)
    assert total == 0
    assert per_row.shape == (0,)
    slopes = torch.autograd.grad(total, case[:2])
    assert slopes[0].shape == (0, 6)
    assert torch.equal(slopes[1], torch.zeros(33, 6))


def test_rows_of_weight_zero_change_nothing() -> None:
    features, prototypes, targets, rows, weights = _case(10, 33)
    weights[6:] = 0
    total, _ = prototype_cross_entropy(features, prototypes, targets, rows, weights)
    fewer, _ = prototype_cross_entropy(features[:6], prototypes, targets, rows[:6], weights[:6])
    torch.testing.assert_close(total, fewer)
    slopes = zip(
        torch.autograd.grad(total, (features, prototypes)),
        torch.autograd.grad(fewer, (features, prototypes)),
        strict=True,
    )
    for found, expected in slopes:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_autocast_rounds_only_the_products(dtype: torch.dtype, tolerance: float) -> None:
    features, prototypes, targets, rows, weights = _case(64, 512, d=32)
    exact = torch.autograd.grad(
        prototype_cross_entropy(features, prototypes, targets, rows, weights)[0],
        (features, prototypes),
    )
    small = weights * 1e-6  # a float16 product with such a factor would be zero
    with torch.autocast('cpu', dtype):
        total, per_row = prototype_cross_entropy(
            features, prototypes, targets.to(torch.bfloat16), rows, small
        )
    assert total.dtype == per_row.dtype == torch.float32
    for found, expected in zip(
        torch.autograd.grad(total * 1e6, (features, prototypes)), exact, strict=True
    ):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < tolerance * expected.norm()


def test_equals_the_dino_loss_of_local_and_global_crops() -> None:
    images, k = 3, 20
    features, prototypes, *_ = _case(4 * images, k)
    generator = torch.Generator().manual_seed(0)
    teacher = torch.rand(2, images, k, generator=generator).softmax(dim=-1)
    logits = (features @ prototypes.T).unflatten(0, (4, images))
    plain = dino_loss(logits[2:], teacher) + 2 * dino_loss(
        logits[:2].flatten(0, 1)[None], teacher.flip(0).flatten(0, 1)[None]
    )
    # targets: both crops of the teacher, then their sum for the local crops
    targets = torch.cat([teacher, teacher.sum(dim=0, keepdim=True)]).flatten(0, 1)
    crops = torch.tensor([1, 0, 2, 2])
    rows = (crops[:, None] * images + torch.arange(images)).flatten()
    weights = torch.full((4 * images,), 1 / images)
    fused, _ = prototype_cross_entropy(features, prototypes, targets, rows, weights, chunk=5)
    _assert_same(fused, plain, features, prototypes)


def test_equals_the_ibot_loss() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    features, prototypes, targets, *_ = _case(3, 20, m=3)
    plain = ibot_patch_loss(features @ prototypes.T, targets, mask_weights(mask), len(mask))
    weights = mask_weights(mask) / len(mask)
    fused, _ = prototype_cross_entropy(features, prototypes, targets, torch.arange(3), weights)
    _assert_same(fused, plain, features, prototypes)


def _assert_same(fused: Tensor, plain: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=0)
    for found, expected in zip(
        torch.autograd.grad(fused, leaves), torch.autograd.grad(plain, leaves), strict=True
    ):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


class _LargestTensor(TorchDispatchMode):
    """Record the most elements of any tensor that an operation makes, and count products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0
        self.products = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **({} if kwargs is None else kwargs))
        made = result if isinstance(result, tuple | list) else [result]
        sizes = [x.numel() for x in made if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        self.products += func in _PRODUCTS
        return result


def test_never_makes_all_logits() -> None:
    n, k, chunk = 256, 1024, 32
    case = _case(n, k, d=16)
    with _LargestTensor() as plain:
        _plain(*case).sum().backward()
    with _LargestTensor() as fused:
        prototype_cross_entropy(*case, TEMPERATURE, chunk)[0].backward()
    assert plain.elements == n * k  # the probe sees what it is looking for
    assert fused.elements == chunk * k
