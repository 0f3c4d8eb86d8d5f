"""Rasters and labels taken together: which windows there are, and to which split each belongs."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from torchgeo_explora.errors import ConfigError, ImageError, LabelError

from ._grids import RasterWindow, Size, by_file, grid
from ._ground import Ground, Place, read_places
from ._headers import (
    RASTER_EXTENSIONS,
    ImageHeader,
    check_alike,
    find_images,
    name_some,
    read_headers,
)
from ._mask_sources import BACKGROUND, MaskSource, PolygonMasks, RasterMasks
from ._pixels import is_masked, select_bands
from ._spatial_split import SPLITS, SpatialSplit, SplitOptions, divide
from ._vectors import FOREGROUND, read_polygons

ALIKE = 0.01
"""Share by which pixels may differ in size and still have one resolution."""


@dataclass(frozen=True)
class LabelOptions:
    """How labels are read; see :class:`VectorSegmentation`."""

    path: Path
    class_column: str | None = None
    classes: Sequence[str] | None = None
    background: bool = True
    layer: str | None = None
    crs: str | None = None
    all_touched: bool = False
    ignore_index: int = 255


@dataclass(frozen=True)
class Rasters:
    """Rasters of one kind, with their places.

    Args:
        root: Folder of all of them.
        headers: What each says about itself.
        places: Where each lies.
        indexes: 1-based bands to read from each.
        left_out: Why others in the folder cannot be used.
    """

    root: Path
    headers: list[ImageHeader]
    places: list[Place]
    indexes: list[tuple[int, ...]]
    left_out: dict[Path, str]

    @property
    def bands(self) -> tuple[str, ...]:
        """Name of every band, or its index where it has none."""
        names = self.headers[0].names
        return tuple(names[index - 1] or str(index) for index in self.indexes[0])


def find_rasters(root: Path, masks: Path, bands: Sequence[int | str] | None) -> Rasters:
    """Read the headers of all GeoTIFFs of a folder.

    Args:
        root: The folder.
        masks: What the labels are; rasters in it are no images.
        bands: 1-based indexes or names; None for all but alpha.

    Returns:
        Rasters that can be read and have a place.

    Raises:
        ImageError: If there is none, or they are of different kinds.
    """
    found = find_images(root, RASTER_EXTENSIONS)
    paths = [path for path in found if not path.is_relative_to(masks)]
    if not paths:
        raise ImageError(f'{root} holds no raster beside its masks: give a folder of images too.')
    headers, left_out = read_headers(paths)
    places, unplaced = read_places(headers)
    left_out |= unplaced
    used = [(a, b) for a, b in zip(headers, places, strict=True) if b is not None]
    if not used:
        path, reason = next(iter(unplaced.items()))
        raise ImageError(
            f'None of {len(paths)} rasters has a place on the Earth; the first is {path} ({reason}). '
            'Give georeferenced GeoTIFFs.'
        )
    if left_out:
        listed = name_some(f'{path} ({reason})' for path, reason in left_out.items())
        warnings.warn(
            f'{len(left_out)} of {len(paths)} rasters are left out: {listed}.', stacklevel=2
        )
    headers = [header for header, _ in used]
    indexes = [select_bands(header, bands) for header in headers]
    alpha = [header.path for header in headers if header.alpha]
    if alpha and bands is None:
        warnings.warn(
            f'The alpha channel of {len(alpha)} rasters masks their pixels: {name_some(alpha)}. If it '
            'is a band, as in RGB and near infrared without a colour table, give `bands`.',
            stacklevel=2,
        )
    kinds = [
        f'{len(chosen)} bands of {header.dtype}'
        for chosen, header in zip(indexes, headers, strict=True)
    ]
    check_alike(kinds, headers)
    return Rasters(root, headers, [place for _, place in used], indexes, left_out)


class Survey:
    """Windows of rasters, with their masks, divided by space.

    Args:
        rasters: The rasters.
        labels: Where masks come from.
        image_size: Side of a window in pixels, after resampling.
        resolution: Metres that a pixel is resampled to; None to leave pixels as they are.
        options: How the ground is divided.

    Raises:
        ImageError: If there is too little ground.
        LabelError: If the labels cannot be used.

    Attributes:
        masks: Masks of the windows.
        sizes: Size of a window in each raster's own pixels.
        ground: Projection in which ground is compared.
        resolution: Metres of a pixel; None where rasters differ.
        split: Windows of every split.
        counts: What was left out or mended, by kind.
    """

    def __init__(
        self,
        rasters: Rasters,
        labels: LabelOptions,
        image_size: int,
        resolution: float | None,
        options: SplitOptions,
    ) -> None:
        self.rasters, self._background = rasters, labels.background
        self.ground = Ground(rasters.places)
        self.sizes, self.resolution = self._measure(image_size, resolution)
        self.masks = read_masks(rasters, labels)
        self.counts = self.masks.counts + Counter({'rasters left out': len(rasters.left_out)})
        self.split = self._divide(options)
        self._check_classes()
        self._say_what_was_wrong(labels.path)

    def _measure(self, side: int, resolution: float | None) -> tuple[list[Size], float | None]:
        """Size of a window in each raster's own pixels, and the resolution that comes out."""
        pixels = np.array([self.ground.pixel(place) for place in self.rasters.places])
        if resolution is not None:
            sides = np.maximum(np.round(side * resolution / pixels), 1).astype(int).tolist()
            return [Size(height, width) for height, width in sides], resolution
        metres = np.sqrt(pixels.prod(axis=1))
        alike = np.ptp(metres) <= ALIKE * metres.max()
        return [Size(side, side)] * len(pixels), float(np.median(metres)) if alike else None

    def _divide(self, options: SplitOptions) -> SpatialSplit:
        """Windows of every split, those without data or labels left out."""
        places = self.rasters.places
        cover = [
            window
            for file, (place, size) in enumerate(zip(places, self.sizes, strict=True))
            for window in grid(file, place, size, size)
        ]
        used = self._with_data(cover)
        labelled = self._with_labels(used)
        self.counts['windows without data'] = len(cover) - len(used)
        self.counts['windows without labels'] = len(used) - len(labelled)
        if not labelled:
            raise ImageError(
                f'None of the {len(cover)} windows of {self.rasters.root} has '
                f'{"data" if not used else "both data and labels"}: give other rasters or labels.'
            )
        split = divide(labelled, places, self.ground, self.sizes, options)
        split.windows['train'] = self._with_labels(self._with_data(split.windows['train']))
        self.counts['windows near another split'] = split.dropped
        _check_splits(split, options)
        return split

    def _with_data(self, windows: Sequence[RasterWindow]) -> list[RasterWindow]:
        """Windows with at least one pixel of data."""
        kept = []
        for file, positions in by_file(windows).items():
            chosen = [windows[position] for position in positions]
            header, indexes = self.rasters.headers[file], self.rasters.indexes[file]
            if is_masked(header, indexes) or np.dtype(header.dtype).kind == 'f':
                with rasterio.open(header.path) as source:
                    chosen = [window for window in chosen if _any_data(source, window, indexes)]
            kept += chosen
        return kept

    def _with_labels(self, windows: list[RasterWindow]) -> list[RasterWindow]:
        """Windows that a polygon reaches into, where ground without one is ignored."""
        if self._background:
            return windows
        found = self.masks.found(windows)
        return [window for window, classes in zip(windows, found, strict=True) if classes]

    def _check_classes(self) -> None:
        """Refuse classes that training never sees."""
        seen = {
            name: set[int]().union(*self.masks.found(windows))
            for name, windows in self.split.windows.items()
        }
        first = 1 if self._background else 0
        unseen = set(range(first, len(self.masks.classes))) - seen['train']
        if unseen:
            elsewhere = unseen & (seen['val'] | seen['test'])
            names = [
                f'{self.masks.classes[number]} ({"elsewhere" if number in elsewhere else "nowhere"})'
                for number in sorted(unseen)
            ]
            raise LabelError(
                f'{len(unseen)} classes are in no training window: {name_some(names)}. Give another '
                'seed, a smaller block_size or gap, more rasters, or take the classes out.'
            )

    def _say_what_was_wrong(self, path: Path) -> None:
        """One warning about the labels that were mended or left out."""
        wrong = [
            f'{number} {_WRONG[kind]}' for kind, number in self.counts.items() if kind in _WRONG
        ]
        if wrong:
            warnings.warn(f'{path}: {"; ".join(wrong)}.', stacklevel=4)


