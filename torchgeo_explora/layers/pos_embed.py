"""Learned position embeddings at another grid, resampled exactly as DINOv2 does it.

timm resamples with antialiasing, DINOv2 does not and adds an offset to the scale factor; the
features of the published weights are only reproduced with DINOv2's own form.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from torchgeo_explora._typing import GridSize


def square_grid(positions: int) -> GridSize:
    """Return the square grid that ``positions`` patches make.

    Args:
        positions: Number of patches.

    Raises:
        ValueError: If ``positions`` is no square number.
    """
    side = math.isqrt(positions)
    if side * side != positions:
        raise ValueError(f'{positions} positions do not make a square grid: name the grid')
    return GridSize(side, side)


def resample_pos_embed(
    pos_embed: Float[Tensor, '1 positions dim'],
    grid: GridSize,
    num_prefix: int,
    source: GridSize | None = None,
    offset: float = 0.1,
    antialias: bool = False,
) -> Float[Tensor, '1 resampled dim']:
    """Resample position embeddings to another patch grid.

    Bicubic with the scale factor ``(target + offset) / source`` and no antialiasing
    (facebookresearch/dinov2, ``interpolate_offset=0.1``, ``interpolate_antialias=False``).

    Args:
        pos_embed: Embeddings of the prefix tokens followed by the patches in row-major order.
        grid: The grid wanted.
        num_prefix: How many leading positions belong to prefix tokens; they are kept as they are.
        source: The grid that ``pos_embed`` has; square when not given.
        offset: Added to the target size before the scale is taken; 0 passes the size itself.
        antialias: Whether to low-pass when the grid shrinks (timm's habit, not DINOv2's).

    Returns:
        The embeddings at ``grid``, the very same tensor where nothing has to change.
    """
    if source is None:
        source = square_grid(pos_embed.shape[1] - num_prefix)
    if source == grid:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    # (1, h*w, d) -> (1, d, h, w): interpolation runs over the last two axes
    image = patches.float().reshape(1, source.height, source.width, -1).permute(0, 3, 1, 2)
    image = _interpolate(image, source, grid, offset, antialias)
    patches = image.permute(0, 2, 3, 1).flatten(1, 2).to(prefix.dtype)  # -> (1, h'*w', d)
    return torch.cat([prefix, patches], dim=1)


def _interpolate(
    image: Float[Tensor, '1 dim h w'], source: GridSize, grid: GridSize, offset: float, anti: bool
) -> Float[Tensor, '1 dim h2 w2']:
    if offset == 0:
        size = (grid.height, grid.width)
        return F.interpolate(image, size=size, mode='bicubic', antialias=anti)
    scale = ((grid.height + offset) / source.height, (grid.width + offset) / source.width)
    out = F.interpolate(image, scale_factor=scale, mode='bicubic', antialias=anti)
    assert out.shape[-2:] == (grid.height, grid.width), 'offset moved the grid by a whole patch'
    return out
