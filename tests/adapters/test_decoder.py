"""What trains in a decoder: exact counts, the official rule, and the output as it was."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.objectives.mae_cases import CASES, Case, images_of, make_objective
from torchgeo_explora.adapters import (
    ExPLoRAConfig,
    apply_explora,
    apply_explora_to_decoder,
    merge_lora,
)
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers import LoRALinear
from torchgeo_explora.models import GroupChannelViT, TemporalViT, TokenDecoder, build_decoder
from torchgeo_explora.objectives import MAEObjective, MAEOutput

TABLE = pytest.mark.parametrize('case', [CASES[n] for n in ('plain', 'groups', 'dates')])
LARGE: dict[str, Any] = {'embed_dim': 1024, 'depth': 24, 'num_heads': 16, 'num_classes': 0}


def _decoder(case: Case) -> TokenDecoder:
    decoder = make_objective(case).decoder
    assert isinstance(decoder, TokenDecoder)
    return decoder


def _loss(objective: MAEObjective, case: Case) -> MAEOutput:
    images, timestamps = images_of(case)
    noise = objective.draw_noise(images, torch.Generator().manual_seed(0))
    output: MAEOutput = objective(images, noise, timestamps)
    return output


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ({}, 29_697_664),  # the paper's [1, L], counted with the decoder (spec section A.5)
        ({'train_cls_token': False}, 29_696_640),
        ({'train_channel_embed': True}, 29_697_664 + 3 * 256),
    ],
)
def test_published_count_of_group_channels(arguments: dict[str, Any], expected: int) -> None:
    with torch.device('meta'):
        encoder = GroupChannelViT(img_size=96, patch_size=8, **LARGE)
        decoder = build_decoder(encoder)
        config = ExPLoRAConfig(32, (0, -1), train_patch_embed=True, **arguments)
        own = apply_explora(encoder, config)
        other = apply_explora_to_decoder(decoder, 32, train_pred=True)
    assert own.trainable_parameters + other.trainable_parameters == expected
    assert other.trainable_parameters == 541_696 + 328_320  # LoRA and norms, predictions
    training = [p for m in (encoder, decoder) for p in m.parameters() if p.requires_grad]
    assert sum(p.numel() for p in training) == expected


def test_published_count_of_dates() -> None:
    with torch.device('meta'):
        encoder = TemporalViT(img_size=224, patch_size=16, **LARGE)
        decoder = build_decoder(encoder)
        own = apply_explora(encoder, ExPLoRAConfig(32, (-1,), train_cls_token=False))
        other = apply_explora_to_decoder(decoder, 32)
    # the paper's 16.2 M: encoder, LoRA and norms of the decoder (spec section A.5)
    assert own.trainable_parameters + other.trainable_parameters == 15_707_136 + 541_696


def test_count_of_the_published_script() -> None:
    with torch.device('meta'):
        encoder = VisionTransformer(**LARGE)
        report = apply_explora_to_decoder(build_decoder(encoder), 8)
    assert report.trainable_parameters == 8 * (4 * 8 * 512 + 4 * 512) + 2 * 512
    assert 'decoder_pred.weight' in report.frozen and 'mask_token' in report.frozen


def _trains_officially(name: str, train_pred: bool) -> bool:
    """The official rule for decoders, by substrings of names (spec section A.2)."""
    return 'lora' in name or 'norm' in name or (train_pred and 'decoder_pred' in name)


@TABLE
@pytest.mark.parametrize('train_pred', [False, True])
def test_official_rule_and_output(case: Case, train_pred: bool) -> None:
    objective = make_objective(case)
    before = _loss(objective, case).loss
    report = apply_explora_to_decoder(objective.decoder, 3, train_pred=train_pred)
    names = [name for name, _ in objective.decoder.named_parameters()]
    expected = {name for name in names if _trains_officially(name, train_pred)}
    found = {n for n, p in objective.decoder.named_parameters() if p.requires_grad}
    assert found == expected == set(report.trained)
    assert set(names) == found | set(report.frozen)
    assert report.wrapped == ('decoder_blocks.0.attn.qkv', 'decoder_blocks.1.attn.qkv')
    assert torch.equal(_loss(objective, case).loss, before)
    assert 'decoder weights train' in report.summary()


@TABLE
def test_all_but_the_encodings(case: Case) -> None:
    decoder = _decoder(case)
    report = apply_explora_to_decoder(decoder, 0, train_all=True)
    fixed = {
        n for n in dict(decoder.named_parameters()) if n.endswith(('pos_embed', 'channel_embed'))
    }
    assert fixed and set(report.frozen) == fixed
    assert report.unfrozen == ('decoder_blocks.0', 'decoder_blocks.1')


@TABLE
def test_merged_decoder_is_a_plain_one(case: Case) -> None:
    objective = make_objective(case)
    keys = list(objective.decoder.state_dict())
    generator = torch.Generator().manual_seed(0)
    apply_explora_to_decoder(objective.decoder, 3, generator=generator)
    with torch.no_grad():
        for module in objective.decoder.modules():
            if isinstance(module, LoRALinear):
                for part in module.segments:
                    module.up(part.name).normal_(generator=generator)
    before = _loss(objective, case).loss
    objective.decoder = merge_lora(objective.decoder)
    assert list(objective.decoder.state_dict()) == keys
    torch.testing.assert_close(_loss(objective, case).loss, before)


@TABLE
@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'rank': 21}, "rank 21 exceeds the decoder's width 20"),
        ({'rank': -1}, 'rank -1'),
        ({'rank': 2, 'alpha': 0.0}, 'alpha is 0'),
        ({'rank': 2, 'train_all': True}, 'train_all'),
    ],
)
def test_what_does_not_fit_leaves_the_decoder_alone(
    case: Case, arguments: dict[str, Any], words: str
) -> None:
    decoder = _decoder(case)
    before = {n: p.requires_grad for n, p in decoder.named_parameters()}
    with pytest.raises(ConfigError, match=words):
        apply_explora_to_decoder(decoder, **arguments)
    assert {n: p.requires_grad for n, p in decoder.named_parameters()} == before


def test_what_cannot_be_adapted() -> None:
    with pytest.raises(ConfigError, match='Linear has no decoder_blocks, decoder_norm'):
        apply_explora_to_decoder(nn.Linear(3, 3), 1)
    decoder = _decoder(CASES['plain'])
    apply_explora_to_decoder(decoder, 2)
    with pytest.raises(ConfigError, match='merge_lora'):
        apply_explora_to_decoder(decoder, 2)


def test_channel_encodings_of_a_plain_model() -> None:
    encoder = CASES['plain'].encoder()
    with pytest.raises(ConfigError, match='train_channel_embed is on'):
        apply_explora(encoder, ExPLoRAConfig(2, train_channel_embed=True))
    assert all(p.requires_grad for p in encoder.parameters())


def test_all_of_an_encoder_leaves_channel_encodings_fixed() -> None:
    encoder = CASES['groups'].encoder()
    report = apply_explora(encoder, ExPLoRAConfig(0, train_all=True))
    assert set(report.frozen) == {'channel_embed', 'channel_cls_embed'}
    encoder = CASES['groups'].encoder()
    config = ExPLoRAConfig(0, train_all=True, train_channel_embed=True)
    assert apply_explora(encoder, config).frozen == ('channel_cls_embed',)
