"""Decoders of masked autoencoders: of images, of groups of bands, of dates.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3; Cong et al. 2022,
"SatMAE", sections 3.2 and 3.3. Parameters bear the official names, encodings are fixed.
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora._typing import GridSize, PatchSize
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.sincos import encode_times, sincos_grid, sincos_index
from torchgeo_explora.layers.token_masks import TokenMask
from torchgeo_explora.layers.tokens import native_grid
from torchgeo_explora.losses.mae import patchify, unpatchify
from torchgeo_explora.models._token_decoder import DecoderSizes, OneHeadDecoder, TokenDecoder
from torchgeo_explora.models.group_channel_vit import GroupChannelViT
from torchgeo_explora.models.temporal_vit import TemporalViT

__all__ = [
    'DecoderSizes',
    'GroupChannelMAEDecoder',
    'MAEDecoder',
    'TemporalMAEDecoder',
    'TokenDecoder',
    'build_decoder',
]

PredictionOrder = Literal['group', 'satmae']


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


@final
class MAEDecoder(OneHeadDecoder):
    """Decoder of plain images, with any number of bands.

    Args:
        sizes: Widths, depth and patches.
        generator: Source of the initial weights; None for torch's default one.

    Raises:
        ConfigError: If the width is no multiple of 4.
    """

    def __init__(self, sizes: DecoderSizes, generator: torch.Generator | None = None) -> None:
        super().__init__(sizes)
        sizes.check_split('What is left', 0, 1)
        self.decoder_pos_embed = _fixed(sincos_grid(sizes.grid, sizes.width, sizes.prefix))
        self.init_weights(generator)

    def positions(
        self, grid: GridSize, timestamps: Float[Tensor, 'b dates 3'] | None
    ) -> Float[Tensor, '1 tokens width']:
        """Return the position of every token."""
        return self.stored_positions(grid)

    def patches(self, images: Float[Tensor, 'b c h w']) -> Float[Tensor, 'b places values']:
        """Cut images into patches."""
        return patchify(images, self.sizes.patch)

    def assemble(
        self, patches: Float[Tensor, 'b places values'], grid: GridSize
    ) -> Float[Tensor, 'b c h w']:
        """Put patches together to images."""
        return unpatchify(patches, grid, self.sizes.patch)


@final
class TemporalMAEDecoder(OneHeadDecoder):
    """Decoder of several dates of one place: a part of each token's encoding is its date.

    Args:
        sizes: Widths, depth and patches.
        time_embed_dim: Length of that part; a multiple of 6.
        generator: Source of the initial weights; None for torch's default one.

    Raises:
        ConfigError: If the width does not divide so.
    """

    def __init__(
        self, sizes: DecoderSizes, time_embed_dim: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(sizes)
        sizes.check_split('time_embed_dim', time_embed_dim, 6)
        self.time_embed_dim = time_embed_dim
        space = sizes.width - time_embed_dim
        self.decoder_pos_embed = _fixed(sincos_grid(sizes.grid, space, sizes.prefix))
        self.init_weights(generator)

    def positions(
        self, grid: GridSize, timestamps: Float[Tensor, 'b dates 3'] | None
    ) -> Float[Tensor, 'b tokens width']:
        """Return position and date of every token; prefix tokens have no date.

        Raises:
            ConfigError: If there are no timestamps.
        """
        if timestamps is None:
            raise ConfigError(
                'The temporal decoder received no timestamps: give (year - 2002, month - 1, hour) '
                'of every date.'
            )
        table, count = self.stored_positions(grid), self.sizes.prefix
        times = encode_times(timestamps.to(table.dtype), self.time_embed_dim)  # (b, dates, time)
        batch, dates, _ = times.shape
        where = table[:, None, count:].expand(batch, dates, -1, -1)
        when = times[:, :, None].expand(-1, -1, grid.area, -1)
        tokens = torch.cat([where, when], dim=-1).flatten(1, 2)  # (b, dates * n, width)
        prefix = F.pad(table[:, :count], (0, self.time_embed_dim))
        return torch.cat([prefix.expand(batch, -1, -1), tokens], dim=1)

    def patches(self, images: Float[Tensor, 'b dates c h w']) -> Float[Tensor, 'b places values']:
        """Cut the images of all dates into patches, date by date."""
        patches = patchify(images.flatten(0, 1), self.sizes.patch)  # (b * dates, n, values)
        out: Tensor = patches.unflatten(0, images.shape[:2]).flatten(1, 2)
        return out

    def assemble(
        self, patches: Float[Tensor, 'b places values'], grid: GridSize
    ) -> Float[Tensor, 'b dates c h w']:
        """Put patches together to the images of all dates."""
        dates = patches.unflatten(1, (-1, grid.area))  # (b, dates, n, values)
        images = unpatchify(dates.flatten(0, 1), grid, self.sizes.patch)
        out: Tensor = images.unflatten(0, dates.shape[:2])
        return out


@final
class GroupChannelMAEDecoder(TokenDecoder):
    """Decoder of groups of bands, with a prediction head for each group.

    Args:
        sizes: Widths, depth and patches.
        channel_groups: 0-based bands of every group.
        channel_embed_dim: Length of the part of a token's encoding that is its group; even.
        prediction_order: What the heads' outputs mean. ``group``: each head predicts the bands
            of its own group (Cong et al. 2022, section 3.3). ``satmae``: the outputs of all
            heads, one after the other, are numbered, and output j is read as band j. SatMAE's
            official loss does so, hence decoders of its checkpoints need it; where groups are
            not runs of bands, a masked token's bands are then predicted by tokens of other
            groups, also by visible ones.
        generator: Source of the initial weights; None for torch's default one.

    Raises:
        ConfigError: If the width does not divide so, or ``satmae`` is asked for with fewer
            outputs than the number of a band.
    """

    def __init__(
        self,
        sizes: DecoderSizes,
        channel_groups: Sequence[Sequence[int]],
        channel_embed_dim: int,
        prediction_order: PredictionOrder = 'group',
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(sizes)
        sizes.check_split('channel_embed_dim', channel_embed_dim, 2)
        self.channel_groups = tuple(tuple(group) for group in channel_groups)
        self.prediction_order = _checked(prediction_order, self.channel_groups)
        space, count = sizes.width - channel_embed_dim, len(self.channel_groups)
        self.decoder_pos_embed = _fixed(sincos_grid(sizes.grid, space, sizes.prefix))
        # one more for the class token
        self.decoder_channel_embed = _fixed(sincos_index(count + 1, channel_embed_dim))
        area = sizes.patch.area
        self.decoder_pred = nn.ModuleList(
            nn.Linear(sizes.width, len(group) * area) for group in self.channel_groups
        )
        self.init_weights(generator)

    def positions(
        self, grid: GridSize, timestamps: Float[Tensor, 'b dates 3'] | None
    ) -> Float[Tensor, '1 tokens width']:
        """Return position and group of every token; prefix tokens have an encoding of their own."""
        table, count = self.stored_positions(grid), self.sizes.prefix
        groups, last = self.decoder_channel_embed[:, :-1], self.decoder_channel_embed[:, -1:]
        where = table[:, None, count:].expand(-1, groups.shape[1], -1, -1)
        which = groups[:, :, None].expand(-1, -1, grid.area, -1)
        tokens = torch.cat([where, which], dim=-1).flatten(1, 2)  # (1, groups * n, width)
        prefix = torch.cat([table[:, :count], last.expand(-1, count, -1)], dim=-1)
        return torch.cat([prefix, tokens], dim=1)

    def tokens_read(self, mask: TokenMask) -> Int[Tensor, 'b n']:
        """Return the masked tokens, or all where outputs of other groups are read."""
        if self.prediction_order == 'group':
            return mask.hidden
        return torch.arange(mask.masked.shape[1]).expand(len(mask.masked), -1)

    def predict_masked(
        self, tokens: Float[Tensor, 'b n width'], mask: TokenMask
    ) -> list[Float[Tensor, '_ _']]:
        """Return for every group the values of its bands at its masked tokens."""
        count, device = len(self.channel_groups), tokens.device
        if self.prediction_order == 'satmae':
            outputs = _parts(
                torch.cat(self.predict_all(tokens), dim=2),
                self.channel_groups,
                self.sizes.patch.area,
            )
            pairs = zip(outputs, mask.rows(count), strict=True)
            return [part.flatten(0, 1)[rows.to(device)] for part, rows in pairs]
        group = (mask.hidden // (mask.masked.shape[1] // count)).flatten()
        rows = [(group == index).nonzero()[:, 0].to(device) for index in range(count)]
        flat = tokens.flatten(0, 1)  # (b * n, width)
        return [head(flat[own]) for head, own in zip(self.decoder_pred, rows, strict=True)]

    def predict_all(self, tokens: Float[Tensor, 'b n width']) -> list[Float[Tensor, 'b _ _']]:
        """Return for every head the values of its group's tokens."""
        groups = tokens.chunk(len(self.channel_groups), dim=1)  # (b, n, width) each
        return [head(own) for head, own in zip(self.decoder_pred, groups, strict=True)]

    def patches(self, images: Float[Tensor, 'b c h w']) -> Float[Tensor, 'b places values']:
        """Cut images into patches of all bands, band by band."""
        return patchify(images, self.sizes.patch, channels_last=False)

    def assemble(
        self, patches: Float[Tensor, 'b places values'], grid: GridSize
    ) -> Float[Tensor, 'b c h w']:
        """Put patches together to images."""
        return unpatchify(patches, grid, self.sizes.patch, channels_last=False)

    def split(self, patches: Float[Tensor, 'b places values']) -> list[Float[Tensor, 'b n _']]:
        """Return the values of every group's bands."""
        return _parts(patches, self.channel_groups, self.sizes.patch.area)

    def overlay(
        self,
        patches: Float[Tensor, 'b places values'],
        parts: Sequence[Float[Tensor, 'b n _']],
        masked: Sequence[Tensor],
    ) -> Float[Tensor, 'b places values']:
        """Replace what no group shows; a band of several groups becomes the mean of theirs."""
        bands = patches.unflatten(2, (self.sizes.bands, -1))  # (b, places, bands, area)
        total, count = torch.zeros_like(bands), bands.new_zeros(self.sizes.bands)
        seen = torch.zeros_like(bands[..., 0], dtype=torch.bool)
        for group, part, hidden in zip(self.channel_groups, parts, masked, strict=True):
            own = list(group)
            total[:, :, own] += part.unflatten(2, (len(own), -1))
            seen[:, :, own] |= hidden.logical_not()[..., None]
            count[own] += 1
        known = seen | (count == 0)  # bands of no group stay as they are
        mean = total / count.clamp(min=1)[:, None]
        return torch.where(known[..., None], bands, mean).flatten(2)


