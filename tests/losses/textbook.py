"""The losses written down as their equations stand, in float64 and one row at a time."""

import torch
from torch import Tensor


def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Normalise a matrix of assignments in turn, each time in full."""
    q = (logits.double() / temperature).exp().T  # (prototypes, samples)
    q = q / q.sum()
    k, n = q.shape
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / k
        q = q / q.sum(dim=0, keepdim=True) / n
    return (q * n).T


def cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """One row of logits against one soft target, in float64."""
    return -(target.double() * torch.log_softmax(logits.double() / temperature, dim=0)).sum()


def dino(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Every student crop against every teacher crop, image by image."""
    images = student.shape[1]
    total = student.new_zeros((), dtype=torch.float64)
    for s in student:
        for t in teacher:
            for i in range(images):
                total = total + cross_entropy(s[i], t[i], temperature) / images
    return total


def ibot(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Mean over the masked patches of a crop, summed over crops, over the number of crops."""
    total = student.new_zeros((), dtype=torch.float64)
    row = 0
    for crop in mask:
        masked = int(crop.sum())
        for _ in range(masked):
            total = total + cross_entropy(student[row], teacher[row], temperature) / masked
            row += 1
    return total / len(mask)


def koleo(x: Tensor) -> Tensor:
    """Negative mean log distance to the nearest other row, all pairs compared."""
    unit = [row / row.norm() for row in x.double()]
    total = x.new_zeros((), dtype=torch.float64)
    for i, a in enumerate(unit):
        others = torch.stack([(a - b).norm() for j, b in enumerate(unit) if j != i])
        total = total - others.min().log()
    return total / len(unit)
