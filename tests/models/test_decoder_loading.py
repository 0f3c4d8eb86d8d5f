"""Decoders of masked autoencoders from their files: what fits is loaded, the rest is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.models.official import prefixed, separate
from tests.token_vits import GROUPS, make_groups, make_temporal
from tests.vits import make_vit
from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.models import (
    Checkpoint,
    ViTLarge16_MAE_Natural_Weights,
    build_decoder,
    load_decoder,
    read_metadata,
    save_backbone,
)
from torchgeo_explora.models._decoder_loading import decoder_texts
from torchgeo_explora.models._token_decoder import TokenDecoder
from torchgeo_explora.models.trained import TRAINED

SIZES: dict[str, Any] = {'width': 32, 'depth': 2, 'heads': 4}


def _decoder(seed: int, encoder: Any = None, **arguments: Any) -> TokenDecoder:  # noqa: ANN401
    encoder = make_vit('patch8') if encoder is None else encoder
    generator = torch.Generator().manual_seed(seed)
    return build_decoder(encoder, **{**SIZES, **arguments}, generator=generator)


def _state(decoder: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in decoder.state_dict().items()}


def _groups(seed: int, groups: Any = GROUPS) -> TokenDecoder:  # noqa: ANN401
    return _decoder(seed, make_groups(channel_groups=groups), channel_embed_dim=8)


def _temporal(seed: int, **arguments: Any) -> TokenDecoder:  # noqa: ANN401
    return _decoder(seed, make_temporal(**arguments), time_embed_dim=12)


@pytest.mark.parametrize('make', [_decoder, _groups, _temporal])
@pytest.mark.parametrize('suffix', ['pth', 'safetensors', 'mapping', 'checkpoint'])
def test_every_key_comes_from_a_file_of_the_same_kind(
    tmp_path: Path,
    make: Callable[[int], TokenDecoder],
    suffix: str,
) -> None:
    source, decoder = make(1), make(2)
    whole: dict[str, Tensor] = _state(source) | {
        'patch_embed.proj.weight': torch.ones(2, 3, 8, 8), 'norm.bias': torch.ones(2)
    }  # fmt: skip
    weights: Any = {'model': prefixed(whole, 'module.')}
    if suffix == 'pth':
        torch.save(weights, tmp_path / 'w.pth')
        weights = tmp_path / 'w.pth'
    elif suffix == 'safetensors':  # a decoder alone
        save_file(_state(source), tmp_path / 'decoder.safetensors')
        weights = str(tmp_path / 'decoder.safetensors')
    elif suffix == 'checkpoint':
        weights = Checkpoint(whole)
    report = load_decoder(decoder, weights)
    assert set(report.loaded) == set(_state(source))
    assert (report.added, report.dropped, report.changed, report.reasons) == ((), (), {}, {})
    for key, tensor in _state(source).items():
        assert torch.equal(decoder.state_dict()[key], tensor), key
    assert f'{len(report.loaded)} tensors' in report.summary()


@pytest.mark.parametrize('weights', [None, False, True, {'norm.weight': torch.ones(3)}])
def test_without_a_decoder_everything_is_its_own(weights: Any) -> None:  # noqa: ANN401
    decoder = _decoder(1)
    before = _state(decoder)
    report = load_decoder(decoder, weights)
    assert report.loaded == ()
    assert set(report.added) == set(before) == set(report.reasons)
    assert all(torch.equal(decoder.state_dict()[key], before[key]) for key in before)
    missing = 'has no decoder' if isinstance(weights, dict) else 'no weights were given'
    assert missing in report.summary()


def test_natural_images_start_groups_of_bands() -> None:
    source, decoder = _decoder(1, make_vit('patch16')), _groups(2)
    before, state = _state(decoder), _state(source)
    report = load_decoder(decoder, state)
    own = {key for key in before if key.startswith('decoder_pred.')}
    own |= {'decoder_pos_embed', 'decoder_channel_embed'}
    assert set(report.added) == own
    assert set(report.dropped) == {
        'decoder_pos_embed', 'decoder_pred.weight', 'decoder_pred.bias'
    }  # fmt: skip
    for key, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, before[key] if key in own else state[key]), key
    assert 'the model has no such part' in report.summary()
    assert 'decoder_pred.0.weight' in report.summary()


def test_natural_images_start_dates_with_their_predictions() -> None:
    source = _decoder(1)
    decoder = _temporal(2, in_chans=3)
    report = load_decoder(decoder, _state(source))
    assert report.added == ('decoder_pos_embed',)
    assert 'fixed sines and cosines' in report.reasons['decoder_pos_embed']
    assert torch.equal(
        decoder.state_dict()['decoder_pred.weight'], _state(source)['decoder_pred.weight']
    )
    report = load_decoder(_temporal(2), _state(source))
    assert {'decoder_pred.weight', 'decoder_pred.bias'} <= set(report.added)


def test_groups_of_other_bands_predict_anew(tmp_path: Path) -> None:
    """Two groups are as many bands, but not the same ones."""
    metadata = read_metadata(save_backbone(make_groups(), tmp_path / 'w.safetensors'))
    source = _groups(1)
    groups = ((0, 2), (3, 1, 5), (2,))
    decoder = _groups(2, groups)
    before = _state(decoder)
    report = load_decoder(decoder, Checkpoint(_state(source), metadata))
    assert set(report.added) == {'decoder_pred.1.weight', 'decoder_pred.1.bias'}
    for key in report.added:
        assert torch.equal(decoder.state_dict()[key], before[key])
        assert '[3, 1, 5]' in report.reasons[key]


@pytest.mark.parametrize('told', ['file', 'checkpoint'])
@pytest.mark.parametrize('order', ['group', 'satmae', None])
def test_predictions_in_another_order_are_new(order: str | None, told: str) -> None:
    """Where a file says in which order its heads predict, it is heeded; SatMAE's own do not."""
    source, decoder = _groups(1), _groups(2)
    before, texts = _state(decoder), {} if order is None else {'prediction_order': order}
    metadata = texts
    if told == 'checkpoint':
        metadata = {TRAINED: json.dumps({'facts': texts | {'mean': [0.5]}, 'texts': {}})}
    report = load_decoder(decoder, Checkpoint(_state(source), metadata))
    heads = {key for key in before if key.startswith('decoder_pred.')}
    assert set(report.added) == (heads if order == 'satmae' else set())
    expected = before if order == 'satmae' else _state(source)
    assert all(torch.equal(decoder.state_dict()[key], expected[key]) for key in heads)
    assert torch.equal(decoder.state_dict()['mask_token'], _state(source)['mask_token'])
    if order == 'satmae':
        assert 'in the order satmae' in report.summary()


