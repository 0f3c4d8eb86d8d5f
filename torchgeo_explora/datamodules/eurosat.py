"""Data modules of EuroSAT, in red, green and blue and in all of its bands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torchgeo.datasets import DatasetNotFoundError, EuroSAT, EuroSATSpatial

from torchgeo_explora.datasets import SATMAE_BANDS, SENTINEL2_BANDS, satmae_scale
from torchgeo_explora.datasets._bands import band_positions, satmae_range
from torchgeo_explora.datasets._pixels import fit_square
from torchgeo_explora.errors import ConfigError, ImageError

from ._base import ImageDataModule
from ._sampler import Sample
from .folder import FolderDataModule

RGB_BANDS = ('B04', 'B03', 'B02')
"""Red, green, blue by name: EuroSAT's files keep B8A last, other products do not."""

RGB_MAXIMUM = 2750
"""Digital number (reflectance times 10,000) that is white in the published 8-bit RGB images.

Found by comparing: of the divisors 2500, 2700, 2750, 2800 and 3000, 2750 gives the multi-spectral
images' B04, B03, B02 the smallest distance to the published JPEGs, 1.5 of 255 on average, which is
JPEG's own noise (15 images at hand in both forms; `tests/datamodules/test_eurosat.py` repeats it).
"""

SIDE = 64
"""Pixels of a side of the published images."""

METRES = 10
"""Metres of a pixel of the published images, to which all bands were resampled."""

_SPLITS = {'random': EuroSAT, 'spatial': EuroSATSpatial}


class EuroSATRGBDataModule(ImageDataModule):
    """EuroSAT's red, green and blue in [0, 1], as in its published RGB images.

    ``root`` is either what TorchGeo's :class:`~torchgeo.datasets.EuroSAT` reads (13-band GeoTIFFs
    and the lists of its splits), of which B04, B03 and B02 are divided by 2750 and clipped, or a
    folder or .zip file of RGB images ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, whose
    splits are then used as they are.

    Args:
        root: Folder or .zip file.
        split: TorchGeo's ``spatial`` split by longitude (train in the west, test in the east: a
            shift of the domain) or its ``random`` one. Without effect on a folder of RGB images.
        image_size: Side of the images in pixels; EuroSAT's is 64.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order, and of the images held out where a folder of RGB images
            has no validation images.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_on_val: For a folder of RGB images, see :class:`FolderDataModule`.
        cache: For a folder of RGB images: ``ram`` to decode every image once.
        download: Whether TorchGeo may download the 13-band images.
        checksum: Whether TorchGeo checks what it downloaded.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the images are not there.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        split: Literal['spatial', 'random'] = 'spatial',
        image_size: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        train_on_val: bool = False,
        cache: Literal['none', 'ram'] = 'none',
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"split is {split!r}: give 'spatial' or 'random'.")
        super().__init__(_SPLITS[split], batch_size, num_workers, seed, steps_per_epoch)
        self.root, self.image_size = Path(root), image_size
        self.download, self.checksum = download, checksum
        self.num_channels, self.bands = len(RGB_BANDS), list(RGB_BANDS)
        self._folder = FolderDataModule(
            root, image_size=image_size, batch_size=batch_size, seed=seed, with_labels=True,
            train_on_val=train_on_val, num_channels=self.num_channels, cache=cache,
        )  # fmt: skip
        self._ready = False

    @property
    def is_folder(self) -> bool:
        """Whether ``root`` holds RGB images in folders rather than TorchGeo's files."""
        return self.root.suffix.lower() == '.zip' or (self.root / 'train').is_dir()

    def prepare_data(self) -> None:
        """Download the images where this is asked for and needed, in one process only."""
        if self.download and not self.is_folder:
            for split in ('train', 'val', 'test'):
                self._torchgeo(split)

    def setup(self, stage: str) -> None:
        """Find the images, once; all splits are there at every stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ImageError: If the images are not there.
        """
        if self._ready:
            return
        self.resolution = METRES * SIDE / self.image_size
        self.scale = ((0.0, float(RGB_MAXIMUM)),) * self.num_channels
        if self.is_folder:
            self._folder.setup(stage)
            self.scale = self._folder.scale
            self.train_dataset = self._folder.train_dataset
            self.val_dataset = self._folder.val_dataset
            self.test_dataset = self._folder.test_dataset
            self.classes = self._folder.classes
        else:
            train = self._torchgeo('train')
            self.train_dataset, self.classes = train, list(train.classes)
            self.val_dataset, self.test_dataset = self._torchgeo('val'), self._torchgeo('test')
        self._ready = True

    def _torchgeo(self, split: Literal['train', 'val', 'test']) -> EuroSAT:
        """TorchGeo's data set of one split."""
        dataset_class = EuroSATSpatial if self.dataset_class is EuroSATSpatial else EuroSAT
        try:
            return dataset_class(
                str(self.root), split, RGB_BANDS, self._to_rgb, self.download, self.checksum
            )
        except DatasetNotFoundError as error:
            raise ImageError(
                f"{self.root} holds no EuroSAT: give the folder of TorchGeo's EuroSAT, a folder "
                'with train/<class>/*.jpg, or download true.'
            ) from error

    def _to_rgb(self, sample: Sample) -> Sample:
        """Digital numbers to [0, 1], in the size asked for."""
        image = sample['image'].div(RGB_MAXIMUM).clamp(0, 1)
        return sample | {'image': fit_square(image, self.image_size)}


