"""Data module of SpaceNet 1: buildings of Rio de Janeiro at 50 cm."""

from pathlib import Path

import numpy as np
from torchgeo.datasets import DatasetNotFoundError, SpaceNet1

from torchgeo_explora.datasets._chips import SpaceNetChips
from torchgeo_explora.errors import ConfigError, ImageError

from ._base import ImageDataModule


class SpaceNet1DataModule(ImageDataModule):
    """RGB chips of SpaceNet 1 in [0, 1], neither normalised nor augmented, with masks of buildings.

    TorchGeo's data module of this name pads, turns and jitters the batches; here they stay as they
    are, for tasks that augment on the device. Chips of 406 x 439 pixels become squares: longer
    sides are cut, in training at a place drawn anew in every pass; shorter ones are filled up with
    0, and with 255, which counts nowhere, in the mask.

    The official test images have no labels. Validation and test images are drawn from the labelled
    ones with ``seed``; neighbouring chips may be in different parts. Prediction goes over the
    official test images where they are there, else over the test part.

    Args:
        root: Folder that holds ``SN1_buildings``, as TorchGeo reads it.
        image_size: Side of the squares in pixels; 448 shows whole chips.
        batch_size: Chips of a batch (on each device).
        num_workers: Processes that load chips.
        seed: Seed of the parts, the training order and the places that are cut out.
        steps_per_epoch: Batches of an epoch; None for one pass over the chips.
        masks: Whether samples have masks; False for pre-training.
        train_on_all: Train on validation and test chips as well. Right for pre-training, which uses
            no labels; wrong for anything that learns from them.
        val_fraction: Share of the labelled chips for validation.
        test_fraction: Share of the labelled chips for testing.
        download: Whether TorchGeo may download the data, with the ``aws`` command.
        checksum: Whether TorchGeo checks what it downloaded.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the data are not there or too few.

    Attributes:
        classes: ``background`` and ``building``.
        ignore_index: 255.
        bands: ``red``, ``green`` and ``blue``.
        scale: Values of each band that become 0 and 1.
        resolution: 0.5 m.
    """

    ignore_index = 255

    def __init__(
        self,
        root: str | Path = 'data',
        image_size: int = 448,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        masks: bool = True,
        train_on_all: bool = False,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        super().__init__(SpaceNet1, batch_size, num_workers, seed, steps_per_epoch)
        if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f'val_fraction {val_fraction} and test_fraction {test_fraction}: give two numbers '
                'above 0 with a sum below 1.'
            )
        if image_size < 1:
            raise ConfigError(f'image_size is {image_size}: give a number of pixels of at least 1.')
        self.root, self.image_size, self.masks = Path(root), image_size, masks
        self.train_on_all, self.shares = train_on_all, (val_fraction, test_fraction)
        self.download, self.checksum = download, checksum
        self.classes = ['background', 'building'] if masks else None
        self.bands, self.num_channels = ['red', 'green', 'blue'], 3
        self.scale, self.resolution = ((0.0, 255.0),) * 3, 0.5
        self._ready = False

    def prepare_data(self) -> None:
        """Download the data where this is asked for and needed, in one process only."""
        if self.download:
            self._read('train')
            self._read('test')

    def setup(self, stage: str) -> None:
        """Find the chips, once; all splits are there at every stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ImageError: If the data are not there or too few.
        """
        if self._ready:
            return
        labelled = self._read('train')
        order = np.random.default_rng(self.seed).permutation(len(labelled)).tolist()
        val, test = (max(round(share * len(order)), 1) for share in self.shares)
        if len(order) <= val + test:
            raise ImageError(f'{self.root} has {len(order)} chips with labels: give at least 3.')
        train = order if self.train_on_all else order[val + test :]
        self.train_dataset = self._chips(labelled, train, random=True)
        self.val_dataset = self._chips(labelled, order[:val]) if self.masks else None
        self.test_dataset = self._chips(labelled, order[val : val + test])
        self.predict_dataset = self._unlabelled(labelled, order[val : val + test])
        self._ready = True

    def _unlabelled(self, labelled: SpaceNet1, otherwise: list[int]) -> SpaceNetChips:
        """The official test images, or some labelled ones where they are not there."""
        try:
            dataset = self._read('test')
        except ImageError:
            return self._chips(labelled, otherwise)
        return self._chips(dataset, list(range(len(dataset))))

    def _chips(
        self, dataset: SpaceNet1, positions: list[int], random: bool = False
    ) -> SpaceNetChips:
        return SpaceNetChips(
            dataset, positions, self.image_size, random, self.masks, self.seed, self.ignore_index
        )

    def _read(self, split: str) -> SpaceNet1:
        try:
            return SpaceNet1(
                str(self.root), 'train' if split == 'train' else 'test', image='3band',
                download=self.download, checksum=self.checksum,
            )  # fmt: skip
        except DatasetNotFoundError as error:
            raise ImageError(
                f'{self.root} holds no SN1_buildings/{split}/3band: give the folder of '
                "TorchGeo's SpaceNet1, or download true."
            ) from error
