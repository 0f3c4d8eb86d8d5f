"""Places that a user points at: a position, or points, lines and polygons of a vector file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError
from rasterio import Affine
from rasterio.features import rasterize
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.inference.raster import RasterInfo
from torchgeo_explora.inference.windows import Block, Extent, Interval

LONGITUDE_LATITUDE = 'EPSG:4326'
"""Coordinate reference system of positions that name none."""

type Shapes = Sequence[BaseGeometry]


@dataclass(frozen=True)
class ChosenCells:
    """Places in the cells of one raster.

    Args:
        centred: Polygons that take the cells whose centre they cover; x is the column, y the row.
        touched: Points, lines, and polygons without any centre, which take what they touch.
    """

    centred: Shapes
    touched: Shapes

    def mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which cells of a part of the raster are chosen.

        Args:
            block: The part.

        Returns:
            (height, width).
        """
        return _burn(self.centred, block, False) | _burn(self.touched, block, True)


def _burn(shapes: Shapes, block: Block, all_touched: bool) -> NDArray[np.bool_]:
    rows, columns = block.rows, block.columns
    box = shapely.box(columns.first, rows.first, columns.stop, rows.stop)
    near = [shape for shape in shapes if shape.intersects(box)]
    size = (rows.length, columns.length)
    if not near or 0 in size:
        return np.zeros(size, dtype=np.bool_)
    origin = Affine.translation(columns.first, rows.first)
    burnt = rasterize(
        [(shape, 1) for shape in near],
        size,
        transform=origin,
        all_touched=all_touched,
        dtype='uint8',
    )
    chosen: NDArray[np.bool_] = burnt.astype(np.bool_)
    return chosen


class Places:
    """What a user points at.

    Args:
        items: Positions ``X,Y`` (longitude and latitude), ``X,Y,CRS``, and vector files in any
            coordinate reference system.

    Raises:
        ConfigError: If one cannot be understood, or holds nothing.
    """

    def __init__(self, items: Sequence[str]) -> None:
        self.items = tuple(items)
        self._parts = [_shapes(item) for item in items]

    @property
    def description(self) -> list[str]:
        """Text and geometry of every item, to tell whether a run is asked for the same."""
        pairs = zip(self.items, self._parts, strict=True)
        return [f'{item}: {shapely.to_wkt(part.union_all(), 12)}' for item, part in pairs]

    def within(self, info: RasterInfo) -> ChosenCells | None:
        """Bring the places into the cells of a raster.

        Args:
            info: Its header.

        Returns:
            The cells; None where no place lies in the raster.

        Raises:
            ImageError: If the raster is not placed on Earth, or places cannot be brought to it.
        """
        shapes = [shape for shape in self._in_cells(info) if shape.intersects(_box(info.extent))]
        if not shapes:
            return None
        whole = [shape for shape in shapes if _has_centre(shape, info.extent)]
        return ChosenCells(whole, [shape for shape in shapes if shape not in whole])

    def _in_cells(self, info: RasterInfo) -> Iterator[BaseGeometry]:
        crs = info.place.crs
        if crs is None or not info.place.placed:
            raise ImageError(
                f'{info.path} has no coordinate reference system or no transform, so that no place '
                'can be found in it: warp the raster first.'
            )
        inverse = ~info.place.transform
        matrix = [inverse.a, inverse.b, inverse.d, inverse.e, inverse.c, inverse.f]
        for part in self._parts:
            try:
                moved = part.to_crs(crs.to_wkt())
            except (CRSError, ProjError) as error:
                raise ImageError(
                    f'{", ".join(self.items)} cannot be brought to {info.path} ({error}).'
                ) from error
            for shape in moved[np.isfinite(moved.bounds).all(axis=1)]:
                yield affine_transform(shape, matrix)


def _box(extent: Extent) -> BaseGeometry:
    return shapely.box(0, 0, extent.width, extent.height)


def _has_centre(shape: BaseGeometry, extent: Extent) -> bool:
    """Whether a polygon covers the centre of a cell."""
    if shape.geom_type not in {'Polygon', 'MultiPolygon'}:
        return False
    left, top, right, bottom = shape.bounds
    rows = Interval(int(np.floor(top)), int(np.ceil(bottom))).clip(Interval(0, extent.height))
    columns = Interval(int(np.floor(left)), int(np.ceil(right))).clip(Interval(0, extent.width))
    return bool(_burn([shape], Block(rows, columns), False).any())


def _shapes(item: str) -> geopandas.GeoSeries:
    position = _position(item)
    return _read(Path(item).expanduser()) if position is None else position


def _position(item: str) -> geopandas.GeoSeries | None:
    """Read ``X,Y`` or ``X,Y,CRS``; None where it is a file."""
    texts = item.split(',', 2)
    if len(texts) < 2 or Path(item).expanduser().exists():
        return None
    try:
        x, y = float(texts[0]), float(texts[1])
    except ValueError:
        return None
    named = texts[2].strip() if len(texts) == 3 else LONGITUDE_LATITUDE
    try:
        crs = pyproj.CRS.from_user_input(named)
    except CRSError as error:
        raise ConfigError(
            f'{item} names the coordinate reference system {named!r}, which is not known: name one '
            'as in 500000,5200000,EPSG:32632.'
        ) from error
    if len(texts) == 2 and not (abs(x) <= 360 and abs(y) <= 90):
        raise ConfigError(
            f'{item} is no longitude and latitude: name the coordinate reference system, as in '
            f'{item},EPSG:32632.'
        )
    return geopandas.GeoSeries([shapely.Point(x, y)], crs=crs)


def _read(path: Path) -> geopandas.GeoSeries:
    if not path.exists():
        raise ConfigError(
            f'{path} is not there and is no position: give X,Y (longitude and latitude), '
            'X,Y,EPSG:code, or a vector file.'
        )
    try:
        frame: Any = geopandas.read_file(path)
    except Exception as error:  # drivers raise what they like
        raise ConfigError(
            f'{path} cannot be read ({" ".join(str(error).split())}): give a vector file.'
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise ConfigError(f'{path} has no geometries: give a vector file of places.')
    if frame.crs is None:
        raise ConfigError(
            f'{path} has no coordinate reference system: write it with one, or name it in a .prj '
            'file beside it.'
        )
    shapes = frame.geometry[~(frame.geometry.is_empty | frame.geometry.isna())]
    if shapes.empty:
        raise ConfigError(f'{path} has no geometry: draw at least one point or polygon.')
    mended = shapely.make_valid(np.asarray(shapes.array, dtype=object))
    return geopandas.GeoSeries(mended, crs=frame.crs).explode(ignore_index=True)
