"""Data modules of Functional Map of the World: RGB, Sentinel-2 and sequences of dates."""

from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.datasets import (
    SATMAE_BANDS,
    SENTINEL2_BANDS,
    Cropping,
    FMoWRGB,
    FMoWSentinel,
    FMoWTemporal,
)
from torchgeo_explora.datasets._bands import band_positions, satmae_range
from torchgeo_explora.datasets._drawn import DrawnImages
from torchgeo_explora.datasets._fmow_download import download_sentinel

from ._cropped import BYTES, CroppedDataModule

type _Split = Literal['train', 'val', 'test']


class FMoWDataModule(CroppedDataModule, ABC):
    """What the three data modules of fMoW share: test images.

    ``test`` uses the test images, or the validation images where there are none, as in fMoW's RGB
    tables; ``predict`` the same, with labels.
    """

    def _test(self) -> DrawnImages:
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
        self.scale = BYTES * self.num_channels

    def _dataset(self, split: str, cropping: Cropping) -> DrawnImages:
        return FMoWRGB(self.root, cast('_Split', split), cropping, seed=self.seed, **self.options)


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
        self.scale = BYTES * self.num_channels

    def _dataset(self, split: str, cropping: Cropping) -> DrawnImages:
        return FMoWTemporal(
            self.root, cast('_Split', split), cropping, seed=self.seed, **self.options
        )


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
        low, high = satmae_range(bands)
        self.scale = tuple(zip(low.tolist(), high.tolist(), strict=True))

    def prepare_data(self) -> None:
        """Download the images where this is asked for and needed, in one process only."""
        if self.download:
            for split in ('train', 'val', 'test'):
                download_sentinel(self.root, split, bool(self.options['checksum']))

    def _dataset(self, split: str, cropping: Cropping) -> DrawnImages:
        return FMoWSentinel(
            self.root, cast('_Split', split), cropping=cropping, seed=self.seed, **self.options
        )
