"""Backbones that return embeddings of patches or of whole images, from images in [0, 1]."""

from collections.abc import Sequence
from typing import final

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.embedder import TokenEmbedder
from torchgeo_explora.layers.tokens import intermediate_tokens, patch_grid, patch_tokens
from torchgeo_explora.models import TemporalViT
from torchgeo_explora.transforms import Normalize

TOKENS = ('class', 'mean')
"""What embeddings of images are made of: the class token, the mean of the patch tokens."""


def patch_side(backbone: VisionTransformer) -> int:
    """Return the side of a backbone's patches in pixels.

    Args:
        backbone: The model.

    Raises:
        ConfigError: If patches are not square, or the model sees several dates.
    """
    if isinstance(backbone, TemporalViT):
        raise ConfigError(
            'The model sees several dates of a place, and rasters are single images: give a model '
            'of single images.'
        )
    height, width = backbone.patch_embed.patch_size
    if height != width:
        raise ConfigError(
            f'The model has patches of {height} x {width} pixels, and a raster of embeddings has '
            'square ones: give a model with square patches.'
        )
    return int(height)


def block_numbers(backbone: VisionTransformer, blocks: Sequence[int]) -> tuple[int, ...]:
    """Return blocks counted from 0.

    Args:
        backbone: The model.
        blocks: 0-based, or negative from the end; in the order of the embedding.

    Raises:
        ConfigError: If there is no such block, or one is named twice.
    """
    depth = len(backbone.blocks)
    numbers = tuple(block % depth for block in blocks)
    if not blocks or any(not -depth <= block < depth for block in blocks):
        raise ConfigError(
            f'Blocks {", ".join(map(str, blocks)) or "(none)"} were chosen of a model with {depth}: '
            f'choose from 0 to {depth - 1}, or from -1 (the last) to -{depth}.'
        )
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f'Blocks {", ".join(map(str, blocks))} name one twice: name each once.')
    return numbers


@final
class PatchEmbedder(nn.Module):
    """Returns the patch tokens of some blocks, side by side.

    A model with several tokens a patch (one for each group of bands) gives their mean.

    Args:
        backbone: The model.
        mean: Of each band of images in [0, 1].
        std: Standard deviation of each band.
        blocks: 0-based, or negative from the end.
        norm: Whether the model's final norm is applied to each block's output.

    Raises:
        ConfigError: If there is no such block.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        mean: Sequence[float],
        std: Sequence[float],
        blocks: Sequence[int] = (-1,),
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.normalize = backbone, Normalize(mean, std)
        self.blocks, self.norm = block_numbers(backbone, blocks), norm

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return len(self.blocks) * int(self.backbone.embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed patches.

        Args:
            images: (b, bands, height, width) in [0, 1].

        Returns:
            (b, dim, patches down, patches across).
        """
        vit, x = self.backbone, self.normalize(images)
        grid = patch_grid(vit, x)
        copies = vit.token_copies(x) if isinstance(vit, TokenEmbedder) else 1
        outputs = intermediate_tokens(vit, x, self.blocks, self.norm)
        maps = [
            patch_tokens(vit, tokens).unflatten(1, (copies, grid.height, grid.width)).mean(1)
            for tokens in outputs
        ]
        return torch.cat(maps, dim=-1).permute(0, 3, 1, 2)  # (b, h, w, d) -> (b, d, h, w)


@final
class ImageEmbedder(nn.Module):
    """Returns one embedding an image: class token, mean patch token, or both, of some blocks.

    Args:
        backbone: The model.
        mean: Of each band of images in [0, 1].
        std: Standard deviation of each band.
        tokens: ``class`` and ``mean``, in the order of the embedding.
        blocks: 0-based, or negative from the end; all tokens of one come before those of the next.
        norm: Whether the model's final norm is applied to each block's output.

    Raises:
        ConfigError: If there is no such block or token.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        mean: Sequence[float],
        std: Sequence[float],
        tokens: Sequence[str] = ('class',),
        blocks: Sequence[int] = (-1,),
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.normalize = backbone, Normalize(mean, std)
        self.tokens, self.norm = tuple(tokens), norm
        self.blocks = block_numbers(backbone, blocks)
        if not tokens or any(tokens.count(token) != (token in TOKENS) for token in tokens):
            raise ConfigError(
                f'Tokens {", ".join(tokens) or "(none)"} were chosen: choose from '
                f'{" and ".join(TOKENS)}, each once.'
            )
        if 'class' in tokens and backbone.cls_token is None:
            raise ConfigError('The model has no class token: choose --tokens mean.')

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return len(self.blocks) * len(self.tokens) * int(self.backbone.embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (b, bands, height, width) in [0, 1].

        Returns:
            (b, dim).
        """
        vit, x = self.backbone, self.normalize(images)
        outputs = intermediate_tokens(vit, x, self.blocks, self.norm)
        parts = [
            tokens[:, 0] if name == 'class' else patch_tokens(vit, tokens).mean(dim=1)
            for tokens in outputs
            for name in self.tokens
        ]
        return torch.cat(parts, dim=-1)
