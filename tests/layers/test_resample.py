import pytest
import torch
import torch.nn.functional as F

from torchgeo_explora._typing import GridSize
from torchgeo_explora.layers.resample import linear_weights, resample_cells


def _maps(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('size', [(7, 5), (4, 4), (16, 10), (1, 3), (13, 8)])
def test_grids_that_end_together_are_interpolated_as_torch_does(size: tuple[int, int]) -> None:
    maps = _maps(7, 5)
    found = resample_cells(maps, GridSize(*size), 7 / size[0], 5 / size[1])
    expected = F.interpolate(maps, size=size, mode='bilinear', antialias=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('step', [4 / 14, 8 / 14, 16 / 14, 32 / 14, 0.25, 1.0, 4.0])
def test_a_ramp_stays_in_place(step: float) -> None:
    source = torch.arange(24.0) + 0.5  # the value of a cell is where its centre is
    target = int(24 / step)
    found = linear_weights(24, target, step) @ source
    centres = (torch.arange(target) + 0.5) * step
    margin = max(1.0, step)  # nearer to an edge there is nothing to interpolate with
    inside = (centres > margin) & (centres < 24 - margin)
    assert inside.sum() > 2
    # as with torch's, the sampled low-pass of a step above 1 moves a value by a fraction of a cell
    tolerance = 0.07 if step > 1 else 1e-5
    torch.testing.assert_close(found[inside], centres[inside], atol=tolerance, rtol=0)


@pytest.mark.parametrize(('source', 'target', 'step'), [(3, 20, 0.3), (5, 4, 2.0), (1, 6, 0.5)])
def test_a_constant_stays_constant_beyond_the_edge_too(
    source: int, target: int, step: float
) -> None:
    found = linear_weights(source, target, step) @ torch.full((source,), 7.0)
    torch.testing.assert_close(found, torch.full((target,), 7.0))


def test_the_same_grid_is_left_alone() -> None:
    maps = _maps(4, 6)
    assert resample_cells(maps, GridSize(4, 6), 1.0, 1.0) is maps


def test_weights_stay_exact_under_autocast() -> None:
    maps = _maps(4, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = resample_cells(maps, GridSize(7, 7), 4 / 7, 4 / 7)
    assert torch.equal(found, resample_cells(maps, GridSize(7, 7), 4 / 7, 4 / 7))
    half = resample_cells(maps.bfloat16(), GridSize(7, 7), 4 / 7, 4 / 7)
    assert half.dtype == torch.bfloat16
