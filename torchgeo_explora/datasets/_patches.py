"""Patches of TorchGeo's geospatial data sets, drawn by its samplers, that can be drawn again."""

from typing import Any

import numpy as np
import shapely
import torch
from torch import Tensor
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import GriddedPatchSampler, RandomPatchSampler

from torchgeo_explora.errors import ConfigError, ImageError

from ._drawn import DrawnImages

type Query = tuple[slice, slice]
"""TorchGeo's index of a data set: ranges of x and y."""


class Patches(DrawnImages):
    """Square patches of 8-bit images, and of masks where the data set has them.

    With ``length`` they are drawn by TorchGeo's ``RandomPatchSampler``, anew in every pass, from a
    generator that depends on the seed and the pass alone; without, they are those of its
    ``GriddedPatchSampler``. What lies beyond the rasters is 0.

    Args:
        dataset: Images with values from 0 to 255, and masks of classes.
        size: Side of a patch in pixels.
        length: Patches of a pass, drawn at random; None for a grid of patches.
        region: Area to take patches from, in the data set's CRS; None for all of it.
        seed: Seed of the draw.

    Raises:
        ConfigError: If a number is out of range.
        ImageError: If the region has no room for a patch.
    """

    classes: list[str]

    def __init__(
        self,
        dataset: GeoDataset,
        size: int,
        length: int | None = None,
        region: shapely.Polygon | None = None,
        seed: int = 0,
    ) -> None:
        if size < 1 or seed < 0 or (length is not None and length < 1):
            raise ConfigError(
                f'size {size}, length {length}, seed {seed}: give at least 1 pixel, 1 patch and a '
                'seed of at least 0.'
            )
        self.dataset, self.size, self.seed = dataset, size, seed
        self._length, self._region, self.classes = length, region, []
        self._epoch, self._queries = 0, self._draw(0)

    def _draw(self, epoch: int) -> list[Query]:
        """Patches of a pass."""
        if self._length is None:
            return list(
                GriddedPatchSampler(
                    self.dataset, size=self.size, stride=self.size, roi=self._region
                )
            )
        rng = np.random.default_rng([self.seed, epoch])
        sampler = RandomPatchSampler(
            self.dataset, size=self.size, length=self._length, roi=self._region, generator=rng
        )
        if sampler.series.is_empty.all():
            raise ImageError(
                f'No patch of {self.size} pixels fits into the rasters (within '
                f'{sampler.geometry.bounds}): give larger rasters or a smaller patch_size.'
            )
        return list(sampler)

    def __len__(self) -> int:
        """Number of patches of a pass."""
        return len(self._queries)

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """One patch of a pass over the data.

        Args:
            index: Position from 0.
            epoch: Number of the pass, from 0.

        Returns:
            ``image``, float32 (C, S, S) in [0, 1]; ``mask``, int64 (S, S), where there are masks.
        """
        if self._length is not None and epoch != self._epoch:
            self._epoch, self._queries = epoch, self._draw(epoch)
        found = self.dataset[self._queries[index]]
        sample: dict[str, Any] = {'image': self._square(found['image']).float().div(255)}
        if 'mask' in found:
            sample['mask'] = self._square(found['mask']).long()
        return sample

    def _square(self, values: Tensor) -> Tensor:
        """Exactly S pixels on a side: rounding of coordinates may give or take one."""
        values = values[..., : self.size, : self.size]
        square = torch.zeros((*values.shape[:-2], self.size, self.size), dtype=values.dtype)
        square[..., : values.shape[-2], : values.shape[-1]] = values
        return square
