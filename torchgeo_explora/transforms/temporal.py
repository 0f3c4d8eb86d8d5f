"""Random crops of which one draw serves all bands and all dates of a place."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError, ImageError

from ._resample import crop_and_resize, draw_boxes


class RandomResizedCrop(nn.Module):
    """Random-resized crops and flips of a batch, the same for all dates of a sample.

    Antialiased bicubic resampling as in torchvision. Dates of a place stay registered: token n of
    every date shows the same ground, which the temporal encoder's positions say.

    Args:
        size: Side of the crops in pixels.
        scale: Smallest and largest share of the area that a crop covers (MAE: 0.2 to 1).
        flip_p: Probability of a flip from left to right.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self, size: int, scale: tuple[float, float] = (0.2, 1.0), flip_p: float = 0.5
    ) -> None:
        super().__init__()
        if size < 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 <= flip_p <= 1:
            raise ConfigError(
                f'size {size}, scale {scale}, flip_p {flip_p}: give a side of at least 1 pixel, two '
                'shares 0 < smallest <= largest <= 1 and a probability.'
            )
        self.size, self.scale, self.flip_p = size, scale, flip_p

    @torch.no_grad()
    def forward(self, images: Float[Tensor, 'B ... H W'], seed: int) -> Float[Tensor, 'B ... S S']:
        """Crop a batch.

        Args:
            images: (B, C, H, W) or (B, T, C, H, W) in [0, 1].
            seed: Seed of everything that is drawn; the global random state is left alone.

        Returns:
            The same with sides of ``size``, float32, in [0, 1].

        Raises:
            ImageError: If the images have another shape or are integers.
        """
        if images.ndim not in {4, 5} or not images.is_floating_point():
            raise ImageError(
                f'The images are {images.dtype} of shape {tuple(images.shape)}: give floating-point '
                '(batch, channels, height, width) or (batch, dates, channels, height, width).'
            )
        generator = torch.Generator().manual_seed(seed)
        stacked = images.float().reshape(len(images), -1, *images.shape[-2:])  # dates as channels
        height, width = images.shape[-2:]
        boxes = draw_boxes(
            (len(images), 1), height, width, self.scale, generator, flip_p=self.flip_p
        )
        crops = crop_and_resize(stacked, boxes.to(images.device), self.size)[0]
        return crops.reshape(*images.shape[:-2], self.size, self.size)

    def extra_repr(self) -> str:
        """Arguments, for the printed module."""
        return f'size={self.size}, scale={self.scale}, flip_p={self.flip_p}'
