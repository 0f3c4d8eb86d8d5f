"""Data modules of Functional Map of the World: RGB, Sentinel-2 and sequences of dates."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torchgeo.datasets import DatasetNotFoundError, NonGeoDataset

from torchgeo_explora.datasets import (
    SATMAE_BANDS,
    SENTINEL2_BANDS,
    Cropping,
    FMoWRGB,
    FMoWSentinel,
    FMoWTemporal,
)
from torchgeo_explora.datasets._bands import band_positions
from torchgeo_explora.datasets._fmow import FMoW
from torchgeo_explora.datasets._fmow_download import download_sentinel
from torchgeo_explora.errors import ImageError

from ._base import ImageDataModule


class FMoWDataModule(ImageDataModule, ABC):
    """What the three data modules of fMoW share: splits and crops.

    Images vary in size, so that loader workers cut squares out of them. For training that is a
    random-resized crop where ``train_scale`` is given, else the largest square at a random place;
    both depend on the seed, the pass over the data and the image alone. All other images are resized
    and their centre is cut out. Nothing is flipped or normalised.

    ``test`` uses the test images, or the validation images where there are none, as in fMoW's RGB
    tables; ``predict`` the same, with labels.

    Args:
        dataset_class: Class of the data sets.
        root: Folder of the data set.
        image_size: Side of the squares in pixels.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order and of what is drawn.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_scale: Smallest and largest share of the area of a random-resized crop.
        eval_resize: Shorter side before the centre is cut out; None for ``image_size``. SatMAE takes
            109 for 96, and 256 for 224.
        options: Further arguments of the data sets.
    """

    def __init__(
        self,
        dataset_class: type[NonGeoDataset],
        root: str | Path,
        image_size: int,
        batch_size: int,
        num_workers: int,
        seed: int,
        steps_per_epoch: int | None,
        train_scale: tuple[float, float] | None,
        eval_resize: int | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__(dataset_class, batch_size, num_workers, seed, steps_per_epoch)
        self.root, self.image_size, self.options = Path(root), image_size, options
        scale = (0.2, 1.0) if train_scale is None else train_scale
        self.train_cropping = Cropping(
            image_size, 'square' if train_scale is None else 'resized', scale
        )
        self.eval_cropping = Cropping(image_size, 'centre', resize=eval_resize)
        self._sets: dict[str, FMoW] = {}

    @abstractmethod
    def _dataset(self, split: Literal['train', 'val', 'test'], cropping: Cropping) -> FMoW:
        """One split."""

    def setup(self, stage: str) -> None:
        """Read the tables that a stage needs, each once.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ImageError: If the images are not there or cannot be used.
        """
        if stage == 'fit':
            self.train_dataset = self._split('train', self.train_cropping)
        if stage in {'fit', 'validate'}:
            self.val_dataset = self._split('val', self.eval_cropping)
        if stage in {'test', 'predict'}:
            self.test_dataset = self._test()
            self.predict_dataset = self.test_dataset
        self.classes = list(next(iter(self._sets.values())).classes)

    def _split(self, split: Literal['train', 'val', 'test'], cropping: Cropping) -> FMoW:
        if split not in self._sets:
            try:
                self._sets[split] = self._dataset(split, cropping)
            except DatasetNotFoundError as error:
                raise ImageError(
                    f'{self.root} holds no {split} images of {self.dataset_class.__name__}: give '
                    'the folder with its tables and images, laid out as docs/datasets.md shows.'
                ) from error
        return self._sets[split]

    def _test(self) -> FMoW:
        try:
            self._sets['test'] = self._dataset('test', self.eval_cropping)
        except DatasetNotFoundError:
            return self._split('val', self.eval_cropping)
        return self._sets['test']


class FMoWRGBDataModule(FMoWDataModule):
    """fMoW-RGB: batches of ``image`` (B, 3, S, S) in [0, 1] and ``label`` (B,).

    Args:
        root: Folder of the data set, see :class:`~torchgeo_explora.datasets.FMoWRGB`.
        image_size: Side S of the squares in pixels.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order and of random crops.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_scale: Shares of the area of a random-resized crop for training; None for the largest
            square at a random place.
        eval_resize: Shorter side before the centre is cut out; None for ``image_size``.
        kind: ``rgb`` or ``msrgb``, of the raw data set.
        cut_boxes: Whether images are cut to the boxes of JSON files beside them.
        check_files: Whether to look for every file at once.

    Raises:
        ConfigError: If an argument is not possible.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        train_scale: tuple[float, float] | None = None,
        eval_resize: int | None = None,
        kind: Literal['rgb', 'msrgb'] = 'rgb',
        cut_boxes: Literal['auto'] | bool = 'auto',
        check_files: bool = False,
    ) -> None:
        options = {'kind': kind, 'cut_boxes': cut_boxes, 'check_files': check_files}
        super().__init__(
            FMoWRGB, root, image_size, batch_size, num_workers, seed, steps_per_epoch,
            train_scale, eval_resize, options,
        )  # fmt: skip
        self.bands, self.num_channels = list(FMoWRGB.bands), len(FMoWRGB.bands)

    def _dataset(self, split: Literal['train', 'val', 'test'], cropping: Cropping) -> FMoW:
        return FMoWRGB(self.root, split, cropping, seed=self.seed, **self.options)


