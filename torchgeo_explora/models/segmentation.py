"""Segmentation models: any vision transformer of this package under SMP's decoders.

The one module of models that needs segmentation-models-pytorch (SMP). Importing it registers every
vision transformer that timm and this package know with SMP: ``smp.Unet('explora-<timm name>')``.
"""

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, final
from uuid import uuid4

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import initialization
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
from segmentation_models_pytorch.encoders import encoders
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.recompute import recomputing
from torchgeo_explora.layers.resample import resample_cells
from torchgeo_explora.models._loading import create_backbone
from torchgeo_explora.models.builders import ENTRIES
from torchgeo_explora.models.pyramid import ViTPyramidEncoder, bands_of
from torchgeo_explora.models.temporal_vit import TemporalViT

__all__ = [
    'DECODERS',
    'DPTSegmenter',
    'PyramidSegmenter',
    'Segmenter',
    'ViTPyramidEncoder',
    'build_segmenter',
    'decoder_arguments',
    'register_encoder',
]

_PYRAMID: dict[str, Callable[..., nn.Module]] = {
    'fpn': smp.FPN,
    'linknet': smp.Linknet,
    'manet': smp.MAnet,
    'pspnet': smp.PSPNet,
    'segformer': smp.Segformer,
    'unet': smp.Unet,
    'unetplusplus': smp.UnetPlusPlus,
    'upernet': smp.UPerNet,
}
DECODERS = tuple(sorted([*_PYRAMID, 'dpt']))
"""Names of the decoders that vision transformers can be put under."""

_DILATED = (
    'dilates the last stages of a convolutional encoder, and a vision transformer has no stages: '
    'all its tokens have one stride'
)
IMPOSSIBLE = {
    'deeplabv3': _DILATED,
    'deeplabv3+': _DILATED,
    'deeplabv3plus': _DILATED,
    'fcn': 'is a network without an encoder',
    'pan': f'{_DILATED}; its pyramid also needs images of a multiple of 256 pixels',
}
"""Decoders that people ask for, and why there is none for vision transformers."""

PREFIX = 'explora-'
# What build_segmenter and the backbone decide
_RESERVED = {
    'self', 'activation', 'aux_params', 'classes', 'encoder_name', 'encoder_output_indices',
    'encoder_weights', 'in_channels', 'kwargs', 'upsampling',
}  # fmt: skip
# Channels of the four maps before they are fused, and of the fused one: SMP's own
_DPT_CHANNELS = (256, 512, 1024, 1024)
_PSPNET_DEPTH = 3  # SMP's own


