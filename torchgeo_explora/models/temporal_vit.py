"""SatMAE's temporal vision transformer: tokens of each patch and date.

The time's part of a position embedding is SatMAE's 384 for ViT-L. SatMAE has no smaller ones:
ViT-B keeps 384 (half), ViT-S has 192 (half), as wide as in SatMAE's decoder.
"""

from typing import Any, cast, final

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.layers.embedder import embed_patches
from torchgeo_explora.layers.sincos import TIME_PARTS, encode_times
from torchgeo_explora.layers.tokens import check_bands
from torchgeo_explora.models._token_entry import SIZES, ZENODO, build_token_vit, token_cfg
from torchgeo_explora.models._token_vit import Images, TokenViT, check_split

# A list, because timm appends the registered names to it.
__all__ = ['TemporalViT', 'default_cfgs']

# Of fMoW-RGB's training images in [0, 1], as SatMAE publishes them
FMOW_MEAN = (0.4182007, 0.4214799, 0.3991276)
FMOW_STD = (0.2877428, 0.2754177, 0.2764018)


@final
class TemporalViT(TokenViT):
    """Vision transformer over images of one place at several dates (Cong et al. 2022, section 3.2).

    All dates share one patch embedding. A token is a patch of a date; its position embedding is
    where it is (2-D sines and cosines) beside when it is (a third each for year, month and hour).
    The sequence is the class token, then the patches of the first date, and so on.

    ``model(images, timestamps)``, or ``model((images, timestamps))`` where a wrapper passes one
    argument on: images (b, dates, c, h, w), timestamps (b, dates, 3) = (year - 2002, month - 1,
    hour). The class token has zeros in the place of a time.

    Args:
        time_embed_dim: Length of the time's part of the position embedding; a multiple of 6.
        in_chans: Bands of an image.
        **kwargs: Arguments of timm's vision transformer.

    Raises:
        ConfigError: If an argument is not possible.
    """

    kind = 'temporal'
    extra_argument = 'time_embed_dim'

    def __init__(
        self,
        time_embed_dim: int = 384,
        in_chans: int = 3,
        **kwargs: Any,  # noqa: ANN401  # timm's own
    ) -> None:
        check_split('time_embed_dim', kwargs.get('embed_dim', 768), time_embed_dim, 2 * TIME_PARTS)
        super().__init__(extra_dim=time_embed_dim, in_chans=in_chans, **kwargs)
        self.time_embed_dim = time_embed_dim
        self.init_weights(needs_reset=False)

    def split_input(self, x: Images, timestamps: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return images and timestamps, given apart or as a pair.

        Raises:
            ConfigError: If timestamps are missing or given twice.
        """
        if not isinstance(x, Tensor) and timestamps is None:
            x, timestamps = x
        if not isinstance(x, Tensor) or timestamps is None:
            raise ConfigError(
                'A TemporalViT takes images (b, dates, c, h, w) and timestamps (b, dates, 3) of '
                '(year - 2002, month - 1, hour): give both, each once.'
            )
        return x, timestamps

    def token_grid(self, images: Tensor) -> GridSize:
        """Return the patch grid of one date.

        Args:
            images: Normalised images (b, dates, c, h, w).

        Raises:
            ImageError: If the model cannot take them.
        """
        if images.ndim != 5:
            raise ImageError(
                f'The images have {images.ndim} axes {tuple(images.shape)}, a TemporalViT takes 5 '
                '(batch, dates, bands, height, width): add the axis of dates, of length 1 for one.'
            )
        check_bands(images.shape, self.patch_embed.proj.in_channels)
        return self._divided(images)

    def token_copies(self, images: Tensor) -> int:
        """Return the number of dates."""
        return images.shape[1]

    def embed_all(self, images: Tensor) -> Tensor:
        """Embed every patch of every date."""
        x = self.patch_embed.proj(images.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = self.patch_embed.norm(x)  # (b*t, n, d)
        out: Tensor = x.reshape(len(images), -1, x.shape[-1])
        return out

    def embed_kept(self, images: Tensor, keep: Tensor) -> Tensor:
        """Embed some patches of some dates.

        Args:
            images: Normalised images.
            keep: Numbers of tokens (b, kept), date by date.
        """
        area, dates = self.token_grid(images).area, images.shape[1]
        first = torch.arange(len(keep), device=keep.device)[:, None] * dates
        rows = (first + keep // area).flatten()
        x = embed_patches(
            self.patch_embed.proj, images.flatten(0, 1), rows, (keep % area).flatten(), len(keep)
        )
        out: Tensor = self.patch_embed.norm(x.unflatten(0, keep.shape))
        return out

    def token_positions(self, grid: GridSize, index: Tensor, timestamps: Tensor | None) -> Tensor:
        """Return where tokens are, beside when they are.

        Args:
            grid: Of one date.
            index: Numbers of tokens (rows, n); one row serves all images.
            timestamps: Of every date (b, dates, 3).

        Raises:
            ConfigError: If there are no timestamps.
        """
        if timestamps is None:
            raise ConfigError(
                'A TemporalViT needs timestamps (b, dates, 3) of (year - 2002, month - 1, hour): '
                'pass them beside the images.'
            )
        times = encode_times(timestamps.float(), self.time_embed_dim)  # (b, t, time)
        index = index.expand(len(times), -1)
        date = (index // grid.area)[..., None].expand(-1, -1, self.time_embed_dim)
        where = F.embedding(index % grid.area, self._spatial(grid)[0, 1:])
        return torch.cat([where, times.gather(1, date).to(where.dtype)], dim=-1)

    def class_position(self) -> Tensor:
        """Return the class token's position beside zeros."""
        assert self.pos_embed is not None, 'made by the constructor'
        first = self.pos_embed[:, :1]
        return torch.cat([first, first.new_zeros(1, 1, self.time_embed_dim)], dim=-1)


def _cfg(url: str = '') -> dict[str, Any]:
    return token_cfg(url, (3, 224, 224), FMOW_MEAN, FMOW_STD)


# timm reads this when a function below is registered, so it has to stand before them.
default_cfgs = generate_default_cfgs(
    {
        'explora_temporal_vit_small_patch16_224': _cfg(),
        'explora_temporal_vit_base_patch16_224': _cfg(),
        'explora_temporal_vit_large_patch16_224.satmae_fmow': _cfg(
            f'{ZENODO}7369797/files/pretrain_fmow_temporal.pth'
        ),
    }
)


def _create(size: str, time_embed_dim: int, pretrained: bool, given: dict[str, Any]) -> TemporalViT:
    defaults = {'patch_size': 16, 'time_embed_dim': time_embed_dim, **SIZES[size]}
    name = f'explora_temporal_vit_{size}_patch16_224'
    model = build_token_vit(TemporalViT, name, pretrained, defaults, given)
    return cast('TemporalViT', model)  # or timm's wrapper, where only features are asked for


@register_model
def explora_temporal_vit_small_patch16_224(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> TemporalViT:
    """Temporal ViT-S/16. There are no published weights of this size.

    Args:
        pretrained: Must stay False: there is nothing to download.
        **kwargs: Arguments of :class:`TemporalViT`.
    """
    return _create('small', 192, pretrained, kwargs)


@register_model
def explora_temporal_vit_base_patch16_224(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> TemporalViT:
    """Temporal ViT-B/16. There are no published weights of this size.

    Args:
        pretrained: Must stay False: there is nothing to download.
        **kwargs: Arguments of :class:`TemporalViT`.
    """
    return _create('base', 384, pretrained, kwargs)


@register_model
def explora_temporal_vit_large_patch16_224(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> TemporalViT:
    """Temporal ViT-L/16, pre-trained on fMoW-RGB by SatMAE.

    Args:
        pretrained: Whether to download the published weights.
        **kwargs: Arguments of :class:`TemporalViT`.
    """
    return _create('large', 384, pretrained, kwargs)
