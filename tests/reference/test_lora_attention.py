"""LoRA on Q and V of an attention layer against values that the official layer printed."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from timm.layers.attention import Attention
from torch import Tensor

from torchgeo_explora.adapters.merge import merged_linear
from torchgeo_explora.layers.lora import LoRALinear, Segment

PARTS = ('q', 'k', 'v')


class Reference(NamedTuple):
    """One file: its numbers and the constructor's arguments."""

    name: str
    values: dict[str, Tensor]
    config: dict[str, Any]


@pytest.fixture(scope='module')
def references(reference_dir: Path) -> list[Reference]:
    """Every file of this form in the folder of references."""
    found = []
    for path in sorted(reference_dir.glob('lora_*.npz')):
        with np.load(path) as file:
            values = {name: torch.from_numpy(file[name]) for name in file.files if name != 'config'}
            found.append(Reference(path.name, values, json.loads(str(file['config']))))
    if not found:
        pytest.skip(f'{reference_dir} has no lora_*.npz')
    return found


def _adapted(reference: Reference) -> tuple[Attention, LoRALinear]:
    """Attention of timm with the file's weights and an adapted ``qkv``."""
    values, config = reference.values, reference.config
    dim = config['dim']
    qkv_bias, proj_bias = 'qkv_bias' in values, 'proj_bias' in values
    attention = Attention(dim, config['num_heads'], qkv_bias=qkv_bias, proj_bias=proj_bias)
    attention.load_state_dict(
        {key: values[key.replace('.', '_')] for key in attention.state_dict()}
    )
    parts = [
        Segment(name, index * dim, (index + 1) * dim)
        for index, name in enumerate(PARTS)
        if f'A_{name}' in values
    ]
    layer = LoRALinear(attention.qkv, parts, config['rank'], config['lora_alpha'])
    with torch.no_grad():
        layer.lora_A.copy_(torch.cat([values[f'A_{part.name}'] for part in parts]))
        for part in parts:
            layer.up(part.name).copy_(values[f'B_{part.name}'])
    attention.add_module('qkv', layer)
    return attention, layer


def _assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, what
    assert (found - expected).norm() <= 1e-5 * expected.norm(), what


def test_output_and_gradients(references: list[Reference]) -> None:
    for reference in references:
        attention, layer = _adapted(reference)
        out = attention(reference.values['x'])
        _assert_close(out.detach(), reference.values['output'], reference.name)
        out.square().mean().backward()  # the loss that the file's gradients are of
        assert layer.lora_A.grad is not None
        downs = layer.lora_A.grad.chunk(len(layer.segments))
        for part, down in zip(layer.segments, downs, strict=True):
            up = layer.up(part.name).grad
            assert up is not None
            _assert_close(down, reference.values[f'grad_A_{part.name}'], reference.name)
            _assert_close(up, reference.values[f'grad_B_{part.name}'], reference.name)


@torch.no_grad()
def test_merged(references: list[Reference]) -> None:
    for reference in references:
        attention, layer = _adapted(reference)
        merged = merged_linear(layer)
        _assert_close(merged.weight, reference.values['merged_qkv_weight'], reference.name)
        attention.qkv = merged
        out = attention(reference.values['x'])
        _assert_close(out, reference.values['output_merged'], reference.name)
