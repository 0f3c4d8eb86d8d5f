"""Weights enums in the form of torchvision and TorchGeo.

Images come as float32 in [0, 1]; ``transforms`` resizes, crops and normalises them.
"""

from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torchvision.models._api import Weights, WeightsEnum
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T

from torchgeo_explora.models import explora_vit, group_channel_vit, temporal_vit
from torchgeo_explora.models._token_entry import EXPLORA
from torchgeo_explora.models.groups import SATMAE_BANDS
from torchgeo_explora.models.temporal_vit import FMOW_MEAN, FMOW_STD

_DINOV2 = 'https://dl.fbaipublicfiles.com/dinov2/'
_MAE = 'https://dl.fbaipublicfiles.com/mae/'


def evaluation_transforms() -> nn.Sequential:
    """The evaluation transform of ExPLoRA and DINOv2: resize to 256, centre 224, normalise.

    Bicubic with antialiasing, for images in [0, 1] with the statistics of ImageNet.
    """
    return nn.Sequential(
        T.Resize(256, interpolation=InterpolationMode.BICUBIC, antialias=True),
        T.CenterCrop(224),
        T.ToDtype(torch.float32),
        T.Normalize(list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)),
    )


def sentinel_transforms() -> nn.Sequential:
    """SatMAE's evaluation transform of Sentinel-2 images: resize to 109, centre 96.

    Bicubic, for images that SatMAE's scaling has put in [0, 1]; nothing is normalised further.
    """
    return _resize_and_crop(109, 96)


def temporal_transforms() -> nn.Sequential:
    """SatMAE's evaluation transform of fMoW-RGB sequences: resize to 224, centre 224, normalise.

    Bicubic, for images (dates, 3, h, w) in [0, 1] with the statistics of fMoW-RGB.
    """
    return _resize_and_crop(224, 224).append(T.Normalize(list(FMOW_MEAN), list(FMOW_STD)))


def _resize_and_crop(resize: int, size: int) -> nn.Sequential:
    # without antialiasing, as SatMAE resizes tensors
    return nn.Sequential(
        T.Resize(resize, interpolation=InterpolationMode.BICUBIC, antialias=False),
        T.CenterCrop(size),
        T.ToDtype(torch.float32),
    )


def _explora(model: str, parameters: int) -> Weights:
    meta = {
        'dataset': 'fMoW-RGB',
        'in_chans': 3,
        'img_size': 224,
        'bands': ('R', 'G', 'B'),
        'model': model,
        'publication': 'https://arxiv.org/abs/2406.10973',
        'repo': 'https://github.com/samar-khanna/ExPLoRA',
        'ssl_method': 'explora-dinov2',
        'licence': 'unknown',
        'parameters': parameters,
    }
    return Weights(
        explora_vit.default_cfgs[model].cfgs['fmow_rgb'].url, evaluation_transforms(), meta
    )


def _dinov2(model: str, folder: str, parameters: int) -> Weights:
    meta: dict[str, Any] = {
        'dataset': 'LVD-142M',
        'in_chans': 3,
        'img_size': 518,
        'bands': ('R', 'G', 'B'),
        'model': model,
        'publication': 'https://arxiv.org/abs/2304.07193',
        'repo': 'https://github.com/facebookresearch/dinov2',
        'ssl_method': 'dinov2',
        'licence': 'apache-2.0',
        'parameters': parameters,
    }
    url = f'{_DINOV2}{folder}/{folder}_pretrain.pth'
    return Weights(url, evaluation_transforms(), meta)


def _natural_mae(model: str, folder: str, file: str, parameters: int) -> Weights:
    meta: dict[str, Any] = {
        'dataset': 'ImageNet-1k',
        'in_chans': 3,
        'img_size': 224,
        'bands': ('R', 'G', 'B'),
        'model': model,
        'publication': 'https://arxiv.org/abs/2111.06377',
        'repo': 'https://github.com/facebookresearch/mae',
        'ssl_method': 'mae',
        'licence': 'cc-by-nc-4.0',
        'parameters': parameters,
    }
    return Weights(f'{_MAE}{folder}/{file}.pth', evaluation_transforms(), meta)


def _sentinel(url: str, model: str, parameters: int, explora: bool) -> Weights:
    meta: dict[str, Any] = {
        'dataset': 'fMoW-Sentinel',
        'in_chans': 10,
        'img_size': 96,
        'bands': SATMAE_BANDS,
        'model': model,
        'parameters': parameters,
        **(_EXPLORA_MAE if explora else _SATMAE),
    }
    return Weights(url, sentinel_transforms(), meta)


_EXPLORA_MAE = {
    'publication': 'https://arxiv.org/abs/2406.10973',
    'repo': 'https://github.com/samar-khanna/ExPLoRA',
    'ssl_method': 'explora-mae',
    'licence': 'unknown',
}
_SATMAE = {
    'publication': 'https://arxiv.org/abs/2207.08051',
    'repo': 'https://github.com/sustainlab-group/SatMAE',
    'ssl_method': 'satmae',
    'licence': 'cc-by-nc-4.0',
}
_GROUP_BASE = 'explora_group_channel_vit_base_patch8_96'
_GROUP_LARGE = 'explora_group_channel_vit_large_patch8_96'
_GROUP_CFGS = {
    name: group_channel_vit.default_cfgs[name].cfgs for name in (_GROUP_BASE, _GROUP_LARGE)
}
_TEMPORAL_LARGE = 'explora_temporal_vit_large_patch16_224'


