"""A tiny D-ExPLoRA objective with random crops and masks, for tests."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.vits import make_vit, shake_factors
from torchgeo_explora.adapters import AdapterReport, ExPLoRAConfig, apply_explora
from torchgeo_explora.objectives import DINOv2Config, DINOv2Losses, DINOv2Objective

HEADS: dict[str, Any] = {'prototypes': 40, 'hidden_dim': 20, 'bottleneck_dim': 12}


@dataclass(frozen=True)
class Batch:
    """Crops and masks of one micro-batch."""

    global_crops: Tensor
    local_crops: Tensor
    mask: Tensor


def make_objective(
    variant: str = 'patch14_layerscale',
    adapter: ExPLoRAConfig | None = None,
    vit: Mapping[str, Any] | None = None,
    **config: Any,  # noqa: ANN401
) -> tuple[DINOv2Objective, AdapterReport]:
    """Build an objective whose student has moved away from its teacher."""
    student = make_vit(variant, **({} if vit is None else vit))
    adapter = ExPLoRAConfig(rank=4) if adapter is None else adapter
    generator = torch.Generator().manual_seed(0)
    report = apply_explora(student, adapter, generator)
    token = torch.randn(1, student.embed_dim, generator=generator)
    settings = DINOv2Config(**{**HEADS, **config})
    objective = DINOv2Objective(student, settings, token, generator).train()
    shake_factors(objective.student, scale=0.05)
    shake_factors(objective.student_heads, scale=0.05)
    return objective, report


def make_batch(
    images: int = 3, n_local: int = 2, sizes: tuple[int, int] = (56, 28), masked: bool = True
) -> Batch:
    """Random crops, crop-major; every other global crop is masked."""
    generator = torch.Generator().manual_seed(1)
    patches = (sizes[0] // 14) ** 2
    mask = torch.rand(2 * images, patches, generator=generator) < 0.3
    mask[::2] = False
    return Batch(
        torch.randn(2 * images, 3, sizes[0], sizes[0], generator=generator),
        torch.randn(n_local * images, 3, sizes[1], sizes[1], generator=generator),
        mask if masked else torch.zeros_like(mask),
    )


def losses_of(objective: DINOv2Objective, batch: Batch, temperature: float = 0.06) -> DINOv2Losses:
    """Losses of one micro-batch."""
    losses: DINOv2Losses = objective(batch.global_crops, batch.local_crops, batch.mask, temperature)
    return losses


def gradients_of(objective: DINOv2Objective, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the total loss, by name of what trains."""
    named = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(losses_of(objective, batch).total, list(named.values()))
    return dict(zip(named, values, strict=True))


def with_own_teacher(objective: DINOv2Objective) -> DINOv2Objective:
    """The same objective with a teacher that shares nothing with the student."""
    own = copy.deepcopy(objective)
    for name in ('teacher', 'teacher_heads'):
        setattr(own, name, copy.deepcopy(getattr(own, name)))
    return own


def update_every_tensor(objective: DINOv2Objective, momentum: float) -> None:
    """Average all parameters, frozen ones as well, as the official code does."""
    pairs = ((objective.student, objective.teacher), (objective.student_heads,
             objective.teacher_heads))  # fmt: skip
    with torch.no_grad():
        for student, teacher in pairs:
            for source, average in zip(student.parameters(), teacher.parameters(), strict=True):
                average.mul_(momentum).add_(source, alpha=1 - momentum)


def assert_near(found: Tensor, expected: Tensor, what: str, floor: float = 0.0) -> None:
    """Compare to 1e-5 relative, or to ``floor`` where that is more."""
    error = (found - expected).norm()
    assert error <= max(1e-5 * expected.norm().item(), floor), f'{what}: {error:.1e}'
