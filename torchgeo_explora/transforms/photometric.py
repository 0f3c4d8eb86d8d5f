"""Colour jitter, grayscale, blur and solarisation of a batch of crops, from drawn parameters.

The operators are Kornia's functional ones; probabilities and factors are drawn here, on the CPU from
an explicit generator, so that the same seed gives the same crops on every device and the global
random state is never touched. Every operator runs on the images it was drawn for, and on no other.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
    solarize,
)
from kornia.filters import gaussian_blur2d
from torch import Tensor

from torchgeo_explora.errors import ConfigError

SOLARIZE_THRESHOLD = 128 / 255
"""PIL's ``solarize(threshold=128)`` inverts 8-bit values of 128 and above."""


@dataclass(frozen=True)
class PhotometricSpec:
    """What may happen to the values of one kind of crop, in this order.

    The defaults are DINOv2's for its first global crop; blur has probability 0 there *in effect*,
    see :class:`~torchgeo_explora.transforms.MultiCrop`.

    Args:
        brightness: Largest relative change; the factor is uniform in [1 - b, 1 + b].
        contrast: Likewise, around the mean of the image's luminance (all bands if not RGB).
        saturation: Likewise, around the pixel's luminance. RGB only.
        hue: Largest shift, in turns of the colour circle (0.5 is half a turn). RGB only.
        jitter_p: Probability of the four together.
        grayscale_p: Probability of dropping the colour. RGB only.
        blur_p: Probability of a Gaussian blur.
        blur_sigma: Range of the blur's standard deviation in pixels, drawn uniformly.
        blur_kernel: Side of the blur's window in pixels, odd.
        solarize_p: Probability of inverting values of 128 / 255 and above.

    Raises:
        ConfigError: If a probability or a range is not possible.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter_p: float = 0.8
    grayscale_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 9
    solarize_p: float = 0.0

    def __post_init__(self) -> None:
        """Check every range."""
        for name in ('jitter_p', 'grayscale_p', 'blur_p', 'solarize_p'):
            _check_range(name, getattr(self, name), 1.0)
        for name in ('brightness', 'contrast', 'saturation'):
            _check_range(name, getattr(self, name), 1.0)
        _check_range('hue', self.hue, 0.5)
        low, high = self.blur_sigma
        if not 0 < low <= high:
            raise ConfigError(f'blur_sigma is {self.blur_sigma}: give 0 < smallest <= largest.')
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise ConfigError(f'blur_kernel is {self.blur_kernel}: give an odd number of pixels.')


def _check_range(name: str, value: float, largest: float) -> None:
    if not 0 <= value <= largest:
        raise ConfigError(f'{name} is {value}: give a number from 0 to {largest:g}.')


@dataclass(frozen=True)
class PhotometricDraw:
    """Drawn parameters of a batch of crops, all on the CPU and of shape (B,).

    Args:
        order: The four steps of the jitter (0 brightness, 1 contrast, 2 saturation, 3 hue), in the
            order in which this batch takes them, (4,).
        factors: Brightness, contrast and saturation factors and hue shift in turns, (4, B).
        jitter: Which images are jittered.
        grayscale: Which images lose their colour.
        blur: Which images are blurred.
        sigma: Standard deviation of the blur in pixels.
        solarize: Which images are solarised.
    """

    order: Tensor
    factors: Tensor
    jitter: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor


def draw_photometric(
    batch: int, spec: PhotometricSpec, generator: torch.Generator
) -> PhotometricDraw:
    """Draw the parameters of a batch; factors and probabilities for each image on its own.

    Args:
        batch: Number of crops B.
        spec: Ranges and probabilities.
        generator: CPU generator, the only source of randomness.

    Returns:
        The parameters.
    """
    reach = torch.tensor([spec.brightness, spec.contrast, spec.saturation, spec.hue])
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
    signed = 2 * torch.rand(4, batch, generator=generator) - 1
    chance = torch.rand(4, batch, generator=generator)
    low, high = spec.blur_sigma
    return PhotometricDraw(
        order=torch.randperm(4, generator=generator),
        factors=centre[:, None] + reach[:, None] * signed,
        jitter=chance[0] < spec.jitter_p,
        grayscale=chance[1] < spec.grayscale_p,
        blur=chance[2] < spec.blur_p,
        sigma=low + (high - low) * torch.rand(batch, generator=generator),
        solarize=chance[3] < spec.solarize_p,
    )


def apply_photometric(
    images: Float[Tensor, 'B C H W'], draw: PhotometricDraw, spec: PhotometricSpec, rgb: bool
) -> Float[Tensor, 'B C H W']:
    """Apply drawn parameters: jitter, grayscale, blur, solarise.

    Args:
        images: (B, C, H, W) in [0, 1], float32. Changed in place.
        draw: Parameters of the B images.
        spec: Ranges; a step whose range is zero is skipped.
        rgb: Whether the channels are red, green and blue. Otherwise saturation, hue and grayscale,
            which mean nothing for other bands, are left out.

    Returns:
        The same tensor, changed.
    """
    chosen = _indices(draw.jitter, images)
    if chosen.numel() > 0:
        factors = draw.factors[:, draw.jitter].to(images.device)
        images[chosen] = _jitter(images[chosen], draw.order.tolist(), factors, spec, rgb)
    chosen = _indices(draw.grayscale, images)
    if rgb and chosen.numel() > 0:
        images[chosen] = rgb_to_grayscale(images[chosen]).expand(-1, 3, -1, -1)
    chosen = _indices(draw.blur, images)
    if chosen.numel() > 0:
        images[chosen] = blur(
            images[chosen], draw.sigma[draw.blur].to(images.device), spec.blur_kernel
        )
    chosen = _indices(draw.solarize, images)
    if chosen.numel() > 0:
        images[chosen] = solarize(images[chosen], SOLARIZE_THRESHOLD)
    return images


def _indices(mask: Tensor, images: Tensor) -> Tensor:
    """Chosen images as indices on their device; from a CPU mask, so that no device is waited for."""
    return mask.nonzero()[:, 0].to(images.device)


def _jitter(
    images: Tensor, order: list[int], factors: Tensor, spec: PhotometricSpec, rgb: bool
) -> Tensor:
    """The four steps of the jitter, in the drawn order."""
    for step in order:
        if step == 0 and spec.brightness > 0:
            images = adjust_brightness_accumulative(images, factors[0])
        elif step == 1 and spec.contrast > 0:
            images = adjust_contrast(images, factors[1], rgb)
        elif step == 2 and spec.saturation > 0 and rgb:
            images = adjust_saturation_with_gray_subtraction(images, factors[2])
        elif step == 3 and spec.hue > 0 and rgb:
            images = adjust_hue(images, factors[3] * (2 * torch.pi))
    return images


def adjust_contrast(
    images: Float[Tensor, 'B C H W'], factor: Float[Tensor, ' B'], rgb: bool
) -> Float[Tensor, 'B C H W']:
    """Stretch values about the image's mean: of its luminance for RGB, else of all its bands."""
    if rgb:
        return adjust_contrast_with_mean_subtraction(images, factor)
    factor = factor[:, None, None, None]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (factor * images + (1 - factor) * mean).clamp(0, 1)


def blur(
    images: Float[Tensor, 'B C H W'], sigma: Float[Tensor, ' B'], kernel: int
) -> Float[Tensor, 'B C H W']:
    """Gaussian blur with a standard deviation of its own for every image, mirrored at the rim.

    Args:
        images: (B, C, H, W), sides above ``kernel // 2``.
        sigma: Standard deviation in pixels, (B,).
        kernel: Side of the window, odd.

    Returns:
        (B, C, H, W).
    """
    return gaussian_blur2d(images, kernel, sigma[:, None].expand(-1, 2))
