"""The group-channel encoder against the official SatMAE's, and state dicts of MAE's and SatMAE's shape."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.models.official import assert_accounted, prefixed, separate
from tests.reference.mae_files import Reference, assert_close, read
from torchgeo_explora.models import (
    GroupChannelViT,
    build_decoder,
    convert_state_dict,
    load_backbone,
    load_decoder,
)
from torchgeo_explora.models._checkpoint import flatten_tensors

Layout = dict[str, Tensor]


@pytest.fixture(scope='module')
def references(reference_dir: Path) -> list[Reference]:
    """Every file of this form in the folder of references."""
    return read(reference_dir, 'satmae_group_vit*.npz')


def _build(reference: Reference) -> GroupChannelViT:
    config = reference.config
    model = GroupChannelViT(
        config['channel_groups'],
        config['channel_embed'],
        config['in_chans'],
        img_size=config['img_size'],
        patch_size=config['patch_size'],
        embed_dim=config['embed_dim'],
        depth=config['depth'],
        num_heads=config['num_heads'],
        mlp_ratio=config['mlp_ratio'],
        num_classes=config['num_classes'],
        global_pool='avg' if config['global_pool'] else 'token',
    )
    model.load_state_dict(reference.state)
    return model.eval()


@torch.no_grad()
def test_features_and_logits(references: list[Reference]) -> None:
    for reference in references:
        model, values = _build(reference), reference.values
        tokens = model.forward_features(values['image'])
        features = model.forward_head(tokens, pre_logits=True)
        assert_close(features, values['features'], f'{reference.name} features')
        assert_close(model(values['image']), values['logits'], f'{reference.name} logits')


def test_files_of_fine_tuned_encoders_load(references: list[Reference]) -> None:
    for reference in references:
        model = _build(reference)
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        report = load_backbone(model, {'model': prefixed(state, 'module.')})
        assert report.added == ('head.weight', 'head.bias', 'mask_token')
        heads = ('head.weight', 'head.bias')
        for key, tensor in model.state_dict().items():
            if key not in heads:
                assert torch.equal(tensor, state[key]), key


WRAPPERS: dict[str, Callable[[Layout], dict[str, Any]]] = {
    'bare': dict,
    'model': lambda s: {'model': s, 'epoch': 199},
    'model.module': lambda s: {'model': prefixed(s, 'module.')},
    'module': lambda s: prefixed(s, 'module.'),
    'separate beside fused': lambda s: {'model': separate(s, keep_fused=True)},
    'separate': lambda s: {'model': separate(s, keep_fused=False)},
}


def _layouts(folder: Path) -> list[Path]:
    paths = [p for p in sorted((folder / 'keys').glob('*.json')) if 'mae' in p.name]
    if not paths:
        pytest.skip(f'{folder}/keys has no mae_*.json or satmae_*.json')
    return paths


def _name(layout: dict[str, list[int]]) -> str:
    """The timm model that has these keys."""
    size = {384: 'small', 768: 'base', 1024: 'large'}[layout['cls_token'][-1]]
    if 'channel_embed' in layout:
        return f'explora_group_channel_vit_{size}_patch8_96'
    plain = layout['pos_embed'][-1] == layout['cls_token'][-1]
    return f'vit_{size}_patch16_224' if plain else f'explora_temporal_vit_{size}_patch16_224'


def _model(layout: dict[str, list[int]]) -> VisionTransformer:
    return _built(_name(layout))


@cache
def _built(name: str) -> VisionTransformer:
    with torch.device('meta'):  # keys and shapes are compared, values elsewhere
        model = timm.create_model(name, num_classes=0)
    assert isinstance(model, VisionTransformer)
    return model


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize('decoder', [True, False])
def test_official_layouts_load_strictly(
    reference_dir: Path, wrap: Callable[[Layout], dict[str, Any]], decoder: bool
) -> None:
    for path in _layouts(reference_dir):
        layout = json.loads(path.read_text())
        decoders = {key for key in layout if key.startswith(('decoder_', 'mask_token'))}
        state = {k: torch.empty(shape, device='meta') for k, shape in layout.items()}
        source = wrap(state if decoder else {k: t for k, t in state.items() if k not in decoders})
        model = _model(layout)
        found = convert_state_dict(source, model)
        assert_accounted(flatten_tensors(source), found, model)
        new = tuple(key for key in model.state_dict() if key not in layout)
        assert set(new) <= {'channel_cls_embed'}, 'SatMAE has none before fine-tuning'
        assert found.added == (*new, 'mask_token')
        own = {key: model.state_dict()[key] for key in new}
        model.load_state_dict({**found.state, **own}, strict=True)
        unfused = {f'{p}qkv.{w}' for p, w in _separate(source)} if _fused_away(source) else set()
        assert set(found.changed) == {key for key in unfused if not key.startswith('decoder')}
        foreign = {re.sub(r'^(model\.)?(module\.)?', '', key) for key in found.dropped}
        assert all(key in decoders or key.startswith(('head.', 'decoder_')) or '_proj.' in key
                   for key in foreign)  # fmt: skip


def _fused_away(source: dict[str, Any]) -> bool:
    return not any('.qkv.' in key for key in flatten_tensors(source))


def _separate(source: dict[str, Any]) -> set[tuple[str, str]]:
    pattern = re.compile(r'^(?:model\.)?(?:module\.)?(.*attn\.)q_proj\.(weight|bias)$')
    matches = (pattern.match(key) for key in flatten_tensors(source))
    return {(match[1], match[2]) for match in matches if match is not None}


@pytest.mark.parametrize('wrap', [WRAPPERS['bare'], WRAPPERS['separate']])
def test_official_decoders_load_strictly(
    reference_dir: Path, wrap: Callable[[Layout], dict[str, Any]]
) -> None:
    for path in _layouts(reference_dir):
        layout = json.loads(path.read_text())
        decoders = {key for key in layout if key.startswith(('decoder_', 'mask_token'))}
        if not decoders:
            continue
        with torch.device('meta'):
            decoder = build_decoder(_model(layout))
        assert {k: list(t.shape) for k, t in decoder.state_dict().items()} == {
            key: layout[key] for key in decoders
        }
        state = {key: torch.ones(layout[key]) for key in decoders}  # no encoder beside it
        decoder.to_empty(device='cpu')
        report = load_decoder(decoder, wrap(state))
        assert set(report.loaded) == decoders
        assert report.added == ()
        assert all(bool((tensor == 1).all()) for tensor in decoder.state_dict().values())
