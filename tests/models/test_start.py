"""Starting models with groups or dates: what fits is loaded, what does not is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.models.official import prefixed, separate
from tests.token_vits import GROUPS, SIZES, inputs_for, make_groups, make_temporal, shake
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.layers.tokens import native_grid
from torchgeo_explora.models import (
    GroupChannelViT,
    TemporalViT,
    create_backbone,
    describe_file,
    load_backbone,
    save_backbone,
)
from torchgeo_explora.models._token_vit import TokenViT

NAME, DATES = 'tiny_group_channel_vit', 'tiny_temporal_vit'
SATMAE = 'explora_group_channel_vit_large_patch8_96'
SMALL = 'explora_group_channel_vit_small_patch8_96'
SIZED: dict[str, Any] = {'embed_dim': 24, 'depth': 3, 'num_heads': 3}


def _natural(**arguments: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """The encoder of an RGB model of patches of 16 pixels."""
    model = VisionTransformer(**{**SIZES, 'patch_size': 16, 'img_size': 64, **arguments})
    shake(model, seed=5)
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def _mae(**arguments: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """The same with fixed positions of zero for the class token, and a decoder."""
    state = _natural(**arguments)
    state['pos_embed'][:, :1] = 0
    decoder = {'mask_token': torch.ones(1, 1, 24), 'decoder_embed.weight': torch.ones(24, 24)}
    return state | decoder | {'decoder_blocks.0.norm1.weight': torch.ones(24)}


def _fresh(name: str = NAME) -> dict[str, Tensor]:
    return create_backbone(name, seed=0)[0].state_dict()


def _assert_blocks_equal(model: VisionTransformer, state: dict[str, Tensor]) -> None:
    shared = [key for key in state if key.startswith(('blocks.', 'norm.'))]
    assert len(shared) > 30
    for key in shared:
        assert torch.equal(model.state_dict()[key], state[key]), key


@pytest.fixture
def mae(tmp_path: Path) -> Path:
    """A file of MAE."""
    torch.save({'model': _mae()}, tmp_path / 'mae.pth')
    return tmp_path / 'mae.pth'


def test_groups_start_from_mae(mae: Path) -> None:
    model, report = create_backbone(NAME, mae, seed=0)
    state, own = _mae(), _fresh()
    _assert_blocks_equal(model, state)
    assert torch.equal(model.state_dict()['cls_token'], state['cls_token'])
    embeddings = {key for key in own if key.startswith('patch_embed.')}
    new = embeddings | {'pos_embed', 'channel_embed', 'channel_cls_embed'}
    assert set(report.added) == new | {'mask_token'}
    assert all(torch.equal(model.state_dict()[key], own[key]) for key in new)
    assert native_grid(model) == native_grid(create_backbone(NAME)[0]), "not the source's"
    assert new <= set(report.reasons)
    assert not report.mask_token.any(), "the decoder's mask token is not the encoder's"
    encoder = {'model.pos_embed', 'model.patch_embed.proj.weight', 'model.patch_embed.proj.bias'}
    assert {key for key in report.dropped if 'decoder' not in key} == encoder | {'model.mask_token'}
    said = report.summary()
    assert '(the model embeds other groups of bands)' in said
    for part in ('patch_embed.2.proj.bias', 'channel_embed', '24 numbers a position, the model 16'):
        assert part in said


def test_a_dropped_decoder_is_summed_up() -> None:
    decoder = {f'decoder_blocks.{i}.norm1.weight': torch.ones(24) for i in range(40)}
    report = load_backbone(make_groups(), make_groups().state_dict() | decoder)
    assert len(report.dropped) == 40
    assert 'decoder_blocks.11.norm1.weight and 28 more.' in report.summary()


def test_dates_start_from_mae_with_its_patches(mae: Path) -> None:
    model, report = create_backbone(DATES, mae, patch_size=16, img_size=32, in_chans=3, seed=0)
    state = _mae()
    _assert_blocks_equal(model, state)
    assert torch.equal(
        model.state_dict()['patch_embed.proj.weight'], state['patch_embed.proj.weight']
    )
    assert set(report.added) == {'pos_embed', 'mask_token'}
    assert report.changed == {}
    _, report = create_backbone(DATES, mae, patch_size=16, in_chans=6)
    assert report.changed == {'patch_embed.proj.weight': 'adapted from 3 bands to 6'}
    _, report = create_backbone(DATES, mae, in_chans=3)
    assert {'patch_embed.proj.weight', 'patch_embed.proj.bias'} <= set(report.added)
    assert '3 bands in patches of 16 x 16, the model 3 in 8 x 8' in report.summary()


def test_learned_class_positions_and_layer_scale_and_registers() -> None:
    state = _natural(init_values=0.1, reg_tokens=2, patch_size=14, img_size=42)
    model, report = create_backbone(NAME, None, init_values=0.5)
    report = load_backbone(model, state)
    expected = state['cls_token'] + state['pos_embed'][:, :1]
    assert torch.equal(model.state_dict()['cls_token'], expected)
    assert report.changed == {'cls_token': 'its position embedding was added'}
    assert report.reasons['reg_token'] == 'the model has no register tokens'
    _assert_blocks_equal(model, state)


def test_layer_scale_is_built_where_the_weights_have_it(tmp_path: Path) -> None:
    path = tmp_path / 'dinov2.pth'
    torch.save(_natural(init_values=0.1), path)
    model, _ = create_backbone(NAME, path)
    assert torch.equal(
        model.state_dict()['blocks.1.ls2.gamma'], _natural(init_values=0.1)['blocks.1.ls2.gamma']
    )


def test_patch_positions_alone_give_no_class_position() -> None:
    state = _natural(no_embed_class=True)
    model = make_groups()
    report = load_backbone(model, state)
    assert torch.equal(model.state_dict()['cls_token'], state['cls_token'])
    assert report.changed == {}
    state = _natural(class_token=False, global_pool='avg', fc_norm=False)
    report = load_backbone(model, state)
    assert report.reasons['cls_token'] == 'the source has no class token'


@pytest.mark.parametrize('make', [make_groups, make_temporal])
def test_own_files_need_nothing_but_the_name(tmp_path: Path, make: Callable[..., TokenViT]) -> None:
    extra = {'channel_groups': ((4, 0), (1,))} if make is make_groups else {}
    model = make(img_size=(16, 48), patch_size=16, **extra)
    path = save_backbone(model, tmp_path / 'w.safetensors')
    name = SMALL if make is make_groups else 'explora_temporal_vit_small_patch16_224'
    found, report = create_backbone(name, path, **SIZED)
    assert (report.dropped, report.added, report.changed) == ((), ('mask_token',), {})
    assert found.patch_embed.img_size == (16, 48)
    images, times = inputs_for(model, size=(32, 48))
    given = (images,) if times is None else (images, times)
    assert torch.equal(found(*given), model(*given))
    if isinstance(found, GroupChannelViT):
        assert found.channel_groups == ((4, 0), (1,))
        assert found.patch_embed.in_chans == 6


def test_other_groups_get_new_patch_embeddings(tmp_path: Path) -> None:
    model = make_groups()
    path = save_backbone(model, tmp_path / 'w.safetensors')
    groups = [GROUPS[0], (3, 1, 0), (5,), (2, 4)]
    found, report = create_backbone(NAME, path, channel_groups=groups, seed=0)
    kept = {'patch_embed.0.proj.weight', 'patch_embed.0.proj.bias', 'pos_embed', 'cls_token'}
    for key in kept:
        assert torch.equal(found.state_dict()[key], model.state_dict()[key]), key
    new = {key for key in found.state_dict() if key.startswith('patch_embed.')} - kept
    assert set(report.added) == new | {'channel_embed', 'mask_token'}
    assert 'group 1 is of bands [3, 1, 4]' in report.reasons['patch_embed.1.proj.weight']
    assert 'the model embeds other' not in report.summary()


def test_files_of_satmae_need_nothing_but_the_name(tmp_path: Path) -> None:
    model = make_groups(channel_groups=((0, 1, 2, 6), (3, 4, 5, 7), (8, 9)), in_chans=10)
    state = {k: t for k, t in model.state_dict().items() if k != 'channel_cls_embed'}
    torch.save({'model': prefixed(state, 'module.')}, tmp_path / 'w.pth')
    found, report = create_backbone(SMALL, tmp_path / 'w.pth', **SIZED)
    assert isinstance(found, GroupChannelViT)
    assert found.channel_groups == model.channel_groups
    assert set(report.added) == {'channel_cls_embed', 'mask_token'}
    for key, tensor in state.items():
        assert torch.equal(found.state_dict()[key], tensor), key
    assert not found.channel_cls_embed.any()
    other = make_groups()
    torch.save({'model': other.state_dict()}, tmp_path / 'w.pth')
    with pytest.raises(ConfigError, match=r'groups of 2, 3, 1 bands .* set channel_groups'):
        create_backbone(SMALL, tmp_path / 'w.pth', **SIZED)
    found, report = create_backbone(
        SMALL,
        tmp_path / 'w.pth',
        channel_groups=GROUPS,
        **SIZED,
    )
    assert report.added == ('mask_token',)


def test_positions_of_another_size_are_resampled_as_mae_does(tmp_path: Path) -> None:
    model = make_groups()
    path = save_backbone(model, tmp_path / 'w.safetensors')
    found, report = create_backbone(NAME, path, img_size=48)
    grid = native_grid(found)
    assert grid is not None
    expected = resample_pos_embed(model.state_dict()['pos_embed'], grid, 1, offset=0)
    assert torch.equal(found.state_dict()['pos_embed'], expected)
    assert report.changed == {'pos_embed': 'resampled from 4 x 4 to 6 x 6 patches'}


Published = dict[str, Any]


def _variants() -> dict[str, Published]:
    """Likely layouts of the published fMoW-Sentinel file."""
    model = make_groups(channel_groups=((0, 1, 2, 6), (3, 4, 5, 7), (8, 9)), in_chans=10)
    state = {k: t for k, t in model.state_dict().items() if k != 'channel_cls_embed'}
    decoder = {
        'mask_token': torch.ones(1, 1, 24),
        'decoder_embed.weight': torch.ones(24, 24),
        'decoder_blocks.0.attn.qkv.weight': torch.ones(72, 24),
        'decoder_pred.0.weight': torch.ones(256, 24),
        'decoder_channel_embed': torch.ones(1, 4, 8),
    }
    both = separate(state | decoder, keep_fused=True)
    factors = {'blocks.0.attn.q_proj.lora_A': torch.ones(2, 24)}
    return {
        'encoder only': {'model': state},
        'whole': {'model': state | decoder, 'epoch': 49, 'args': {'lr': 1e-3}},
        'parallel': {'model': prefixed(state | decoder, 'module.')},
        'beside separate': {'model': both},
        'beside separate and factors': {'model': both | factors},
        'separate alone': {'model': separate(state | decoder, keep_fused=False)},
        'bare': state | decoder,
    }


@pytest.mark.parametrize('variant', _variants())
@pytest.mark.parametrize('way', ['timm', 'create_backbone'])
def test_published_variants(tmp_path: Path, variant: str, way: str) -> None:
    path = tmp_path / 'w.pth'
    torch.save(_variants()[variant], path)
    sizes: dict[str, Any] = {**SIZED, 'channel_embed_dim': 8, 'img_size': 32}
    if way == 'timm':
        overlay = {'file': str(path)}
        model = timm.create_model(
            f'{SATMAE}.fmow_sentinel', pretrained=True, pretrained_cfg_overlay=overlay, **sizes
        )
    else:
        model, report = create_backbone(SATMAE, path, **SIZED)
        assert set(report.added) == {'channel_cls_embed', 'mask_token'}
    expected = _variants()['encoder only']['model']
    for key, tensor in expected.items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_unmerged_factors_are_refused() -> None:
    state = separate(make_groups().state_dict(), keep_fused=False)
    state['blocks.0.attn.q_proj.lora_A'] = torch.ones(2, 24)
    with pytest.raises(WeightsError, match='merge them first'):
        load_backbone(make_groups(), state)


def test_other_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match='depth 2'):
        load_backbone(make_groups(), _natural(depth=2))
    path = save_backbone(make_groups(depth=2), tmp_path / 'w.safetensors')
    with pytest.raises(WeightsError, match='groups of 2, 3, 1 bands'):
        create_backbone(NAME, path)
    model = VisionTransformer(**SIZES)
    with pytest.raises(WeightsError, match='groups of 2, 3, 1 bands'):
        load_backbone(model, make_groups().state_dict())
    with pytest.raises(WeightsError, match='dates'):
        load_backbone(model, make_temporal(in_chans=3).state_dict())
    broken = make_groups().state_dict()
    broken['patch_embed.1.proj.bias'][3] = torch.inf
    with pytest.raises(WeightsError, match=r'not finite .* patch_embed\.1\.proj\.bias'):
        load_backbone(make_groups(), broken)


def test_groups_that_cannot_be_understood(tmp_path: Path) -> None:
    path = save_backbone(make_groups(), tmp_path / 'w.safetensors')
    metadata = {'channel_groups': '[0, 1]'}
    save_file(load_file(path), path, metadata)
    with pytest.raises(WeightsError, match='lists of band indices'):
        create_backbone(NAME, path)


def test_files_are_described(tmp_path: Path) -> None:
    with torch.device('meta'):
        large = timm.create_model(SATMAE)
    shapes = {key: list(tensor.shape) for key, tensor in large.state_dict().items()}
    torch.save(
        {'model': {k: torch.zeros(1).expand(s) for k, s in shapes.items()}}, tmp_path / 'w.pth'
    )
    found = describe_file(tmp_path / 'w.pth')
    assert (found['model'], found['bands'], found['grid']) == (SATMAE, 10, [12, 12])
    assert 'groups of 4, 4, 2 bands' in found['architecture']
    path = save_backbone(make_temporal(), tmp_path / 't.safetensors')
    assert 'dates' in describe_file(path)['architecture']
    groups = describe_file(save_backbone(make_groups(), tmp_path / 'g.safetensors'))
    assert json.loads(groups['metadata']['channel_groups']) == [list(group) for group in GROUPS]


def test_builders_in_torchgeos_form() -> None:
    models = pytest.importorskip('torchgeo.models')
    built = models.get_model('explora_temporal_vit_small_patch16_224', depth=1, img_size=32)
    assert isinstance(built, TemporalViT)
    assert built(torch.rand(1, 2, 3, 32, 32), torch.ones(1, 2, 3)).shape == (1, 384)
    built = models.get_model(SMALL, depth=1)
    assert isinstance(built, GroupChannelViT)
