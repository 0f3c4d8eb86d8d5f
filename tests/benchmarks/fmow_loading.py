"""Chips per second of fMoW-Sentinel that a loader worker delivers.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/fmow_loading.py
    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/fmow_loading.py --root DATA --workers 16 --need 900

Without ``--root`` it writes GeoTIFFs of 13 bands, of the sizes that fMoW's places have at 10 m, in the
ways in which such files are stored. It prints the time of each stage of a sample in one process, then
chips per second of loaders with workers, and with ``--need`` (images per second of a training step on
the device) how many times that need the workers deliver. Files just written are in the page cache:
what a disk or a network adds is not in these numbers, unless ``--root`` has them cold.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from torch.utils.data import DataLoader

from tests.data.fmow_sentinel.data import POLYGON, TABLES, layout_path
from torchgeo_explora.datamodules._sampler import Passes
from torchgeo_explora.datasets import SATMAE_BANDS, Cropping, FMoWSentinel, satmae_scale
from torchgeo_explora.datasets._crops import draw_crop
from torchgeo_explora.datasets._fmow import CATEGORIES


@dataclass(frozen=True)
class Storage:
    """How a GeoTIFF is stored.

    Args:
        dtype: Type of the values.
        interleave: ``band`` or ``pixel``.
        compress: GDAL's name of the compression.
    """

    dtype: str
    interleave: str
    compress: str = 'none'


STORAGE = {
    'uint16, by band': Storage('uint16', 'band'),
    'uint16, by pixel, deflate': Storage('uint16', 'pixel', 'deflate'),
    'float64, by pixel': Storage('float64', 'pixel'),
    'float64, by band, LZW': Storage('float64', 'band', 'lzw'),
}


def write_chips(root: Path, count: int, storage: Storage, seed: int = 0) -> None:
    """Write a training table and chips of 40 to 150 pixels a side."""
    rng = np.random.default_rng(seed)
    lines = ['category,location_id,image_id,timestamp,polygon\n']
    for number in range(count):
        name = CATEGORIES[number % len(CATEGORIES)]
        height, width = rng.integers(40, 151, 2).tolist()
        smooth = (
            rng.normal(1500, 300, (13, height // 8 + 2, width // 8 + 2)).repeat(8, 1).repeat(8, 2)
        )
        values = smooth[:, :height, :width] + rng.normal(0, 60, (13, height, width))
        path = root / 'fmow-sentinel' / layout_path('train', name, number, 0)
        path.parent.mkdir(parents=True)
        with rasterio.open(
            path, 'w', driver='GTiff', count=13, height=height, width=width, crs='EPSG:4326',
            transform=from_origin(7, 50, 1e-4, 1e-4), dtype=storage.dtype,
            interleave=storage.interleave, compress=storage.compress,
        ) as sink:  # fmt: skip
            sink.write(values.clip(1).astype(storage.dtype))
        lines.append(f'{name},{number},0,2016-05-09T07:54:11Z,"{POLYGON}"\n')
    (root / TABLES['train']).write_text(''.join(lines))


def milliseconds(action: Callable[[int], object], items: Sequence[int]) -> float:
    """Median time of an action on each item."""
    times = []
    for item in items:
        began = time.perf_counter()
        action(item)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def stages(dataset: FMoWSentinel, items: Sequence[int]) -> dict[str, float]:
    """Milliseconds of what a sample consists of, each measured alone."""
    indexes = [place + 1 for place in dataset._positions]

    def read(position: int) -> np.ndarray:
        with rasterio.open(dataset._path(position)) as source:
            return np.asarray(source.read(indexes))

    def opened(position: int) -> None:
        rasterio.open(dataset._path(position)).close()

    chips = {item: read(item) for item in items}
    images = {item: torch.from_numpy(satmae_scale(chips[item], SATMAE_BANDS)) for item in items}
    draw = draw_crop(np.random.default_rng(0))
    return {
        'open': milliseconds(opened, items),
        'open and read': milliseconds(read, items),
        'scale': milliseconds(lambda item: satmae_scale(chips[item], SATMAE_BANDS), items),
        'crop': milliseconds(
            lambda item: dataset.cropping.cut(images[item].float().div_(255), draw), items
        ),
        'sample': milliseconds(lambda item: dataset.draw(item, 0), items),
    }


def chips_per_second(dataset: FMoWSentinel, workers: int, batch: int, seconds: float) -> float:
    """Throughput of a loader, from its second batch on."""
    order = [key for _ in range(1000) for key in range(len(dataset))]
    loader = DataLoader(Passes(dataset), batch, sampler=order, num_workers=workers)
    iterator = iter(loader)
    next(iterator)
    began, batches = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(iterator)
        batches += 1
    return batches * batch / (time.perf_counter() - began)


def measure(name: str, root: Path, args: argparse.Namespace) -> None:
    """Print what one data set takes."""
    dataset = FMoWSentinel(root, cropping=Cropping(args.size, 'resized', (0.2, 1.0)))
    items = np.random.default_rng(0).permutation(len(dataset))[: args.chips].tolist()
    parts = [f'{stage} {value:.2f}' for stage, value in stages(dataset, items).items()]
    print(f'{name}: {len(dataset)} chips; ms: {", ".join(parts)}')
    for workers in args.workers:
        rate = chips_per_second(dataset, workers, args.batch, args.seconds)
        line = f'  {workers:2} workers: {rate:7.0f} chips/s, {rate / max(workers, 1):6.0f} each'
        if args.need is not None:
            line += f', {rate / args.need:.2f} times the need'
        print(line)


def main() -> None:
    """Measure generated chips in every storage, or a data set that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('--root', type=Path, help='an fMoW-Sentinel, instead of generated chips')
    parser.add_argument('--chips', type=int, default=300)
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--seconds', type=float, default=5.0)
    parser.add_argument('--need', type=float, help='images per second of a training step')
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f'torch {torch.__version__}, rasterio {rasterio.__version__}, one thread a process')
    if args.root is not None:
        measure(str(args.root), args.root, args)
        return
    for name, storage in STORAGE.items():
        with tempfile.TemporaryDirectory() as folder:
            write_chips(Path(folder), args.chips, storage)
            measure(name, Path(folder), args)


if __name__ == '__main__':
    main()
