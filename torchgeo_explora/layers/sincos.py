"""Fixed sine and cosine encodings of positions, groups of bands, and times.

Vaswani et al. 2017 (section 3.5) in the order of MAE and SatMAE: all sines, then all cosines.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from torchgeo_explora._typing import GridSize

BASE = 10000.0  # the longest wavelength over 2 pi (Vaswani et al. 2017, section 3.5)
TIME_PARTS = 3  # year, month and hour each take a third of the time encoding (SatMAE)


def sincos(values: Float[Tensor, '*shape'], dim: int) -> Float[Tensor, '*shape {dim}']:
    """Encode numbers as sines and cosines of ``dim / 2`` frequencies.

    Args:
        values: What is encoded, for instance the number of a row.
        dim: Length of an encoding; even.

    Returns:
        ``sin(v w_i)`` for every i, then ``cos(v w_i)``, with ``w_i = 10000 ** (-i / (dim / 2))``.
    """
    assert dim % 2 == 0, 'sines and cosines come in pairs'
    half = dim // 2
    steps = torch.arange(half, dtype=values.dtype, device=values.device)
    angles = values[..., None] * BASE ** (-steps / max(half, 1))  # (*shape, half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_grid(
    grid: GridSize, dim: int, num_prefix: int = 0
) -> Float[Tensor, '1 positions {dim}']:
    """Encode the patches of a grid: the column in the first half, the row in the second (MAE).

    Args:
        grid: The patches.
        dim: Length of an encoding; a multiple of 4.
        num_prefix: Prefix tokens (class, registers) before the patches; their encoding is zero.

    Returns:
        The encodings in float32, patches in row-major order.
    """
    assert dim % 4 == 0, 'rows and columns each take pairs'
    rows = sincos(torch.arange(grid.height, dtype=torch.float64), dim // 2)
    columns = sincos(torch.arange(grid.width, dtype=torch.float64), dim // 2)
    columns = columns.repeat(grid.height, 1)  # (w, d/2) -> (h*w, d/2)
    patches = torch.cat([columns, rows.repeat_interleave(grid.width, dim=0)], dim=1)
    table = torch.cat([patches.new_zeros(num_prefix, dim), patches])
    return table[None].float()


def sincos_index(count: int, dim: int) -> Float[Tensor, '1 {count} {dim}']:
    """Encode the numbers 0 to ``count - 1``, for instance of groups of bands (SatMAE).

    Args:
        count: How many.
        dim: Length of an encoding; even.
    """
    return sincos(torch.arange(count, dtype=torch.float64), dim)[None].float()


def encode_times(
    timestamps: Float[Tensor, 'b dates 3'], dim: int
) -> Float[Tensor, 'b dates {dim}']:
    """Encode dates: a third each for the year, the month and the hour (SatMAE, section 3.2).

    Args:
        timestamps: Years since 2002, months from 0 to 11, hours from 0 to 23.
        dim: Length of an encoding; a multiple of 6.
    """
    assert dim % (2 * TIME_PARTS) == 0, 'every part takes pairs'
    return sincos(timestamps, dim // TIME_PARTS).flatten(2)  # (b, t, 3, d/3) -> (b, t, d)
