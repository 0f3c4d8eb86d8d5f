"""What is said of a weights file."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.official import (
    prefixed,
    published_encoder,
    published_teacher,
    shapes,
    tensors,
    tiny,
)
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora, save_adapter
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.models import describe_file, save_backbone

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
