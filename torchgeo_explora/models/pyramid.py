"""A vision transformer as an encoder of segmentation-models-pytorch: maps at strides 4 to 32."""

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.layers.embedder import TokenEmbedder
from torchgeo_explora.layers.resample import resample_cells
from torchgeo_explora.layers.tokens import (
    check_bands,
    intermediate_tokens,
    patch_grid,
    patch_tokens,
)
from torchgeo_explora.models._token_vit import fold
from torchgeo_explora.models.group_channel_vit import GroupChannelViT
from torchgeo_explora.models.temporal_vit import TemporalViT

__all__ = ['ViTPyramidEncoder', 'evenly_spaced']


def evenly_spaced(depth: int, count: int) -> tuple[int, ...]:
    """Return so many blocks, evenly spaced, the last one last.

    For 4 of 12 blocks 2, 5, 8 and 11, for 4 of 24 blocks 5, 11, 17 and 23 (Ranftl et al. 2021,
    "Vision transformers for dense prediction", section 3.1; DINOv2's dense heads too).

    Args:
        depth: Number of blocks there are; with fewer than ``count`` some are named twice.
        count: Number wanted.
    """
    return tuple(-(-depth * (k + 1) // count) - 1 for k in range(count))


@final
class ViTPyramidEncoder(nn.Module):
    """Maps of a plain vision transformer at the strides that decoders of convolutional nets expect.

    Its tokens are all of one stride, that of its patches. Those after evenly spaced blocks, the
    shallowest first, are resampled to strides 4, 8, 16 and 32, each at the place it covers,
    whatever the patches' size. There is a map of no channels at stride 2, as for other transformers in
    segmentation-models-pytorch.

    Images of any size: they are continued by their edge to whole patches, position embeddings are
    resampled to the patches there are. Tokens of several groups of bands or dates are averaged.

    Args:
        backbone: The vision transformer, plain, group-channel or temporal; kept, not copied.
        depth: Number of the largest stride's power of two: 5 for strides up to 32.
        blocks: Blocks whose tokens are used, ``depth - 1`` of them, from 0 or negative from the
            end; evenly spaced by default.
        norm: Whether the backbone's final norm is applied to the tokens of every block, as DINOv2
            does it.
        output_stride: As segmentation-models-pytorch passes it on; has to be 32.

    Raises:
        ConfigError: If an argument is not possible.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        depth: int = 5,
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if not 2 <= depth <= 5:
            raise ConfigError(
                f'encoder_depth is {depth}: a vision transformer gives maps at strides 4 to 32, '
                'for which it is 2 to 5.'
            )
        self.vit = backbone
        self.depth = depth
        self.norm = norm
        if output_stride != 32:  # SMP asks for it with other numbers where a decoder dilates
            self.make_dilated(output_stride)
        count = len(backbone.blocks)
        chosen = evenly_spaced(count, depth - 1) if blocks is None else tuple(blocks)
        self.blocks = _checked(chosen, count, depth - 1)

    @property
    def out_channels(self) -> list[int]:
        """Channels of the maps that :meth:`forward` returns, the image's first."""
        return [bands_of(self.vit), 0, *[self.vit.embed_dim] * (self.depth - 1)]

    @property
    def output_stride(self) -> int:
        """The largest stride."""
        stride: int = 2**self.depth
        return stride

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Check that images have the backbone's bands.

        Args:
            in_channels: Bands of the images.
            pretrained: Not used: weights come with the backbone.

        Raises:
            ConfigError: If they have not.
        """
        bands = bands_of(self.vit)
        if in_channels != bands:
            raise ConfigError(
                f'in_channels is {in_channels}, but the encoder takes {bands} bands: set '
                f'in_channels to {bands}, or register the encoder with in_chans={in_channels}.'
            )

    def make_dilated(self, output_stride: int) -> None:
        """Refuse to dilate.

        Raises:
            ConfigError: Always: all tokens of a vision transformer have one stride.
        """
        raise ConfigError(
            f'The decoder asks for an encoder dilated to stride {output_stride}, and a vision '
            'transformer has no convolutions to dilate: use another decoder, for instance upernet.'
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return images and maps at strides 2 to :attr:`output_stride`.

        Args:
            images: Normalised images (b, c, h, w), of a size that divides by the largest stride.
        """
        grid = GridSize(images.shape[-2], images.shape[-1])
        return [images, *self.levels(images, grid)[1:]]

    def levels(
        self, images: Tensor, canvas: GridSize, timestamps: Tensor | None = None
    ) -> list[Tensor]:
        """Return maps at strides 1 to :attr:`output_stride` of images of any size.

        Those at strides 1 and 2 have no channels.

        Args:
            images: Normalised images (b, c, h, w), or (b, dates, c, h, w) of a temporal model.
            canvas: Height and width in pixels that the maps cover, from the upper left corner of
                the images; multiples of the largest stride.
            timestamps: Of the dates (b, dates, 3), for a temporal model.
        """
        maps, _ = self.token_maps(images, timestamps)
        patch_height, patch_width = self.vit.patch_embed.patch_size
        sizes = [
            (2**k, GridSize(canvas.height // 2**k, canvas.width // 2**k))
            for k in range(self.depth + 1)
        ]
        empty = [maps[0].new_empty(images.shape[0], 0, g.height, g.width) for _, g in sizes[:2]]
        return empty + [
            resample_cells(found, grid, stride / patch_height, stride / patch_width)
            for found, (stride, grid) in zip(maps, sizes[2:], strict=True)
        ]

    def token_maps(
        self, images: Tensor, timestamps: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return tokens as maps (b, width, rows, columns) of patches, and class tokens.

        Args:
            images: Normalised images of any size, as in :meth:`levels`.
            timestamps: Of the dates, for a temporal model.

        Returns:
            For every block chosen the map, and the class token (b, 1, width) or None without one.
        """
        vit = self.vit
        images = pad_to_patches(images, vit)
        grid = patch_grid(vit, images)
        copies = vit.token_copies(images) if isinstance(vit, TokenEmbedder) else 1
        outputs = intermediate_tokens(vit, images, self.blocks, self.norm, timestamps)
        maps = [fold(patch_tokens(vit, tokens), grid, copies) for tokens in outputs]
        return maps, [None if vit.cls_token is None else tokens[:, :1] for tokens in outputs]


def bands_of(vit: VisionTransformer) -> int:
    """Return the number of bands of the images that a model takes."""
    embed = vit.patch_embed
    bands: int = embed.in_chans if isinstance(vit, GroupChannelViT) else embed.proj.in_channels
    return bands


def pad_to_patches(images: Tensor, vit: VisionTransformer) -> Tensor:
    """Continue images (..., h, w) below and to the right by their edge, to whole patches.

    Raises:
        ImageError: If they have no pixels, or other axes or bands than the model takes.
    """
    shape = tuple(images.shape)
    axes = 5 if isinstance(vit, TemporalViT) else 4
    if len(shape) != axes or 0 in shape:
        raise ImageError(
            f'The images are of shape {shape}: give {axes} axes, none of length 0 (batch, '
            f'{"dates, " if axes == 5 else ""}bands, height, width).'
        )
    height, width = shape[-2:]
    patch_height, patch_width = vit.patch_embed.patch_size
    check_bands(images.shape, bands_of(vit))
    pad = (0, -width % patch_width, 0, -height % patch_height)
    if not any(pad):
        return images
    flat = images.flatten(0, -4)  # (b, dates, c, h, w) -> (b*dates, c, h, w)
    padded = F.pad(flat, pad, mode='replicate')
    return padded.reshape(*shape[:-2], *padded.shape[-2:])


def _checked(blocks: tuple[int, ...], depth: int, wanted: int) -> tuple[int, ...]:
    if len(blocks) != wanted or not all(-depth <= index < depth for index in blocks):
        raise ConfigError(
            f'blocks are {list(blocks)}: name {wanted}, each from 0 to {depth - 1}, or -{depth} to '
            '-1 from the end.'
        )
    return tuple(index % depth for index in blocks)
