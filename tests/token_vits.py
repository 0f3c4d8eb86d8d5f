"""Small models with groups of bands or dates, with random values in every parameter."""

from typing import Any, cast

import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.models._token_entry import build_token_vit
from torchgeo_explora.models.group_channel_vit import GroupChannelViT
from torchgeo_explora.models.temporal_vit import TemporalViT

# timm appends the registered names to it.
__all__ = ['SIZES', 'inputs_for', 'make_groups', 'make_temporal', 'shake']

SIZES: dict[str, Any] = {
    'img_size': 32, 'patch_size': 8, 'embed_dim': 24, 'depth': 3, 'num_heads': 3,
    'num_classes': 0, 'dynamic_img_size': True,
}  # fmt: skip
GROUPS = ((0, 2), (3, 1, 4), (2,))  # of unequal sizes, with a band in two, and one in none


def shake(model: VisionTransformer, seed: int = 0) -> None:
    """Give random values to every parameter, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0  # norms are near 1
            parameter.normal_(offset, 0.2, generator=generator)


def make_groups(**arguments: Any) -> GroupChannelViT:  # noqa: ANN401
    options = {'channel_groups': GROUPS, 'channel_embed_dim': 8, 'in_chans': 6, **SIZES}
    model = GroupChannelViT(**{**options, **arguments}).eval()
    shake(model)
    return model


def make_temporal(**arguments: Any) -> TemporalViT:  # noqa: ANN401
    model = TemporalViT(**{'time_embed_dim': 12, 'in_chans': 2, **SIZES, **arguments}).eval()
    shake(model)
    return model


def inputs_for(
    model: VisionTransformer, batch: int = 2, size: tuple[int, int] = (32, 32), dates: int = 3
) -> tuple[Tensor, Tensor | None]:
    """Random images of a model, with timestamps where it takes dates."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, TemporalViT):
        bands = model.patch_embed.proj.in_channels
        images = torch.randn(batch, dates, bands, *size, generator=generator)
        return images, torch.randint(0, 20, (batch, dates, 3), generator=generator).float()
    assert isinstance(model, GroupChannelViT)
    return torch.randn(batch, model.patch_embed.in_chans, *size, generator=generator), None


@register_model
def tiny_group_channel_vit(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401
) -> GroupChannelViT:
    """A group-channel model that tasks can build by name."""
    own = {'channel_groups': GROUPS, 'channel_embed_dim': 8, 'in_chans': 6, **SIZES}
    name = 'tiny_group_channel_vit'
    return cast('GroupChannelViT', build_token_vit(GroupChannelViT, name, pretrained, own, kwargs))


@register_model
def tiny_temporal_vit(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401
) -> TemporalViT:
    """A temporal model that tasks can build by name."""
    own = {'time_embed_dim': 12, 'in_chans': 2, **SIZES}
    return cast(
        'TemporalViT', build_token_vit(TemporalViT, 'tiny_temporal_vit', pretrained, own, kwargs)
    )
