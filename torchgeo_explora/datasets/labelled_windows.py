"""Windows of rasters that one class of polygons covers: images with a label, split by ground."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torchgeo.datasets import NonGeoDataset

from torchgeo_explora.errors import ConfigError, LabelError

from ._grids import RasterWindow, Size
from ._ground import Ground, Place
from ._headers import name_some
from ._mask_sources import PolygonMasks
from ._spatial_split import SplitOptions, divide
from ._vectors import read_polygons
from .geotiff_folder import GeoTIFFFolder

MASK_SIDE = 64
"""Pixels of a side of the masks that classes are counted on."""

IGNORED = 255

DRAWS = 10
"""Divisions of the ground that are tried before it is said to be too little."""

type Parts = dict[str, list[tuple[RasterWindow, int]]]
"""Windows with their class, reference and scored."""


class LabelledWindows(NonGeoDataset):
    """Windows of rasters, side by side, whose larger part lies in polygons of one class.

    Each window's label is the class that covers at least ``min_cover`` of it; windows that no class
    covers so far are left out. Whole blocks of ground are either reference or scored, so that no
    neighbour of a scored window is a reference.

    Args:
        images: Rasters and how they are read; windows stand side by side here.
        labels: Vector file in any coordinate reference system.
        class_column: Column that names each polygon's class.
        split: ``reference`` (labels are used) or ``scored`` (held out).
        min_cover: Least share of a window that its class covers.
        fraction: Share of the windows that are held out.
        layer: Layer of a file with several.
        seed: Seed of the draw of the blocks.

    Raises:
        ConfigError: If a number is out of range.
        LabelError: If the labels cannot be used, or fewer than two classes have windows in both
            splits.
        ImageError: If there is too little ground to hold a part back.

    Attributes:
        classes: Names of the classes, sorted.
        windows: Windows of this split.
        labels: int64 class of each.
    """

    def __init__(
        self,
        images: GeoTIFFFolder,
        labels: str | Path,
        class_column: str,
        split: Literal['reference', 'scored'] = 'reference',
        min_cover: float = 0.5,
        fraction: float = 0.3,
        layer: str | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < min_cover <= 1 or not 0 < fraction < 1:
            raise ConfigError(
                f'min_cover is {min_cover} and fraction is {fraction}: give shares above 0, and a '
                'fraction below 1.'
            )
        self.images, self.min_cover = images, min_cover
        self._places = _placed(images)
        path = Path(labels).expanduser()
        polygons = read_polygons(path, class_column, layer)
        kinds = {name for name in polygons.names if name is not None}
        if len(kinds) < 2:
            raise LabelError(
                f'Column {class_column!r} of {path} names one class ({", ".join(kinds)}), and at '
                'least 2 are needed: name another column, or leave the labels out.'
            )
        self._masks = PolygonMasks(polygons, self._places, background=False, ignore_index=IGNORED)
        self.classes = list(self._masks.classes)
        self._parts = self._settle(fraction, seed, path)
        self.windows, self.labels = _unzip(self._parts[split])

    def with_split(self, split: Literal['reference', 'scored']) -> 'LabelledWindows':
        """The other split, without reading anything again.

        Args:
            split: ``reference`` or ``scored``.
        """
        other = copy(self)
        other.windows, other.labels = _unzip(self._parts[split])
        return other

    def __len__(self) -> int:
        """Number of windows of this split."""
        return len(self.windows)

    def file_of(self, index: int) -> str:
        """Return the path of a sample's raster.

        Args:
            index: Position from 0.
        """
        return self.images.rasters[self.windows[index].file].source.path

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window.

        Args:
            index: Position from 0.

        Returns:
            ``image``, float32 (C, S, S) in [0, 1]; ``label``, int64.

        Raises:
            ImageError: If it cannot be read any more.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} windows')
        image = self.images.finish(self.images.read(self.windows[index]))
        return {'image': image, 'label': self.labels[index]}

    def _settle(self, fraction: float, seed: int, path: Path) -> Parts:
        """Draw the parts of the ground, again where one has too few classes by bad luck."""
        both: set[int] = set()
        for draw in range(DRAWS):
            parts = self._divide(fraction, seed + draw)
            both = _common(parts)
            if len(both) >= 2:
                break
        else:
            names = ', '.join(self.classes[label] for label in sorted(both)) or 'none'
            raise LabelError(
                f'Of the {len(self.classes)} classes of {path} those with windows in both parts of '
                f'the ground are {names}, and at least 2 are needed: give more polygons or rasters, '
                'a smaller image size, or leave the labels out.'
            )
        known = {label for _, label in parts['reference']}
        scored = [(window, label) for window, label in parts['scored'] if label in known]
        return {**parts, 'scored': scored}

    def _divide(self, fraction: float, seed: int) -> Parts:
        still = self.images.side_by_side()
        windows = [still.window(index) for index in range(len(still))]
        windows = [window for window, _ in self._labelled(windows)]
        if not windows:
            raise LabelError(
                f'No class covers {100 * self.min_cover:g} % of a window of '
                f'{self.images.image_size} pixels: give larger polygons, or a smaller image size.'
            )
        sides = [raster.strata.side for raster in self.images.rasters]
        options = SplitOptions(val_fraction=fraction, test_fraction=0, overlap=0, seed=seed)
        ground, sizes = Ground(self._places), [Size(side, side) for side in sides]
        split = divide(windows, self._places, ground, sizes, options)
        return {
            'reference': self._labelled(
                [window for window in split.windows['train'] if self._holds_data(window)]
            ),
            'scored': self._labelled(split.windows['val']),
        }

    def _holds_data(self, window: RasterWindow) -> bool:
        strata = self.images.rasters[window.file].strata
        whole = (window.height, window.width) == (strata.side, strata.side)
        share = strata.validity.share(window.row, window.column, strata.side) if whole else 0.0
        return share >= strata.least

    def _labelled(self, windows: Sequence[RasterWindow]) -> list[tuple[RasterWindow, int]]:
        """Windows that a class covers far enough, with its number."""
        found = []
        for window in windows:
            mask = self._masks.mask(window, Size(MASK_SIDE, MASK_SIDE))
            counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)[:IGNORED]
            label = int(counts.argmax())
            if counts[label] >= self.min_cover * mask.size:
                found.append((window, label))
        return found


def _placed(images: GeoTIFFFolder) -> list[Place]:
    """Places of all rasters."""
    places = [raster.source.place for raster in images.rasters]
    lost = [r.source.path for r, place in zip(images.rasters, places, strict=True) if place is None]
    if lost:
        raise LabelError(
            f'{name_some(lost)}: no place on the Earth, so that polygons have no place in it: give '
            'georeferenced rasters, or class folders as labels.'
        )
    return [place for place in places if place is not None]


def _unzip(part: Sequence[tuple[RasterWindow, int]]) -> tuple[list[RasterWindow], torch.Tensor]:
    labels = torch.tensor([label for _, label in part], dtype=torch.int64)
    return [window for window, _ in part], labels


def _common(parts: Parts) -> set[int]:
    """Classes that have windows in both parts."""
    return set.intersection(*({label for _, label in part} for part in parts.values()))
