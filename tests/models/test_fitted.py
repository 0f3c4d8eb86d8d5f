"""One file for a fitted model: what is read back computes the same, and wrong files are refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer

from tests.token_vits import inputs_for, shake
from tests.vits import shake_factors
from torchgeo_explora.adapters import apply_explora, lora_finetuning, merge_lora
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models import (
    Classifier,
    ModelSpec,
    build_classifier,
    create_backbone,
    load_model,
    save_model,
)
from torchgeo_explora.models.classifier import POOLINGS, Pooling

__all__ = ['SPEC']  # timm appends the registered names to it

SPEC = ModelSpec(
    task='classification',
    model='fitted_test_vit',
    classes=('forest', 'river', 'town'),
    bands=('R', 'G', 'B'),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    scale=((0, 255), (0, 255), (0, 255)),
    image_size=28,
    resolution=10,
    colors=((0, 100, 0), (0, 0, 200), (200, 0, 0)),
    options={'pooling': 'avg'},
)


@register_model
def fitted_test_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:  # noqa: ANN401
    """A tiny DINOv2-like model."""
    sizes = {'img_size': 28, 'patch_size': 14, 'embed_dim': 24, 'depth': 2, 'num_heads': 3}
    arguments = {**sizes, 'init_values': 0.1, **kwargs}
    return _create_vision_transformer('vit_base_patch14_dinov2', pretrained, **arguments)


def classifier(
    name: str = 'fitted_test_vit',
    pooling: Pooling = 'avg',
    bands: int | None = None,
    rank: int = 2,
) -> Classifier:
    """A model that LoRA changed, with random values in head and norm."""
    backbone, _ = create_backbone(name, seed=0, in_chans=bands)
    shake(backbone)
    apply_explora(backbone, lora_finetuning(rank))
    shake_factors(backbone)
    model = build_classifier(backbone, 3, pooling)
    with torch.no_grad():
        for part in (model.head, model.fc_norm):
            for parameter in part.parameters():
                parameter.normal_(1.0, 0.3, generator=torch.Generator().manual_seed(1))
    return model.eval()


@pytest.mark.parametrize('pooling', ['avg', 'token'])
def test_round_trip(pooling: Pooling, tmp_path: Path) -> None:
    model = classifier(pooling=pooling)
    spec = dataclasses.replace(SPEC, options={'pooling': pooling})
    loaded, found = load_model(save_model(model, spec, tmp_path / 'model.safetensors'))
    images = torch.rand(3, 3, 28, 42, generator=torch.Generator().manual_seed(3))
    mean, std = (torch.tensor(v)[:, None, None] for v in (SPEC.mean, SPEC.std))
    with torch.no_grad():
        expected = model((images - mean) / std)
        torch.testing.assert_close(loaded(images), expected, atol=1e-5, rtol=0)
    assert not loaded.training and expected.std() > 0.01
    assert found == dataclasses.replace(
        spec, version=found.version, weights_hash=found.weights_hash
    )
    again, second = load_model(save_model(loaded, found, tmp_path / 'again.safetensors'))
    assert second == found
    assert torch.equal(again(images), loaded(images))


@pytest.mark.parametrize('name', ['tiny_group_channel_vit', 'tiny_temporal_vit'])
def test_groups_and_dates(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    images, times = inputs_for(model.backbone)
    count = images.shape[-3]
    spec = dataclasses.replace(
        SPEC, model=name, bands=tuple(f'b{i}' for i in range(count)), mean=(0.0,) * count,
        std=(1.0,) * count, scale=None,
    )  # fmt: skip
    loaded, _ = load_model(save_model(model, spec, tmp_path / 'model.safetensors'))
    given = (images,) if times is None else (images, times)
    with torch.no_grad():
        torch.testing.assert_close(loaded(*given), model(*given), atol=1e-5, rtol=0)


def test_equals_timm_at_the_native_size() -> None:
    """Mean pooling with a norm after it is what timm calls ``avg`` with ``fc_norm``."""
    for pooling in POOLINGS:
        model = classifier(pooling=pooling, rank=1)
        model.backbone = merge_lora(model.backbone)
        avg = pooling == 'avg'
        stock = fitted_test_vit(num_classes=3, global_pool=pooling, fc_norm=avg).eval()
        state = dict(model.backbone.state_dict())
        state |= {k: v for k, v in model.state_dict().items() if not k.startswith('backbone.')}
        used = {k: v for k, v in state.items() if k in stock.state_dict()}
        stock.load_state_dict(used)
        images = torch.randn(2, 3, 28, 28)
        with torch.no_grad():
            torch.testing.assert_close(model(images), stock(images), atol=1e-5, rtol=0)


def test_file_starts_further_training(tmp_path: Path) -> None:
    """The backbone inside is read like any other weights, with bands and statistics."""
    model = classifier('tiny_group_channel_vit')
    count = 6
    spec = dataclasses.replace(
        SPEC, model='tiny_group_channel_vit', bands=tuple('abcdef'), mean=(0.1,) * count,
        std=(1.0,) * count, scale=None,
    )  # fmt: skip
    path = save_model(model, spec, tmp_path / 'model.safetensors')
    backbone, report = create_backbone('tiny_group_channel_vit', path)
    merged = merge_lora(model.backbone).state_dict()
    assert all(torch.equal(merged[k], v) for k, v in backbone.state_dict().items())
    assert json.loads(report.metadata['mean']) == [0.1] * count
    assert set(report.dropped) == {'fc_norm.weight', 'fc_norm.bias', 'head.weight', 'head.bias'}


def test_changed_file_is_refused(tmp_path: Path) -> None:
    path = save_model(classifier(), SPEC, tmp_path / 'model.safetensors')
    with safe_open(path, 'pt') as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors['head.bias'] = tensors['head.bias'] + 1e-3
    save_file(tensors, path, metadata)
    with pytest.raises(WeightsError, match='hashes differ'):
        load_model(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    backbone, _ = create_backbone('fitted_test_vit', seed=0)
    save_file(backbone.state_dict(), tmp_path / 'backbone.safetensors')
    with pytest.raises(WeightsError, match='no fitted model'):
        load_model(tmp_path / 'backbone.safetensors')
    spec = json.loads(SPEC.to_json())
    metadata = {'format': 'torchgeo-explora-model', 'spec': json.dumps({**spec, 'new': 1})}
    save_file(backbone.state_dict(), tmp_path / 'newer.safetensors', metadata)
    with pytest.raises(WeightsError, match='newer version'):
        load_model(tmp_path / 'newer.safetensors')
    with pytest.raises(ConfigError, match='0 vision transformers'):
        save_model(torch.nn.Linear(2, 2), SPEC, tmp_path / 'x.safetensors')
    with pytest.raises(ConfigError, match=r'end in \.safetensors'):
        save_model(classifier(), SPEC, tmp_path / 'x.pt')


def test_description_survives_json() -> None:
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    assert SPEC.index_of(['B', 'NIR', 'G', 'R']) == (3, 2, 0)
    with pytest.raises(ConfigError, match='B is not among'):
        SPEC.index_of(['R', 'G'])


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'task': 'regression'}, 'task'),
        ({'classes': ()}, 'classes holds none'),
        ({'classes': ('a', 'a', 'b')}, 'a more than once'),
        ({'classes': ('a', 3, 'b')}, 'classes holds 3'),
        ({'mean': (0.5,)}, 'mean has 1 values for 3 bands'),
        ({'std': (0.1, 0.0, 0.1)}, 'above 0'),
        ({'mean': (float('nan'), 0.0, 0.0)}, 'finite'),
        ({'scale': ((0, 0), (0, 1), (0, 1))}, 'two different'),
        ({'scale': ((0,), (0, 1), (0, 1))}, 'cannot be understood'),
        ({'image_size': 0}, 'image_size'),
        ({'resolution': -1.0}, 'resolution'),
        ({'colors': ((0, 0, 0),)}, 'colors has 1 entries for 3 classes'),
        ({'colors': ((0, 0, 0), (0, 0, 0), (0, 0, 300))}, '0 to 255'),
        ({'options': {'a': {1, 2}}}, 'cannot be understood'),
    ],
)
def test_impossible_descriptions(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SPEC, **change)


def test_classifier_refuses() -> None:
    backbone, _ = create_backbone('fitted_test_vit', seed=0)
    with pytest.raises(ConfigError, match='pooling'):
        build_classifier(backbone, 3, 'max')  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='at least one class'):
        build_classifier(backbone, 0)
    plain = VisionTransformer(
        img_size=28, patch_size=14, embed_dim=24, depth=1, num_heads=3, class_token=False,
        global_pool='avg',
    )  # fmt: skip
    with pytest.raises(ConfigError, match='no class token'):
        build_classifier(plain, 3, 'token')
