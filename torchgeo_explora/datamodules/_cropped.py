"""Data modules of images that loader workers cut to squares: splits, crops, scale, resolution."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torchgeo.datasets import DatasetNotFoundError, NonGeoDataset

from torchgeo_explora.datasets import Cropping
from torchgeo_explora.datasets._drawn import DrawnImages
from torchgeo_explora.errors import ImageError

from ._base import ImageDataModule

BYTES = ((0.0, 255.0),)
"""Scale of one band of 8 bits."""


class CroppedDataModule(ImageDataModule, ABC):
    """What data modules of published sets share: splits and crops.

    Loader workers cut squares out of the images. For training that is a random-resized crop where
    ``train_scale`` is given, else the largest square at a random place; both depend on the seed,
    the pass over the data and the image alone. All other images are resized and their centre is cut
    out. Nothing is flipped or normalised.

    ``predict`` uses the test images, with labels.

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
        self.splits = {'train': 'train', 'val': 'val', 'test': 'test'}
        self._sets: dict[str, DrawnImages] = {}

    @property
    def eval_resize(self) -> int:
        """Shorter side of evaluated images, before their centre is cut out."""
        resize = self.eval_cropping.resize
        return self.image_size if resize is None else resize

    @abstractmethod
    def _dataset(self, split: str, cropping: Cropping) -> DrawnImages:
        """One split of the data set.

        Args:
            split: Its own name for it.
            cropping: How images become squares.
        """

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
            self.val_dataset = self._validation()
        if stage in {'test', 'predict'}:
            self.test_dataset = self._test()
            self.predict_dataset = self.test_dataset
        known = [dataset.classes for dataset in self._sets.values() if dataset.classes]
        self.classes = list(known[0]) if known else None

    def _split(self, role: str, cropping: Cropping) -> DrawnImages:
        """The images of a role: train, val or test."""
        if role not in self._sets:
            split = self.splits[role]
            try:
                self._sets[role] = self._dataset(split, cropping)
            except DatasetNotFoundError as error:
                raise ImageError(
                    f'{self.root} holds no {split} images of {self.dataset_class.__name__}: give '
                    'the folder with its tables and images, laid out as docs/datasets.md shows.'
                ) from error
        return self._sets[role]

    def _validation(self) -> DrawnImages | None:
        """Images for validation; None where there need not be any."""
        return self._split('val', self.eval_cropping)

    def _test(self) -> DrawnImages:
        """Images for testing."""
        return self._split('test', self.eval_cropping)
