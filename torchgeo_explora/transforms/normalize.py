"""Normalisation with a data set's mean and standard deviation, and the evaluation transform."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from torchgeo_explora.errors import ConfigError, ImageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Channel means of ImageNet, which DINOv2 and ExPLoRA's DINOv2 runs normalise with."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel standard deviations of ImageNet."""


def normalize(
    images: Float[Tensor, '*B C H W'], mean: Float[Tensor, ' C'], std: Float[Tensor, ' C']
) -> Float[Tensor, '*B C H W']:
    """Subtract the mean of every channel and divide by its standard deviation."""
    return (images - mean[:, None, None]) / std[:, None, None]


class Normalize(nn.Module):
    """Normalise images channel by channel.

    Args:
        mean: Mean of every channel, in the images' units.
        std: Standard deviation of every channel, above 0.

    Raises:
        ConfigError: If the lengths differ or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) == 0:
            raise ConfigError(
                f'mean has {len(mean)} values and std has {len(std)}: give one of each per channel.'
            )
        if min(std) <= 0:
            raise ConfigError(f'std is {tuple(std)}: every value must be above 0.')
        # not in the state dict: constants of the data, and checkpoints hold weights only
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32), persistent=False)

    @property
    def num_channels(self) -> int:
        """Number of channels that images must have."""
        return self.mean.shape[0]

    def forward(self, images: Float[Tensor, '*B C H W']) -> Float[Tensor, '*B C H W']:
        """Normalise.

        Args:
            images: (..., C, H, W) floating-point.

        Returns:
            The same shape, float32.

        Raises:
            ImageError: If the number of channels differs from that of ``mean``, or the images are
                integers.
        """
        check_images(images, self.num_channels)
        return normalize(images.float(), self.mean, self.std)


class EvalTransform(nn.Module):
    """Resize the shorter side, cut out the centre, normalise: a whole batch at once.

    Bicubic with antialiasing and clamped to [0, 1], as PIL does it for 8-bit images.

    Args:
        size: Side of the square that comes out, in pixels.
        mean: Mean of every channel.
        std: Standard deviation of every channel.
        resize: Length of the shorter side before the centre is cut out, at least ``size``; None
            for ``size`` itself. The published linear probes use 256 for 224.

    Raises:
        ConfigError: If ``resize`` is less than ``size``, or ``size`` is not positive.
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        resize: int | None = None,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f'size is {size}: give a number of pixels of at least 1.')
        self.size = size
        self.resize = size if resize is None else resize
        if self.resize < size:
            raise ConfigError(
                f'resize is {resize}, less than the crop of {size} pixels: give at least {size}.'
            )
        self.normalize = Normalize(mean, std)

    def forward(self, images: Float[Tensor, '*B C H W']) -> Float[Tensor, '*B C S S']:
        """Transform a batch.

        Args:
            images: (..., C, H, W) in [0, 1]; any number of leading axes, such as dates.

        Returns:
            (..., C, size, size), float32, normalised.

        Raises:
            ImageError: If the number of channels is not that of ``mean``.
        """
        check_images(images, self.normalize.num_channels)
        flat = images.float().reshape(-1, *images.shape[-3:])
        crops = resize_and_centre(flat, self.resize, self.size)
        out = normalize(crops, self.normalize.mean, self.normalize.std)
        return out.reshape(*images.shape[:-2], *out.shape[-2:])

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f'size={self.size}, resize={self.resize}'


def resize_and_centre(
    images: Float[Tensor, 'B C H W'], resize: int, size: int
) -> Float[Tensor, 'B C S S']:
    """Bring the shorter side to ``resize`` pixels, then cut out the central square of ``size``.

    Args:
        images: (B, C, H, W) in [0, 1], floating-point.
        resize: Length of the shorter side; nothing is resampled where it fits already.
        size: Side of the central square, at most ``resize``.

    Returns:
        (B, C, size, size) in [0, 1].
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    if short != resize:
        height, width = resize * height // short, resize * width // short
        images = functional.interpolate(
            images, (height, width), mode='bicubic', align_corners=False, antialias=True
        ).clamp(0, 1)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def check_images(images: Tensor, num_channels: int) -> None:
    """Refuse images that a transform would silently get wrong.

    Args:
        images: (..., C, H, W).
        num_channels: Number of channels C that is expected.

    Raises:
        ImageError: If the images are integers or have another number of channels.
    """
    if not images.is_floating_point():
        raise ImageError(
            f'The images are {images.dtype}: give floating-point images in [0, 1] '
            '(uint8 images divided by 255).'
        )
    if images.ndim < 3 or images.shape[-3] != num_channels:
        raise ImageError(
            f'The images have the shape {tuple(images.shape)}, but the mean and standard deviation '
            f'are those of {num_channels} channels: give (batch, {num_channels}, height, width), '
            'or the mean and std of your bands.'
        )
