"""Where pixels lie on the ground: one projection for all rasters, in metres."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

from torchgeo_explora.errors import ImageError

from ._headers import ImageHeader
from ._vectors import Geometries

PIECES = 4
"""Pieces that a footprint's sides are cut into: straight sides in a raster are curved elsewhere."""

INSET = 1e-3
"""Pixels that a footprint keeps from its own border, so that neighbours do not touch."""

_SHRINK = np.array([INSET, INSET, -2 * INSET, -2 * INSET])
_SIDE = np.arange(PIECES) / PIECES
_ACROSS = np.concatenate([_SIDE, np.ones(PIECES), 1 - _SIDE, np.zeros(PIECES)])
_DOWN = np.concatenate([np.zeros(PIECES), _SIDE, np.ones(PIECES), 1 - _SIDE])

type Boxes = NDArray[np.float64]
"""(N, 4) of row, column, height and width in a raster's pixels."""

type Points = NDArray[np.float64]
"""(..., 2) of x and y."""


@dataclass(frozen=True)
class Place:
    """Position of a raster.

    Args:
        path: The file.
        crs: Its coordinate reference system, as WKT.
        transform: From (column, row) to (x, y), in float64.
        height: Rows in pixels.
        width: Columns in pixels.
    """

    path: Path
    crs: str
    transform: Affine
    height: int
    width: int


def read_places(headers: Sequence[ImageHeader]) -> tuple[list[Place | None], dict[Path, str]]:
    """Positions of rasters.

    Args:
        headers: The rasters.

    Returns:
        One position for each, None where it has none, and why those have none.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=16) as pool:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        results = list(pool.map(_read_place, headers))
    reasons = {
        header.path: result
        for header, result in zip(headers, results, strict=True)
        if isinstance(result, str)
    }
    return [None if isinstance(result, str) else result for result in results], reasons


def _read_place(header: ImageHeader) -> Place | str:
    with rasterio.open(header.path) as source:
        if source.crs is None and source.gcps[0]:
            return 'placed by ground control points only: warp it to a grid first'
        if source.crs is None:
            return 'no CRS'
        if source.transform.is_identity or source.transform.determinant == 0:
            return 'no transform from pixels to coordinates'
        return Place(
            header.path, source.crs.to_wkt(), source.transform, header.height, header.width
        )


@lru_cache(maxsize=256)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(CRS.from_user_input(source), target, always_xy=True)


def coordinates(
    transform: Affine, columns: NDArray[np.float64], rows: NDArray[np.float64]
) -> Points:
    """Coordinates of positions in a raster; pixel centres are at halves.

    Args:
        transform: The raster's.
        columns: Positions from its left side, in pixels.
        rows: Positions from its upper side, in pixels.

    Returns:
        (..., 2) of x and y in the raster's CRS.
    """
    x = transform.a * columns + transform.b * rows + transform.c
    y = transform.d * columns + transform.e * rows + transform.f
    return np.stack([x, y], axis=-1)


def position(transform: Affine, column: float, row: float) -> tuple[float, float]:
    """Coordinates of one position in a raster.

    Args:
        transform: The raster's.
        column: Position from its left side, in pixels.
        row: Position from its upper side, in pixels.
    """
    x, y = coordinates(transform, np.array(column), np.array(row)).tolist()
    return x, y


class Ground:
    """Lambert's azimuthal equal-area projection around the middle of some rasters, in metres.

    Rasters of any CRS are compared in it: it is true to area everywhere, has no seam near the
    rasters (at the date line neither), and no pole troubles it.

    Args:
        places: The rasters, at least one.

    Raises:
        ImageError: If a raster's coordinates cannot be brought to longitude and latitude.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        middles = np.array([self._middle(place) for place in places])
        longitude, latitude = np.radians(middles).T
        mean = np.mean(
            [
                np.cos(latitude) * np.cos(longitude),
                np.cos(latitude) * np.sin(longitude),
                np.sin(latitude),
            ],
            axis=1,
        )
        middle = np.degrees(
            [np.arctan2(mean[1], mean[0]), np.arctan2(mean[2], np.hypot(*mean[:2]))]
        )
        self.crs = f'+proj=laea +lon_0={middle[0]:.6f} +lat_0={middle[1]:.6f} +datum=WGS84 +units=m +type=crs'

    def _middle(self, place: Place) -> Points:
        x, y = position(place.transform, place.width / 2, place.height / 2)
        point = _transformer(place.crs, 'EPSG:4326').transform(x, y)
        if not np.isfinite(point).all():
            raise ImageError(
                f'{place.path} lies at ({x:g}, {y:g}), which its CRS does not place on the Earth: '
                'give a raster with the right CRS.'
            )
        return np.asarray(point)

    def project(
        self, place: Place, columns: NDArray[np.float64], rows: NDArray[np.float64]
    ) -> Points:
        """Positions in a raster on the ground.

        Args:
            place: The raster.
            columns: Positions from its left side, in pixels.
            rows: Positions from its upper side, in pixels.

        Returns:
            (..., 2) of x and y in metres.
        """
        points = coordinates(place.transform, columns, rows)
        return np.stack(
            _transformer(place.crs, self.crs).transform(points[..., 0], points[..., 1]), axis=-1
        )

    def footprints(self, place: Place, boxes: Boxes) -> Geometries:
        """Ground that parts of a raster cover.

        Args:
            place: The raster.
            boxes: (N, 4) of row, column, height and width.

        Returns:
            (N,) of polygons, a thousandth of a pixel smaller on each side.
        """
        row, column, height, width = (boxes + _SHRINK).T[..., None]
        points = self.project(place, column + width * _ACROSS, row + height * _DOWN)
        return np.asarray(shapely.polygons(points))

    def pixel(self, place: Place) -> tuple[float, float]:
        """Height and width of a pixel in the middle of a raster, in metres."""
        column, row = place.width / 2, place.height / 2
        points = self.project(
            place, np.array([column, column, column + 1]), np.array([row, row + 1, row])
        )
        down, across = np.hypot(*(points[1:] - points[0]).T)
        return float(down), float(across)
