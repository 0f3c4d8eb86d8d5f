"""Crops and quarter turns of labelled images: an image from above has no top."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .normalize import resize_and_centre
from .temporal import RandomResizedCrop

# Keeps the draws of turns apart from those of crops, which share the seed
_TURNS = 1 << 61


def quarter_turns(images: Float[Tensor, 'B ... S S'], seed: int) -> Float[Tensor, 'B ... S S']:
    """Turn every image by 0, 90, 180 or 270 degrees, each as likely; all bands and dates alike.

    Args:
        images: Square images.
        seed: Seed of the draw; the global random state is left alone.
    """
    drawn = torch.randint(4, (len(images),), generator=torch.Generator().manual_seed(seed))
    turned = images.clone()
    for count in (1, 2, 3):
        rows = (drawn == count).nonzero()[:, 0].to(images.device)
        turned[rows] = torch.rot90(images[rows], count, (-2, -1))
    return turned


class TrainingViews(nn.Module):
    """Random-resized crops, flips and quarter turns of labelled images, or whole images resized.

    Args:
        size: Side of the views in pixels.
        resize: Length of the shorter side of whole images before their centre is cut out.
        crop_scale: Smallest and largest share of an image's area that a crop covers; None for the
            whole image, neither cropped nor flipped.
        turns: Whether views are turned by quarters.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self, size: int, resize: int, crop_scale: Sequence[float] | None, turns: bool
    ) -> None:
        super().__init__()
        self.size, self.resize, self.turns = size, resize, turns
        self.crop: RandomResizedCrop | None = None
        if crop_scale is not None:
            low, high = crop_scale
            self.crop = RandomResizedCrop(size, (low, high))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, 'B ... H W'], seed: int) -> Float[Tensor, 'B ... S S']:
        """Make a view of every image, in float32 whatever the precision of the run.

        Args:
            images: (B, C, H, W) or (B, T, C, H, W) in [0, 1].
            seed: Seed of everything that is drawn; the global random state is left alone.
        """
        with torch.autocast(images.device.type, enabled=False):
            if self.crop is not None:
                views = self.crop(images, seed)
            else:
                flat = images.flatten(0, -4).float()  # dates as images
                small = resize_and_centre(flat, self.resize, self.size)
                views = small.unflatten(0, images.shape[:-3])
            return quarter_turns(views, seed ^ _TURNS) if self.turns else views

    def extra_repr(self) -> str:
        """Arguments, for the printed module."""
        return f'size={self.size}, resize={self.resize}, turns={self.turns}'
