"""Conversion of state dicts: values, completeness of the report, and refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.official import (
    assert_accounted,
    prefixed,
    published_encoder,
    published_teacher,
    separate,
    shapes,
    tensors,
    tiny,
)
from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.models import convert_state_dict, load_backbone
from torchgeo_explora.models._checkpoint import flatten_tensors

Wrap = Callable[[dict[str, Tensor]], dict[str, Any]]

WRAPPERS: dict[str, Wrap] = {
    'bare': dict,
    'module': lambda s: prefixed(s, 'module.'),
    'backbone': lambda s: prefixed(s, 'backbone.'),
    'module.backbone': lambda s: prefixed(s, 'module.backbone.'),
    'teacher': lambda s: {'teacher': s},
    'model': lambda s: {'model': s},
    'state_dict': lambda s: {'state_dict': prefixed(s, 'model.'), 'epoch': 3},
    'teacher and student': lambda s: {
        'student': prefixed(tensors(shapes(), seed=9), 'backbone.'),
        'teacher': prefixed(s, 'module.backbone.'),
        'optimizer': {'state': {0: {'exp_avg': torch.zeros(3)}}, 'param_groups': [{'lr': 0.1}]},
    },
    'compiled': lambda s: prefixed(s, '_orig_mod.'),
    'chunks': lambda s: {k.replace('blocks.', 'blocks.0.'): t for k, t in s.items()},
}


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize('mask_token', [True, False])
def test_wrapped_state_loads_the_same_values(wrap: Wrap, mask_token: bool) -> None:
    state = tensors(shapes())
    if not mask_token:
        del state['mask_token']
    model, source = tiny(), wrap(state)
    found = convert_state_dict(source, model)
    assert_accounted(flatten_tensors(source), found, model)
    assert ('mask_token' in found.added) is not mask_token
    expected = state.pop('mask_token') if mask_token else torch.zeros(1, 48)
    torch.testing.assert_close(found.mask_token, expected, rtol=0, atol=0)
    torch.testing.assert_close(found.state, state, rtol=0, atol=0)


def test_teacher_wins_and_the_rest_is_dropped() -> None:
    source = WRAPPERS['teacher and student'](tensors(shapes()))
    found = convert_state_dict(source, tiny())
    assert {key.partition('.')[0] for key in found.dropped} == {'student', 'optimizer'}
    assert 'optimizer.state.0.exp_avg' in found.dropped
    assert found.renamed['teacher.module.backbone.norm.bias'] == 'norm.bias'


@pytest.mark.parametrize('publish', [published_encoder, published_teacher])
def test_published_layouts(publish: Wrap) -> None:
    state = tensors(shapes())
    model, source = tiny(), publish(state)
    found = convert_state_dict(source, model)
    assert_accounted(flatten_tensors(source), found, model)
    expected = {key: tensor for key, tensor in state.items() if key != 'mask_token'}
    torch.testing.assert_close(found.state, expected, rtol=0, atol=0)
    parts = [f'teacher.backbone.blocks.{i}.attn.{n}_proj.{p}' for i in range(3) for n in 'qkv'
             for p in ('weight', 'bias')]  # fmt: skip
    heads = ['teacher.dino_head.last_layer.weight_g', 'teacher.dino_head.mlp.0.weight']
    dropped = [*parts, *heads] if publish is published_teacher else []
    assert sorted(found.dropped) == sorted(dropped)


def test_fused_wins_over_separate_parts_that_differ() -> None:
    state = separate(tensors(shapes()), keep_fused=True)
    state['blocks.0.attn.q_proj.weight'] = torch.full((48, 48), 7.0)
    found = convert_state_dict(state, tiny())
    assert not (found.state['blocks.0.attn.qkv.weight'] == 7.0).any()


@pytest.mark.parametrize('suffix', ['_proj', ''])
def test_separate_parts_are_fused(suffix: str) -> None:
    state = tensors(shapes())
    split = {k.replace('_proj.', f'{suffix}.'): t for k, t in separate(state, False).items()}
    model = tiny()
    found = convert_state_dict(split, model)
    assert_accounted(split, found, model)
    for i in range(3):
        key = f'blocks.{i}.attn.qkv.weight'
        torch.testing.assert_close(found.state[key], state[key], rtol=0, atol=0)
        assert found.renamed[f'blocks.{i}.attn.v{suffix}.bias'] == f'blocks.{i}.attn.qkv.bias'
        assert 'fused' in found.changed[key]


def test_merged_factors_beside_fused_weights_are_dropped() -> None:
    state = separate(tensors(shapes()), keep_fused=True)
    state['blocks.0.attn.q_proj.lora_A'] = torch.ones(2, 48)
    assert 'blocks.0.attn.q_proj.lora_A' in convert_state_dict(state, tiny()).dropped


@pytest.mark.parametrize('key', ['blocks.0.attn.q_proj.lora_A', 'blocks.0.attn.qkv.lora_B_q'])
def test_unmerged_factors_are_refused(key: str) -> None:
    fused = '.qkv.' in key
    state = tensors(shapes()) if fused else separate(tensors(shapes()), keep_fused=False)
    state[key] = torch.ones(2, 48)
    with pytest.raises(WeightsError, match='not merged'):
        convert_state_dict(state, tiny())


@pytest.mark.parametrize('positions', [1 + 37 * 37, 1 + 16 * 16, 1 + 4])
def test_positions_are_resampled_as_dinov2_does(positions: int) -> None:
    state = tensors(shapes(positions=positions))
    found = convert_state_dict(state, tiny(84))
    expected = resample_pos_embed(state['pos_embed'], GridSize(6, 6), num_prefix=1)
    torch.testing.assert_close(found.state['pos_embed'], expected, rtol=0, atol=0)
    assert found.changed['pos_embed'].endswith('to 6 x 6 patches')


def test_grid_is_never_guessed() -> None:
    state = tensors(shapes(positions=17))
    model = tiny((28, 112))  # 2 x 8 patches: as many as 4 x 4
    with pytest.raises(WeightsError, match='does not tell their grid'):
        convert_state_dict(state, model)
    found = convert_state_dict(state, model, source_grid=GridSize(4, 4))
    assert found.changed['pos_embed'] == 'resampled from 4 x 4 to 2 x 8 patches'
    with pytest.raises(WeightsError, match='23 patches'):
        convert_state_dict(tensors(shapes(positions=24)), tiny())


def test_registers_become_timms() -> None:
    state = tensors({**shapes(), 'register_tokens': [1, 4, 48]})
    model = tiny(name='vit_small_patch14_reg4_dinov2')
    found = convert_state_dict(state, model)
    assert_accounted(state, found, model)
    assert found.renamed == {'register_tokens': 'reg_token'}
    # timm adds no position to the class token: class + patches sum to the same tokens
    token = state['cls_token'] + state['pos_embed'][:, :1]
    torch.testing.assert_close(found.state['cls_token'], token, rtol=0, atol=0)
    torch.testing.assert_close(found.state['pos_embed'], state['pos_embed'][:, 1:])


def test_swiglu_becomes_timms() -> None:
    layout = shapes()
    for i in range(3):
        for key in ('weight', 'bias'):
            layout[f'blocks.{i}.mlp.w12.{key}'] = layout.pop(f'blocks.{i}.mlp.fc1.{key}')
            layout[f'blocks.{i}.mlp.w3.{key}'] = layout.pop(f'blocks.{i}.mlp.fc2.{key}')
        layout[f'blocks.{i}.mlp.w3.weight'] = [48, 96]
    state = tensors(layout)
    model = tiny(name='vit_giant_patch14_dinov2', mlp_ratio=4.0)
    found = convert_state_dict(state, model)
    assert_accounted(state, found, model)
    moved = found.state['blocks.1.mlp.fc1.weight']
    torch.testing.assert_close(moved, state['blocks.1.mlp.w12.weight'], rtol=0, atol=0)


@pytest.mark.parametrize('bands', [1, 2, 6, 13])
def test_bands_are_repeated(bands: int) -> None:
    state = tensors(shapes())
    found = convert_state_dict(state, tiny(in_chans=bands))
    grey = torch.rand(2, 1, 14, 14)
    kernel = found.state['patch_embed.proj.weight']
    assert kernel.shape[1] == bands
    if bands in (1, 6):  # whole multiples keep the response to grey
        old = torch.nn.functional.conv2d(
            grey.expand(-1, 3, -1, -1), state['patch_embed.proj.weight']
        )
        new = torch.nn.functional.conv2d(grey.expand(-1, bands, -1, -1), kernel)
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-3)
    source = state['patch_embed.proj.weight']
    for band in range(bands if bands > 1 else 0):
        torch.testing.assert_close(kernel[:, band], source[:, band % 3] * 3 / bands)
    assert str(bands) in found.changed['patch_embed.proj.weight']


def test_other_bands_are_refused() -> None:
    layout = {**shapes(), 'patch_embed.proj.weight': [48, 13, 14, 14]}
    with pytest.raises(WeightsError, match='in_chans=13'):
        convert_state_dict(tensors(layout), tiny())


@pytest.mark.parametrize(
    ('layout', 'said'),
    [
        (shapes(width=96), ['width 96', 'width 48']),
        (shapes(depth=5), ['depth 5', 'depth 3']),
        ({**shapes(), 'patch_embed.proj.weight': [48, 3, 16, 16]}, ['patch 16', 'patch 14']),
        ({k: v for k, v in shapes().items() if '.ls' not in k}, ['no LayerScale']),
        (shapes(768, 12, 257), ['ViT-base/14', 'vit_base_patch14_dinov2']),
        ({k: v for k, v in shapes().items() if k != 'norm.weight'}, ['1 missing (norm.weight)']),
        ({**shapes(), 'blocks.1.norm1.weight': [47]}, ['of another shape', '(47,)']),
        ({**shapes(), 'blocks.1.attn.q_norm.weight': [12]}, ['does not have', 'q_norm']),
        ({f'a.b.{k}': v for k, v in shapes().items()}, ['under a.b.', 'known wrappers']),
        ({'layer1.weight': [3], 'fc.bias': [3]}, ['no plain vision transformer', 'layer1.weight']),
        ({'blocks.0.attn.qkv.lora_A': [2, 48]}, ['only an adapter']),
    ],
)
def test_refusals_say_what_was_found(layout: dict[str, list[int]], said: list[str]) -> None:
    source = {key: torch.empty(shape, device='meta') for key, shape in layout.items()}
    with pytest.raises(WeightsError) as error:
        convert_state_dict(source, tiny())
    assert all(part in str(error.value) for part in said), error.value


def test_refused_weights_leave_the_model_as_it_was() -> None:
    model = tiny()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = tensors(shapes())
    state['norm.bias'][3] = float('nan')
    with pytest.raises(WeightsError, match='not finite in 1 tensors'):
        load_backbone(model, state)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_heads_and_decoders_are_dropped_by_name() -> None:
    extra = {
        'head.weight': [10, 48],
        'decoder_blocks.0.norm1.weight': [32],
        'decoder_pred.bias': [3],
    }
    layout = {**shapes(), **extra, 'mask_token': [1, 1, 32]}  # the decoder's own mask token
    found = convert_state_dict(tensors(layout), tiny())
    assert sorted(found.dropped) == sorted([*extra, 'mask_token'])
    assert found.added == ('mask_token',)


def test_a_classifier_of_the_model_keeps_its_values() -> None:
    model = tiny(num_classes=5)
    before = model.state_dict()['head.weight'].clone()
    report = load_backbone(model, tensors({**shapes(), 'head.weight': [9, 48]}))
    assert set(report.added) == {'head.weight', 'head.bias'}
    assert report.dropped == ('head.weight',)
    torch.testing.assert_close(model.state_dict()['head.weight'], before, rtol=0, atol=0)