class FMoWTemporalDataModule(FMoWDataModule):
    """fMoW-temporal: ``image`` (B, T, 3, S, S), ``timestamps`` (B, T, 3) and ``label`` (B,).

    Timestamps are year - 2002, month - 1 and hour. All dates of a place are cut alike.

    Args:
        root: Folder of the data set, see :class:`~torchgeo_explora.datasets.FMoWTemporal`.
        image_size: Side S of the squares in pixels.
        dates: Number T of pictures in a sample.
        batch_size: Samples of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order, of random crops and of the choice of dates.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_scale: Shares of the area of a random-resized crop for training; None for the largest
            square at a random place, as SatMAE does.
        eval_resize: Shorter side before the centre is cut out; None for ``image_size``.
        kind: ``rgb`` or ``msrgb``, of the raw data set.
        cut_boxes: Whether images are cut to the boxes of JSON files beside them.
        check_files: Whether to look for every file at once.

    Raises:
        ConfigError: If an argument is not possible.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        image_size: int = 224,
        dates: int = 3,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        train_scale: tuple[float, float] | None = None,
        eval_resize: int | None = None,
        kind: Literal['rgb', 'msrgb'] = 'rgb',
        cut_boxes: Literal['auto'] | bool = 'auto',
        check_files: bool = False,
    ) -> None:
        options = {'dates': dates, 'kind': kind, 'cut_boxes': cut_boxes, 'check_files': check_files}
        super().__init__(
            FMoWTemporal, root, image_size, batch_size, num_workers, seed, steps_per_epoch,
            train_scale, eval_resize, options,
        )  # fmt: skip
        self.bands, self.num_channels = list(FMoWTemporal.bands), len(FMoWTemporal.bands)

    def _dataset(self, split: Literal['train', 'val', 'test'], cropping: Cropping) -> FMoW:
        return FMoWTemporal(self.root, split, cropping, seed=self.seed, **self.options)


class FMoWSentinelDataModule(FMoWDataModule):
    """fMoW-Sentinel: ``image`` (B, C, S, S) in [0, 1], scaled as SatMAE does, ``label`` (B,).

    Args:
        root: Folder of the data set, see :class:`~torchgeo_explora.datasets.FMoWSentinel`.
        bands: Names of the C bands, in order, spelled ``B2`` or ``B02``.
        image_size: Side S of the squares in pixels.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order and of random crops.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_scale: Shares of the area of a random-resized crop for training, SatMAE's being 0.2 to
            1; None for the largest square at a random place.
        eval_resize: Shorter side before the centre is cut out; None for ``image_size``.
        band_names: Names of the bands in the files, in order.
        check_files: Whether to look for every file at once.
        download: Whether to download what is missing (78 GB).
        checksum: Whether to check what is downloaded.

    Raises:
        ConfigError: If an argument is not possible.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        bands: Sequence[str] = SATMAE_BANDS,
        image_size: int = 96,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        train_scale: tuple[float, float] | None = None,
        eval_resize: int | None = None,
        band_names: Sequence[str] = SENTINEL2_BANDS,
        check_files: bool = False,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        band_positions(band_names, bands, 'fMoW-Sentinel')
        options = {
            'bands': bands, 'band_names': band_names, 'check_files': check_files,
            'checksum': checksum,
        }  # fmt: skip
        super().__init__(
            FMoWSentinel, root, image_size, batch_size, num_workers, seed, steps_per_epoch,
            train_scale, eval_resize, options,
        )  # fmt: skip
        self.bands, self.num_channels, self.download = list(bands), len(bands), download

    def prepare_data(self) -> None:
        """Download the images where this is asked for and needed, in one process only."""
        if self.download:
            for split in ('train', 'val', 'test'):
                download_sentinel(self.root, split, bool(self.options['checksum']))

    def _dataset(self, split: Literal['train', 'val', 'test'], cropping: Cropping) -> FMoW:
        return FMoWSentinel(self.root, split, cropping=cropping, seed=self.seed, **self.options)
