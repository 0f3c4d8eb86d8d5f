"""Polygons in another coordinate system, where coordinates may go round the Earth."""

import math

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

from torchgeo_explora.errors import ConfigError

PIECES = 1024
"""Straight pieces along the longer side of polygons that are brought elsewhere, where they may
become curves."""

TURNS = range(-2, 3)
"""Turns round the Earth that rasters and polygons may be apart: -180 to 180, 0 to 360, beyond."""

CYLINDRICAL = ('mercator', 'cylindrical', 'plate carr')
"""Words in the names of projections whose x is proportional to longitude, without transverse or
oblique ones."""


def bring(polygons: geopandas.GeoSeries, crs: CRS) -> BaseGeometry:
    """Bring polygons to a coordinate system.

    Edges are straight where they were drawn. Polygons across the date line stay in one piece.

    Args:
        polygons: With their coordinate system.
        crs: Where to.

    Returns:
        Their union there.

    Raises:
        ConfigError: If they reach beyond where the system is defined.
    """
    if polygons.crs == crs:
        return polygons.union_all()
    left, bottom, right, top = polygons.total_bounds
    dense = polygons.segmentize(max(right - left, top - bottom) / PIECES)
    moved = np.asarray(dense.to_crs(crs.to_wkt()).array, dtype=object)
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise ConfigError(
            f'The polygons reach beyond where {crs.name} is defined: draw smaller ones.'
        )
    period = turn(crs)
    if period is not None:
        parts = shapely.get_parts(moved)
        moved = np.array([_unwrapped(part, period, crs) for part in parts], dtype=object)
    # without lines, which would be burnt as pixels
    mended = shapely.make_valid(moved, method='structure', keep_collapsed=False)
    whole: BaseGeometry = shapely.union_all(mended)
    return whole


def over(area: BaseGeometry, footprint: BaseGeometry, crs: CRS) -> BaseGeometry:
    """Return the part of an area near a raster, whichever way round the Earth it lies.

    Args:
        area: Polygons.
        footprint: Of the raster; may reach beyond 180 degrees.
        crs: Coordinate system of both.

    Returns:
        The polygons that meet the footprint, moved by whole turns; empty where none does.
    """
    period = turn(crs)
    shifts = [0.0] if period is None else [number * period for number in TURNS]
    copies = [translate(area, shift) for shift in shifts]
    meeting: BaseGeometry = shapely.union_all([c for c in copies if c.intersects(footprint)])
    return meeting


def turn(crs: CRS) -> float | None:
    """Return how far x goes in one turn round the Earth, in units of a coordinate system.

    Args:
        crs: The system.

    Returns:
        The distance; None where x does not go round.
    """
    if crs.is_geographic:
        return 2 * math.pi / crs.axis_info[0].unit_conversion_factor
    operation, base = crs.coordinate_operation, crs.geodetic_crs
    if operation is None or base is None or not _is_cylindrical(operation.method_name):
        return None
    there = Transformer.from_crs(base, crs, always_xy=True)
    middle = there.transform(0.0, 0.0, direction='INVERSE')[0]
    west, east = (there.transform(middle + side, 0.0)[0] for side in (-1.0, 1.0))
    # degrees are the units of nearly all geodetic systems; others turn by as many units
    degrees = 2 * math.pi / base.axis_info[0].unit_conversion_factor
    return float(abs(east - west)) / 2 * degrees


def _is_cylindrical(method: str) -> bool:
    name = method.lower()
    others = ('transverse', 'oblique')
    return any(word in name for word in CYLINDRICAL) and not any(word in name for word in others)


def _unwrapped(polygon: shapely.Polygon, period: float, crs: CRS) -> shapely.Polygon:
    """Undo jumps of x by a whole turn between neighbouring corners."""
    shell = _ring(polygon.exterior, period, crs)
    middle = (shell[:, 0].min() + shell[:, 0].max()) / 2
    holes = []
    for interior in polygon.interiors:
        hole = _ring(interior, period, crs)
        centre = (hole[:, 0].min() + hole[:, 0].max()) / 2
        hole[:, 0] += period * np.rint((middle - centre) / period)
        holes.append(hole)
    return shapely.Polygon(shell, holes)


def _ring(ring: shapely.LinearRing, period: float, crs: CRS) -> NDArray[np.float64]:
    """(n, 2) corners; a ring round a pole is closed along the pole."""
    corners = shapely.get_coordinates(ring)
    corners[:, 0] = np.unwrap(corners[:, 0], period=period)
    if not crs.is_geographic or abs(corners[-1, 0] - corners[0, 0]) < period / 2:
        return corners
    pole = math.copysign(period / 4, float(corners[:, 1].mean()))
    return np.vstack([corners, [corners[-1, 0], pole], [corners[0, 0], pole], corners[:1]])
