"""Chips of SpaceNet 1, cut or filled up to squares."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchgeo.datasets import SpaceNet1

from ._drawn import DrawnImages


class SpaceNetChips(DrawnImages):
    """Some of the chips of SpaceNet 1 as squares of S pixels, with their masks where wanted.

    A side longer than S is cut, at a place that depends on the seed, the pass and the chip (in the
    middle, where ``random`` is not set); a shorter one is filled up at its end, with 0 in the image
    and ``ignore_index`` in the mask.

    Args:
        dataset: TorchGeo's SpaceNet 1, with values from 0 to 255.
        positions: Which of its chips.
        size: Side S in pixels.
        random: Whether places are drawn.
        masks: Whether samples have masks.
        seed: Seed of the places.
        ignore_index: Mask value of what was filled up.
    """

    def __init__(
        self,
        dataset: SpaceNet1,
        positions: Sequence[int],
        size: int,
        random: bool = False,
        masks: bool = True,
        seed: int = 0,
        ignore_index: int = 255,
    ) -> None:
        self.dataset, self.positions, self.size = dataset, list(positions), size
        self.random, self.masks, self.seed = random, masks, seed
        self.ignore_index = ignore_index
        self.classes = ['background', 'building']

    def __len__(self) -> int:
        """Number of chips."""
        return len(self.positions)

    def file_of(self, index: int) -> str:
        """Path of a chip's image."""
        return str(self.dataset.images[self.positions[index]])

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """One chip of a pass over the data.

        Args:
            index: Position from 0.
            epoch: Number of the pass, from 0.

        Returns:
            ``image``, float32 (C, S, S) in [0, 1]; ``mask``, int64 (S, S), where wanted.
        """
        found = self.dataset[self.positions[index]]
        height, width = found['image'].shape[-2:]
        share = (0.5, 0.5)
        if self.random:
            share = tuple(np.random.default_rng([self.seed, epoch, index]).random(2))
        row = round(share[0] * max(height - self.size, 0))
        column = round(share[1] * max(width - self.size, 0))
        sample = {'image': self._square(found['image'].float().div(255), row, column, 0)}
        if self.masks and 'mask' in found:
            sample['mask'] = self._square(found['mask'].long(), row, column, self.ignore_index)
        return sample

    def _square(self, values: Tensor, row: int, column: int, fill: int) -> Tensor:
        values = values[..., row : row + self.size, column : column + self.size]
        square = torch.full((*values.shape[:-2], self.size, self.size), fill, dtype=values.dtype)
        square[..., : values.shape[-2], : values.shape[-1]] = values
        return square
