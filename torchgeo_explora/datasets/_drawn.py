"""Samples that are drawn anew in every pass over a data set, in a way that can be repeated."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor
from torchgeo.datasets import NonGeoClassificationDataset, NonGeoDataset

from torchgeo_explora.errors import ConfigError

from ._crops import Cropping, draw_crop


class DrawnImages(NonGeoDataset, ABC):
    """A data set whose random choices depend on a seed, the pass and the position alone.

    Attributes:
        classes: Names of the classes, in the order of the labels.
    """

    classes: list[str]

    @abstractmethod
    def draw(self, index: int, epoch: int) -> dict[str, Tensor]:
        """One sample of a pass over the data.

        Args:
            index: Position from 0.
            epoch: Number of the pass, from 0.
        """

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample, as it is drawn in the first pass over the data.

        Args:
            index: Position from 0.

        Returns:
            What :meth:`draw` returns.
        """
        return self.draw(index, 0)


class CroppedImages(DrawnImages):
    """Images of one of TorchGeo's data sets, in [0, 1] and cut to squares.

    Args:
        dataset: Images of bytes as float32, 0 to 255, with a label each.
        cropping: How images become squares.
        seed: Seed of random crops, at least 0.

    Raises:
        ConfigError: If the seed is negative.
    """

    def __init__(
        self, dataset: NonGeoClassificationDataset, cropping: Cropping, seed: int = 0
    ) -> None:
        if seed < 0:
            raise ConfigError(f'seed is {seed}: give a number of at least 0.')
        self.dataset, self.cropping, self.seed = dataset, cropping, seed
        self.classes = list(dataset.classes)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def file_of(self, index: int) -> str:
        """Path of the file of a sample.

        Args:
            index: Position from 0.
        """
        return str(self.dataset.samples[index][0])

    def draw(self, index: int, epoch: int) -> dict[str, Tensor]:
        """One sample of a pass over the data.

        Args:
            index: Position from 0.
            epoch: Number of the pass, from 0.

        Returns:
            ``image``, float32 (3, S, S) in [0, 1], and ``label``, int64.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} images')
        index %= len(self)
        sample = self.dataset[index]
        draw = draw_crop(np.random.default_rng([self.seed, epoch, index]))
        image = self.cropping.cut(sample['image'].float().div(255), draw)
        return {'image': image, 'label': torch.as_tensor(sample['label'], dtype=torch.int64)}
