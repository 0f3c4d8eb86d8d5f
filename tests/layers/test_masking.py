import time
from typing import Any

import pytest
import torch
from torch import Tensor

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.masking import MaskSpec, _rectangle, block_masks

GRID = GridSize(16, 16)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('batch', [0, 1, 2, 7, 64])
@pytest.mark.parametrize('probability', [0.0, 0.3, 0.5, 1.0])
def test_a_share_of_the_crops_is_masked(batch: int, probability: float) -> None:
    masks = block_masks(GRID, batch, probability, generator=_generator())
    assert masks.shape == (batch, 256)
    assert masks.dtype == torch.bool
    assert int(masks.any(dim=1).sum()) == int(batch * probability)


def test_ratios_are_one_from_each_sub_interval() -> None:
    masks = block_masks(GRID, 40, ratio=(0.1, 0.5), generator=_generator())
    counts = masks.sum(dim=1)
    found = counts[counts > 0].sort().values / 256
    upper = torch.linspace(0.1, 0.5, 21)[1:]
    # the targets are never exceeded, so the i-th smallest stays below the i-th upper edge
    assert (found <= upper).all()
    # and a 16 x 16 grid nearly always has room to come close to them
    lower = torch.linspace(0.1, 0.5, 21)[:-1]
    assert (found >= lower - 0.04).float().mean() > 0.8


def test_masked_crops_are_shuffled() -> None:
    places = torch.zeros(8)
    counts = torch.zeros(8)
    for seed in range(300):
        masks = block_masks(GridSize(8, 8), 8, generator=_generator(seed))
        places += masks.any(dim=1)
        counts += masks.sum(dim=1)
    assert (places / 300 - 0.5).abs().max() < 0.1
    assert (counts / counts.mean() - 1).abs().max() < 0.2


@pytest.mark.parametrize('size', [(1, 1), (1, 2), (2, 2), (1, 9), (3, 1), (5, 5), (4, 7), (37, 37)])
def test_any_grid_works(size: tuple[int, int]) -> None:
    grid = GridSize(*size)
    for ratio in [(0.1, 0.5), (0.0, 0.0), (0.9, 1.0)]:
        masks = block_masks(grid, 12, 1.0, ratio, generator=_generator())
        assert masks.shape == (12, grid.area)
        assert int(masks.sum(dim=1).max()) <= grid.area * ratio[1]


def test_tiny_grids_are_masked_as_far_as_they_can_be() -> None:
    def masked(size: int) -> float:
        masks = block_masks(GridSize(size, size), 200, 1.0, generator=_generator())
        return float(masks.float().mean())

    assert masked(1) == 0  # half of one patch is none
    assert masked(2) > 0.1
    assert 0.2 < masked(5) < 0.3
    assert 0.25 < masked(16) < 0.3


def test_masks_are_blocks() -> None:
    masks = block_masks(GRID, 100, 1.0, (0.3, 0.3), generator=_generator()).unflatten(1, (16, 16))
    alike = (masks[:, 1:] == masks[:, :-1]).float().mean()
    # independent patches at 30 % would be alike in 58 % of the pairs
    assert alike > 0.8


@pytest.mark.parametrize(
    ('place', 'rows'),
    [
        ((0, 0, 1, 1), ['1000', '0000', '0000']),
        ((1, 2, 2, 2), ['0000', '0011', '0011']),
        ((0, 0, 3, 4), ['1111', '1111', '1111']),
        ((2, 1, 1, 3), ['0000', '0000', '0111']),
    ],
)
def test_rectangle(place: tuple[int, int, int, int], rows: list[str]) -> None:
    bits = _rectangle(*place, 4)
    assert [bits >> i & 1 for i in range(12)] == [int(bit) for bit in ''.join(rows)]


def test_the_first_rectangle_keeps_to_its_area_and_aspect() -> None:
    # one attempt to place one rectangle: the target is reached or the next attempt fails
    spec = MaskSpec(1.0, (0.5, 0.5))
    uniform = iter(torch.rand(4000, generator=_generator(), dtype=torch.float64).tolist())
    seen = 0
    while seen < 200:
        bits = spec._place(GRID, 0, 4, 128, uniform)
        cells = torch.tensor([bits >> i & 1 for i in range(256)]).view(16, 16)
        height, width = int(cells.any(dim=1).sum()), int(cells.any(dim=0).sum())
        assert int(cells.sum()) == height * width <= 128
        # sides are rounded, so the bounds hold for sides up to half a patch away
        assert (height - 0.5) / (width + 0.5) <= 1 / 0.3
        assert (width - 0.5) / (height + 0.5) <= 1 / 0.3
        assert (height + 0.5) * (width + 0.5) >= 4
        seen += 1


def test_the_generator_alone_decides() -> None:
    state = torch.get_rng_state()

    def draw(seed: int) -> Tensor:
        return block_masks(GRID, 16, generator=_generator(seed))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert torch.equal(torch.get_rng_state(), state)
    generator = _generator(3)
    first = block_masks(GRID, 16, generator=generator)
    assert not torch.equal(block_masks(GRID, 16, generator=generator), first)


def test_function_equals_spec() -> None:
    expected = MaskSpec(0.7, (0.2, 0.4)).sample(GRID, 16, _generator())
    assert torch.equal(block_masks(GRID, 16, 0.7, (0.2, 0.4), generator=_generator()), expected)


def test_a_large_batch_takes_a_few_milliseconds() -> None:
    generator = _generator()
    times = []
    for _ in range(5):
        start = time.process_time()
        block_masks(GRID, 128, generator=generator)
        times.append(time.process_time() - start)
    assert min(times) < 0.03


@pytest.mark.parametrize(
    'wrong',
    [
        {'probability': 1.1},
        {'probability': -0.1},
        {'ratio': (0.5, 0.1)},
        {'ratio': (0.1, 1.5)},
        {'min_area': 0},
        {'min_aspect': 0.0},
        {'attempts': 0},
        {'probability': float('nan')},
    ],
)
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r'The mask settings are .*Allowed are .*Correct'):
        MaskSpec(**wrong)
