"""Where masks come from: polygons that are drawn on the fly, or rasters of classes."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.windows import Window

from torchgeo_explora.errors import ConfigError, LabelError

from ._grids import RasterWindow, Size, boxes, by_file
from ._ground import Boxes, Place, coordinates, position
from ._headers import RASTER_EXTENSIONS, name_some
from ._vectors import Geometries, Polygons, sorted_names

BACKGROUND = 'background'
"""Class of ground that no polygon covers."""

MOST_CLASSES = 255
"""Classes that fit into a byte beside the value that is ignored."""

type Mask = NDArray[np.uint8]
"""(height, width) of class numbers."""


class MaskSource(ABC):
    """Masks of windows of rasters.

    Attributes:
        classes: Names of the classes, in the order of their numbers.
        ignore_index: Value of pixels without a class.
        counts: What was found wrong with the labels, and how often.
    """

    classes: tuple[str, ...]
    ignore_index: int
    counts: Counter[str]

    @abstractmethod
    def mask(self, window: RasterWindow, size: Size) -> Mask:
        """Classes in a window.

        Args:
            window: A part of a raster.
            size: Size of the result, another than the window's where pixels are resampled.

        Returns:
            (height, width) of class numbers and ``ignore_index``.
        """

    @abstractmethod
    def found(self, windows: Sequence[RasterWindow]) -> list[set[int]]:
        """Numbers of the classes that each window holds, background left out."""


def window_transform(place: Place, window: RasterWindow, size: Size) -> Affine:
    """From pixels of a window, resampled to ``size``, to coordinates."""
    grid = place.transform
    across, down = window.width / size.width, window.height / size.height
    x, y = position(grid, window.column, window.row)
    return Affine(grid.a * across, grid.b * down, x, grid.d * across, grid.e * down, y)


def _corners(place: Place, area: Boxes) -> Geometries:
    """Parts of a raster in its own CRS, where its pixels have straight sides."""
    row, column, height, width = area.T[..., None]
    columns = column + width * np.array([0.0, 1, 1, 0])
    rows = row + height * np.array([0.0, 0, 1, 1])
    return np.asarray(shapely.polygons(coordinates(place.transform, columns, rows)))


class PolygonMasks(MaskSource):
    """Masks drawn from polygons in each raster's own grid.

    A pixel belongs to a polygon that holds its centre (or, with ``all_touched``, that it touches);
    of polygons that overlap, the later one in the file is on top.

    Args:
        polygons: Areas and their classes.
        places: The rasters.
        classes: Names of the classes in the order of their numbers; None for the sorted names of
            the polygons that lie on a raster. ``background`` is put first, with ``background``.
        background: Whether ground without a polygon is a class; it is ignored otherwise.
        all_touched: Whether a polygon takes every pixel that it touches.
        ignore_index: Value of pixels without a class.

    Raises:
        LabelError: If no polygon lies on a raster, or the classes do not fit the names.
    """

    def __init__(
        self,
        polygons: Polygons,
        places: Sequence[Place],
        classes: Sequence[str] | None = None,
        background: bool = True,
        all_touched: bool = False,
        ignore_index: int = 255,
    ) -> None:
        self._polygons, self._places = polygons, places
        self._all_touched, self.ignore_index = all_touched, ignore_index
        self._geometries: dict[str, Geometries] = {}
        self._trees: dict[str, shapely.STRtree] = {}
        for crs in {place.crs for place in places}:
            self._geometries[crs] = _project(polygons, crs)
            self._trees[crs] = shapely.STRtree(self._geometries[crs])
        inside = self._inside()
        self.counts = polygons.counts + Counter({'outside': int((~inside).sum())})
        names = [name for name in polygons.names[inside] if name is not None]
        self.classes = _classes(names, classes, polygons, background)
        _check_classes(self.classes, ignore_index)
        self._fill = 0 if background else ignore_index
        numbers = {name: number for number, name in enumerate(self.classes)}
        # a polygon whose class nobody knows is neither background nor any other class
        self._values = np.array([numbers.get(name, ignore_index) for name in polygons.names])

    def _inside(self) -> NDArray[np.bool_]:
        """Which polygons lie on at least one raster."""
        inside = np.zeros(len(self._polygons.geometries), dtype=bool)
        for place in self._places:
            whole = _corners(place, np.array([[0.0, 0, place.height, place.width]]))
            inside[self._trees[place.crs].query(whole[0], predicate='intersects')] = True
        if not inside.any():
            raise LabelError(
                f'None of the {len(inside)} polygons of {self._polygons.path} lies on a raster: they '
                f'lie within {_extent(self._polygons)} (longitude and latitude), and the first '
                f'raster is {self._places[0].path}. Give the polygons of these rasters, and check '
                'the CRS of both.'
            )
        return inside

    def mask(self, window: RasterWindow, size: Size) -> Mask:
        """Classes in a window; see :meth:`MaskSource.mask`."""
        place = self._places[window.file]
        hits = self._query(place, boxes([window]))[1]
        hits = np.sort(hits)
        if len(hits) == 0:
            return np.full(size, self._fill, dtype=np.uint8)
        shapes = zip(self._geometries[place.crs][hits], self._values[hits].tolist(), strict=True)
        mask: Mask = rasterize(
            shapes, size, self._fill, transform=window_transform(place, window, size),
            all_touched=self._all_touched, dtype='uint8',
        )  # fmt: skip
        return mask

    def found(self, windows: Sequence[RasterWindow]) -> list[set[int]]:
        """Classes of the polygons that reach into each window."""
        found: list[set[int]] = [set() for _ in windows]
        for file, positions in by_file(windows).items():
            area = boxes(windows[position] for position in positions)
            for local, hit in self._query(self._places[file], area).T:
                found[positions[local]].add(int(self._values[hit]))
        return [numbers - {self.ignore_index} for numbers in found]

    def _query(self, place: Place, area: Boxes) -> NDArray[np.int64]:
        """Pairs of box and polygon that intersect, (2, N)."""
        return self._trees[place.crs].query(_corners(place, area), predicate='intersects')


def _project(polygons: Polygons, crs: str) -> Geometries:
    """Polygons in a raster's CRS; those that it cannot hold become empty."""
    series = geopandas.GeoSeries(polygons.geometries, crs=polygons.crs)
    geometries: Geometries = series.to_crs(CRS.from_user_input(crs)).to_numpy().copy()
    bounds = shapely.bounds(geometries)
    geometries[~np.isfinite(bounds).all(axis=1)] = shapely.Polygon()
    bent = ~shapely.is_valid(geometries)  # rings may cross where few points follow a curve
    geometries[bent] = shapely.buffer(geometries[bent], 0)
    return geometries


