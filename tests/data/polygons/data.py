"""Makes small rasters anywhere on Earth and files of polygons that lie on them.

Run as a script with a folder's name to look at them.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp

UTM = 'EPSG:32632'
RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
WEST, NORTH = 500_000.0, 5_000_000.0
"""Corner that rasters start from unless they are told otherwise."""


def noise(bands: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes from 1 to 255, (bands, height, width)."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (bands, height, width), dtype=np.uint8)


def grid(column: float = 0, row: float = 0, pixel: float = 10, angle: float = 0) -> Affine:
    """A grid of square pixels whose corner lies so many pixels from the usual one."""
    west, north = WEST + column * pixel, NORTH - row * pixel
    along, aside = pixel * math.cos(math.radians(angle)), pixel * math.sin(math.radians(angle))
    return Affine(along, aside, west, aside, -along, north)


def write(
    path: Path,
    values: NDArray[np.generic],
    transform: Affine | None = None,
    crs: str | None = UTM,
    nodata: float | None = None,
    alpha: bool = False,
) -> Path:
    """A GeoTIFF of (bands, height, width); with ``alpha`` the last of four bands is that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    with rasterio.open(
        path, 'w', driver='GTiff', count=count, height=height, width=width,
        dtype=values.dtype.name, crs=crs, nodata=nodata,
        transform=grid() if transform is None else transform,
    ) as sink:  # fmt: skip
        if alpha:
            sink.colorinterp = RGBA
        sink.write(values)
    return path


def square(column: float, row: float, side: float, pixel: float = 10) -> shapely.Polygon:
    """A square on the usual grid, from its upper left corner, in pixels."""
    west, north = WEST + column * pixel, NORTH - row * pixel
    return shapely.box(west, north - side * pixel, west + side * pixel, north)


def write_polygons(
    path: Path,
    shapes: Sequence[shapely.Geometry | None],
    columns: Mapping[str, Sequence[object]] | None = None,
    crs: str | None = 'EPSG:4326',
) -> Path:
    """A vector file of geometries that are given in the usual UTM zone."""
    series = geopandas.GeoSeries(
        np.array(shapes, dtype=np.object_), crs=None if crs is None else UTM
    )
    placed = series if crs is None else series.to_crs(crs)
    table = {} if columns is None else dict(columns)
    geopandas.GeoDataFrame(table, geometry=placed).to_file(path)
    return path


def write_fields(root: Path, count: int = 4, side: int = 96, labels: str = 'labels.gpkg') -> Path:
    """Adjoining rasters in a row, a quarter of each covered by a square of one of two classes."""
    shapes, names = [], []
    for number in range(count):
        values = noise(3, side, side, number)
        write(root / 'images' / f'{number}.tif', values, grid(column=number * side))
        for part in range(4):
            column, row = number * side + side // 2 * (part % 2), side // 2 * (part // 2)
            shapes.append(square(column + side // 8, row + side // 8, side // 4))
            names.append(('crop', 'forest')[part % 2])
    write_polygons(root / labels, shapes, {'kind': names})
    return root


if __name__ == '__main__':
    write_fields(Path(sys.argv[1]))
