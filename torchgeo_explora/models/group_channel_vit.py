"""SatMAE's group-channel vision transformer: tokens of each patch and group of bands.

timm's entry points take images of the ten bands of Sentinel-2 that SatMAE keeps, unless
``channel_groups`` names others. The group's part of a position embedding is SatMAE's 256 for ViT-B
(a third) and ViT-L (a quarter); for ViT-S, which SatMAE does not have, it is 128 (a third).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.embedder import embed_patches
from torchgeo_explora.layers.sincos import sincos_index
from torchgeo_explora.layers.tokens import check_bands
from torchgeo_explora.models._token_entry import (
    EXPLORA,
    SIZES,
    ZENODO,
    build_token_vit,
    token_cfg,
)
from torchgeo_explora.models._token_vit import Images, TokenViT, check_split
from torchgeo_explora.models.groups import as_groups, bands_needed

# A list, because timm appends the registered names to it.
__all__ = ['GroupChannelViT', 'default_cfgs']

# Of the ten bands that SatMAE keeps of Sentinel-2 (without B1, B9, B10), in their order:
# B2 B3 B4 B8 at 10 m, B5 B6 B7 B8A, and the short-wave infrared B11 B12 (Cong et al. 2022)
SATMAE_GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))


class _GroupPatchEmbed(nn.ModuleList):
    """A patch embedding for each group of bands, in the place of timm's single one."""

    def __init__(
        self,
        *,
        groups: tuple[tuple[int, ...], ...],
        in_chans: int,
        **kwargs: Any,  # noqa: ANN401  # timm's own
    ) -> None:
        super().__init__(PatchEmbed(in_chans=len(group), **kwargs) for group in groups)
        self.in_chans = in_chans

    def _first(self) -> PatchEmbed:
        return cast('PatchEmbed', self[0])

    @property
    def patch_size(self) -> tuple[int, int]:
        found: tuple[int, int] = self._first().patch_size
        return found

    @property
    def img_size(self) -> tuple[int, int]:
        found: tuple[int, int] = self._first().img_size
        return found

    @property
    def grid_size(self) -> tuple[int, int]:
        found: tuple[int, int] = self._first().grid_size
        return found

    @property
    def num_patches(self) -> int:
        """Of one group."""
        found: int = self._first().num_patches
        return found

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        for embed in self:
            assert isinstance(embed, PatchEmbed), 'made by the constructor'
            embed.set_input_size(img_size=img_size, patch_size=patch_size)


