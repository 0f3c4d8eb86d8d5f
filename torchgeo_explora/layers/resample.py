"""Maps of cells read at cells of another size, each at the place it covers, for any ratio.

A vision transformer's cells are patches of 8, 14 or 16 pixels; decoders want cells of 4, 8, 16 and
32. ``F.interpolate`` reaches them only where both grids end at the same pixel.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from torchgeo_explora._typing import GridSize


def linear_weights(source: int, target: int, step: float) -> Float[Tensor, 'target source']:
    """Return the weights of linear interpolation along one side, low-passed where cells grow.

    Cell i of the result covers ``i * step`` to ``(i + 1) * step`` of the source's cells. Weights
    fall linearly from the centre over the larger of both cells, and sum to 1. Beyond the last
    source cell its value goes on.

    Args:
        source: Number of cells there are.
        target: Number of cells wanted.
        step: Size of a cell of the result in cells of the source, positive.
    """
    # centres of the cells wanted, where the source's are whole numbers
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * step - 0.5
    distance = centres.clamp(0, source - 1)[:, None] - torch.arange(source, dtype=torch.float64)
    weights = (1 - distance.abs() / max(1.0, step)).clamp_min(0)
    out: Tensor = (weights / weights.sum(dim=1, keepdim=True)).float()
    return out


def resample_cells(
    maps: Float[Tensor, 'b c h w'], grid: GridSize, step_height: float, step_width: float
) -> Float[Tensor, 'b c h2 w2']:
    """Read maps at another grid that starts in the same corner.

    Where both grids end at the same place, this is bilinear interpolation with antialiasing.

    Args:
        maps: Values of cells.
        grid: The grid wanted.
        step_height: Height of a cell wanted, in heights of the cells there are.
        step_width: Width of a cell wanted, in widths of the cells there are.

    Returns:
        The values at the grid, of the maps' own type, channels last in memory, as tokens are; the
        very same tensor where nothing changes.
    """
    height, width = maps.shape[-2:]
    if (height, width) == (grid.height, grid.width) and step_height == step_width == 1:
        return maps
    rows = linear_weights(height, grid.height, step_height).to(maps.device)
    columns = linear_weights(width, grid.width, step_width).to(maps.device)
    with torch.autocast(maps.device.type, enabled=False):
        cells = maps.float().permute(0, 2, 3, 1)
        wide = columns @ cells  # (w2, w) @ (b, h, w, c) -> (b, h, w2, c)
        out: Tensor = (rows @ wide.flatten(2)).unflatten(2, wide.shape[2:])
    return out.to(maps.dtype).permute(0, 3, 1, 2)  # (b, h2, w2, c) -> (b, c, h2, w2)
