"""Arithmetic of one DINOv2 training step, from the sizes of its matrix products.

A product of (m, k) and (k, n) counts as 2 m k n floating-point operations. What is counted, for
width D, MLP width H, T tokens in sequences of n, and R rows that reach the head:

* a block's linear layers: ``T (8 D^2 + 4 D H)`` forward, as much again for the gradient of its
  input, and once more for the gradient of its weights where they train;
* its attention: ``4 T n D`` forward, twice that backward (nothing for recomputation);
* the patch embedding: ``2 T C p^2 D`` forward, and again for its weights where they train;
* a low-rank update of rank r on an output of width D: ``8 T D r`` backward (two projections and
  two gradients); its forward is merged into the weight and costs ``2 r D^2`` a merge, counted
  five times a step: student forward and backward on global and local crops, and teacher;
* the head: ``2 R (D h + (layers - 2) h^2 + h b + b K)`` for the teacher, three times that for the
  student.

Norms, activations, softmax, Sinkhorn-Knopp, the optimizer and the average are not counted: they
are bound by memory. A pruned last block computes keys and values at all tokens and everything
else at the R class tokens and masked patches only.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sizes:
    """Sizes of one step.

    Args:
        width: Width of the tokens.
        hidden: Width of the MLP.
        depth: Number of blocks.
        patch_inputs: Values of a patch, bands times area.
        prefix: Class and register tokens of a crop.
        global_crops: Number of global crops.
        local_crops: Number of local crops.
        global_patches: Patches of a global crop.
        local_patches: Patches of a local crop.
        masked: Masked patches of all global crops.
        head: Widths of the head from its input to its prototypes.
    """

    width: int
    hidden: int
    depth: int
    patch_inputs: int
    prefix: int
    global_crops: int
    local_crops: int
    global_patches: int
    local_patches: int
    masked: int
    head: tuple[int, ...]

    @property
    def global_tokens(self) -> int:
        """Tokens of all global crops."""
        return self.global_crops * (self.prefix + self.global_patches)

    @property
    def local_tokens(self) -> int:
        """Tokens of all local crops."""
        return self.local_crops * (self.prefix + self.local_patches)


Training = Literal['full', 'explora']


def step_flops(sizes: Sizes, training: Training, rank: int = 0, pruned: bool = True) -> float:
    """Return the floating-point operations of a step.

    Args:
        sizes: Sizes of the step.
        training: ``full`` trains every weight; ``explora`` the last block and low-rank updates of
            Q and V in the others.
        rank: Rank of the updates.
        pruned: Whether the last block is evaluated only where its output is used.
    """
    teacher, student = _encoder(sizes, False, pruned), _encoder(sizes, True, pruned)
    weights = _last_block(sizes, pruned)
    if training == 'full':
        weights = student.linear + student.patches
    total = teacher.total + student.total + student.linear + 2 * student.attention + weights
    if training == 'explora':
        total += _low_rank(sizes, rank)
    rows_teacher = sizes.global_crops + sizes.masked
    rows_student = rows_teacher + sizes.local_crops
    return total + _head(sizes, rows_teacher) + 3 * _head(sizes, rows_student)


@dataclass(frozen=True)
class _Encoder:
    """Forward operations of an encoder, by what their gradients cost."""

    patches: float
    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.patches + self.linear + self.attention


def _encoder(sizes: Sizes, local: bool, pruned: bool) -> _Encoder:
    crops = [(sizes.global_crops, sizes.global_patches, sizes.masked)]
    if local:
        crops.append((sizes.local_crops, sizes.local_patches, 0))
    patches = linear = attention = 0.0
    for count, area, masked in crops:
        tokens, length = count * (sizes.prefix + area), sizes.prefix + area
        selected = count + masked if pruned else tokens
        patches += 2 * count * area * sizes.patch_inputs * sizes.width
        linear += (sizes.depth - 1) * _block(sizes, tokens, tokens) + _block(
            sizes, tokens, selected
        )
        attention += 4 * length * sizes.width * ((sizes.depth - 1) * tokens + selected)
    return _Encoder(patches, linear, attention)


def _block(sizes: Sizes, tokens: int, selected: int) -> float:
    """Return a block's linear layers: keys and values of all tokens, the rest of the selected."""
    width = sizes.width
    return 4 * width**2 * tokens + (4 * width**2 + 4 * width * sizes.hidden) * selected


def _last_block(sizes: Sizes, pruned: bool) -> float:
    tokens = sizes.global_tokens + sizes.local_tokens
    selected = sizes.global_crops + sizes.masked + sizes.local_crops
    return _block(sizes, tokens, selected if pruned else tokens)


def _low_rank(sizes: Sizes, rank: int) -> float:
    tokens = sizes.global_tokens + sizes.local_tokens
    backward = 8 * tokens * sizes.width * rank
    merges = 5 * 2 * rank * sizes.width**2
    return 2 * (sizes.depth - 1) * (backward + merges)  # Q and V


def _head(sizes: Sizes, rows: int) -> float:
    return sum(2 * rows * a * b for a, b in zip(sizes.head, sizes.head[1:], strict=False))