@final
class GroupChannelViT(TokenViT):
    """Vision transformer over groups of bands (Cong et al. 2022, SatMAE, section 3.3).

    Every group has a patch embedding of its own. A token is a patch of a group; its position
    embedding is where it is (2-D sines and cosines) beside which group it is of (1-D ones). The
    sequence is the class token, then the patches of the first group, and so on.

    Keys are those of SatMAE: ``patch_embed.{g}.proj.*``, ``pos_embed``, ``channel_embed``,
    ``channel_cls_embed``. All encodings are fixed; ``channel_cls_embed``, the class token's share
    beside its position, is zeros.

    Args:
        channel_groups: 0-based bands of every group; a band may be in several or in none.
        channel_embed_dim: Length of the group's part of the position embedding; even.
        in_chans: Bands of the images; as many as the groups need by default.
        **kwargs: Arguments of timm's vision transformer.

    Raises:
        ConfigError: If the groups or an argument are not possible.
    """

    kind = 'group-channel'
    extra_argument = 'channel_embed_dim'

    def __init__(
        self,
        channel_groups: Sequence[Sequence[int]] = SATMAE_GROUPS,
        channel_embed_dim: int = 256,
        in_chans: int | None = None,
        **kwargs: Any,  # noqa: ANN401  # timm's own
    ) -> None:
        groups = as_groups(channel_groups)
        needed = bands_needed(groups)
        if in_chans is not None and in_chans < needed:
            raise ConfigError(
                f'channel_groups names band {needed - 1}, images have in_chans={in_chans} bands, '
                f'numbered from 0: set in_chans to {needed} or more, or correct the groups.'
            )
        check_split('channel_embed_dim', kwargs.get('embed_dim', 768), channel_embed_dim, 2)
        super().__init__(
            extra_dim=channel_embed_dim,
            in_chans=needed if in_chans is None else in_chans,
            embed_layer=partial(_GroupPatchEmbed, groups=groups),
            **kwargs,
        )
        self.channel_groups = groups
        self.channel_embed = self._fixed(sincos_index(len(groups), channel_embed_dim))
        self.channel_cls_embed = self._fixed(torch.zeros(1, 1, channel_embed_dim))
        self.init_weights(needs_reset=False)

    def split_input(self, x: Images, timestamps: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the images.

        Raises:
            ConfigError: If timestamps are given.
        """
        if timestamps is not None or not isinstance(x, Tensor):
            raise ConfigError('A GroupChannelViT takes images alone: leave the timestamps away.')
        return x, None

    def token_grid(self, images: Tensor) -> GridSize:
        """Return the patch grid of one group.

        Args:
            images: Normalised images (b, c, h, w).

        Raises:
            ImageError: If the model cannot take them.
        """
        check_bands(images.shape, self.patch_embed.in_chans)
        return self._divided(images)

    def token_copies(self, images: Tensor) -> int:
        """Return the number of groups."""
        return len(self.channel_groups)

    def embed_all(self, images: Tensor) -> Tensor:
        """Embed every patch of every group."""
        parts = [
            embed.norm(embed.proj(_select(images, group)).flatten(2).transpose(1, 2))
            for embed, group in zip(self.patch_embed, self.channel_groups, strict=True)
        ]
        return torch.cat(parts, dim=1)  # groups x (b, n, d) -> (b, groups*n, d)

    def embed_kept(self, images: Tensor, keep: Tensor) -> Tensor:
        """Embed some patches of some groups.

        Args:
            images: Normalised images.
            keep: Numbers of tokens (b, kept), group by group.
        """
        area = self.token_grid(images).area
        rows = torch.arange(len(keep), device=keep.device).repeat_interleave(keep.shape[1])
        group, cells = keep.flatten() // area, keep.flatten() % area
        # all tokens of a group in one product, whatever image they are of
        order = torch.argsort(group, stable=True)
        counts = torch.bincount(group, minlength=len(self.channel_groups)).tolist()
        parts = [
            embed.norm(embed_patches(embed.proj, _select(images, bands), rows[at], cells[at]))
            for embed, bands, at in zip(
                self.patch_embed, self.channel_groups, order.split(counts), strict=True
            )
        ]
        back = torch.empty_like(order).scatter_(
            0, order, torch.arange(len(order), device=order.device)
        )
        out: Tensor = (
            torch.cat(parts).index_select(0, back).unflatten(0, keep.shape)
        )  # -> (b, kept, d)
        return out

    def token_positions(self, grid: GridSize, index: Tensor, timestamps: Tensor | None) -> Tensor:
        """Return where tokens are, beside which group they are of.

        Args:
            grid: Of one group.
            index: Numbers of tokens (rows, n).
            timestamps: None.
        """
        assert timestamps is None, 'there are no dates'
        where = F.embedding(index % grid.area, self._spatial(grid)[0, 1:])
        which = F.embedding(index // grid.area, self.channel_embed[0])
        return torch.cat([where, which], dim=-1)

    def class_position(self) -> Tensor:
        """Return the class token's position beside its channel encoding."""
        assert self.pos_embed is not None, 'made by the constructor'
        return torch.cat([self.pos_embed[:, :1], self.channel_cls_embed], dim=-1)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are never decayed."""
        return {*super().no_weight_decay(), 'channel_embed', 'channel_cls_embed'}


def _select(images: Tensor, bands: Sequence[int]) -> Tensor:
    # indexing with a list would copy it to the device every time
    return torch.stack([images[:, band] for band in bands], dim=1)


def _cfg(url: str = '', explora: bool = False) -> dict[str, Any]:
    # SatMAE's scaling gives values in [0, 1], and nothing else is done to them
    return token_cfg(url, (10, 96, 96), (0.0,) * 10, (1.0,) * 10, explora)


# timm reads this when a function below is registered, so it has to stand before them.
default_cfgs = generate_default_cfgs(
    {
        'explora_group_channel_vit_small_patch8_96': _cfg(),
        'explora_group_channel_vit_base_patch8_96.satmae_fmow_sentinel': _cfg(
            f'{ZENODO}7338613/files/pretrain-vit-base-e199.pth'
        ),
        'explora_group_channel_vit_large_patch8_96.fmow_sentinel': _cfg(
            f'{EXPLORA}explora_mae_multispectral/explora_mae_fmow_sentinel_encoder_only.pth',
            explora=True,
        ),
        'explora_group_channel_vit_large_patch8_96.satmae_fmow_sentinel': _cfg(
            f'{ZENODO}7338613/files/pretrain-vit-large-e199.pth'
        ),
    }
)


def _create(
    size: str, channel_embed_dim: int, pretrained: bool, given: dict[str, Any]
) -> GroupChannelViT:
    defaults = {'patch_size': 8, 'channel_embed_dim': channel_embed_dim, **SIZES[size]}
    groups = given.get('channel_groups', SATMAE_GROUPS)
    # timm would take the number of bands from the configuration, whatever the groups
    defaults['in_chans'] = bands_needed(as_groups(groups))
    name = f'explora_group_channel_vit_{size}_patch8_96'
    model = build_token_vit(GroupChannelViT, name, pretrained, defaults, given)
    return cast('GroupChannelViT', model)  # or timm's wrapper, where only features are asked for


@register_model
def explora_group_channel_vit_small_patch8_96(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> GroupChannelViT:
    """Group-channel ViT-S/8. There are no published weights of this size.

    Args:
        pretrained: Must stay False: there is nothing to download.
        **kwargs: Arguments of :class:`GroupChannelViT`.
    """
    return _create('small', 128, pretrained, kwargs)


@register_model
def explora_group_channel_vit_base_patch8_96(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> GroupChannelViT:
    """Group-channel ViT-B/8, pre-trained on fMoW-Sentinel by SatMAE.

    Args:
        pretrained: Whether to download the published weights.
        **kwargs: Arguments of :class:`GroupChannelViT`.
    """
    return _create('base', 256, pretrained, kwargs)


@register_model
def explora_group_channel_vit_large_patch8_96(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> GroupChannelViT:
    """Group-channel ViT-L/8, adapted to fMoW-Sentinel by ExPLoRA or pre-trained by SatMAE.

    Args:
        pretrained: Whether to download the published weights.
        **kwargs: Arguments of :class:`GroupChannelViT`.
    """
    return _create('large', 256, pretrained, kwargs)
