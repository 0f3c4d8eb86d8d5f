"""A folder of rasters and a vector file as a data set for segmentation, split by space."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
import torch
from rasterio.enums import Resampling
from rasterio.windows import Window
from shapely.geometry.base import BaseGeometry
from torch import Tensor

from torchgeo_explora.errors import ConfigError, ImageError

from ._drawn import DrawnImages
from ._grids import RasterWindow, Size, moved
from ._headers import READ_ERRORS
from ._mask_sources import Mask
from ._pixels import Pixels, Scale, given_scale, is_masked, percentile_scale, to_unit
from ._spatial_split import SPLITS, Split, SplitOptions, footprints
from ._survey import LabelOptions, Survey, find_rasters

SCALE_SAMPLES = 256
"""Training windows that percentiles are taken from."""


class VectorSegmentation(DrawnImages):
    """Windows of rasters with masks that are drawn from polygons, or read from rasters of classes.

    Nothing is written: a window's pixels are read from its GeoTIFF, and its mask is drawn on the
    very grid of the file, whatever the CRS, size, resolution or rotation of either. Pixels without
    data (nodata, masks, alpha, NaN), and those beyond a raster that is smaller than a window, are 0
    in the image and ``ignore_index`` in the mask.

    The ground is divided by space: square blocks of it are drawn for validation and for testing, a
    window belongs to the block of its middle, and windows of another split that come nearer than a
    gap to it are left out, also where files overlap each other. No piece of ground is in two splits.

    Training windows overlap by ``overlap`` and are moved at random where this leads to no other
    split. Validation and test windows cover their blocks once: where the last window of a row is
    moved back into its raster, what the window before it has is ignored in its mask.

    Args:
        root: Folder of GeoTIFFs, searched with its sub-folders.
        labels: Vector file of polygons, in any CRS; or a folder of masks, named and laid out like
            the images. A relative path that does not exist is looked for in ``root``.
        split: ``train``, ``val`` or ``test``.
        class_column: Column of the vector file that names each polygon's class; None for a single
            class, ``foreground``, or the one name in ``classes``.
        classes: Names of the classes in the order of their numbers; None for those of the polygons
            that lie on a raster, sorted. With ``background`` that class is put first.
        image_size: Side of a window in pixels.
        background: Whether ground without a polygon is class 0, ``background``. Otherwise it is
            ignored, for polygons that label only samples of the ground.
        layer: Layer of a vector file that has several.
        labels_crs: CRS of a vector file that names none.
        all_touched: Whether a polygon takes every pixel it touches, not only those whose centre it
            holds.
        ignore_index: Value of mask pixels without a class.
        bands: 1-based indexes or names of the bands, in this order; None for all but alpha.
        scale: Values that become 0 and 1, each a number or one number per band; None for 0 to 255
            in 8-bit rasters and for percentiles 1 and 99 of the training windows in others.
        resolution: Metres on the ground that a pixel is resampled to; None to leave pixels as they
            are, so that rasters of different resolution are seen at different scales.
        val_fraction: Share of the windows for validation.
        test_fraction: Share of the windows for testing.
        block_size: Side of the blocks in metres; None for 8, 4, 2 or 1 windows, the first that
            gives 6 blocks.
        gap: Metres between windows of different splits; None for as much as neighbouring training
            windows overlap, which is 0 where every raster is a single window.
        overlap: Share of a training window that its neighbour shares.
        seed: Seed of the blocks, of the percentiles' windows and of the moves.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: If the rasters cannot be used, or hold too little ground to divide.
        LabelError: If the labels cannot be used: no CRS, no such column, no polygon on a raster, a
            class without a polygon on training ground, a mask with unknown values.

    Attributes:
        classes: Names of the classes, in the order of their numbers.
        bands: Name of every band, or its index where it has none.
        scale: Values that become 0 and 1, and where they come from.
        resolution: Metres of a pixel; None where rasters differ by more than a hundredth.
        windows: Windows of this split.
        counts: What was left out or mended, by kind.
        block_size: Side of the blocks in metres.
        gap: Metres between windows of different splits.
    """

    def __init__(
        self,
        root: Path | str,
        labels: Path | str,
        split: Split = 'train',
        class_column: str | None = None,
        classes: Sequence[str] | None = None,
        image_size: int = 256,
        background: bool = True,
        layer: str | None = None,
        labels_crs: str | None = None,
        all_touched: bool = False,
        ignore_index: int = 255,
        bands: Sequence[int | str] | None = None,
        scale: Sequence[float | Sequence[float]] | None = None,
        resolution: float | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        block_size: float | None = None,
        gap: float | None = None,
        overlap: float = 0.5,
        seed: int = 0,
    ) -> None:
        _check(split, image_size, resolution, seed)
        self.root, self.labels = Path(root), _find_labels(Path(root), Path(labels))
        self.image_size, self.ignore_index, self.seed = image_size, ignore_index, seed
        self._resampled = resolution is not None
        self._rasters = find_rasters(self.root, self.labels, bands)
        options = LabelOptions(
            self.labels, class_column, classes, background, layer, labels_crs, all_touched,
            ignore_index,
        )  # fmt: skip
        self._survey = Survey(
            self._rasters, options, image_size, resolution,
            SplitOptions(val_fraction, test_fraction, block_size, gap, overlap, seed),
        )  # fmt: skip
        self.classes, self.bands = list(self._survey.masks.classes), self._rasters.bands
        self.resolution, self.counts = self._survey.resolution, self._survey.counts
        self.block_size, self.gap = self._survey.split.block_size, self._survey.split.gap
        self.split, self.windows = split, self._survey.split.windows[split]
        self.scale = self._choose_scale(scale)

    def __len__(self) -> int:
        """Number of windows of this split."""
        return len(self.windows)

    def with_split(self, split: Split) -> 'VectorSegmentation':
        """The windows of another split, without reading anything again.

        Args:
            split: ``train``, ``val`` or ``test``.
        """
        other = copy(self)
        other.split, other.windows = split, self._survey.split.windows[split]
        return other

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window where it stands.

        Args:
            index: Position from 0.

        Returns:
            ``image``, float32 (C, S, S) in [0, 1]; ``mask``, int64 (S, S); and, unless pixels are
            resampled, ``file``, the raster's path, and ``window``, int64 (4,): row, column, height
            and width of the raster's part that image and mask show in their upper left.

        Raises:
            ImageError: If the raster cannot be read any more.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} windows')
        return self._sample(self.windows[index])

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """A window moved at random, where it may be; others where they stand.

        Args:
            index: Position from 0.
            epoch: Number of the pass, from 0; with the seed and the position it gives the move.

        Returns:
            What :meth:`__getitem__` returns.
        """
        window = self.windows[index]
        if window.slack > 0:
            rng = np.random.default_rng([self.seed, epoch, index])
            sample = self._sample(moved(window, self._rasters.places[window.file], rng))
            if (sample['mask'] != self.ignore_index).any():
                return sample
        return self[index]

    def ground_covered(self) -> BaseGeometry:
        """Ground that this split's windows cover, in metres around the middle of all rasters.

        All splits are in the same projection, and can be compared.
        """
        survey = self._survey
        return shapely.union_all(footprints(self.windows, self._rasters.places, survey.ground))

    def _sample(self, window: RasterWindow) -> dict[str, Any]:
        """Image and mask of a window, filled up to a square."""
        size = self._out_size(window)
        values = self._read(window, size)
        mask = self._survey.masks.mask(window, size)
        mask[np.ma.getmaskarray(values).all(axis=0)] = self.ignore_index
        self._ignore_covered(mask, window)
        sample: dict[str, Any] = {
            'image': self._filled(to_unit(values, self.scale), 0.0),
            'mask': self._filled(torch.from_numpy(mask).long(), self.ignore_index),
        }
        if not self._resampled:
            sample['file'] = str(self._rasters.headers[window.file].path)
            part = (window.row, window.column, window.height, window.width)
            sample['window'] = torch.tensor(part)
        return sample

    def _out_size(self, window: RasterWindow) -> Size:
        """Pixels that a window has after resampling; fewer than S where its raster is smaller."""
        full = self._survey.sizes[window.file]
        height = max(round(self.image_size * window.height / full.height), 1)
        return Size(height, max(round(self.image_size * window.width / full.width), 1))

    def _read(self, window: RasterWindow, size: Size) -> Pixels:
        """Pixels of a window; those without data are masked."""
        header, indexes = self._rasters.headers[window.file], self._rasters.indexes[window.file]
        part = Window(window.column, window.row, window.width, window.height)
        smaller = size.height < window.height or size.width < window.width
        try:
            with rasterio.open(header.path) as source:
                values = source.read(
                    list(indexes), window=part, out_shape=(len(indexes), *size),
                    masked=is_masked(header, indexes),
                    resampling=Resampling.average if smaller else Resampling.bilinear,
                )  # fmt: skip
        except READ_ERRORS as error:
            raise ImageError(
                f'{header.path} cannot be read ({" ".join(str(error).split())}): give an undamaged '
                'raster, or take it out.'
            ) from error
        values = np.ma.asarray(values)
        return np.ma.masked_invalid(values, copy=False) if values.dtype.kind == 'f' else values

    def _ignore_covered(self, mask: Mask, window: RasterWindow) -> None:
        """Leave pixels to the window above or to the left, so that none counts twice."""
        rows = round(window.covered_rows * mask.shape[0] / window.height)
        columns = round(window.covered_columns * mask.shape[1] / window.width)
        mask[:rows] = self.ignore_index
        mask[:, :columns] = self.ignore_index

    def _filled(self, values: Tensor, value: float) -> Tensor:
        """A square of S pixels with the values in its upper left."""
        square = values.new_full((*values.shape[:-2], self.image_size, self.image_size), value)
        square[..., : values.shape[-2], : values.shape[-1]] = values
        return square

    def _choose_scale(self, scale: Sequence[float | Sequence[float]] | None) -> Scale:
        """Scale of the values: given, fixed for 8 bits, or from training windows."""
        bands = len(self.bands)
        if scale is not None:
            return given_scale(scale, bands)
        if self._rasters.headers[0].dtype == 'uint8':
            return Scale((0.0,) * bands, (255.0,) * bands, 'dtype')
        train = self._survey.split.windows['train']
        order = np.random.default_rng(self.seed).permutation(len(train))[:SCALE_SAMPLES]
        windows = [train[index] for index in np.sort(order)]
        return percentile_scale(
            [self._read(window, self._out_size(window)) for window in windows], (1.0, 99.0)
        )


def _check(split: str, image_size: int, resolution: float | None, seed: int) -> None:
    if split not in SPLITS:
        raise ConfigError(f'split is {split!r}: give {", ".join(map(repr, SPLITS))}.')
    if image_size < 1 or seed < 0:
        raise ConfigError(
            f'image_size {image_size}, seed {seed}: give at least 1 pixel and a seed of at least 0.'
        )
    if resolution is not None and not resolution > 0:
        raise ConfigError(f'resolution is {resolution}: give metres above 0, or null.')


def _find_labels(root: Path, labels: Path) -> Path:
    """Labels as they are given, or within the folder of rasters."""
    return root / labels if not labels.exists() and (root / labels).exists() else labels
