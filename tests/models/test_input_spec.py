"""What a backbone's weights say of the images that they expect."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer

from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora, save_adapter
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models import (
    InputSpec,
    ModelSpec,
    build_classifier,
    create_backbone,
    read_input,
    save_backbone,
    save_model,
)
from torchgeo_explora.models.trained import TRAINED, describe_training
from torchgeo_explora.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD

__all__ = ['SPEC']  # timm appends the registered names to it

NAME = 'input_test_vit'
SPEC = InputSpec(
    bands=('nir', 'swir'),
    mean=(0.1, 0.2),
    std=(0.3, 0.4),
    scale=((0, 10_000), (-25, 5)),
    image_size=42,
    resolution=10.0,
)


@register_model
def input_test_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:  # noqa: ANN401
    """A tiny DINOv2-like model."""
    sizes = {'img_size': 28, 'patch_size': 14, 'embed_dim': 24, 'depth': 1, 'num_heads': 3}
    return _create_vision_transformer('vit_base_patch14_dinov2', pretrained, **{**sizes, **kwargs})


def plain(spec: InputSpec) -> InputSpec:
    """The description without its origin."""
    return dataclasses.replace(spec, source='')


def test_merged_weights_and_delta_say_what_was_stored(tmp_path: Path) -> None:
    model, _ = create_backbone(NAME, seed=0, in_chans=2)
    merged = save_backbone(model, tmp_path / 'w.safetensors', SPEC.texts())
    found = read_input(merged)
    assert plain(found) == SPEC
    assert str(merged) in found.source
    config = ExPLoRAConfig(rank=2, unfreeze_blocks=())
    apply_explora(model, config)
    texts = {k: json.dumps(v) for k, v in SPEC.texts().items()}
    delta = save_adapter(model, config, tmp_path / 'd.safetensors', {'base': NAME, **texts})
    assert plain(read_input(delta)) == SPEC


def test_fitted_model_says_what_its_description_says(tmp_path: Path) -> None:
    model = build_classifier(create_backbone(NAME, seed=0, in_chans=2)[0], 2)
    spec = ModelSpec(
        'classification', NAME, ('a', 'b'), SPEC.bands, SPEC.mean, SPEC.std, SPEC.scale, 42, 10.0
    )
    path = save_model(model, spec, tmp_path / 'model.safetensors')
    assert plain(read_input(path)) == SPEC == plain(InputSpec.of(spec))


def test_training_checkpoint_says_what_the_task_knew(tmp_path: Path) -> None:
    model, _ = create_backbone(NAME, seed=0, in_chans=2)
    facts = {'base': NAME, **SPEC.texts()}
    text = describe_training(model, 'model.', ExPLoRAConfig(rank=2, unfreeze_blocks=()), facts)
    torch.save({TRAINED: text, 'state_dict': model.state_dict()}, tmp_path / 'last.ckpt')
    assert plain(read_input(tmp_path / 'last.ckpt')) == SPEC


def test_files_of_before_are_read(tmp_path: Path) -> None:
    """They hold no scale and no resolution, and perhaps no bands."""
    model, _ = create_backbone(NAME, seed=0)
    told = {'mean': [0.1, 0.2, 0.3], 'std': [1, 1, 1], 'size': 28}
    found = read_input(save_backbone(model, tmp_path / 'w.safetensors', told))
    assert (found.bands, found.scale, found.image_size) == (('red', 'green', 'blue'), None, 28)


def test_stock_weights_are_taken_for_those_of_pictures_and_say_so(tmp_path: Path) -> None:
    save_file(create_backbone(NAME, seed=0)[0].state_dict(), tmp_path / 'w.safetensors')
    found = read_input(tmp_path / 'w.safetensors', NAME)
    assert found.mean == pytest.approx(IMAGENET_MEAN)
    assert found.std == pytest.approx(IMAGENET_STD)
    assert found.scale == ((0, 255),) * 3
    assert found.image_size == 224 and found.image_size % 14 == 0
    assert 'says nothing of its images' in found.source and NAME in found.source


def test_what_cannot_be_known_is_refused(tmp_path: Path) -> None:
    save_file(create_backbone(NAME, seed=0, in_chans=5)[0].state_dict(), tmp_path / 'w.safetensors')
    with pytest.raises(ConfigError, match='takes 5 bands'):
        read_input(tmp_path / 'w.safetensors', NAME)
    with pytest.raises(ConfigError, match='which model'):
        read_input(tmp_path / 'w.safetensors')
    with pytest.raises(WeightsError, match='no weights file'):
        read_input(tmp_path / 'absent.safetensors')


@pytest.mark.parametrize(
    'told',
    [
        {'mean': '[0.1', 'std': '[1, 1, 1]'},
        {'mean': '3', 'std': '[1, 1, 1]'},
        {'mean': '[0, 0, 0]', 'std': '[0, 1, 1]'},
        {'mean': '[0, 0, 0]', 'std': '[1, 1, 1]', 'scale': '[[0, 1]]'},
        {'mean': '[0, 0, 0]', 'std': '[1, 1, 1]', 'size': '"large"'},
        {'mean': '[0, 0, 0]', 'std': '[1, 1, 1]', 'bands': '["a", "a", "b"]'},
    ],
)
def test_damaged_descriptions_are_refused(told: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / 'w.safetensors'
    save_file({'cls_token': torch.zeros(1)}, path, told)
    with pytest.raises(WeightsError, match=r'w\.safetensors'):
        read_input(path)


@pytest.mark.parametrize(
    'wrong',
    [
        {'bands': ('a', 'a')},
        {'bands': ('a', '')},
        {'mean': (0.0,)},
        {'std': (0.0, 1.0)},
        {'scale': ((0, 0), (0, 1))},
        {'image_size': 0},
        {'resolution': -1.0},
    ],
)
def test_impossible_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(SPEC, **wrong)
