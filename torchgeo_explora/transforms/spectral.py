"""Augmentation of images of any bands: what a sensor's geometry and calibration may change.

Colour jitter and grayscale mean nothing beyond red, green and blue. Overhead images have no upright
direction, so that all eight symmetries of the square are allowed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from kornia.geometry.transform import hflip, vflip
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError, ImageError

from .photometric import blur


@dataclass(frozen=True)
class SpectralDraw:
    """Drawn parameters of a batch of B images of C bands and T dates, on the CPU.

    Args:
        horizontal: Which images are mirrored from left to right, (B,) bool.
        vertical: Which are mirrored from top to bottom, (B,) bool.
        turns: Number of quarter turns, (B,) int64.
        gain: Factor of every band, (B, T, C).
        offset: What is added to every band, (B, T, C).
        blurred: Which images are blurred, (B,) bool.
        sigma: Standard deviation of the blur in pixels, (B,).
    """

    horizontal: Tensor
    vertical: Tensor
    turns: Tensor
    gain: Tensor
    offset: Tensor
    blurred: Tensor
    sigma: Tensor


class SpectralAugmentation(nn.Module):
    """Flips, quarter turns, gain and offset of every band, blur; for any number of bands.

    Operators are Kornia's. Geometry and blur are drawn once for a sample and shared by its dates,
    which stay registered; gain and offset are drawn for every band of every date, for calibration
    and atmosphere differ between them.

    Args:
        flip_p: Probability of a flip from left to right, and of one from top to bottom.
        turn_p: Probability of a turn by 90, 180 or 270 degrees; images must then be square.
        gain: Largest relative change of a band; the factor is uniform in [1 - gain, 1 + gain].
        offset: Largest change of a band's zero, of values in [0, 1].
        blur_p: Probability of a Gaussian blur.
        blur_sigma: Range of its standard deviation in pixels.
        blur_kernel: Side of its window in pixels, odd.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self,
        flip_p: float = 0.5,
        turn_p: float = 0.75,
        gain: float = 0.1,
        offset: float = 0.02,
        blur_p: float = 0.2,
        blur_sigma: tuple[float, float] = (0.1, 1.0),
        blur_kernel: int = 5,
    ) -> None:
        super().__init__()
        shares = {
            'flip_p': flip_p,
            'turn_p': turn_p,
            'gain': gain,
            'offset': offset,
            'blur_p': blur_p,
        }
        wrong = {name: value for name, value in shares.items() if not 0 <= value <= 1}
        if wrong:
            raise ConfigError(f'{wrong}: give numbers from 0 to 1.')
        if not 0 < blur_sigma[0] <= blur_sigma[1] or blur_kernel < 1 or blur_kernel % 2 == 0:
            raise ConfigError(
                f'blur_sigma {blur_sigma}, blur_kernel {blur_kernel}: give 0 < smallest <= largest '
                'and an odd number of pixels.'
            )
        self.flip_p, self.turn_p, self.gain, self.offset = flip_p, turn_p, gain, offset
        self.blur_p, self.blur_sigma, self.blur_kernel = blur_p, blur_sigma, blur_kernel

    @torch.no_grad()
    def forward(self, images: Float[Tensor, 'B ... H W'], seed: int) -> Float[Tensor, 'B ... H W']:
        """Augment a batch.

        Args:
            images: (B, C, H, W) or (B, T, C, H, W) in [0, 1].
            seed: Seed of everything that is drawn; the global random state is left alone.

        Returns:
            The same shape, float32, clipped to [0, 1].

        Raises:
            ImageError: If the images have another shape, are integers, are not square where they
                may be turned, or too small to be blurred.
        """
        self._check(images)
        generator = torch.Generator().manual_seed(seed)
        dates = images[:, None] if images.ndim == 4 else images
        draw = self.draw(len(images), dates.shape[1], dates.shape[2], generator)
        return apply_spectral(dates.float(), draw, self.blur_kernel).reshape(images.shape)

    def _check(self, images: Tensor) -> None:
        if images.ndim not in {4, 5} or not images.is_floating_point():
            raise ImageError(
                f'The images are {images.dtype} of shape {tuple(images.shape)}: give floating-point '
                '(batch, channels, height, width) or (batch, dates, channels, height, width).'
            )
        height, width = images.shape[-2:]
        least = self.blur_kernel // 2 + 1 if self.blur_p > 0 else 1  # it mirrors half its window
        if (self.turn_p > 0 and height != width) or min(height, width) < least:
            raise ImageError(
                f'The images are {width}x{height} pixels: give squares, or turn_p 0, of at least '
                f'{least} pixels.'
            )

    def draw(self, batch: int, dates: int, bands: int, generator: torch.Generator) -> SpectralDraw:
        """Draw the parameters of a batch.

        Args:
            batch: Number of images B.
            dates: Number of dates T.
            bands: Number of bands C.
            generator: CPU generator, the only source of randomness.

        Returns:
            The parameters.
        """
        chance = torch.rand(4, batch, generator=generator)
        turns = torch.randint(1, 4, (batch,), generator=generator)
        signed = 2 * torch.rand(2, batch, dates, bands, generator=generator) - 1
        low, high = self.blur_sigma
        return SpectralDraw(
            horizontal=chance[0] < self.flip_p,
            vertical=chance[1] < self.flip_p,
            turns=torch.where(chance[2] < self.turn_p, turns, 0),
            gain=1 + self.gain * signed[0],
            offset=self.offset * signed[1],
            blurred=chance[3] < self.blur_p,
            sigma=low + (high - low) * torch.rand(batch, generator=generator),
        )


def apply_spectral(
    images: Float[Tensor, 'B T C H W'], draw: SpectralDraw, kernel: int
) -> Float[Tensor, 'B T C H W']:
    """Apply drawn parameters: flips, turns, gain and offset, blur.

    Args:
        images: (B, T, C, H, W) in [0, 1].
        draw: Parameters of the B samples.
        kernel: Side of the blur's window in pixels, odd.

    Returns:
        A new tensor of the same shape, clipped to [0, 1].
    """
    gain, offset = (side.to(images.device)[..., None, None] for side in (draw.gain, draw.offset))
    out = (images * gain + offset).clamp_(0, 1)
    stacked = out.flatten(1, 2)  # (B, T C, H, W)
    for chosen, flip in ((draw.horizontal, hflip), (draw.vertical, vflip)):
        rows = chosen.nonzero()[:, 0].to(images.device)
        stacked[rows] = flip(stacked[rows])
    for turns in (1, 2, 3):
        chosen = draw.turns == turns
        if not chosen.any():  # images that are not square can be left as they are
            continue
        rows = chosen.nonzero()[:, 0].to(images.device)
        stacked[rows] = torch.rot90(stacked[rows], turns, (-2, -1))
    rows = draw.blurred.nonzero()[:, 0].to(images.device)
    if rows.numel() > 0:
        stacked[rows] = blur(stacked[rows], draw.sigma[draw.blurred].to(images.device), kernel)
    return stacked.reshape(images.shape)
