"""A process that measures what an index of very many rows takes, here and in workers."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from torch.utils.data import DataLoader, Dataset, Subset

from torchgeo_explora.datasets import Camelyon17, Cropping, FMoWSentinel

METHODS = 'fork', 'forkserver'
"""A worker inherits the data set, or is sent it."""


def main(arguments: Sequence[str]) -> None:
    """Run as its own process.

    Args:
        arguments: The name of a data set, and its folder.
    """
    name, root = arguments
    measured = {'fmow-sentinel': _fmow_sentinel, 'camelyon17': _camelyon17}[name](Path(root))
    print(json.dumps(measured))  # noqa: T201


def _own(process: psutil.Process) -> int:
    return int(process.memory_full_info().uss)


def _fmow_sentinel(root: Path) -> dict[str, float]:
    process = psutil.Process()
    before = process.memory_info().rss
    start = time.perf_counter()
    dataset = FMoWSentinel(root, cropping=Cropping(8))
    seconds = time.perf_counter() - start
    grown = process.memory_info().rss - before
    result = {'seconds': seconds, 'grown': grown, 'rows': len(dataset)}
    one = FMoWSentinel(root, csv='one.csv', cropping=Cropping(8))
    for method in METHODS:
        result[method] = _workers(dataset, method) - _workers(one, method)
    return result


def _workers(dataset: FMoWSentinel, method: str) -> int:
    """The larger of two workers."""
    data: DataLoader[Any] = DataLoader(
        Subset(dataset, [0] * 8), 2, num_workers=2, multiprocessing_context=method
    )
    iterator = iter(data)
    next(iterator)
    # every entry of the index is looked at in the parent's memory
    assert all(dataset.index.paths[row] != '' for row in range(0, len(dataset), 100))
    workers = {worker.pid for worker in iterator._workers}  # type: ignore[attr-defined]
    size = max(_own(psutil.Process(worker)) for worker in workers)
    list(iterator)
    return size


class _Alone(Dataset[int]):
    """Looks at the index, and returns the memory of the process that does so."""

    def __init__(self, dataset: Camelyon17) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        assert self.dataset.index.paths[index * 1000 % len(self.dataset)] != ''
        return _own(psutil.Process(os.getpid()))


def _camelyon17(root: Path) -> dict[str, float]:
    before, start = _own(psutil.Process()), time.perf_counter()
    dataset = Camelyon17(root, 'train_unlabeled')
    seconds, grown = time.perf_counter() - start, _own(psutil.Process()) - before
    worker = max(int(value) for value in DataLoader(_Alone(dataset), num_workers=1))
    return {'seconds': seconds, 'grown': grown, 'rows': len(dataset), 'worker': worker}
