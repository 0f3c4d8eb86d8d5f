"""Polygons of a vector file, mended and named: what masks are drawn from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pandas
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from torchgeo_explora.errors import LabelError

from ._headers import name_some

FOREGROUND = 'foreground'
"""Class of every polygon where no column tells them apart."""

_AREAS = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)

type Geometries = NDArray[np.object_]
"""(N,) of shapely's geometries."""


@dataclass(frozen=True)
class Polygons:
    """Areas and their classes, in the order of the file.

    Args:
        path: The vector file.
        crs: Coordinate reference system of the geometries.
        geometries: Valid polygons and multi-polygons of two dimensions, (N,).
        names: Class of every polygon, (N,); None where its row names none.
        counts: How many features were ``mended``, or left out since they are ``empty`` or
            ``no area`` (points, lines), and how many are of ``no class``.
    """

    path: Path
    crs: CRS
    geometries: Geometries
    names: NDArray[np.object_]
    counts: Counter[str]


def read_polygons(
    path: Path,
    class_column: str | None = None,
    layer: str | None = None,
    crs: str | None = None,
    single: str = FOREGROUND,
) -> Polygons:
    """Read areas from whatever GDAL reads: GeoPackage, GeoJSON, shapefile, FlatGeobuf, ...

    Args:
        path: The file.
        class_column: Column that names each polygon's class; None where all are of one class.
        layer: Layer of a file with several; None where there is one.
        crs: Coordinate reference system for a file that names none.
        single: Class of every polygon without ``class_column``.

    Returns:
        Valid polygons.

    Raises:
        LabelError: If the file cannot be read, has no CRS, no such column or layer, or no polygon.
    """
    frame = _read(path, layer)
    known = _crs(frame, path, crs)
    geometries, rows, counts = mend(frame.geometry.to_numpy())
    if len(rows) == 0:
        raise LabelError(
            f'{path} has {len(frame)} features, but none of them is an area ({_tell(counts)}): give '
            'polygons; turn points and lines into areas first, with a buffer.'
        )
    names = _names(frame, path, class_column, single)[rows]
    unnamed = sum(name is None for name in names)
    if unnamed == len(names):
        raise LabelError(
            f'Column {class_column!r} of {path} is empty in all {len(names)} polygons: fill it, or '
            'give another class_column, or none for a single class.'
        )
    counts['no class'] = unnamed
    return Polygons(path, known, geometries, names, +counts)


def _tell(counts: Counter[str]) -> str:
    return ', '.join(f'{number} {kind}' for kind, number in counts.items() if number) or 'no rows'


def _read(path: Path, layer: str | None) -> geopandas.GeoDataFrame:
    """The layer as a table with geometries."""
    if not path.exists():
        raise LabelError(
            f'{path} is not there: give a vector file (GeoPackage, GeoJSON, shapefile), or a folder '
            'of masks named like the images.'
        )
    try:
        layers = [str(name) for name in geopandas.list_layers(path)['name']]
        if layer is None and len(layers) > 1:
            raise LabelError(f'{path} has the layers {name_some(layers)}: choose one with `layer`.')
        if layer is not None and layer not in layers:
            raise LabelError(f'{path} has no layer {layer!r}; it has {name_some(layers)}.')
        frame = geopandas.read_file(path, layer=layer)
    except (RuntimeError, OSError) as error:  # what pyogrio raises
        reason = ' '.join(str(error).split())
        raise LabelError(
            f'{path} cannot be read as a vector file ({reason}): give an undamaged GeoPackage, '
            'GeoJSON or shapefile (with its .shx and .dbf).'
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise LabelError(f'{path} has rows but no geometry: give a vector file of polygons.')
    return frame


def _crs(frame: geopandas.GeoDataFrame, path: Path, given: str | None) -> CRS:
    """The file's CRS, or the given one where it has none."""
    try:
        asked = None if given is None else CRS.from_user_input(given)
    except CRSError as error:
        raise LabelError(
            f"labels_crs is {given!r}, which is no CRS: give for example 'EPSG:4326'."
        ) from error
    if frame.crs is None and asked is None:
        raise LabelError(
            f'{path} has no CRS, so that nobody knows where its polygons lie: give `labels_crs`, '
            "for example 'EPSG:4326', or a file with one (a shapefile has it in its .prj)."
        )
    if frame.crs is not None and asked is not None and asked != frame.crs:
        raise LabelError(
            f'{path} is in {frame.crs.to_string()}, but labels_crs is {given!r}: leave it out; it is '
            'for files without a CRS.'
        )
    found = frame.crs if asked is None else asked
    assert found is not None, 'one of the two is there'
    return found


def mend(geometries: Geometries) -> tuple[Geometries, NDArray[np.int64], Counter[str]]:
    """Keep areas, made valid and flat.

    Args:
        geometries: Anything, None included, (N,).

    Returns:
        Valid polygons and multi-polygons (M,), their positions in ``geometries`` (M,), and how many
        were ``mended``, ``empty`` or ``no area``.
    """
    flat = shapely.force_2d(geometries)
    bad = ~(shapely.is_valid(flat) | shapely.is_missing(flat))
    flat[bad] = shapely.make_valid(flat[bad])
    # lines and points remain beside the areas where a ring touches itself
    mixed = shapely.get_type_id(flat) == shapely.GeometryType.GEOMETRYCOLLECTION
    flat[mixed] = [_areas(geometry) for geometry in flat[mixed]]
    empty = shapely.is_missing(flat) | shapely.is_empty(flat)
    area = np.isin(shapely.get_type_id(flat), _AREAS) & ~empty
    counts = Counter(
        {
            'mended': int((bad & area).sum()),
            'empty': int(empty.sum()),
            'no area': int((~area & ~empty).sum()),
        }
    )
    return flat[area], np.flatnonzero(area), counts


def _areas(geometry: shapely.Geometry) -> shapely.Geometry:
    """The areas of a collection, as one geometry; empty where it has none."""
    parts = shapely.get_parts(geometry)
    return shapely.union_all(parts[np.isin(shapely.get_type_id(parts), _AREAS)])


def _names(
    frame: geopandas.GeoDataFrame, path: Path, column: str | None, single: str
) -> NDArray[np.object_]:
    """Class of every row as text, None where there is none."""
    if column is None:
        return np.full(len(frame), single, dtype=np.object_)
    columns = [str(name) for name in frame.columns if name != frame.geometry.name]
    if column not in columns:
        raise LabelError(
            f'{path} has no column {column!r}; it has {name_some(columns) or "none"}: give one of '
            'them as class_column, or none for a single class.'
        )
    values = frame[column]
    names = [None if pandas.isna(value) else _text(value) for value in values]
    return np.array([None if name == '' else name for name in names], dtype=np.object_)


def _text(value: object) -> str:
    """A class's name; 3.0 is 3, since a column of whole numbers with gaps is read as floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def sorted_names(names: Sequence[str]) -> list[str]:
    """Distinct names in order: numbers by value, before other texts.

    Args:
        names: Names in any order, repeated or not.
    """

    def key(name: str) -> tuple[bool, float, str]:
        try:
            return False, float(name), name
        except ValueError:
            return True, 0.0, name

    return sorted(set(names), key=key)