class EuroSATDataModule(ImageDataModule):
    """EuroSAT's multi-spectral images, scaled to [0, 1] as SatMAE scales Sentinel-2.

    Bands are chosen by name: EuroSAT's files hold B8A last and fMoW-Sentinel's hold it ninth, and
    the same names give the same channels from both. Values are scaled with fMoW-Sentinel's
    statistics, as a network pre-trained on it expects them, whatever EuroSAT's own are.

    Args:
        root: Folder of TorchGeo's :class:`~torchgeo.datasets.EuroSAT`.
        bands: Names of the bands, in order, spelled ``B2`` or ``B02``.
        split: TorchGeo's ``spatial`` split by longitude or its ``random`` one.
        image_size: Side of the images in pixels; EuroSAT's is 64.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        official_order: Take bands by the position that they have in fMoW-Sentinel's files, as the
            official code does: B9, B12 and B8A then stand where B8A, B11 and B12 are meant. Only to
            compare with numbers that were measured so.
        download: Whether TorchGeo may download the images.
        checksum: Whether TorchGeo checks what it downloaded.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the images are not there.

    Attributes:
        bands: Names of the channels, as they were given.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        bands: Sequence[str] = SATMAE_BANDS,
        split: Literal['spatial', 'random'] = 'spatial',
        image_size: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        official_order: bool = False,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"split is {split!r}: give 'spatial' or 'random'.")
        if image_size < 1:
            raise ConfigError(f'image_size is {image_size}: give a number of pixels of at least 1.')
        super().__init__(_SPLITS[split], batch_size, num_workers, seed, steps_per_epoch)
        self.root, self.image_size = Path(root), image_size
        self.download, self.checksum = download, checksum
        self.bands, self.num_channels = list(bands), len(bands)
        there = SENTINEL2_BANDS if official_order else EuroSAT.all_band_names
        places = band_positions(there, self.bands, 'EuroSAT')
        self.file_bands = tuple(EuroSAT.all_band_names[place] for place in places)
        self._ready = False

    def prepare_data(self) -> None:
        """Download the images where this is asked for and needed, in one process only."""
        if self.download:
            for split in ('train', 'val', 'test'):
                self._split(split)

    def setup(self, stage: str) -> None:
        """Find the images, once; all splits are there at every stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ImageError: If the images are not there.
        """
        if self._ready:
            return
        self.resolution = METRES * SIDE / self.image_size
        low, high = satmae_range(self.bands)
        self.scale = tuple(zip(low.tolist(), high.tolist(), strict=True))
        train = self._split('train')
        self.train_dataset, self.classes = train, list(train.classes)
        self.val_dataset, self.test_dataset = self._split('val'), self._split('test')
        self._ready = True

    def _split(self, split: Literal['train', 'val', 'test']) -> EuroSAT:
        dataset_class = EuroSATSpatial if self.dataset_class is EuroSATSpatial else EuroSAT
        try:
            return dataset_class(
                str(self.root), split, self.file_bands, self._scale, self.download, self.checksum
            )
        except DatasetNotFoundError as error:
            raise ImageError(
                f"{self.root} holds no EuroSAT of 13 bands: give the folder of TorchGeo's EuroSAT, "
                'or download true.'
            ) from error

    def _scale(self, sample: Sample) -> Sample:
        """Digital numbers to [0, 1], in the size asked for."""
        scaled = torch.from_numpy(satmae_scale(sample['image'].numpy(), self.bands))
        return sample | {'image': fit_square(scaled.float().div_(255), self.image_size)}
