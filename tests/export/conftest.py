"""Small models for other programs, traced and written once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.token_vits import make_groups
from tests.vits import make_vit
from torchgeo_explora.export import PortableModel, portable_backbone, portable_model
from torchgeo_explora.models import InputSpec, ModelSpec
from torchgeo_explora.models.classifier import build_classifier
from torchgeo_explora.models.segmentation import build_segmenter

DPT: dict[str, Any] = {'decoder_fusion_channels': 8, 'decoder_intermediate_channels': (8, 8, 8, 8)}


def describe(**changes: Any) -> ModelSpec:  # noqa: ANN401
    """Describe a model of three classes for pictures in bytes."""
    values: dict[str, Any] = {
        'task': 'segmentation',
        'model': 'test_vit',
        'classes': ('bare ground', 'Gebäude', '水'),
        'bands': ('red', 'green', 'blue'),
        'mean': (0.485, 0.456, 0.406),
        'std': (0.229, 0.224, 0.225),
        'scale': ((0.0, 255.0),) * 3,
        'image_size': 40,
        'resolution': 0.3,
        'colors': ((1, 2, 3), (255, 0, 16), (0, 0, 255)),
        'options': {'decoder': 'dpt'},
    }
    return ModelSpec(**values | changes)


def vit(patch: int = 14) -> VisionTransformer:
    """A vision transformer of two blocks."""
    return make_vit(patch_size=patch, img_size=4 * patch, depth=2)


def segmenter() -> PortableModel:
    """A segmentation model whose tiles do not divide into patches."""
    model = build_segmenter(vit(), 'dpt', 3, seed=0, **DPT).eval()
    return portable_model(model, describe())


def classifier() -> PortableModel:
    """A classifier of images of 12 bits, their values not from 0 on."""
    scale = ((100.0, 4095.0), (0.0, 4095.0), (4095.0, 0.0))
    spec = describe(task='classification', image_size=56, scale=scale, options={'pooling': 'avg'})
    model = build_classifier(vit(), 3, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    return portable_model(model, spec)


def grouped() -> PortableModel:
    """A backbone of bands in groups, alone."""
    model = make_groups()
    bands = tuple(f'B{number}' for number in range(model.patch_embed.in_chans))
    size = len(bands)
    images = InputSpec(bands, (0.3,) * size, (0.1,) * size, ((0.0, 1e4),) * size, 32, 10.0)
    return portable_backbone(model, 'test_vit', images, pooling='both')


BUILDERS: dict[str, Callable[[], PortableModel]] = {
    'segmentation': segmenter,
    'classification': classifier,
    'embedding': grouped,
}


@pytest.fixture(scope='session')
def models() -> dict[str, PortableModel]:
    """A model of every task."""
    return {task: build() for task, build in BUILDERS.items()}
