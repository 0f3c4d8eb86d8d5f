"""Data module of a folder of rasters and a vector file, for segmentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchgeo_explora.datasets import VectorSegmentation

from ._base import ImageDataModule


class VectorSegmentationDataModule(ImageDataModule):
    """Windows of rasters with masks from polygons, divided by space.

    Batches hold ``image``, float32 (B, C, S, S) in [0, 1], neither normalised nor augmented, and
    ``mask``, int64 (B, S, S). See :class:`~torchgeo_explora.datasets.VectorSegmentation`, which
    says how rasters, labels and splits are treated. Prediction goes over the test windows, or over
    the validation windows where nothing is kept for testing.

    Args:
        root: Folder of GeoTIFFs, searched with its sub-folders.
        labels: Vector file of polygons, or a folder of masks; within ``root`` or elsewhere.
        class_column: Column of the vector file that names each polygon's class; None for one class.
        classes: Names of the classes in the order of their numbers; None for those found.
        image_size: Side S of a window in pixels.
        batch_size: Windows of a batch (on each device).
        num_workers: Processes that load windows.
        seed: Seed of the blocks, the training order and the moves of training windows.
        steps_per_epoch: Batches of an epoch; None for one pass over the training windows.
        background: Whether ground without a polygon is a class, the first.
        layer: Layer of a vector file that has several.
        labels_crs: CRS of a vector file that names none.
        all_touched: Whether a polygon takes every pixel it touches.
        ignore_index: Value of mask pixels without a class.
        bands: 1-based indexes or names of the bands; None for all but alpha.
        scale: Values that become 0 and 1; None for 0 to 255 in 8-bit rasters and for percentiles of
            the training windows in others.
        resolution: Metres on the ground that a pixel is resampled to; None to leave pixels as they
            are.
        val_fraction: Share of the windows for validation.
        test_fraction: Share of the windows for testing.
        block_size: Side of the blocks of ground in metres; None to choose it from the windows.
        gap: Metres between windows of different splits; None for as much as neighbouring training
            windows overlap.
        overlap: Share of a training window that its neighbour shares.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the rasters cannot be used.
        LabelError: In ``setup``, if the labels cannot be used.

    Attributes:
        bands: Names of the bands, once set up.
        scale: Values of each band that become 0 and 1, once set up: a pair for each.
        resolution: Metres of a pixel, once set up; None where rasters differ.
        ignore_index: Value of mask pixels without a class.
        colors: None: vector files name no colours.
    """

    def __init__(
        self,
        root: str | Path,
        labels: str | Path,
        class_column: str | None = None,
        classes: Sequence[str] | None = None,
        image_size: int = 256,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
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
    ) -> None:
        super().__init__(VectorSegmentation, batch_size, num_workers, seed, steps_per_epoch)
        self.root, self.labels, self.ignore_index = root, labels, ignore_index
        self.options: dict[str, Any] = {
            'class_column': class_column, 'classes': classes, 'image_size': image_size,
            'background': background, 'layer': layer, 'labels_crs': labels_crs,
            'all_touched': all_touched, 'ignore_index': ignore_index, 'bands': bands,
            'scale': scale, 'resolution': resolution, 'val_fraction': val_fraction,
            'test_fraction': test_fraction, 'block_size': block_size, 'gap': gap,
            'overlap': overlap, 'seed': seed,
        }  # fmt: skip
        self.bands: list[str] = []
        self.colors: tuple[tuple[int, int, int], ...] | None = None
        self.resolution: float | None = None
        self.scale: tuple[tuple[float, float], ...] | None = None
        self._ready = False

    def setup(self, stage: str) -> None:
        """Read the headers of all rasters and the labels, once; all splits are there at every stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ImageError: If the rasters cannot be used.
            LabelError: If the labels cannot be used.
        """
        if self._ready:
            return
        train = VectorSegmentation(self.root, self.labels, 'train', **self.options)
        val, test = train.with_split('val'), train.with_split('test')
        self.train_dataset = train
        self.val_dataset = val if len(val) else None
        self.test_dataset = test if len(test) else None
        self.classes, self.bands, self.resolution = (
            train.classes,
            list(train.bands),
            train.resolution,
        )
        self.num_channels = len(self.bands)
        self.scale = tuple(zip(train.scale.low, train.scale.high, strict=True))
        self._ready = True