_WRONG = {
    'mended': 'invalid geometries were mended',
    'empty': 'features without a geometry are left out',
    'no area': 'points or lines are left out',
    'no class': 'polygons have no class, and their pixels are ignored',
    'outside': 'polygons lie on no raster',
}


def _any_data(source: rasterio.DatasetReader, window: RasterWindow, indexes: Sequence[int]) -> bool:
    part = Window(window.column, window.row, window.width, window.height)
    if np.dtype(source.dtypes[0]).kind != 'f':
        return bool(source.dataset_mask(window=part).any())
    values = source.read(list(indexes), window=part, masked=True)  # NaN is in no mask of GDAL's
    return bool(np.isfinite(values).any())


def _check_splits(split: SpatialSplit, options: SplitOptions) -> None:
    """Refuse a split that was asked for and has no window."""
    shares = {'train': 1.0, 'val': options.val_fraction, 'test': options.test_fraction}
    empty = [name for name in SPLITS if shares[name] > 0 and not split.windows[name]]
    if empty:
        raise ImageError(
            f'No window is left for {" and ".join(empty)}, with blocks of {split.block_size:.4g} m '
            f'and a gap of {split.gap:.4g} m: give a smaller gap, block_size or image_size, or more '
            'rasters.'
        )


def read_masks(rasters: Rasters, labels: LabelOptions) -> MaskSource:
    """Masks from a vector file, or from a folder of rasters.

    Args:
        rasters: The images.
        labels: What to read, and how.

    Raises:
        ConfigError: If the options contradict each other.
        LabelError: If the labels cannot be used.
    """
    if labels.path.is_dir():
        if labels.class_column is not None:
            raise ConfigError(
                f'{labels.path} is a folder of masks, which have no column '
                f'{labels.class_column!r}: leave class_column out.'
            )
        return RasterMasks(
            labels.path, rasters.root, rasters.places, labels.classes, labels.ignore_index
        )
    polygons = read_polygons(
        labels.path, labels.class_column, labels.layer, labels.crs, _only_name(labels)
    )
    return PolygonMasks(
        polygons, rasters.places, labels.classes, labels.background, labels.all_touched,
        labels.ignore_index,
    )  # fmt: skip


def _only_name(labels: LabelOptions) -> str:
    """Name of the single class where no column tells classes apart."""
    if labels.class_column is not None or labels.classes is None:
        return FOREGROUND
    names = [name for name in labels.classes if name != BACKGROUND]
    if len(names) != 1:
        raise ConfigError(
            f'classes is {list(labels.classes)}, but without class_column all polygons are of one '
            'class: give class_column, or one name.'
        )
    return names[0]
