"""Memory that it takes to write embeddings of many bands as a cloud-optimised GeoTIFF.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.embedding_memory --bands 384 1024

Prints, for each number of bands and each type, the peak of a process's resident memory above that
of the same process before, and the CPU time.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS

from torchgeo_explora.inference.codecs import ByteCodec, Codec, FloatCodec
from torchgeo_explora.inference.cog import TILE, Picture, write_cog
from torchgeo_explora.inference.raster import Georeference
from torchgeo_explora.inference.windows import Block, Extent, Interval

EXTENT = Extent(200, 140)


def codec(name: str, bands: int) -> Codec:
    """How numbers are stored."""
    if name == 'int8':
        return ByteCodec(np.full(bands, -4.0), np.full(bands, 4.0))
    return FloatCodec(bands, half=name == 'float16')


def measure(bands: int, name: str, answer: Connection) -> None:
    """Write noise, and tell megabytes and seconds."""

    def read(part: Block) -> NDArray[np.float32]:
        rng = np.random.default_rng((part.rows.first, part.columns.first))
        shape = part.rows.length, part.columns.length, bands
        return np.moveaxis(rng.standard_normal(shape, dtype=np.float32), -1, 0)

    parts = [
        Block(
            Interval(top, min(top + TILE, EXTENT.height)),
            Interval(left, min(left + TILE, EXTENT.width)),
        )
        for top in range(0, EXTENT.height, TILE)
        for left in range(0, EXTENT.width, TILE)
    ]
    place = Georeference(CRS.from_epsg(32631), Affine(14, 0, 5e5, 0, -14, 5e6))
    names = tuple(f'block 11 dimension {index}' for index in range(bands))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        picture = Picture(EXTENT, place, names, codec(name, bands))
        write_cog(Path(folder, 'embedding.tif'), picture, parts, read)
    spent = time.process_time() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send(((after - before) / 1024, spent))


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--bands', type=int, nargs='+', default=[384, 1024])
    parser.add_argument('--dtypes', nargs='+', default=['float16', 'int8'])
    args = parser.parse_args()
    context = multiprocessing.get_context('spawn')
    for bands in args.bands:
        for name in args.dtypes:
            here, there = context.Pipe()
            process = context.Process(target=measure, args=(bands, name, there))
            process.start()
            peak, spent = here.recv()
            process.join()
            print(f'{bands} bands, {name}: {peak:.0f} MB, {spent:.1f} s CPU', flush=True)


if __name__ == '__main__':
    main()
