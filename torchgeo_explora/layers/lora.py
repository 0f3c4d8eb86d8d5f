"""Low-rank adaptation of (parts of) a linear layer, with a merged forward and low-rank backward.

ExPLoRA, section 4 and Hu et al. 2021: ``y = (W + s B A) x + b`` with ``W`` and ``b`` frozen,
``s = alpha / rank``, ``A`` Kaiming-uniform and ``B`` zero, so the layer starts unchanged.

The update is added to ``W`` before the one matrix product with the tokens, and the backward
pass projects onto the low-rank factors directly. Both are exact; neither keeps a full-size
weight gradient nor any activation besides the layer's input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Segment:
    """Output rows ``start:stop`` of a linear layer that get a low-rank update of their own.

    Args:
        name: Name of the part, for instance ``q``.
        start: First output row.
        stop: Row after the last.
    """

    name: str
    start: int
    stop: int


def _merge_rows(
    weight: Tensor, a: Tensor, bs: Sequence[Tensor], starts: Sequence[int], scale: float
) -> Tensor:
    merged = weight.clone()
    for start, a_part, b in zip(starts, a.chunk(len(bs)), bs, strict=True):
        merged[start : start + b.shape[0]].addmm_(b, a_part, alpha=scale)
    return merged


class _MergedLinear(torch.autograd.Function):
    """``F.linear`` with merged weights; gradients reach only the input and the factors."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd has no type for it
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        starts: tuple[int, ...],
        scale: float,
        dtype: torch.dtype,
        *bs: Tensor,
    ) -> Tensor:
        x = x.to(dtype)
        ctx.save_for_backward(x, weight, a, *bs)
        ctx.starts, ctx.scale = starts, scale
        merged = _merge_rows(weight, a, bs, starts, scale).to(dtype)
        return F.linear(x, merged, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (grad,) = grads
        x, weight, a, *bs = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ _merge_rows(weight, a, bs, ctx.starts, ctx.scale).to(grad.dtype)
        if not any(ctx.needs_input_grad[3:]):
            return (grad_x, *[None] * (6 + len(bs)))
        grad_a, grad_bs = _factor_grads(x, grad, a, bs, ctx.starts, ctx.scale)
        return (grad_x, None, None, grad_a, None, None, None, *grad_bs)


def _factor_grads(
    x: Tensor, grad: Tensor, a: Tensor, bs: Sequence[Tensor], starts: Sequence[int], scale: float
) -> tuple[Tensor, list[Tensor]]:
    x, grad = (t.reshape(-1, t.shape[-1]) for t in (x, grad))  # (..., d) -> (tokens, d)
    down = (x @ a.to(x.dtype).T).chunk(len(bs), dim=1)
    ups, grad_bs = [], []
    for start, u, b in zip(starts, down, bs, strict=True):
        part = grad[:, start : start + b.shape[0]]
        grad_bs.append((part.T @ u).to(b.dtype).mul_(scale))
        ups.append(part @ b.to(part.dtype))
    grad_a = (torch.cat(ups, dim=1).T @ x).to(a.dtype).mul_(scale)
    return grad_a, grad_bs


def lora_linear(
    x: Float[Tensor, '*batch d_in'],
    weight: Float[Tensor, 'd_out d_in'],
    bias: Float[Tensor, ' d_out'] | None,
    a: Float[Tensor, 'stacked d_in'],
    bs: Sequence[Tensor],
    starts: Sequence[int],
    scale: float,
) -> Float[Tensor, '*batch d_out']:
    """Apply ``x (W + scale * B A)^T + bias``, B A added on some of the output rows.

    Args:
        x: Tokens.
        weight: Frozen weight; gets no gradient.
        bias: Frozen bias; gets no gradient.
        a: Down-projections of all parts, stacked along the rows (``len(bs) * rank`` of them).
        bs: One up-projection ``(rows of the part, rank)`` a part.
        starts: First output row of each part.
        scale: ``alpha / rank``.
    """
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    with torch.autocast(device, enabled=False):
        out: Tensor = _MergedLinear.apply(x, weight, bias, a, tuple(starts), scale, dtype, *bs)
    return out


class LoRALinear(nn.Module):
    """A frozen linear layer with low-rank updates on named parts of its output.

    The state dict holds the keys of the wrapped layer (``weight``, ``bias``) and, beside them,
    ``lora_A`` of shape (parts * rank, d_in) and one ``lora_B_<part>`` of (rows, rank) a part.

    Args:
        linear: The layer to wrap; its tensors are taken over, not copied, and frozen.
        segments: The parts; for a fused ``qkv`` typically ``q`` and ``v``.
        rank: Rank of every part's update.
        alpha: Numerator of the scale ``alpha / rank``; 1 in the official code.
        generator: Source of A's random values; the global one when not given.
    """

    def __init__(
        self,
        linear: nn.Linear,
        segments: Sequence[Segment],
        rank: int,
        alpha: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.segments, self.rank, self.scale = tuple(segments), rank, alpha / rank
        self.weight = linear.weight
        self.bias: nn.Parameter | None = linear.bias  # torch declares it always there
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        a = self.weight.new_empty(len(self.segments) * rank, self.in_features)
        # Kaiming-uniform with a = sqrt(5), PyTorch's default for linear layers
        bound = 1 / math.sqrt(self.in_features)
        self.lora_A = nn.Parameter(a.uniform_(-bound, bound, generator=generator))
        for part in self.segments:
            zeros = self.weight.new_zeros(part.stop - part.start, rank)
            self.register_parameter(f'lora_B_{part.name}', nn.Parameter(zeros))

    def up(self, name: str) -> Tensor:
        """Return the up-projection (rows, rank) of one part."""
        return self.get_parameter(f'lora_B_{name}')

    def down(self, name: str) -> Tensor:
        """Return the down-projection (rank, d_in) of one part."""
        index = [part.name for part in self.segments].index(name)
        return self.lora_A[index * self.rank : (index + 1) * self.rank]

    def merged_weight(self) -> Float[Tensor, 'd_out d_in']:
        """Return ``W + s B A`` as a new tensor without gradient."""
        with torch.no_grad():
            ups = [self.up(part.name) for part in self.segments]
            starts = [part.start for part in self.segments]
            return _merge_rows(self.weight, self.lora_A, ups, starts, self.scale)

    def forward(self, x: Float[Tensor, '*batch d_in']) -> Float[Tensor, '*batch d_out']:
        """Apply the layer to tokens."""
        return self.rows(x, 0, self.out_features)

    def rows(self, x: Float[Tensor, '*batch d_in'], start: int, stop: int) -> Tensor:
        """Compute only the output rows ``start:stop``; each part lies inside or outside them."""
        inside = [part for part in self.segments if start <= part.start and part.stop <= stop]
        touched = [part for part in self.segments if part.start < stop and start < part.stop]
        assert inside == touched, f'rows {start} to {stop} cut a part of the layer in two'
        bias = None if self.bias is None else self.bias[start:stop]
        weight = self.weight[start:stop]
        if not inside:
            return F.linear(x, weight, bias)
        whole = len(inside) == len(self.segments)
        a = self.lora_A if whole else torch.cat([self.down(part.name) for part in inside])
        ups = [self.up(part.name) for part in inside]
        return lora_linear(x, weight, bias, a, ups, [p.start - start for p in inside], self.scale)

    def extra_repr(self) -> str:
        """Describe the layer in ``print(model)``."""
        parts = ', '.join(part.name for part in self.segments)
        return f'{self.in_features}, {self.out_features}, rank={self.rank}, parts=({parts})'


def linear_rows(layer: nn.Linear | LoRALinear, x: Tensor, start: int, stop: int) -> Tensor:
    """Compute output rows ``start:stop`` of a linear layer, adapted or not."""
    if isinstance(layer, LoRALinear):
        return layer.rows(x, start, stop)
    bias: nn.Parameter | None = layer.bias
    return F.linear(x, layer.weight[start:stop], None if bias is None else bias[start:stop])
