"""What is said of a weights file."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.official import (
    NAME,
    prefixed,
    published_encoder,
    published_teacher,
    shapes,
    tensors,
    tiny,
)
from torchgeo_explora.adapters import (
    ExPLoRAConfig,
    apply_explora,
    lora_finetuning,
    save_adapter,
)
from torchgeo_explora.cli.info import describe
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.models import (
    ModelSpec,
    build_classifier,
    describe_file,
    read_metadata,
    save_backbone,
    save_finetuned,
    save_model,
)

STATE = tensors(shapes())
DECODER = {'decoder_blocks.0.norm1.weight': torch.ones(3)}
CONTENTS: dict[str, Any] = {
    'encoder weights': STATE,
    'encoder weights, wrapped in model': published_encoder(STATE),
    'published ExPLoRA teacher': published_teacher(STATE),
    'teacher of a training checkpoint': {'teacher': prefixed(STATE, 'backbone.')},
    'encoder with a decoder (masked autoencoder)': {'model': STATE | DECODER},
    'Lightning checkpoint': {
        'state_dict': prefixed(STATE, 'model.'),
        'pytorch-lightning_version': '2',
    },
    'tensors without a plain vision transformer': {'fc.weight': torch.ones(3)},
    'LoRA factors, for instance a PEFT adapter': {
        'base_model.model.x.lora_A.weight': torch.ones(3)
    },
}


@pytest.mark.parametrize(('kind', 'content'), CONTENTS.items(), ids=CONTENTS.keys())
def test_kinds(tmp_path: Path, kind: str, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / 'w.pth')
    assert describe_file(tmp_path / 'w.pth')['kind'] == kind


def test_own_files(tmp_path: Path) -> None:
    model = tiny()
    merged = describe_file(save_backbone(model, tmp_path / 'w.safetensors', {'base': 'x'}))
    count = sum(p.numel() for p in model.parameters())
    assert merged['kind'] == 'merged backbone'
    assert merged['encoder_parameters'] == merged['parameters'] == count
    assert merged['metadata']['base'] == 'x'
    assert (merged['grid'], merged['bands'], merged['dtypes']) == ([4, 4], 3, ['float32'])
    config = ExPLoRAConfig(rank=2, unfreeze_blocks=(-1,))
    report = apply_explora(model, config)
    delta = describe_file(save_adapter(model, config, tmp_path / 'adapter.safetensors'))
    assert delta['kind'].startswith('adapter')
    assert delta['parameters'] == report.trainable_parameters


def test_sizes_and_hash(tmp_path: Path) -> None:
    path = tmp_path / 'w.pth'
    layout = shapes(384, 12, 257)
    torch.save({key: torch.zeros(shape).half() for key, shape in layout.items()}, path)
    found = describe_file(path)
    assert found['model'] == 'vit_small_patch14_dinov2'
    assert found['architecture'].startswith('ViT-small/14: width 384, depth 12, patch 14')
    assert (found['grid'], found['dtypes'], found['root']) == ([16, 16], ['float16'], '')
    assert found['bytes'] == path.stat().st_size
    assert found['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match='no weights file'):
        describe_file(tmp_path / 'absent.pth')


def _spec(**given: Any) -> ModelSpec:  # noqa: ANN401
    required: dict[str, Any] = {
        'task': 'classification', 'model': NAME, 'classes': ('field', 'lake'),
        'bands': ('red', 'green', 'blue'), 'mean': (0.5,) * 3, 'std': (0.2,) * 3,
    }  # fmt: skip
    return ModelSpec(**{**required, 'image_size': 56, 'options': {'pooling': 'avg'}, **given})


def test_fitted_models_tell_what_they_do(tmp_path: Path) -> None:
    model = build_classifier(tiny(), 2)
    path = save_model(model, _spec(resolution=0.5), tmp_path / 'model.safetensors')
    found = describe_file(path)
    assert found['kind'] == 'fitted model'
    assert found['encoder_parameters'] == sum(p.numel() for p in model.backbone.parameters())
    assert found['fitted']['classes'] == ('field', 'lake')
    assert found['fitted']['intact']
    text = '\n'.join(describe(path)[1])
    for part in ('classification, 2 classes', 'field, lake', 'red, green, blue', '56 px', '0.5'):
        assert part in text
    assert 'CHANGED' not in text
    tensors = load_file(path)
    tensors['head.bias'] += 1
    changed = tmp_path / 'changed.safetensors'
    save_file(tensors, changed, read_metadata(path))
    assert not describe_file(changed)['fitted']['intact']
    assert 'CHANGED' in '\n'.join(describe(changed)[1])
    assert describe(tmp_path)[0]['path'] == str(path)  # the folder that a fit leaves


def test_deltas_tell_what_they_belong_to(tmp_path: Path) -> None:
    model, config = tiny(), ExPLoRAConfig(rank=2, unfreeze_blocks=(-1,))
    apply_explora(model, config)
    told = {'base': NAME, 'start': 'base.safetensors'}
    path = save_adapter(model, config, tmp_path / 'adapter.safetensors', told)
    found, lines = describe(path)
    assert found['delta'].items() >= {'rank': 2, 'unfreeze_blocks': [-1], **told}.items()
    assert any('started from base.safetensors' in line for line in lines)
    assert any('rank 2, blocks in full: -1' in line for line in lines)


def test_adapters_of_peft_are_described_with_their_head(tmp_path: Path) -> None:
    backbone = tiny()
    apply_explora(backbone, lora_finetuning(4))
    model = build_classifier(backbone, 2)
    save_finetuned(model, _spec(), tmp_path, 'natural images')
    found, lines = describe(tmp_path)
    assert found['kind'] == 'fine-tuned model: PEFT adapter and head'
    # stacked factors of Q and V: A (2r, d) and B (3d, 2r) in each of three blocks
    assert found['parameters'] == 3 * (8 * 48 + 3 * 48 * 8)
    assert (found['base'], found['rank'], found['targets']) == (NAME, 8, found['targets'])
    assert any('field, lake' in line for line in lines)
    assert any('natural images' in line for line in lines)
    (tmp_path / 'head.safetensors').unlink()
    assert describe(tmp_path)[0]['kind'] == 'PEFT adapter'
    (tmp_path / 'adapter_config.json').write_text('{', encoding='utf-8')
    with pytest.raises(WeightsError, match='configuration of a PEFT adapter'):
        describe(tmp_path)
