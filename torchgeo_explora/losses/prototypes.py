"""Cross entropy against soft targets over very many prototypes, without keeping the logits.

With 65,536 prototypes the logits of one training step take gigabytes. Here they exist for a
few rows at a time: each chunk yields its loss and its gradients at once.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def prototype_cross_entropy(
    features: Float[Tensor, 'rows width'],
    prototypes: Float[Tensor, 'prototypes width'],
    targets: Float[Tensor, 'targets prototypes'],
    rows: Int[Tensor, ' rows'],
    weights: Float[Tensor, ' rows'],
    temperature: float = 0.1,
    chunk: int = 1024,
) -> tuple[Float[Tensor, ''], Float[Tensor, ' rows']]:
    r"""Return the weighted cross entropy of features' logits with soft targets.

    With logits :math:`z_i = P f_i / \tau` and targets :math:`t`, it is

    .. math:: \sum_i w_i \left(-\sum_k t_{r_i k} \log \mathrm{softmax}(z_i)_k\right),

    where targets need not sum to 1: two teacher rows that one student row is compared with
    can be given as their sum. Gradients flow to ``features`` and ``prototypes`` alone, and
    are computed together with the loss, chunk by chunk; no tensor of all rows by all
    prototypes is ever made.

    Matrix products run in autocast's type where it is enabled, in the features' type
    otherwise; the softmax and all sums in float32 at least. Under float16 the gradients'
    products run in float32, since their factors are too small for that type.

    Args:
        features: Bottleneck features, one row per student token; there may be none.
        prototypes: The head's effective weight.
        targets: The teacher's soft assignments, of any floating type.
        rows: Row of ``targets`` that belongs to each feature.
        weights: Weight of each feature.
        temperature: The student's temperature, above 0.
        chunk: Features that are worked on at a time, at least 1.

    Returns:
        The weighted sum, and the weighted loss of every row without gradient.

    Source: the DINO loss of Caron et al. (2021), equation 1, written as a fused operation.
    """
    learning = torch.is_grad_enabled()
    needs = (learning and features.requires_grad, learning and prototypes.requires_grad)
    total, per_row = _PrototypeCrossEntropy.apply(
        features, prototypes, targets, rows, weights, temperature, chunk, needs
    )
    return total, per_row


def _matmul_dtype(features: Tensor) -> torch.dtype:
    """Return the type of the logits' products."""
    device = features.device.type
    if torch.is_autocast_enabled(device) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return features.dtype


class _PrototypeCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over chunks of rows."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own, untyped context
        features: Tensor,
        prototypes: Tensor,
        targets: Tensor,
        rows: Tensor,
        weights: Tensor,
        temperature: float,
        chunk: int,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        dtype = _matmul_dtype(features)
        exact = torch.promote_types(features.dtype, torch.float32)
        grad_features = torch.empty_like(features, dtype=exact) if needs[0] else None
        grad_prototypes = torch.zeros_like(prototypes, dtype=exact) if needs[1] else None
        per_row = torch.empty(len(features), dtype=exact, device=features.device)
        with torch.autocast(features.device.type, enabled=False):
            matrix = prototypes.to(dtype)
            # float16 has no room for the small factors of the gradients
            back = matrix.to(exact) if dtype == torch.float16 else matrix
            for start in range(0, len(features), chunk):
                part = slice(start, start + chunk)
                scaled = features[part].to(exact) / temperature
                target, weight = targets[rows[part]].to(exact), weights[part].to(exact)
                per_row[part], slope = _chunk(scaled, matrix, target, weight, any(needs))
                slope = slope.to(back.dtype)
                if grad_features is not None:
                    grad_features[part] = (slope @ back).to(exact) / temperature
                if grad_prototypes is not None:
                    _add_product(grad_prototypes, slope.mT, scaled.to(back.dtype))
        ctx.mark_non_differentiable(per_row)
        ctx.save_for_backward(grad_features, grad_prototypes)
        ctx.dtypes = features.dtype, prototypes.dtype
        return per_row.sum(), per_row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        grads = [
            None if saved is None else _times(saved, grad_total).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*grads, None, None, None, None, None, None)


def _times(tensor: Tensor, factor: Float[Tensor, '']) -> Tensor:
    """Multiply, though on a CPU not by 1; elsewhere reading the factor would wait for it."""
    if factor.device.type == 'cpu' and factor.item() == 1:
        return tensor
    return tensor * factor


def _chunk(
    scaled: Float[Tensor, 'chunk width'],
    matrix: Float[Tensor, 'prototypes width'],
    target: Float[Tensor, 'chunk prototypes'],
    weight: Float[Tensor, ' chunk'],
    differentiate: bool,
) -> tuple[Float[Tensor, ' chunk'], Float[Tensor, 'slopes prototypes']]:
    """Return weighted losses and their slope by the logits, left empty where it is not wanted."""
    logits = scaled.to(matrix.dtype) @ matrix.mT  # (chunk, prototypes)
    log_p = torch.log_softmax(logits, dim=1, dtype=target.dtype)
    del logits
    loss = -weight * torch.linalg.vecdot(target, log_p)
    if not differentiate:
        return loss, log_p[:0]
    mass = weight * target.sum(dim=1)
    # weight * (mass of the target * softmax - target)
    return loss, log_p.exp_().mul_(mass[:, None]).addcmul_(target, -weight[:, None])


def _add_product(
    total: Float[Tensor, 'n m'], a: Float[Tensor, 'n k'], b: Float[Tensor, 'k m']
) -> None:
    """Add a matrix product to a total, which may be of a wider type than the factors."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
