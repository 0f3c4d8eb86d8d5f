"""Block-wise masks for iBOT: rectangles of patches that the student has to fill in.

A mask is grown as one Python integer with a bit per patch, and random numbers are drawn in
bulk, so that the masks of a large batch take a few milliseconds of a data loader's time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError

# Uniform numbers drawn from the generator at a time.
_BULK = 2048


@dataclass(frozen=True)
class MaskSpec:
    """How many crops are masked, how much of them, and by what rectangles.

    Args:
        probability: Share of the crops that are masked, in [0, 1].
        ratio: Least and largest share of a masked crop's patches, in [0, 1].
        min_area: Least number of patches of a rectangle. Where fewer patches than that are
            to be masked in all (on a tiny grid), the least area is 1 instead.
        min_aspect: Least ratio of height and width, in (0, 1]; the largest is its inverse.
        attempts: Tries to place one rectangle before the mask is left as it is.

    Raises:
        ConfigError: If a value lies outside its range.

    Source: Bao et al., "BEiT" (2022), algorithm 1; Oquab et al., "DINOv2" (2023), iBOT head.
    """

    probability: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    min_area: int = 4
    min_aspect: float = 0.3
    attempts: int = 10

    def __post_init__(self) -> None:
        low, high = self.ratio
        valid = 0 <= self.probability <= 1 and 0 <= low <= high <= 1
        if not (valid and self.min_area >= 1 and 0 < self.min_aspect <= 1 and self.attempts >= 1):
            raise ConfigError(
                f'The mask settings are {self}. Allowed are a probability in [0, 1], a ratio '
                '(low, high) with 0 <= low <= high <= 1, a min_area and attempts of at least 1, '
                'and a min_aspect in (0, 1]. Correct the value that lies outside.'
            )

    def sample(
        self, grid: GridSize, batch: int, generator: torch.Generator
    ) -> Bool[Tensor, 'batch patches']:
        """Draw the masks of a batch of crops; see :func:`block_masks`.

        Args:
            grid: Patches of a crop.
            batch: Number of crops.
            generator: Source of every random choice, on the CPU.

        Returns:
            True at the masked patches, on the CPU.
        """
        count = math.floor(batch * self.probability)
        bits = [0] * batch
        uniform = _uniforms(generator)
        for i, share in enumerate(_stratified(*self.ratio, count, uniform)):
            bits[i] = self._grow(grid, int(grid.area * share), uniform)
        order = torch.randperm(batch, generator=generator).tolist()
        return _unpack([bits[i] for i in order], grid.area)

    def _grow(self, grid: GridSize, target: int, uniform: Iterator[float]) -> int:
        """Add rectangles to an empty mask until it has the target's area or none fits."""
        least = self.min_area if target >= self.min_area else 1
        mask = 0
        while (remaining := target - mask.bit_count()) > 0:
            most = min(remaining, grid.area // 2)
            grown = self._place(grid, mask, least, most, uniform)
            if grown == mask:
                break
            mask = grown
        return mask

    def _place(
        self, grid: GridSize, mask: int, least: int, most: int, uniform: Iterator[float]
    ) -> int:
        """Return the mask with one more rectangle, or the same mask after the last attempt."""
        for _ in range(self.attempts):
            area = least + next(uniform) * (most - least)
            aspect = self.min_aspect ** (1 - 2 * next(uniform))  # log-uniform
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            top = math.floor(next(uniform) * (grid.height - height + 1))
            left = math.floor(next(uniform) * (grid.width - width + 1))
            if not (1 <= height <= grid.height and 1 <= width <= grid.width):
                continue
            grown = mask | _rectangle(top, left, height, width, grid.width)
            if 0 < grown.bit_count() - mask.bit_count() <= most:
                return grown
        return mask


def block_masks(
    grid: GridSize,
    batch: int,
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    *,
    generator: torch.Generator,
) -> Bool[Tensor, 'batch patches']:
    """Draw block-wise masks for a batch of crops.

    ``floor(batch * probability)`` crops are masked. Their target shares are drawn one from
    each equal sub-interval of ``ratio``. A mask is a union of rectangles with an area uniform
    between 4 and the smaller of half the grid and what remains to the target, and with a
    log-uniform aspect; it never exceeds its target and falls short of it where ten tries find
    no place. Masked and other crops are shuffled.

    Args:
        grid: Patches of a crop.
        batch: Number of crops (both global crops of every image).
        probability: Share of the crops that are masked, in [0, 1].
        ratio: Least and largest share of a masked crop's patches, in [0, 1].
        generator: Source of every random choice, on the CPU.

    Returns:
        True at the masked patches, on the CPU.

    Raises:
        ConfigError: If a value lies outside its range.

    Source: Zhou et al., "iBOT" (2022), section 4.1; Bao et al., "BEiT" (2022), algorithm 1.
    """
    return MaskSpec(probability, ratio).sample(grid, batch, generator)


def _uniforms(generator: torch.Generator) -> Iterator[float]:
    """Yield numbers in [0, 1), drawn in bulk."""
    while True:
        yield from torch.rand(_BULK, generator=generator, dtype=torch.float64).tolist()


def _stratified(low: float, high: float, count: int, uniform: Iterator[float]) -> list[float]:
    """Draw one number from each of ``count`` equal sub-intervals of [low, high]."""
    edges = np.linspace(low, high, count + 1).tolist()
    return [a + next(uniform) * (b - a) for a, b in pairwise(edges)]


def _rectangle(top: int, left: int, height: int, width: int, stride: int) -> int:
    """Return the bits of a rectangle in a grid whose rows are ``stride`` bits apart."""
    column = ((1 << stride * height) - 1) // ((1 << stride) - 1)  # one bit in each row
    return column * ((1 << width) - 1) << (top * stride + left)


def _unpack(bits: list[int], area: int) -> Bool[Tensor, 'batch patches']:
    """Turn integers with a bit per patch into a Boolean tensor."""
    size = (area + 7) // 8
    packed = np.frombuffer(b''.join(b.to_bytes(size, 'little') for b in bits), dtype=np.uint8)
    unpacked = np.unpackbits(packed.reshape(len(bits), size), axis=1, bitorder='little')
    return torch.from_numpy(unpacked[:, :area].astype(bool))
