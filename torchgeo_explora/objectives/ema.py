"""A teacher that is the exponential moving average of the student and shares all it can.

Design decision 2: every frozen tensor is one tensor in both networks; only what trains has a
copy of its own, and A and B of a low-rank update are averaged separately.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def shared_copy[M: nn.Module](student: M) -> M:
    """Return a copy that owns its trainable parameters and shares the frozen ones.

    Args:
        student: The module to copy; which of its parameters train must be settled.

    Returns:
        The copy, without gradients and in eval mode. Buffers are copied.
    """
    memo: dict[int, object] = {id(p): p for p in student.parameters() if not p.requires_grad}
    teacher = copy.deepcopy(student, memo)
    teacher.requires_grad_(False)
    return teacher.eval()


def averaged_pairs(student: nn.Module, teacher: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return (teacher, student) tensors that are averaged: all that the student trains."""
    averages = dict(teacher.named_parameters())
    return [(averages[n].data, p.data) for n, p in student.named_parameters() if p.requires_grad]


@torch.no_grad()
def ema_update(pairs: Sequence[tuple[Tensor, Tensor]], momentum: float) -> None:
    """Move averages towards their sources: ``a <- momentum * a + (1 - momentum) * s``.

    Args:
        pairs: (average, source) tensors; the averages are changed in place.
        momentum: Share of the old average, 0 to 1.
    """
    averages, sources = [a for a, _ in pairs], [s for _, s in pairs]
    if averages:
        torch._foreach_lerp_(averages, sources, 1 - momentum)
