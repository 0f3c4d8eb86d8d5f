"""The same random flips, quarter turns and crops of images and their masks, on the device.

Every value moves as it is: no class is mixed with another, and no value of an image changes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchgeo_explora.errors import ConfigError, ImageError


@dataclass(frozen=True)
class JointTransform:
    """Random crops, flips and quarter turns of a batch, each image its own.

    Satellite and aerial images have no upright, so that all eight positions of a square are as
    likely. Images that are not square are flipped and turned by a half only.

    Args:
        crop_size: Side of the square cut out, in pixels; None for whole images.
        flip: Whether images are flipped.
        rotate: Whether images are turned.

    Raises:
        ConfigError: If the crop has no pixels.
    """

    crop_size: int | None = None
    flip: bool = True
    rotate: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.crop_size is not None and self.crop_size < 1:
            raise ConfigError(f'crop_size is {self.crop_size}: give positive whole pixels.')

    def __call__(
        self, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Move images and masks alike.

        Args:
            images: (b, ..., h, w).
            masks: (b, ..., h, w), of the same height and width.
            generator: CPU generator, the only source of randomness.

        Returns:
            New tensors; those given are left as they are.

        Raises:
            ImageError: If the sizes differ, or the images are smaller than the crop.
        """
        _check(images, masks, self.crop_size)
        corners = _corners(images, self.crop_size, generator)
        turns = self._turns(images, generator)
        moved = [
            tuple(_moved(part[row], corners[row], self.crop_size, *turns[row]) for row in range(b))
            for part, b in ((images, len(images)), (masks, len(masks)))
        ]
        return torch.stack(moved[0]), torch.stack(moved[1])

    def _turns(self, images: Tensor, generator: torch.Generator) -> list[tuple[bool, int]]:
        """Draw whether each image is flipped, and by how many quarters it is turned."""
        drawn = torch.randint(0, 4, (len(images), 2), generator=generator)
        square = self.crop_size is not None or images.shape[-1] == images.shape[-2]
        step = 1 if square else 2
        return [
            (self.flip and flip >= 2, step * turn % 4 if self.rotate else 0)
            for flip, turn in drawn.tolist()
        ]


def _check(images: Tensor, masks: Tensor, crop: int | None) -> None:
    size = images.shape[-2:]
    if len(images) != len(masks) or size != masks.shape[-2:]:
        raise ImageError(
            f'The images are of shape {tuple(images.shape)} and the masks of {tuple(masks.shape)}: '
            'give masks of the number, height and width of the images.'
        )
    if crop is not None and min(size) < crop:
        raise ImageError(
            f'The images have {size[0]} x {size[1]} pixels, fewer than the crop of {crop}: choose '
            f'a crop_size of at most {min(size)}, or give larger images.'
        )


def _corners(images: Tensor, crop: int | None, generator: torch.Generator) -> list[tuple[int, int]]:
    """Draw the upper left corner of each image's crop."""
    if crop is None:
        return [(0, 0)] * len(images)
    sides = [
        torch.randint(0, side - crop + 1, (len(images),), generator=generator).tolist()
        for side in images.shape[-2:]
    ]
    return list(zip(*sides, strict=True))


def _moved(
    part: Tensor, corner: tuple[int, int], crop: int | None, flip: bool, quarters: int
) -> Tensor:
    if crop is not None:
        top, left = corner
        part = part[..., top : top + crop, left : left + crop]
    part = part.flip(-1) if flip else part
    return torch.rot90(part, quarters, (-2, -1))
