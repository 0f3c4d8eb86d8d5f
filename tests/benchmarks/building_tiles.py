"""Turn the drone tiles with building polygons into GeoTIFFs and a vector file.

    PYTHONPATH=. python tests/benchmarks/building_tiles.py buildings_tiles.zip FOLDER
    PYTHONPATH=. python tests/benchmarks/building_tiles.py buildings_tiles.zip FOLDER --zooms 21

The archive holds pictures of 256 pixels named ``<source>-<x>-<y>-<z>.png``, tiles of the usual scheme
in web mercator, and ``labels.geojson``. FOLDER gets ``images/*.tif`` in EPSG:3857, every pixel where
the tile has it, transparency as an alpha channel, and ``labels.geojson`` as it is. Tiles of different
zooms show the same ground: the files overlap one another. The result depends on the archive alone.
"""

import argparse
import io
import shutil
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import ColorInterp

HALF_WORLD = 20_037_508.342789244
"""Half the side of the web-mercator square in metres: pi times WGS 84's semi-major axis."""

LABELS = 'labels.geojson'


class Tile(NamedTuple):
    """Position of a tile: column and row from the north-west corner of the square, and zoom."""

    x: int
    y: int
    zoom: int


def parse_name(name: str) -> Tile:
    """Position of a picture, from its name.

    Args:
        name: ``<source>-<x>-<y>-<z>.png``.

    Raises:
        ValueError: If the name has another form.
    """
    x, y, zoom = Path(name).stem.rsplit('-', maxsplit=3)[1:]
    return Tile(int(x), int(y), int(zoom))


def tile_transform(tile: Tile, size: int) -> Affine:
    """Place of a tile's pixels in EPSG:3857.

    Args:
        tile: The tile.
        size: Pixels on a side.
    """
    side = 2 * HALF_WORLD / 2**tile.zoom
    west, north = tile.x * side - HALF_WORLD, HALF_WORLD - tile.y * side
    return Affine(side / size, 0, west, 0, -side / size, north)


def write_tile(path: Path, picture: Image.Image, tile: Tile) -> None:
    """Write a picture as a GeoTIFF of three bands, with a fourth where it has transparency."""
    pixels = np.asarray(picture).transpose(2, 0, 1)
    count, height, width = pixels.shape
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)[:count]
    with rasterio.open(
        path, 'w', driver='GTiff', count=count, height=height, width=width, dtype='uint8',
        crs='EPSG:3857', transform=tile_transform(tile, width), compress='deflate',
    ) as sink:  # fmt: skip
        sink.colorinterp = colours
        sink.write(pixels)


def write_geotiffs(archive: Path, root: Path, zooms: Collection[int] | None = None) -> Path:
    """Write all tiles of the archive, and its labels.

    Args:
        archive: The .zip file.
        root: Folder to write to; created where needed.
        zooms: Zooms to keep; None for all.

    Returns:
        ``root``, which holds ``images`` and ``labels.geojson``.
    """
    images = root / 'images'
    images.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as source:
        for name in sorted(name for name in source.namelist() if name.endswith('.png')):
            tile = parse_name(name)
            if zooms is None or tile.zoom in zooms:
                picture = Image.open(io.BytesIO(source.read(name)))
                write_tile(images / f'{Path(name).stem}.tif', picture, tile)
        with source.open(LABELS) as labels, (root / LABELS).open('wb') as sink:
            shutil.copyfileobj(labels, sink)
    return root


def main() -> None:
    """Write the folder that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('archive', type=Path, help='buildings_tiles.zip')
    parser.add_argument('root', type=Path, help='folder to write to')
    parser.add_argument('--zooms', type=int, nargs='+', help='zooms to keep; all where not given')
    args = parser.parse_args()
    root = write_geotiffs(args.archive, args.root, args.zooms)
    print(f'{len(list((root / "images").glob("*.tif")))} GeoTIFFs in {root / "images"}')


if __name__ == '__main__':
    main()