class Segmenter(nn.Module, ABC):
    """A vision transformer, a decoder and a head: a class for every pixel.

    Takes normalised images of any size and gives logits of the same size.

    Args:
        encoder: The vision transformer; its weights are under ``encoder.vit``.
        decoder: The decoder.
        head: Turns the decoder's map into logits.
    """

    def __init__(self, encoder: ViTPyramidEncoder, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.segmentation_head = head
        self.grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether activations of the decoder are computed again in the backward pass.

        The backbone has a switch of its own, of the same name.
        """
        self.grad_checkpointing = enable

    @property
    def backbone(self) -> VisionTransformer:
        """The vision transformer."""
        return self.encoder.vit

    def forward(self, images: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Return logits (b, classes, h, w).

        Args:
            images: Normalised images (b, c, h, w), or (b, dates, c, h, w) of a temporal backbone.
            timestamps: Of the dates (b, dates, 3), for a temporal backbone.

        Raises:
            ImageError: If the backbone cannot take the images.
            ConfigError: If timestamps are missing, or given to a backbone without dates.
        """
        if timestamps is not None and not isinstance(self.backbone, TemporalViT):
            raise ConfigError(
                f'{type(self.backbone).__name__} takes images alone: leave the timestamps away.'
            )
        height, width = images.shape[-2:]
        return self.decode(images, timestamps)[..., :height, :width]

    def read_out(self, *maps: list[Tensor] | list[Tensor | None]) -> Tensor:
        """Return the logits that decoder and head make of maps."""
        head = self.segmentation_head
        with recomputing(self.decoder, head) if self.grad_checkpointing else nullcontext():
            logits: Tensor = head(self.decoder(*maps))
        return logits

    @abstractmethod
    def decode(self, images: Tensor, timestamps: Tensor | None) -> Tensor:
        """Return logits of the images and of what they were continued by below and to the right.

        Arguments as in :meth:`forward`.
        """


@final
class PyramidSegmenter(Segmenter):
    """A decoder of SMP over maps of strides 4 to 32. Arguments as in :class:`Segmenter`."""

    def decode(self, images: Tensor, timestamps: Tensor | None) -> Tensor:
        """Return logits of a canvas that divides by the largest stride.

        Args:
            images: Normalised images.
            timestamps: Of the dates, for a temporal backbone.
        """
        stride = self.encoder.output_stride
        height, width = (-(-side // stride) * stride for side in images.shape[-2:])
        maps = self.encoder.levels(images, GridSize(height, width), timestamps)
        return self.read_out(maps)


@final
class DPTSegmenter(Segmenter):
    """The dense prediction transformer (Ranftl et al. 2021) with SMP's decoder, at any patch size.

    The decoder works on patches, 4, 2 and 1 to 1/2 of them a side, and gives 16 cells a patch (8
    where patches have 8 pixels), which are read at the pixels: it never sees how many those are.

    Args:
        encoder: The vision transformer.
        decoder: SMP's decoder for patches of ``cells`` pixels.
        head: Turns the decoder's map into logits of ``cells`` a patch.
        cells: Power of two.
    """

    def __init__(
        self, encoder: ViTPyramidEncoder, decoder: DPTDecoder, head: nn.Module, cells: int
    ) -> None:
        super().__init__(encoder, decoder, head)
        self.cells = cells

    def decode(self, images: Tensor, timestamps: Tensor | None) -> Tensor:
        """Return logits of whole patches.

        Args:
            images: Normalised images.
            timestamps: Of the dates, for a temporal backbone.
        """
        maps, classes = self.encoder.token_maps(images, timestamps)
        rows, columns = maps[0].shape[-2:]
        # the coarsest map has half or a quarter of the patches, which have to come out even
        multiple = max(1, 32 // self.cells)
        even = GridSize(*(-(-side // multiple) * multiple for side in (rows, columns)))
        maps = [
            resample_cells(found, even, rows / even.height, columns / even.width) for found in maps
        ]
        logits = self.read_out(maps, classes)
        patch_height, patch_width = self.backbone.patch_embed.patch_size
        size = (rows * patch_height, columns * patch_width)
        if logits.shape[-2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode='bilinear', align_corners=False)


def build_segmenter(
    backbone: VisionTransformer,
    decoder: str,
    num_classes: int,
    *,
    blocks: Sequence[int] | None = None,
    norm: bool = True,
    seed: int | None = None,
    **decoder_options: Any,  # noqa: ANN401  # SMP's own
) -> Segmenter:
    """Put a decoder of segmentation-models-pytorch on a vision transformer.

    Args:
        backbone: The vision transformer, plain, group-channel or temporal; kept, not copied.
        decoder: One of :data:`DECODERS`.
        num_classes: Number of outputs.
        blocks: Blocks whose tokens the decoder sees, from 0, or negative from the end; evenly
            spaced by default.
        norm: Whether the backbone's final norm is applied to the tokens of every block.
        seed: Draws the decoder's weights; the global generator does when not given.
        **decoder_options: Arguments of SMP's model, those that :func:`decoder_arguments` names.

    Returns:
        The model, which takes normalised images of any size.

    Raises:
        ConfigError: If there is no such decoder for vision transformers, or an argument is not
            possible.
    """
    _check_decoder(decoder, decoder_options)
    if num_classes < 1:
        raise ConfigError(f'num_classes is {num_classes}: a segmentation needs at least one class.')
    build = _build_dpt if decoder == 'dpt' else partial(_build_pyramid, decoder)
    with torch.random.fork_rng(devices=[], enabled=seed is not None), warnings.catch_warnings():
        # parts of no channels, which SMP makes for transformers, have nothing to initialise
        warnings.filterwarnings('ignore', 'Initializing zero-element tensors is a no-op')
        if seed is not None:
            torch.manual_seed(seed)
        try:
            model = build(backbone, num_classes, blocks, norm, decoder_options)
        except ConfigError:
            raise
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
            given = ', '.join(f'{key}={value}' for key, value in decoder_options.items())
            raise ConfigError(
                f'{decoder} cannot be built with {given} ({error}): correct the argument.'
            ) from error
    return model.to(next(backbone.parameters()).device)


def decoder_arguments(decoder: str) -> tuple[str, ...]:
    """Return the names of the arguments that :func:`build_segmenter` passes on to a decoder.

    Args:
        decoder: One of :data:`DECODERS`.
    """
    _check_decoder(decoder, {})
    built = smp.DPT if decoder == 'dpt' else _PYRAMID[decoder]
    names = inspect.signature(inspect.unwrap(built.__init__)).parameters
    fixed = _RESERVED | ({'encoder_depth'} if decoder == 'dpt' else set())
    return tuple(sorted(set(names) - fixed))


def _check_decoder(decoder: str, options: dict[str, Any]) -> None:
    possible = f'choose one of {", ".join(DECODERS)}'
    if decoder in IMPOSSIBLE:
        raise ConfigError(
            f'The decoder {decoder} cannot be put on a vision transformer: it '
            f'{IMPOSSIBLE[decoder]}; {possible}.'
        )
    if decoder not in DECODERS:
        raise ConfigError(f'There is no decoder {decoder!r}: {possible}.')
    if not options:
        return
    # SMP would ignore an argument that it does not know
    unknown = sorted(set(options) - set(decoder_arguments(decoder)))
    if unknown:
        raise ConfigError(
            f'{decoder} has no argument {", ".join(unknown)}: it has '
            f'{", ".join(decoder_arguments(decoder))}.'
        )


def _build_pyramid(
    decoder: str,
    backbone: VisionTransformer,
    num_classes: int,
    blocks: Sequence[int] | None,
    norm: bool,
    options: dict[str, Any],
) -> PyramidSegmenter:
    if decoder == 'pspnet':  # it alone gives logits at the largest stride
        options = {**options, 'upsampling': 2 ** options.get('encoder_depth', _PSPNET_DEPTH)}
    with _registered(partial(ViTPyramidEncoder, backbone, blocks=blocks, norm=norm)) as name:
        model = _PYRAMID[decoder](
            encoder_name=name,
            encoder_weights=None,
            in_channels=bands_of(backbone),
            classes=num_classes,
            **options,
        )
    parts = (model.get_submodule(part) for part in ('encoder', 'decoder', 'segmentation_head'))
    built, upper, head = parts
    assert isinstance(built, ViTPyramidEncoder), 'SMP builds what is registered'
    return PyramidSegmenter(built, upper, head)


@contextmanager
def _registered(encoder: Callable[..., nn.Module]) -> Iterator[str]:
    """Give SMP, which builds encoders by name, an encoder for a moment."""
    name = f'{PREFIX}{uuid4().hex}'
    encoders[name] = {'encoder': encoder, 'pretrained_settings': {}, 'params': {}}
    try:
        yield name
    finally:
        del encoders[name]


def _build_dpt(
    backbone: VisionTransformer,
    num_classes: int,
    blocks: Sequence[int] | None,
    norm: bool,
    options: dict[str, Any],
) -> DPTSegmenter:
    encoder = ViTPyramidEncoder(backbone, blocks=blocks, norm=norm)
    has_class = backbone.cls_token is not None
    readout = options.get('decoder_readout', 'cat' if has_class else 'ignore')
    if readout != 'ignore' and not has_class:
        raise ConfigError(
            f'decoder_readout is {readout!r}, but the model has no class token to read: use ignore.'
        )
    fused = options.get('decoder_fusion_channels', 256)
    cells = 2 ** round(math.log2(max(backbone.patch_embed.patch_size)))
    decoder = DPTDecoder(
        encoder_out_channels=(backbone.embed_dim,) * 4,
        encoder_output_strides=(cells,) * 4,
        encoder_has_prefix_tokens=has_class,
        readout=readout,
        intermediate_channels=options.get('decoder_intermediate_channels', _DPT_CHANNELS),
        fusion_channels=fused,
    )
    head = DPTSegmentationHead(fused, num_classes)
    initialization.initialize_decoder(decoder)
    initialization.initialize_head(head)
    return DPTSegmenter(encoder, decoder, head, cells)


def register_encoder(
    model: str,
    weights: str | Path | WeightsEnum | bool | None = None,
    name: str | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> str:
    """Register a vision transformer as an encoder of segmentation-models-pytorch.

    ``smp.Unet(register_encoder('vit_small_patch14_dinov2', True), encoder_weights=None)``: models
    of SMP itself take images of a multiple of 32 pixels; :func:`build_segmenter` has no limit.

    Args:
        model: Name of a timm model, stock or of this package.
        weights: As for :func:`torchgeo_explora.models.create_backbone`; loaded whenever SMP builds
            the encoder.
        name: Name in SMP's registry; ``explora-<model>`` by default.
        **kwargs: Further arguments of ``create_backbone``, for instance ``in_chans``.

    Returns:
        The name.
    """
    name = f'{PREFIX}{model}' if name is None else name
    encoder = partial(_named_encoder, model, weights, kwargs)
    encoders[name] = {'encoder': encoder, 'pretrained_settings': {}, 'params': {}}
    return name


def _named_encoder(
    model: str,
    weights: str | Path | WeightsEnum | bool | None,
    arguments: dict[str, Any],
    depth: int,
    output_stride: int,
) -> ViTPyramidEncoder:
    backbone, _ = create_backbone(model, weights, **arguments)
    return ViTPyramidEncoder(backbone, depth, output_stride=output_stride)


def _register_all() -> None:
    for model in [*timm.list_models(module='vision_transformer'), *ENTRIES]:
        register_encoder(model)


_register_all()