def _parts(
    values: Float[Tensor, 'b places values'], groups: Sequence[Sequence[int]], area: int
) -> list[Float[Tensor, 'b places _']]:
    """Return each group's share of values that are listed band by band."""
    bands = values.unflatten(2, (-1, area))  # (b, places, bands, area)
    return [bands[:, :, list(group)].flatten(2) for group in groups]


def _checked(order: PredictionOrder, groups: tuple[tuple[int, ...], ...]) -> PredictionOrder:
    if order not in ('group', 'satmae'):
        raise ConfigError(f'prediction_order is {order!r}: use group (the paper) or satmae.')
    outputs, last = sum(map(len, groups)), max(max(group) for group in groups)
    if order == 'satmae' and last >= outputs:
        raise ConfigError(
            f'prediction_order satmae reads output {last} of the heads as band {last}, but the '
            f'groups have only {outputs} outputs: use the order group, or number the bands from 0 '
            'without gaps.'
        )
    return order


def build_decoder(
    encoder: VisionTransformer,
    width: int = 512,
    depth: int = 8,
    heads: int = 16,
    mlp_ratio: float = 4.0,
    norm_eps: float = 1e-6,
    channel_embed_dim: int | None = None,
    time_embed_dim: int | None = None,
    prediction_order: PredictionOrder = 'group',
    generator: torch.Generator | None = None,
) -> MAEDecoder | GroupChannelMAEDecoder | TemporalMAEDecoder:
    """Build the decoder that goes with an encoder.

    Args:
        encoder: A vision transformer: plain, of groups of bands, or of dates.
        width: Width of the decoder's tokens.
        depth: Number of blocks.
        heads: Attention heads of a block.
        mlp_ratio: Width of the MLP's hidden layer, relative to ``width``.
        norm_eps: Added to the variance by the layer norms.
        channel_embed_dim: Part of the width that encodes the group of bands; a quarter when not
            given (128 of 512, SatMAE).
        time_embed_dim: Part of the width that encodes the date; three eighths when not given
            (192 of 512, SatMAE).
        prediction_order: As in :class:`GroupChannelMAEDecoder`.
        generator: Source of the initial weights; None for torch's default one.

    Raises:
        ConfigError: If a size is not possible.
    """
    sizes = _sizes(encoder, width, depth, heads, mlp_ratio, norm_eps)
    if isinstance(encoder, GroupChannelViT):
        part = width // 4 if channel_embed_dim is None else channel_embed_dim
        groups = encoder.channel_groups
        return GroupChannelMAEDecoder(sizes, groups, part, prediction_order, generator)
    if isinstance(encoder, TemporalViT):
        part = 6 * (width // 16) if time_embed_dim is None else time_embed_dim
        return TemporalMAEDecoder(sizes, part, generator)
    return MAEDecoder(sizes, generator)


def _sizes(
    encoder: VisionTransformer, width: int, depth: int, heads: int, mlp_ratio: float, eps: float
) -> DecoderSizes:
    grid, embed = native_grid(encoder), encoder.patch_embed
    if grid is None:
        raise ConfigError(
            'The encoder has no image size of its own, so the decoder has no positions: build it '
            'with img_size.'
        )
    grouped = isinstance(encoder, GroupChannelViT)
    return DecoderSizes(
        embed_dim=encoder.embed_dim,
        grid=grid,
        patch=PatchSize(*embed.patch_size),
        bands=embed.in_chans if grouped else embed.proj.in_channels,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        prefix=encoder.num_prefix_tokens,
        norm_eps=eps,
    )