class ViTBase14_DINOv2_ExPLoRA_Weights(WeightsEnum):
    """ViT-B/14 that ExPLoRA adapted from DINOv2 (Khanna et al., ICML 2025)."""

    FMOW_RGB = _explora('explora_vit_base_patch14_dinov2', 85_724_928)


class ViTLarge14_DINOv2_ExPLoRA_Weights(WeightsEnum):
    """ViT-L/14 that ExPLoRA adapted from DINOv2 (Khanna et al., ICML 2025)."""

    FMOW_RGB = _explora('explora_vit_large_patch14_dinov2', 303_227_904)


class ViTSmall14_DINOv2_Natural_Weights(WeightsEnum):
    """ViT-S/14 of DINOv2 on natural images (Oquab et al. 2024), a start for ExPLoRA."""

    LVD142M = _dinov2('explora_vit_small_patch14_dinov2', 'dinov2_vits14', 22_056_192)


class ViTBase14_DINOv2_Natural_Weights(WeightsEnum):
    """ViT-B/14 of DINOv2 on natural images (Oquab et al. 2024), a start for ExPLoRA."""

    LVD142M = _dinov2('explora_vit_base_patch14_dinov2', 'dinov2_vitb14', 86_579_712)


class ViTLarge14_DINOv2_Natural_Weights(WeightsEnum):
    """ViT-L/14 of DINOv2 on natural images (Oquab et al. 2024), a start for ExPLoRA."""

    LVD142M = _dinov2('explora_vit_large_patch14_dinov2', 'dinov2_vitl14', 304_367_616)


class ViTBase16_MAE_Natural_Weights(WeightsEnum):
    """ViT-B/16 that MAE trained on natural images (He et al. 2022), a start for ExPLoRA.

    ``IMAGENET1K`` has the decoder, and was trained to predict pixels that are not normalised.
    """

    IMAGENET1K = _natural_mae(
        'vit_base_patch16_224', 'visualize', 'mae_visualize_vit_base', 85_798_656
    )
    IMAGENET1K_ENCODER = _natural_mae(
        'vit_base_patch16_224', 'pretrain', 'mae_pretrain_vit_base', 85_798_656
    )


class ViTLarge16_MAE_Natural_Weights(WeightsEnum):
    """ViT-L/16 that MAE trained on natural images (He et al. 2022), a start for ExPLoRA.

    ``IMAGENET1K`` has the decoder, and was trained to predict pixels that are not normalised.
    """

    IMAGENET1K = _natural_mae(
        'vit_large_patch16_224', 'visualize', 'mae_visualize_vit_large', 303_301_632
    )
    IMAGENET1K_ENCODER = _natural_mae(
        'vit_large_patch16_224', 'pretrain', 'mae_pretrain_vit_large', 303_301_632
    )


class ViTLarge8_GroupChannel_ExPLoRA_Weights(WeightsEnum):
    """Group-channel ViT-L/8 that ExPLoRA adapted from MAE (Khanna et al., ICML 2025).

    ``FMOW_SENTINEL_DECODER`` is the same encoder with its decoder.
    """

    FMOW_SENTINEL = _sentinel(
        _GROUP_CFGS[_GROUP_LARGE]['fmow_sentinel'].url, _GROUP_LARGE, 303_083_264, explora=True
    )
    FMOW_SENTINEL_DECODER = _sentinel(
        f'{EXPLORA}explora_mae_multispectral/explora_mae_fmow_sentinel.pth',
        _GROUP_LARGE,
        303_083_264,
        explora=True,
    )


class ViTBase8_GroupChannel_SatMAE_Weights(WeightsEnum):
    """Group-channel ViT-B/8 of SatMAE, with its decoder (Cong et al., NeurIPS 2022)."""

    FMOW_SENTINEL = _sentinel(
        _GROUP_CFGS[_GROUP_BASE]['satmae_fmow_sentinel'].url, _GROUP_BASE, 85_625_856, explora=False
    )


class ViTLarge8_GroupChannel_SatMAE_Weights(WeightsEnum):
    """Group-channel ViT-L/8 of SatMAE, with its decoder (Cong et al., NeurIPS 2022)."""

    FMOW_SENTINEL = _sentinel(
        _GROUP_CFGS[_GROUP_LARGE]['satmae_fmow_sentinel'].url,
        _GROUP_LARGE,
        303_083_264,
        explora=False,
    )


class ViTLarge16_Temporal_SatMAE_Weights(WeightsEnum):
    """Temporal ViT-L/16 of SatMAE, with its decoder (Cong et al., NeurIPS 2022)."""

    FMOW_RGB = Weights(
        temporal_vit.default_cfgs[_TEMPORAL_LARGE].cfgs['satmae_fmow'].url,
        temporal_transforms(),
        {
            'dataset': 'fMoW-RGB',
            'in_chans': 3,
            'img_size': 224,
            'bands': ('R', 'G', 'B'),
            'model': _TEMPORAL_LARGE,
            'parameters': 303_225_984,
            **_SATMAE,
        },
    )


ENUMS: tuple[type[WeightsEnum], ...] = (
    ViTBase14_DINOv2_ExPLoRA_Weights,
    ViTBase14_DINOv2_Natural_Weights,
    ViTBase16_MAE_Natural_Weights,
    ViTBase8_GroupChannel_SatMAE_Weights,
    ViTLarge14_DINOv2_ExPLoRA_Weights,
    ViTLarge14_DINOv2_Natural_Weights,
    ViTLarge16_MAE_Natural_Weights,
    ViTLarge16_Temporal_SatMAE_Weights,
    ViTLarge8_GroupChannel_ExPLoRA_Weights,
    ViTLarge8_GroupChannel_SatMAE_Weights,
    ViTSmall14_DINOv2_Natural_Weights,
)
