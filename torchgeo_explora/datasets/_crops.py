"""Squares out of images of any size, cut by loader workers so that samples fit into a batch.

What is drawn is kept apart from the image's size, so that several dates of a place, which need not
have one size, are cut by the same draw.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from torchgeo_explora.errors import ConfigError

ATTEMPTS = 10
"""Tries of torchvision's ``RandomResizedCrop`` before it takes the central crop."""

RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width / height of a random-resized crop."""


@dataclass(frozen=True)
class Draw:
    """Random numbers of one crop, uniform in [0, 1).

    Args:
        shape: Area and aspect ratio of every try, (10, 2).
        place: Vertical and horizontal place, (2,).
    """

    shape: NDArray[np.float64]
    place: NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """A part of an image in pixels.

    Args:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Cropping:
    """How an image becomes a square.

    Args:
        size: Side of the square in pixels; None to leave images as they are.
        mode: ``centre``: the shorter side is resized to ``resize`` and the centre cut out;
            ``square``: the largest square at a random place; ``resized``: torchvision's
            random-resized crop, without flips.
        scale: Smallest and largest share of the image's area, for ``resized``.
        resize: Shorter side before the centre is cut out; None for ``size``.

    Raises:
        ConfigError: If a number is out of range.
    """

    size: int | None = None
    mode: Literal['centre', 'square', 'resized'] = 'centre'
    scale: tuple[float, float] = (0.2, 1.0)
    resize: int | None = None

    def __post_init__(self) -> None:
        """Check every number."""
        if self.mode not in {'centre', 'square', 'resized'}:
            raise ConfigError(f"crop is {self.mode!r}: give 'centre', 'square' or 'resized'.")
        if self.size is not None and self.size < 1:
            raise ConfigError(f'image_size is {self.size}: give a number of pixels of at least 1.')
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(
                f'scale is {tuple(self.scale)}: give two shares of the area, '
                '0 < smallest <= largest <= 1.'
            )
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise ConfigError(f'resize is {self.resize}: give at least image_size, {self.size}.')

    def cut(self, image: Float[Tensor, 'C H W'], draw: Draw) -> Float[Tensor, 'C S S']:
        """Cut the square out and resample it (bicubic, antialiased, only where sizes differ).

        Args:
            image: (C, H, W) in [0, 1].
            draw: Random numbers, which ``centre`` does not use.

        Returns:
            (C, size, size) in [0, 1].
        """
        if self.size is None:
            return image
        height, width = image.shape[-2:]
        if self.mode == 'centre':
            return _centre(image, self.size if self.resize is None else self.resize, self.size)
        box = (
            _square(height, width, draw)
            if self.mode == 'square'
            else self._box(height, width, draw)
        )
        part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
        return _resample(part, self.size, self.size)

    def _box(self, height: int, width: int, draw: Draw) -> Box:
        """Torchvision's ``RandomResizedCrop.get_params``, from given random numbers."""
        low, high = math.log(RATIO[0]), math.log(RATIO[1])
        for area_draw, ratio_draw in draw.shape.tolist():
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area_draw)
            ratio = math.exp(low + (high - low) * ratio_draw)
            rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                top, left = (
                    _place(height - rows, draw.place[0]),
                    _place(width - columns, draw.place[1]),
                )
                return Box(top, left, rows, columns)
        rows = min(height, round(width / RATIO[0]))
        columns = min(width, round(height * RATIO[1]))
        return Box((height - rows) // 2, (width - columns) // 2, rows, columns)


def draw_crop(rng: np.random.Generator) -> Draw:
    """Draw the random numbers of a crop; always the same number of them.

    Args:
        rng: Source of randomness.
    """
    return Draw(rng.random((ATTEMPTS, 2)), rng.random(2))


def _place(free: int, unit: float) -> int:
    return min(int(unit * (free + 1)), free)


def _square(height: int, width: int, draw: Draw) -> Box:
    side = min(height, width)
    return Box(
        _place(height - side, draw.place[0]), _place(width - side, draw.place[1]), side, side
    )


def _centre(image: Tensor, resize: int, size: int) -> Tensor:
    height, width = image.shape[-2:]
    short = min(height, width)
    image = _resample(image, resize * height // short, resize * width // short)
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def _resample(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == torch.Size((height, width)):
        return image.contiguous()
    return functional.interpolate(
        image[None], (height, width), mode='bicubic', align_corners=False, antialias=True
    )[0].clamp_(0, 1)
