"""Random masks of tokens for masked autoencoders: which are seen, which have to be filled in.

The tokens with the smallest noise are kept, ``int(N * (1 - ratio))`` of ``N``, in the order of
their noise (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchgeo_explora.errors import ConfigError


@dataclass(frozen=True)
class TokenMask:
    """Which tokens of each image are kept; as many in every image.

    Args:
        keep: Positions of the kept tokens, in the order in which the encoder sees them.
        hidden: Positions of the masked tokens, ascending.
        restore: For every token its place in the sequence of kept, then masked tokens.
        masked: True at the masked tokens.
    """

    keep: Int[Tensor, 'batch kept']
    hidden: Int[Tensor, 'batch hidden']
    restore: Int[Tensor, 'batch tokens']
    masked: Bool[Tensor, 'batch tokens']

    def rows(self, copies: int) -> list[Int[Tensor, ' _']]:
        """Return for every copy which rows of its ``(batch * n, ...)`` tokens are masked.

        Args:
            copies: Number of equal parts of the tokens: groups of bands or dates, or 1 for all.
        """
        parts = self.masked.unflatten(1, (copies, -1)).unbind(1)  # (batch, n) each
        return [part.flatten().nonzero()[:, 0] for part in parts]

    def to(self, device: torch.device) -> 'TokenMask':
        """Return the same mask on another device."""
        parts = (self.keep, self.hidden, self.restore, self.masked)
        return TokenMask(*(part.to(device, non_blocking=True) for part in parts))


def check_mask_ratio(ratio: float) -> None:
    """Check the share of masked tokens.

    Args:
        ratio: The share; it has to leave something to see and something to fill in.

    Raises:
        ConfigError: If the share does not lie strictly between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ConfigError(
            f'The mask ratio is {ratio}: give a share above 0 and below 1 (0.75 in the paper), '
            'so that some tokens are seen and some are predicted.'
        )


def draw_noise(
    batch: int, tokens: int, generator: torch.Generator
) -> Float[Tensor, '{batch} {tokens}']:
    """Draw the uniform noise that masks are made from, on the generator's device.

    Args:
        batch: Number of images.
        tokens: Tokens of an image, or its locations for a mask that groups or dates share.
        generator: Source of the values.
    """
    return torch.rand(batch, tokens, generator=generator, device=generator.device)


def mask_from_noise(noise: Float[Tensor, 'batch tokens'], ratio: float) -> TokenMask:
    """Mask the tokens with the largest noise.

    Args:
        noise: One value a token.
        ratio: Share of masked tokens, above 0 and below 1.

    Raises:
        ConfigError: If the ratio is out of range, or would keep or mask no token at all.
    """
    return mask_from_shared_noise(noise, ratio, 1)


def mask_from_shared_noise(
    noise: Float[Tensor, 'batch locations'], ratio: float, copies: int
) -> TokenMask:
    """Mask the same locations in every group of bands, or at every date.

    Args:
        noise: One value a location.
        ratio: Share of masked locations, above 0 and below 1.
        copies: Number of groups or dates; their tokens follow one another, location by location.

    Raises:
        ConfigError: If the ratio is out of range, or would keep or mask no location at all.

    Source: Cong et al. 2022, "SatMAE", sections 3.2 and 3.3 (consistent masking).
    """
    kept = _kept(noise.shape[1], ratio)
    order = torch.argsort(noise, dim=1, stable=True)
    shifts = noise.shape[1] * torch.arange(copies, device=noise.device)[:, None]
    # (batch, 1, n) + (copies, 1) -> (batch, copies * n): all locations of one copy, then the next
    keep = (order[:, None, :kept] + shifts).flatten(1)
    hidden = (order[:, None, kept:].sort(dim=2).values + shifts).flatten(1)
    restore = torch.argsort(_official_order(order, kept, shifts), dim=1)
    masked = torch.ones_like(restore, dtype=torch.bool).scatter(1, keep, False)
    return TokenMask(keep, hidden, restore, masked)


def _official_order(
    order: Int[Tensor, 'batch locations'], kept: int, shifts: Int[Tensor, 'copies 1']
) -> Int[Tensor, 'batch tokens']:
    """Return all tokens, the kept ones first, each part in the order of the noise."""
    parts = (order[:, None, :kept] + shifts, order[:, None, kept:] + shifts)
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _kept(tokens: int, ratio: float) -> int:
    check_mask_ratio(ratio)
    kept = int(tokens * (1 - ratio))
    if not 0 < kept < tokens:
        raise ConfigError(
            f'A mask ratio of {ratio} keeps {kept} of {tokens} tokens: choose a ratio or an image '
            'size with which at least one token is kept and at least one is masked.'
        )
    return kept
