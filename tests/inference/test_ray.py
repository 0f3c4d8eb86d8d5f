"""Work shared by the workers of a Ray cluster on this machine, one of whom is killed."""

import importlib
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.inference.conftest import Mixing, segmentation_spec, write_raster
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import (
    PredictSettings,
    RayCluster,
    Shard,
    Tally,
    predict_rasters,
)
from torchgeo_explora.inference.ray_engine import load_ray

POISON = 77
SETTINGS = PredictSettings(batch=4, block=48, probabilities=True)

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec('ray') is None, reason='Ray is not installed'
)


class Mortal(Mixing):
    """Kills the process that it is in: once in the middle, and whenever it sees the poison."""

    def __init__(self, mark: Path) -> None:
        super().__init__(3, 4)
        self.mark, self.calls, self.home = mark, 0, os.getpid()

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        poisoned = bool((images == POISON / 255).all((1, 2, 3)).any())
        first = self.calls == 5 and not self.mark.exists()
        if os.getpid() != self.home and (poisoned or first):
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


@pytest.fixture(scope='module')
def cluster() -> Iterator[None]:
    """Ray with two cores."""
    ray = load_ray()
    ray.init(
        address='local', num_cpus=2, include_dashboard=False, log_to_driver=False,
        logging_level='ERROR', object_store_memory=2**27,
    )  # fmt: skip
    yield
    ray.shutdown()


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob('*_*'))}


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_ray
@pytest.mark.usefixtures('cluster')
def test_killed_workers_change_no_byte_and_what_kills_them_is_named(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    sources = []
    for number, side in enumerate((90, 60, 120)):
        values = rng.integers(0, 255, (3, side, 70), dtype=np.uint8)
        sources.append(write_raster(tmp_path / f'{number}.tif', values))
    poison = np.full((3, 600, 70), POISON, dtype=np.uint8)  # enough for groups of its own
    deadly = write_raster(tmp_path / 'poison.tif', poison)
    torch.set_num_threads(1)
    here = tmp_path / 'here'
    model, spec = Mortal(tmp_path / 'mark'), segmentation_spec(classes=4)
    predict_rasters(sources, model, spec, here, SETTINGS)
    seen: list[Tally] = []
    out = tmp_path / 'there'
    summary = predict_rasters(
        [*sources, deadly], model, spec, out, SETTINGS, progress=seen.append,
        cluster=RayCluster(workers=2, retries=1),
    )  # fmt: skip
    assert model.mark.exists()
    assert summary.tally.deaths > 2  # the one in the middle, and two at the poison
    assert list(summary.failed) == [str(deadly)]
    assert 'workers died at it' in summary.failed[str(deadly)]
    assert sorted(summary.written) == sorted(map(str, sources))
    assert _bytes(out) == _bytes(here)
    assert not list(out.glob('.torchgeo*'))
    assert seen[-1].pixels > 0


def test_workers_share_all_of_the_work(tmp_path: Path, rng: np.random.Generator) -> None:
    source = write_raster(tmp_path / 'a.tif', rng.integers(0, 255, (3, 20, 20), dtype=np.uint8))
    with pytest.raises(ConfigError, match='leave --shard out'):
        predict_rasters(
            [source], Mixing(3, 4), segmentation_spec(classes=4), tmp_path / 'out', SETTINGS,
            shard=Shard(1, 2), cluster=RayCluster(),
        )  # fmt: skip


@pytest.mark.parametrize('numbers', [{'workers': 0}, {'cores': 0}, {'gpus': -1.0}, {'retries': -1}])
def test_impossible_workers_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match='give'):
        RayCluster(**numbers)


def test_a_cluster_has_room_for_whole_workers() -> None:
    resources = {'CPU': 9.0, 'GPU': 2.0}
    assert RayCluster(cores=2).places(resources) == 4
    assert RayCluster(cores=2, gpus=0.5).places(resources) == 4
    assert RayCluster(cores=4, gpus=1).places(resources) == 2
    assert RayCluster(gpus=1).places({'CPU': 8.0}) == 0
    assert (RayCluster().device, RayCluster(gpus=0.5).device) == ('cpu', 'cuda')


def test_without_ray_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, 'import_module', absent)
    with pytest.raises(ConfigError, match=r'torchgeo-explora\[ray\]'):
        load_ray()