def test_decoders_tell_what_they_predict() -> None:
    texts = decoder_texts(_groups(1))
    assert texts['prediction_order'] == 'group'
    assert json.loads(texts['channel_groups']) == [list(group) for group in GROUPS]
    assert decoder_texts(_decoder(1)) == {}


def test_positions_of_another_grid_are_resampled() -> None:
    source, decoder = _decoder(1), _decoder(2, make_vit('patch8', img_size=(16, 48)))
    report = load_decoder(decoder, _state(source))
    expected = resample_pos_embed(_state(source)['decoder_pos_embed'], GridSize(2, 6), 1, offset=0)
    assert torch.equal(decoder.state_dict()['decoder_pos_embed'], expected)
    assert report.changed == {'decoder_pos_embed': 'resampled from 4 x 4 to 2 x 6 patches'}


@pytest.mark.parametrize('depth', [1, 3])
def test_another_depth_keeps_what_there_is(depth: int) -> None:
    source, decoder = _decoder(1), _decoder(2, depth=depth)
    report = load_decoder(decoder, _state(source))
    blocks = {key.split('.')[1] for key in (*report.added, *report.dropped)}
    assert blocks == ({'1'} if depth == 1 else {'2'})
    assert (len(report.dropped) > 0) is (depth == 1)


def test_another_width_keeps_nothing() -> None:
    source, decoder = _decoder(1), _decoder(2, width=16)
    before = _state(decoder)
    report = load_decoder(decoder, _state(source))
    assert (report.loaded, set(report.added)) == ((), set(before)), 'a bias goes with its weight'
    assert all(torch.equal(decoder.state_dict()[key], before[key]) for key in before)
    assert 'initialised at random' in report.summary()


@pytest.mark.parametrize('keep_fused', [True, False])
def test_separate_queries_keys_and_values(keep_fused: bool) -> None:
    source, decoder = _decoder(1), _decoder(2)
    report = load_decoder(decoder, separate(_state(source), keep_fused))
    assert report.added == ()
    assert len(report.changed) == (0 if keep_fused else 4)
    for key, tensor in _state(source).items():
        assert torch.equal(decoder.state_dict()[key], tensor), key


def test_refusals_leave_the_decoder_as_it_was() -> None:
    decoder = _decoder(2)
    before = _state(decoder)
    broken = _state(_decoder(1))
    broken['decoder_norm.bias'][0] = torch.nan
    with pytest.raises(WeightsError, match='not finite'):
        load_decoder(decoder, broken)
    unmerged = separate(_state(_decoder(1)), keep_fused=False)
    unmerged['decoder_blocks.0.attn.q_proj.lora_A'] = torch.ones(2, 32)
    with pytest.raises(WeightsError, match='merge them first'):
        load_decoder(decoder, unmerged)
    with pytest.raises(WeightsError, match='no weights file'):
        load_decoder(decoder, 'nowhere.pth')
    assert all(torch.equal(decoder.state_dict()[key], before[key]) for key in before)


def test_enums_and_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, member = _decoder(1), ViTLarge16_MAE_Natural_Weights.IMAGENET1K
    torch.save({'model': _state(source)}, tmp_path / 'w.pth')
    monkeypatch.setattr(member.value, 'url', str(tmp_path / 'w.pth'))
    for weights in (member, str(member)):
        assert load_decoder(_decoder(2), weights).added == ()
