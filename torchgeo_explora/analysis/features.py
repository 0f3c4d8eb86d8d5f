"""Patch features of every block, one block after the other, so that memory is that of one."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.tokens import (
    embed_tokens,
    encode,
    patch_grid,
    patch_tokens,
    run_blocks,
)
from torchgeo_explora.models import TemporalViT


def block_patches(
    model: VisionTransformer, images: Float[Tensor, 'b c h w']
) -> Iterator[Float[Tensor, 'b n d']]:
    """Yield the patch tokens after each block, before the final norm.

    Class and register tokens are left out. A group-channel model has a token for each patch and
    group, group by group.

    Args:
        model: Any timm vision transformer, on the images' device and in the mode it is to run in.
        images: Normalised images.

    Yields:
        One tensor a block, in the order of the blocks.

    Raises:
        ImageError: If the model cannot take the images.

    Source: ExPLoRA's feature analysis (section 6.3 and the project page) looks at the output of
    each block; that it is taken before the final norm is our reading.
    """
    x = embed_tokens(model, images)
    for block in model.blocks:
        x = run_blocks(model, [block], x)
        yield patch_tokens(model, x)


def patch_features(
    model: VisionTransformer, images: Float[Tensor, 'b c h w']
) -> Float[Tensor, 'b gh gw d']:
    """Return patch tokens after the final norm, laid out as they lie in the image.

    The tokens of one patch of a group-channel model are averaged.

    Args:
        model: Any timm vision transformer.
        images: Normalised images.
    """
    grid = patch_grid(model, images)
    tokens = patch_tokens(model, encode(model, images))
    return on_grid(tokens, grid.height, grid.width)


def on_grid(tokens: Float[Tensor, 'b n d'], height: int, width: int) -> Float[Tensor, 'b h w d']:
    """Lay tokens out on the patch grid; those of several groups are averaged.

    Args:
        tokens: In row-major order, group by group.
        height: Of the grid.
        width: Of the grid.
    """
    groups: Tensor = tokens.unflatten(1, (-1, height, width))  # (b, g*h*w, d) -> (b, g, h, w, d)
    return groups.mean(dim=1)


def cell_numbers(tokens: int, cells: int) -> Int[Tensor, ' tokens']:
    """Return the cell of the patch grid that each token is of: group by group, 0 to cells - 1."""
    return torch.arange(tokens) % cells


def check_single_date(model: VisionTransformer) -> None:
    """Refuse a model that takes several dates of a place.

    Raises:
        ConfigError: If it does.
    """
    if isinstance(model, TemporalViT):
        raise ConfigError(
            f'{type(model).__name__} takes several dates of a place, and images of a folder have '
            'one: analyse a plain or a group-channel model.'
        )
