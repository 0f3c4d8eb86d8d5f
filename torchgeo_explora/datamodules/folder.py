"""Data module of any folder of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.datasets.image_folder import image_root
from torchgeo_explora.errors import ConfigError, ImageError

from ._base import ImageDataModule
from ._sampler import Sample

VALIDATION_FOLDERS = ('val', 'validation')


class FolderDataModule(ImageDataModule):
    """Images in a folder, with or without labels, for training, online scores and probes.

    Sub-folders ``train``, ``val`` (or ``validation``) and ``test`` of ``root`` are its splits, and
    images elsewhere in ``root`` are then left out; without a sub-folder ``train``, all images under
    ``root`` are training images. Where these have labels and there is no folder for validation, a
    share of every class is drawn with ``seed`` for it; windows of one raster stay together.

    Batches are dictionaries of ``image``, float32 (B, C, S, S) in [0, 1], not normalised, and
    ``label``, int64 (B,), where there are labels. Validation and test batches always have labels;
    without labels the loaders are empty lists.

    Args:
        root: Folder or .zip file.
        val_root: Another folder or .zip file, of labelled images, for validation.
        image_size: Side S of the images in pixels.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order, of the images held out and of the percentiles.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        bands: 1-based indexes or names of the bands; None for all.
        mode: ``keep`` the bands, or ``rgb`` to repeat a single band three times.
        with_labels: Whether sub-folders are classes, see :class:`ImageFolder`.
        val_fraction: Share of each class for validation where no folder is given for it.
        train_on_val: Train on that share as well. Right for pre-training, which uses no labels;
            wrong for anything that learns from labels.
        scale: Values that become 0 and 1, see :class:`ImageFolder`. Validation and test images
            are scaled like the training images.
        tile: Side of the windows that large GeoTIFFs are split into; None never to split.
        num_channels: Bands that the model needs; None for any.
        min_size: Smallest side of an image in pixels, for example one patch.
        cache: ``ram`` to decode every image once.
        cache_dir: Where .zip files are unpacked to; None for a temporary folder.
        band_names: Names of all bands of the files, in order, where the files do not name theirs.
        unlabelled_val: Whether validation and test images may be without labels, for losses that
            use none; a share of the training images is then held out like a single class.

    Attributes:
        bands: Names of the bands, once set up.
        scale: Values of each band that become 0 and 1, once set up.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the images cannot be used.
    """

    def __init__(
        self,
        root: str | Path,
        val_root: str | Path | None = None,
        image_size: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        bands: Sequence[int | str] | None = None,
        mode: Literal['keep', 'rgb'] = 'keep',
        with_labels: Literal['auto'] | bool = 'auto',
        val_fraction: float = 0.2,
        train_on_val: bool = False,
        scale: Sequence[float | Sequence[float]] | None = None,
        tile: int | None = 256,
        num_channels: int | None = None,
        min_size: int = 1,
        cache: Literal['none', 'ram'] = 'none',
        cache_dir: str | Path | None = None,
        band_names: Sequence[str] | None = None,
        unlabelled_val: bool = False,
    ) -> None:
        super().__init__(ImageFolder, batch_size, num_workers, seed, steps_per_epoch)
        if not 0 < val_fraction < 1:
            raise ConfigError(f'val_fraction is {val_fraction}: give a number between 0 and 1.')
        self.root, self.val_root, self.cache_dir = root, val_root, cache_dir
        self.val_fraction, self.train_on_val = val_fraction, train_on_val
        self.with_labels, self.num_needed = with_labels, num_channels
        self.given_scale = scale
        self.options: dict[str, Any] = {
            'image_size': image_size, 'bands': bands, 'mode': mode, 'tile': tile,
            'min_size': min_size, 'cache': cache, 'cache_dir': cache_dir, 'seed': seed,
            'band_names': band_names,
        }  # fmt: skip
        self.unlabelled_val = unlabelled_val
        self.bands: list[str] = []
        self._ready = False

    def setup(self, stage: str) -> None:
        """Read the folders, once; all splits are there at every stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ImageError: If the images cannot be used.
        """
        if self._ready:
            return
        root = image_root(self.root, cache_dir=self.cache_dir)
        split = (root / 'train').is_dir()
        train = ImageFolder(
            root / 'train' if split else root,
            with_labels=self.with_labels,
            scale=self.given_scale,
            num_channels=self.num_needed,
            **self.options,
        )
        self.num_channels, self.classes = train.num_channels, train.classes
        self.bands = list(train.bands)
        # a grey band that is repeated has one scale
        pairs = list(zip(train.scale.low, train.scale.high, strict=True))
        self.scale = tuple(pairs * (train.num_channels // len(pairs)))
        self.train_dataset = train
        self.val_dataset = self._validation(root if split else None, train)
        has_test = split and (root / 'test').is_dir()
        self.test_dataset = self._labelled(root / 'test', train) if has_test else None
        self._ready = True

    def _validation(self, root: Path | None, train: ImageFolder) -> Dataset[Sample] | None:
        """Images for validation: a folder of their own, or a share of the training's."""
        if self.val_root is not None:
            folder = image_root(self.val_root, cache_dir=self.cache_dir)
            dataset = self._labelled(folder, train)
            if dataset is None:
                raise ImageError(
                    f'{self.val_root} has no class folders: give a folder with one sub-folder of '
                    'images for each class, or no val_root.'
                )
            return dataset
        names = () if root is None else VALIDATION_FOLDERS
        for folder in [root / name for name in names if root is not None]:
            if folder.is_dir():
                return self._labelled(folder, train)
        if train.labels is None and not self.unlabelled_val:
            return None
        alike = torch.zeros(len(train), dtype=torch.int64)
        return self._share(train, alike if train.labels is None else train.labels)

    def _labelled(self, folder: Path, train: ImageFolder) -> ImageFolder | None:
        """A folder read like the training images, or None if it has no labels."""
        dataset = ImageFolder(
            folder,
            with_labels=self._wants_labels(train),
            classes=train.classes,
            scale=None if train.scale.source == 'dtype' else (train.scale.low, train.scale.high),
            num_channels=train.num_channels,
            **self.options,
        )
        if (dataset.scale.source == 'dtype') != (train.scale.source == 'dtype'):
            raise ImageError(
                f'{folder} holds images of {dataset.headers[0].dtype} and {train.root} of '
                f'{train.headers[0].dtype}: give images of one type.'
            )
        if self.classes is None:
            self.classes = dataset.classes
        return None if dataset.labels is None and not self.unlabelled_val else dataset

    def _wants_labels(self, train: ImageFolder) -> Literal['auto'] | bool:
        """Whether the folder of other images has to have class folders."""
        if self.unlabelled_val and self.with_labels is False:
            return False
        return 'auto' if train.classes is None else True

    def _share(self, train: ImageFolder, labels: Tensor) -> Subset[Sample]:
        """A share of every class; the rest stays for training unless all is to be trained on."""
        files = torch.tensor([tile.file for tile in train.tiles])
        held_out = stratified(labels, files, self.val_fraction, self.seed)
        if not self.train_on_val:
            self.train_dataset = Subset(train, (~held_out).nonzero()[:, 0].tolist())
        return Subset(train, held_out.nonzero()[:, 0].tolist())


def stratified(labels: Tensor, groups: Tensor, fraction: float, seed: int) -> Tensor:
    """Draw a share of the groups of every class.

    Args:
        labels: Class of every sample, (N,) int64.
        groups: Group of every sample, (N,) int64; samples of one group stay together.
        fraction: Share of each class's groups, rounded; at least one where a class has two.
        seed: Seed of the draw. A class's draw does not depend on the other classes.

    Returns:
        Which samples were drawn, (N,) bool.
    """
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = groups[labels == label].unique()
        count = max(round(fraction * len(members)), 1) if len(members) > 1 else 0
        order = np.random.default_rng([seed, label]).permutation(len(members))
        drawn |= (labels == label) & torch.isin(groups, members[order[:count]])
    return drawn
