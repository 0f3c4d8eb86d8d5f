"""Merged weights, deltas and PEFT adapters reproduce the adapted model, or say why not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.adapters.test_surgery import CONFIGS
from tests.vits import VARIANTS, images_for, make_vit, shake_factors
from torchgeo_explora.adapters import (
    ExPLoRAConfig,
    adapter_state_dict,
    apply_explora,
    base_fingerprint,
    load_adapter,
    load_adapter_state_dict,
    lora_finetuning,
    merge_lora,
    read_adapter,
    save_adapter,
    save_peft,
)
from torchgeo_explora.errors import ConfigError, ExploraError, OutputError, WeightsError

LORA_CONFIGS = {
    'qv': lora_finetuning(2),
    'k_alpha': ExPLoRAConfig(
        rank=3, alpha=6.0, unfreeze_blocks=(), targets=('k',), train_norms=False,
        train_cls_token=False, train_registers=False,
    ),
    'everywhere': ExPLoRAConfig(
        rank=4, unfreeze_blocks=(), targets=('q', 'k', 'v', 'proj', 'mlp'), train_norms=False,
        train_cls_token=False, train_registers=False,
    ),
}  # fmt: skip


def _adapted(variant: str, config: ExPLoRAConfig) -> VisionTransformer:
    vit = make_vit(variant)
    apply_explora(vit, config, torch.Generator().manual_seed(3))
    shake_factors(vit)
    return vit


def _assert_same(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize('key', ['explora', 'everywhere', 'key', 'new_bands', 'all'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_merged_model(variant: str, key: str) -> None:
    vit = _adapted(variant, CONFIGS[key])
    images = images_for(vit)
    expected, factors = vit(images), adapter_state_dict(vit)
    merged = merge_lora(vit)
    _assert_same(merged(images), expected, 1e-5)
    stock = make_vit(variant, seed=9)
    stock.load_state_dict(merged.state_dict())  # strictly: the keys are timm's
    _assert_same(stock(images), expected, 1e-5)
    assert all(p.requires_grad for p in merged.parameters())
    # the adapted model is as it was: nothing was merged in place
    assert torch.equal(vit(images), expected)
    for name, value in adapter_state_dict(vit).items():
        assert torch.equal(value, factors[name])
    adapted = {p.data_ptr() for p in vit.parameters()}
    assert adapted.isdisjoint(p.data_ptr() for p in merged.parameters())


def test_modes_do_not_merge() -> None:
    """The official layer merges on eval() and corrupts a live teacher."""
    vit = _adapted('patch16', CONFIGS['explora'])
    state = {name: value.clone() for name, value in vit.state_dict().items()}
    vit.train().eval().train().eval()
    for name, value in vit.state_dict().items():
        assert torch.equal(value, state[name])


@torch.no_grad()
@pytest.mark.parametrize('key', ['explora', 'everywhere', 'unfreeze_only', 'new_bands', 'all'])
@pytest.mark.parametrize('variant', ['patch14_layerscale', 'registers', 'swiglu', 'no_class_token'])
def test_delta_round_trip(variant: str, key: str, tmp_path: Path) -> None:
    config = CONFIGS[key]
    vit = _adapted(variant, config)
    path = save_adapter(vit, config, tmp_path / 'new' / 'adapter.safetensors', {'base': variant})
    images, expected = images_for(vit), vit(images_for(vit))
    plain = make_vit(variant)
    assert load_adapter(plain, path) == config
    assert torch.equal(plain(images), expected)
    assert read_adapter(path).metadata['base'] == variant
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_delta_holds_nothing_else(tmp_path: Path) -> None:
    vit = _adapted('patch16', CONFIGS['explora'])
    path = save_adapter(vit, CONFIGS['explora'], tmp_path / 'adapter.safetensors')
    trained = {name: p for name, p in vit.named_parameters() if p.requires_grad}
    stored = load_file(path)
    assert stored.keys() == trained.keys()
    assert all(torch.equal(stored[name], trained[name]) for name in stored)


def test_other_base_is_refused(tmp_path: Path) -> None:
    config = CONFIGS['explora']
    path = save_adapter(_adapted('patch16', config), config, tmp_path / 'adapter.safetensors')
    with pytest.raises(WeightsError, match='other base weights'):
        load_adapter(make_vit(seed=5), path)
    nearly = make_vit()
    with torch.no_grad():
        nearly.get_submodule('blocks.0.attn.proj').bias[0] += 1e-6  # type: ignore[index,operator]
    before = {name: value.clone() for name, value in nearly.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(WeightsError, match='other base weights'):
        load_adapter(nearly, path)
    assert nearly.state_dict().keys() == before.keys()  # nothing is wrapped
    assert all(torch.equal(value, before[name]) for name, value in nearly.state_dict().items())
    assert all(parameter.requires_grad for parameter in nearly.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    apply_explora(nearly, config)  # it can still be adapted


@pytest.mark.parametrize(
    'other',
    [
        ExPLoRAConfig(rank=5),
        ExPLoRAConfig(rank=4, targets=('q', 'k')),
        ExPLoRAConfig(rank=4, unfreeze_blocks=(0,)),
        ExPLoRAConfig(rank=4, train_norms=False),
    ],
)
def test_other_configuration_is_refused(other: ExPLoRAConfig) -> None:
    delta = adapter_state_dict(_adapted('patch16', CONFIGS['explora']))
    vit = _adapted('patch16', other)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    with pytest.raises(WeightsError, match='does not fit the model'):
        load_adapter_state_dict(vit, delta)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


def test_refused_delta_leaves_an_adapted_model_alone() -> None:
    vit = _adapted('patch16', CONFIGS['explora'])
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    delta = {name: value + 1 for name, value in adapter_state_dict(vit).items()}
    with pytest.raises(WeightsError, match='fingerprints differ'):
        load_adapter_state_dict(vit, delta, base_hash='0' * 64)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


def test_fingerprint_knows_the_frozen_weights_only() -> None:
    vit = _adapted('patch16', CONFIGS['explora'])
    before = base_fingerprint(vit)
    shake_factors(vit, seed=8)
    assert base_fingerprint(vit) == before
    resized = make_vit(img_size=96)
    values = dict(make_vit().named_parameters())
    with torch.no_grad():
        for name, parameter in resized.named_parameters():
            if name != 'pos_embed':
                parameter.copy_(values[name])
    apply_explora(resized, CONFIGS['explora'])
    assert base_fingerprint(resized) == before
    with torch.no_grad():
        resized.patch_embed.proj.bias[0] += 1
    assert base_fingerprint(resized) != before


def test_files_that_are_no_adapter(tmp_path: Path) -> None:
    text = tmp_path / 'adapter.safetensors'
    text.write_text('no tensors')
    weights, headless = tmp_path / 'weights.safetensors', tmp_path / 'headless.safetensors'
    save_file({'x': torch.zeros(1)}, weights)
    save_file({'x': torch.zeros(1)}, headless, metadata={'format': 'torchgeo-explora-adapter'})
    truncated = tmp_path / 'truncated.safetensors'
    config = CONFIGS['explora']
    whole = save_adapter(_adapted('patch16', config), config, tmp_path / 'whole.safetensors')
    truncated.write_bytes(whole.read_bytes()[:-100])
    for path in (text, weights, headless, truncated, tmp_path / 'absent.safetensors'):
        with pytest.raises(WeightsError, match=path.name):
            read_adapter(path)


def test_adapter_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    vit = _adapted('patch16', CONFIGS['explora'])
    with pytest.raises(OutputError, match='could not be written'):
        save_adapter(vit, CONFIGS['explora'], tmp_path / 'file' / 'adapter.safetensors')
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@torch.no_grad()
@pytest.mark.parametrize('config', LORA_CONFIGS.values(), ids=LORA_CONFIGS)
@pytest.mark.parametrize(
    'variant', ['patch14_layerscale', 'registers', 'swiglu', 'swiglu_packed', 'no_biases']
)
def test_peft_reads_our_adapters(variant: str, config: ExPLoRAConfig, tmp_path: Path) -> None:
    peft = pytest.importorskip('peft')
    vit = _adapted(variant, config)
    images, expected = images_for(vit), vit(images_for(vit))
    paths = save_peft(vit, tmp_path, variant)
    assert sorted(path.name for path in paths) == sorted(p.name for p in tmp_path.iterdir())
    model = peft.PeftModel.from_pretrained(make_vit(variant), tmp_path).eval()
    _assert_same(model(images), expected, 1e-6)
    merged = model.merge_and_unload()
    assert merged.state_dict().keys() == make_vit(variant).state_dict().keys()
    _assert_same(merged(images), expected, 1e-6)


def test_peft_files_are_complete(tmp_path: Path) -> None:
    vit = _adapted('patch16', LORA_CONFIGS['qv'])
    save_peft(vit, tmp_path, 'vit_tiny_patch16_224')
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    assert config['base_model_name_or_path'] == 'vit_tiny_patch16_224'
    assert config['r'] == 4  # two parts of rank 2
    assert config['lora_alpha'] / config['r'] == pytest.approx(1 / 2)
    with safe_open(tmp_path / 'adapter_model.safetensors', framework='pt') as file:
        assert len(list(file.keys())) == 2 * 3


@pytest.mark.parametrize('key', ['explora', 'unfreeze_only', 'tokens_frozen', 'norms_frozen'])
def test_peft_refuses_what_it_would_lose(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='PEFT'):
        save_peft(_adapted('patch16', CONFIGS[key]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_errors_are_the_users() -> None:
    assert issubclass(WeightsError, ExploraError)
    assert issubclass(ConfigError, ValueError)
