"""Classes of a map as polygons: whole ones, because the map is traced as a whole."""

import datetime
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import Affine
from rasterio.crs import CRS as RasterCRS
from rasterio.features import shapes
from rasterio.io import DatasetReader

from torchgeo_explora.errors import ConfigError


@dataclass(frozen=True)
class PolygonSettings:
    """Which polygons are written.

    Args:
        min_area: Smallest area, in square metres (of a raster that is nowhere on Earth, in squares
            of its own units).
        simplify: Pixels by which outlines may be simplified; neighbours keep a common outline.

    Raises:
        ConfigError: If a number is negative.
    """

    min_area: float = 0.0
    simplify: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ('min_area', 'simplify'):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f'{name} is {value}: give 0 or more.')


def write_polygons(
    raster: Path,
    path: Path,
    layer: str,
    classes: Sequence[str],
    settings: PolygonSettings,
    modified: float | None = None,
) -> None:
    """Trace a map and write a GeoPackage in its coordinate reference system.

    Pixels belong together that share a side. Memory grows with the number of polygons.

    Args:
        raster: The map.
        path: The GeoPackage to write, with ``value``, ``class``, ``area`` and the polygon.
        layer: Name of the layer in it.
        classes: Names, by value.
        settings: Which polygons.
        modified: Seconds since 1970 that the file states as the time of its last change; None for
            that of writing.

    Raises:
        OSError: Or another of pyogrio's errors, if it cannot be written.
    """
    with rasterio.open(raster) as source:
        values, outlines = trace(source)
        system: RasterCRS | None = source.crs
        crs = None if system is None else system.to_wkt()
        place = source.transform
    if settings.simplify > 0:
        outlines = simplify_together(outlines, settings.simplify)
    outlines = shapely.transform(outlines, lambda points: _moved(points, place))
    areas = measure(outlines, crs)
    kept = areas >= settings.min_area
    names = np.array(classes, dtype=object)[values[kept]]
    frame = geopandas.GeoDataFrame(
        {'value': values[kept], 'class': names, 'area': areas[kept]},
        geometry=outlines[kept],
        crs=crs,
    )
    with dated(modified):
        pyogrio.write_dataframe(frame, path, layer=layer, driver='GPKG', geometry_type='Polygon')


def trace(source: DatasetReader) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Trace the areas of one value.

    Args:
        source: A map of one band.

    Returns:
        (n,) values, and (n,) polygons in pixels, columns before rows; none where there is no data.
    """
    values, outlines = [], []
    # of a band that is open, GDAL gives coordinates whatever transform is asked for
    band: Any = rasterio.band(source, 1)  # typed as if only arrays were taken
    for geometry, value in shapes(band):
        if value != source.nodata:
            rings = [shapely.linearrings(ring) for ring in geometry['coordinates']]
            outlines.append(shapely.Polygon(rings[0], rings[1:]))
            values.append(int(value))
    pixels = shapely.transform(
        np.array(outlines, dtype=object),
        lambda points: np.rint(_moved(points, ~source.transform)),
    )
    return np.array(values, dtype=np.int64), pixels


def simplify_together(outlines: NDArray[np.object_], pixels: float) -> NDArray[np.object_]:
    """Simplify polygons so that outlines that two of them share stay the same.

    Args:
        outlines: (n,) polygons in pixels, with corners at whole numbers.
        pixels: How much; about 1 smooths the stairs of pixels.

    Returns:
        (n,) polygons.
    """
    if len(outlines) == 0:
        return outlines
    # neighbours must have the same points along what they share: one at every pixel
    dense = shapely.transform(shapely.segmentize(outlines, 1.0), np.rint)
    simple: NDArray[np.object_] = shapely.coverage_simplify(dense, pixels)
    return simple


def _moved(points: NDArray[np.float64], place: Affine) -> NDArray[np.float64]:
    columns, rows = points[:, 0], points[:, 1]
    x = place.a * columns + place.b * rows + place.c
    y = place.d * columns + place.e * rows + place.f
    return np.stack([x, y], axis=1)


def measure(outlines: NDArray[np.object_], crs: str | None) -> NDArray[np.float64]:
    """Measure polygons: on the ellipsoid where coordinates are angles.

    Args:
        outlines: (n,) polygons.
        crs: Their coordinate reference system, as WKT.

    Returns:
        (n,) square metres; squares of the units where there is no system.
    """
    plane: NDArray[np.float64] = np.asarray(shapely.area(outlines), dtype=np.float64)
    if crs is None:
        return plane
    system = CRS.from_wkt(crs)
    geod = system.get_geod()
    if system.is_geographic and geod is not None:
        areas = [abs(geod.geometry_area_perimeter(outline)[0]) for outline in outlines]
        return np.array(areas, dtype=np.float64)
    units = system.axis_info[0].unit_conversion_factor if system.axis_info else 1.0
    return plane * units**2


@contextmanager
def dated(modified: float | None) -> Iterator[None]:
    """Have GDAL state a given time, so that the same work gives the same bytes.

    Args:
        modified: Seconds since 1970; None for the present.
    """
    name = 'OGR_CURRENT_DATE'
    before = pyogrio.get_gdal_config_option(name)
    if modified is not None:
        when = datetime.datetime.fromtimestamp(modified, datetime.UTC)
        pyogrio.set_gdal_config_options({name: when.strftime('%Y-%m-%dT%H:%M:%S.000Z')})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({name: before})
