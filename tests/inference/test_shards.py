"""Shares of the work, and the plan that they agree on."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.conftest import Mixing, segmentation_spec, write_raster
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import PredictSettings, Shard, predict_rasters
from torchgeo_explora.inference.shards import SHARDS

SETTINGS = PredictSettings(batch=2, block=32)


@pytest.fixture
def scenes(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    """Two rasters of several blocks."""
    sizes = ((100, 40), (70, 90))
    return [
        write_raster(tmp_path / f'{n}.tif', rng.integers(0, 255, (3, *size), dtype=np.uint8))
        for n, size in enumerate(sizes)
    ]


def _shard(scenes: list[Path], out: Path, number: int, count: int) -> None:
    model, spec = Mixing(3, 4), segmentation_spec(classes=4)
    predict_rasters(scenes, model, spec, out, SETTINGS, shard=Shard(number, count))


def test_the_plan_covers_every_pixel_once_with_what_windows_see(
    scenes: list[Path], tmp_path: Path
) -> None:
    _shard(scenes, tmp_path / 'out', 2, 3)
    plan = json.loads((tmp_path / 'out' / SHARDS).read_text())
    filled = {str(scenes[0]): np.zeros((100, 40), int), str(scenes[1]): np.zeros((70, 90), int)}
    units = [unit for group in plan['groups'] for unit in group]
    for unit in units:
        raster = filled[unit['raster']]
        raster[slice(*unit['rows']), slice(*unit['columns'])] += 1
        for side, length in zip(('rows', 'columns'), raster.shape, strict=True):
            first, stop = unit[side]
            seen, until = unit[f'read_{side}']
            assert 0 <= seen <= first < stop <= until <= length
            # windows of 16 that overlap by 4 see at most 12 pixels beyond a block
            assert first - seen <= 12
            assert until - stop <= 12
    assert all((raster == 1).all() for raster in filled.values())
    assert len(plan['groups']) > 1


def test_all_shards_write_the_same_plan_and_others_are_refused(
    scenes: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / 'out'
    _shard(scenes, out, 1, 2)
    before = (out / SHARDS).read_bytes()
    _shard(scenes, out, 2, 2)
    assert (out / SHARDS).read_bytes() == before
    os.utime(scenes[1], ns=(1, 1))  # written again since
    with pytest.raises(ConfigError, match='planned for other rasters'):
        _shard(scenes, out, 1, 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9))
def test_shards_share_groups_out_once(groups: int, count: int) -> None:
    work: list[Any] = [(number,) for number in range(groups)]
    shares = [Shard(number, count).of(work) for number in range(1, count + 1)]
    assert sorted(group for share in shares for group in share) == work
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
