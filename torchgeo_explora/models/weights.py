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

from torchgeo_explora.models.explora_vit import default_cfgs

_DINOV2 = 'https://dl.fbaipublicfiles.com/dinov2/'


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
    return Weights(default_cfgs[model].cfgs['fmow_rgb'].url, evaluation_transforms(), meta)


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


ENUMS: tuple[type[WeightsEnum], ...] = (
    ViTBase14_DINOv2_ExPLoRA_Weights,
    ViTBase14_DINOv2_Natural_Weights,
    ViTLarge14_DINOv2_ExPLoRA_Weights,
    ViTLarge14_DINOv2_Natural_Weights,
    ViTSmall14_DINOv2_Natural_Weights,
)