def _extent(polygons: Polygons) -> str:
    series = geopandas.GeoSeries(polygons.geometries, crs=polygons.crs).to_crs('EPSG:4326')
    return '({:.5g}, {:.5g}) to ({:.5g}, {:.5g})'.format(*series.total_bounds)


def _classes(
    names: Sequence[str], given: Sequence[str] | None, polygons: Polygons, background: bool
) -> tuple[str, ...]:
    """Classes in the order of their numbers."""
    chosen = sorted_names(names) if given is None else list(given)
    if not background and BACKGROUND in chosen:
        raise LabelError(
            f'{BACKGROUND!r} is a class of {polygons.path}, but `background` is false: give true.'
        )
    if background:
        chosen = [BACKGROUND, *(name for name in chosen if name != BACKGROUND)]
    unknown = sorted_names([name for name in names if name not in chosen])
    if unknown:
        raise LabelError(
            f'{polygons.path} has polygons of the classes {name_some(unknown)}, which are not among '
            f'the given {name_some(chosen)}: add them to `classes`, or take them out of the file.'
        )
    return tuple(chosen)


def _check_classes(classes: Sequence[str], ignore_index: int) -> None:
    """Refuse classes that cannot be told apart in a mask of bytes."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise ConfigError(f'classes has {name_some(twice)} more than once: name each class once.')
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise LabelError(
            f'There are {len(classes)} classes ({name_some(classes)}): give labels of 2 to '
            f'{MOST_CLASSES}. With a single kind of polygon the other class is the background, with '
            '`background` true.'
        )
    if not len(classes) <= ignore_index <= MOST_CLASSES:
        raise ConfigError(
            f'ignore_index is {ignore_index}: give a number from {len(classes)} to {MOST_CLASSES}, '
            'which is no class.'
        )


class RasterMasks(MaskSource):
    """Masks that are rasters themselves, each named like its image.

    Args:
        root: Folder of masks, laid out like the folder of images.
        images: Folder of the images.
        places: The images.
        classes: Names of the values 0, 1, ...; None to name them by their numbers.
        ignore_index: Value of pixels without a class, in the files too; a file's nodata likewise.

    Raises:
        LabelError: If a mask is missing, on another grid than its image, or has a value that is no
            class.
    """

    def __init__(
        self,
        root: Path,
        images: Path,
        places: Sequence[Place],
        classes: Sequence[str] | None = None,
        ignore_index: int = 255,
    ) -> None:
        self.counts, self.ignore_index = Counter(), ignore_index
        self._paths = _mask_paths(root, images, places)
        values = [_values(path, ignore_index) for path in self._paths]
        most = max((max(found, default=0) for found in values), default=0)
        self.classes = tuple(map(str, range(most + 1)) if classes is None else classes)
        _check_classes(self.classes, ignore_index)
        for path, found in zip(self._paths, values, strict=True):
            unknown = sorted(value for value in found if not 0 <= value < len(self.classes))
            if unknown:
                raise LabelError(
                    f'{path} has pixels of {name_some(unknown)}, but there are {len(self.classes)} '
                    f'classes, 0 to {len(self.classes) - 1}, and {ignore_index} for none: name all '
                    'classes in `classes`, or give masks of these values.'
                )

    def mask(self, window: RasterWindow, size: Size) -> Mask:
        """Classes in a window; see :meth:`MaskSource.mask`."""
        part = Window(window.column, window.row, window.width, window.height)
        with rasterio.open(self._paths[window.file]) as source:
            values = source.read(
                1, window=part, out_shape=size, masked=True, resampling=Resampling.nearest
            )
        mask: Mask = np.ma.filled(values, self.ignore_index).astype(np.uint8)
        return mask

    def found(self, windows: Sequence[RasterWindow]) -> list[set[int]]:
        """Classes among the pixels of each window."""
        masks = (self.mask(window, Size(window.height, window.width)) for window in windows)
        return [set(np.unique(mask).tolist()) - {self.ignore_index} for mask in masks]


def _mask_paths(root: Path, images: Path, places: Sequence[Place]) -> list[Path]:
    """Mask of every image, on the same grid."""
    paths, missing = [], []
    for place in places:
        stem = root / place.path.relative_to(images).with_suffix('')
        there = [stem.with_suffix(suffix) for suffix in RASTER_EXTENSIONS]
        there = [path for path in there if path.is_file()]
        paths += there[:1]
        missing += [] if there else [place.path]
    if missing:
        raise LabelError(
            f'{len(missing)} of {len(places)} images have no mask of their name under {root}: '
            f'{name_some(missing)}. Give one each, or take the images out.'
        )
    for path, place in zip(paths, places, strict=True):
        _check_grid(path, place)
    return paths


def _check_grid(path: Path, place: Place) -> None:
    """Refuse a mask that is not its image's pixel by pixel."""
    with rasterio.open(path) as source:
        same = (source.height, source.width) == (place.height, place.width)
        if source.crs is not None:
            same = same and _same_corners(source.transform, place)
        if not same or source.count != 1 or np.dtype(source.dtypes[0]).kind not in 'iu':
            raise LabelError(
                f'{path} has {source.count} bands of {source.dtypes[0]}, {source.height} x '
                f'{source.width} pixels, and {place.path} has {place.height} x {place.width}: give '
                'one band of whole numbers on the same grid as the image.'
            )


def _same_corners(transform: Affine, place: Place) -> bool:
    """Whether two grids of one size differ by less than a hundredth of a pixel."""
    columns = np.array([0.0, 1, place.width, 0, place.width])
    rows = np.array([0.0, 1, 0, place.height, place.height])
    expected = coordinates(place.transform, columns, rows)
    pixel = np.abs(expected[1] - expected[0]).max()
    return bool(np.abs(coordinates(transform, columns, rows) - expected).max() < 0.01 * pixel)


def _values(path: Path, ignore_index: int) -> set[int]:
    """Values of a mask's pixels, read block by block."""
    found: set[int] = set()
    with rasterio.open(path) as source:
        for _, window in source.block_windows(1):
            values = np.ma.asarray(source.read(1, window=window, masked=True))
            found |= set(np.unique(values.compressed()).tolist())
    return found - {ignore_index}
