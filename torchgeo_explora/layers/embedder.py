"""What a vision transformer must answer that makes its tokens in a way of its own.

Plain models have one token a patch. A group-channel model has one a patch and group of bands, a
temporal one a patch and date: *copies* of the same patch grid, one copy after the other, each in
row-major order. Everything else (masks, probes, decoders) works with this interface alone.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchgeo_explora._typing import GridSize


class TokenEmbedder(ABC):
    """Mixin of vision transformers that embed their images themselves."""

    @abstractmethod
    def token_grid(self, images: Float[Tensor, 'b *axes h w']) -> GridSize:
        """Return the patch grid of one copy.

        Args:
            images: Normalised images, as the model takes them.

        Raises:
            ImageError: If the model cannot take them.
        """

    @abstractmethod
    def token_copies(self, images: Float[Tensor, 'b *axes h w']) -> int:
        """Return how many tokens a patch has: groups of bands, or dates."""

    @abstractmethod
    def embed_all(self, images: Float[Tensor, 'b *axes h w']) -> Float[Tensor, 'b tokens dim']:
        """Embed every patch of every copy, without positions."""

    @abstractmethod
    def embed_kept(
        self, images: Float[Tensor, 'b *axes h w'], keep: Int[Tensor, 'b kept']
    ) -> Float[Tensor, 'b kept dim']:
        """Embed some patches, without positions, reading no other patch.

        Args:
            images: Normalised images.
            keep: Numbers of tokens, from 0 to copies x patches - 1.
        """

    @abstractmethod
    def token_positions(
        self,
        grid: GridSize,
        index: Int[Tensor, 'rows n'],
        timestamps: Float[Tensor, 'b dates 3'] | None,
    ) -> Float[Tensor, 'rows2 n dim']:
        """Return the encodings of tokens: where, and which copy.

        Args:
            grid: Of one copy.
            index: Numbers of tokens; one row serves all images.
            timestamps: Of the dates, where the copies are dates.
        """

    @abstractmethod
    def class_position(self) -> Float[Tensor, '1 1 dim']:
        """Return what is added to the class token when all tokens are encoded."""


def embed_patches(
    conv: nn.Conv2d,
    images: Float[Tensor, 'b c h w'],
    rows: Int[Tensor, ' n'],
    cells: Int[Tensor, ' n'],
    strips: int = 1,
) -> Float[Tensor, 'n dim']:
    """Apply a patch embedding to some patches only: equal to gathering from its output.

    Args:
        conv: Convolution with a stride of its kernel's size.
        images: The images.
        rows: Which image each patch is of.
        cells: Which patch of it, in row-major order.
        strips: 1 for a matrix product; or a larger divisor of n: on a CPU the patches are then laid
            side by side to so many images and convolved, forward and backward at 1.3 to 1.4 times
            the rate for patches of 14 and 16 pixels, but at half of it for 8 pixels of 4 bands
            (EPYC, torch 2.15, 1 thread; widths 384 to 1,024).
    """
    height, width = conv.kernel_size
    bands, columns = images.shape[1], images.shape[3] // width
    # the image as strings of pixels, one patch wide: each is copied in one piece
    strings = images.reshape(-1, width)  # (b*c*h*columns, q)
    corner = (rows * bands * images.shape[2] + cells // columns * height) * columns
    corner = corner + cells % columns  # (n,)
    lines = torch.arange(bands, device=rows.device)[:, None] * images.shape[2]
    lines = (lines + torch.arange(height, device=rows.device)).flatten() * columns  # (c*p,)
    if images.device.type != 'cpu' or strips < 2:
        pixels = strings.index_select(0, (corner[:, None] + lines).flatten())
        return F.linear(
            pixels.view(len(rows), conv.weight[0].numel()), conv.weight.flatten(1), conv.bias
        )
    order = (corner.view(strips, 1, -1) + lines[:, None]).flatten()
    laid = strings.index_select(0, order).view(strips, bands, height, -1)
    out: Tensor = F.conv2d(laid, conv.weight, conv.bias, stride=(height, width))
    return out[:, :, 0].transpose(1, 2).flatten(0, 1)  # (s, d, 1, n/s) -> (n, d)
