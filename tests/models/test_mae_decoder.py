"""Decoders: pruned against full, positions, pixels in and out, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.objectives.mae_cases import CASES, OVERLAPPING, Case, Dates, Groups, Plain, images_of
from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers import TokenMask, mask_from_noise, sincos_grid, token_count
from torchgeo_explora.layers.tokens import patch_grid
from torchgeo_explora.models import (
    GroupChannelMAEDecoder,
    GroupChannelViT,
    TemporalViT,
    TokenDecoder,
    build_decoder,
)

TABLE = pytest.mark.parametrize('case', CASES.values(), ids=CASES)


def _decoder(case: Case, seed: int = 0) -> tuple[TokenDecoder, VisionTransformer]:
    encoder = case.encoder()
    generator = torch.Generator().manual_seed(seed)
    return build_decoder(encoder, **case.decoder, generator=generator).double(), encoder


def _inputs(case: Case, encoder: VisionTransformer) -> tuple[Tensor, TokenMask, Any]:
    """Random latent tokens, a mask, grid and timestamps."""
    images, timestamps = images_of(case)
    generator = torch.Generator().manual_seed(4)
    mask = mask_from_noise(torch.rand(3, token_count(encoder, images), generator=generator), 0.75)
    seen = encoder.num_prefix_tokens + mask.keep.shape[1]
    latent = torch.randn(3, seen, 24, generator=generator, dtype=torch.float64)
    return latent.requires_grad_(), mask, (patch_grid(encoder, images), timestamps)


@TABLE
@pytest.mark.parametrize('checkpointing', [False, True])
def test_pruned_is_the_same_as_full(case: Case, checkpointing: bool) -> None:
    decoder, encoder = _decoder(case)
    latent, mask, where = _inputs(case, encoder)
    full = decoder(latent, mask, *where)
    if isinstance(decoder, GroupChannelMAEDecoder) and decoder.prediction_order == 'satmae':
        area = decoder.sizes.patch.area
        bands = torch.cat(full, dim=2).unflatten(2, (-1, area))
        full = [bands[:, :, list(group)].flatten(2) for group in decoder.channel_groups]
    masks = mask.masked.unflatten(1, (len(full), -1)).unbind(1)
    expected = [part[hidden] for part, hidden in zip(full, masks, strict=True)]
    decoder.set_grad_checkpointing(checkpointing)
    found = decoder.decode_masked(latent, mask, *where)
    weights = [torch.randn_like(rows) for rows in expected]
    trained = [latent, *(p for p in decoder.parameters() if p.requires_grad)]
    gradients = []
    for parts in (found, expected):
        total = sum((w * part).sum() for w, part in zip(weights, parts, strict=True))
        assert isinstance(total, Tensor)
        gradients.append(torch.autograd.grad(total, trained))
    for a, b in zip([*found, *gradients[0]], [*expected, *gradients[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@TABLE
def test_images_survive_patches(case: Case) -> None:
    decoder, encoder = _decoder(case)
    images, _ = images_of(case)
    patches = decoder.patches(images)
    assert torch.equal(decoder.assemble(patches, patch_grid(encoder, images)), images)
    parts = decoder.split(patches)
    every = [torch.ones(part.shape[:2], dtype=torch.bool) for part in parts]
    assert torch.equal(decoder.overlay(patches, parts, every), patches)  # true values over true
    none = [mask.logical_not() for mask in every]
    wrong = [part + 1 for part in parts]
    assert torch.equal(decoder.overlay(patches, wrong, none), patches)  # nothing is hidden


def test_a_band_of_two_groups_becomes_their_mean() -> None:
    decoder, _ = _decoder(CASES['groups_overlapping'])
    patches = decoder.patches(images_of(CASES['groups_overlapping'])[0])
    parts = [torch.full_like(part, index) for index, part in enumerate(decoder.split(patches))]
    masks = [torch.ones(part.shape[:2], dtype=torch.bool) for part in parts]
    bands = decoder.overlay(patches, parts, masks).unflatten(2, (6, -1)).mean(dim=(0, 1, 3))
    assert OVERLAPPING == ((0, 3, 1), (3, 2), (5,))
    torch.testing.assert_close(bands[[0, 1, 2, 3, 5]], torch.tensor([0, 0, 1, 0.5, 2]).double())
    unseen = patches.unflatten(2, (6, -1))[:, :, 4].mean()
    torch.testing.assert_close(bands[4], unseen)  # of no group: left as it is


def test_orders_agree_where_groups_are_runs_of_bands() -> None:
    case = CASES['groups']
    latent, mask, where = _inputs(case, case.encoder())
    one = _decoder(case)[0].decode_masked(latent, mask, *where)
    other = _decoder(case._replace(decoder={**case.decoder, 'prediction_order': 'satmae'}))[0]
    for a, b in zip(one, other.decode_masked(latent, mask, *where), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('grid', [GridSize(2, 8), GridSize(6, 3)])
def test_positions_of_another_grid(grid: GridSize) -> None:
    for name in ('plain', 'groups', 'dates'):
        decoder, _ = _decoder(CASES[name])
        timestamps = torch.ones(2, 3, 3).double() if name == 'dates' else None
        native = decoder.positions(GridSize(4, 4), timestamps)
        other = decoder.positions(grid, timestamps)
        copies = {'plain': 1, 'groups': 2, 'dates': 3}[name]
        assert other.shape[1] == 1 + copies * grid.area
        assert torch.equal(native[:, :1], other[:, :1])  # the class token is nowhere
        # all copies are at the same places, and their own part is the same everywhere
        space = decoder.decoder_pos_embed.shape[2]
        tokens = other[:, 1:].unflatten(1, (copies, grid.area))
        assert torch.equal(tokens[..., :space], tokens[:, :1, :, :space].expand(-1, copies, -1, -1))
        own = tokens[..., space:]
        assert torch.equal(own, own[:, :, :1].expand_as(own))


def test_seeded_weights() -> None:
    case = CASES['groups']
    first, again, other = (_decoder(case, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first['mask_token'], other['mask_token'])
    assert not torch.equal(first['decoder_pred.0.weight'], other['decoder_pred.0.weight'])
    table = first['decoder_pos_embed'].float()
    torch.testing.assert_close(table, sincos_grid(GridSize(4, 4), table.shape[2], 1))


def test_default_parts_are_satmaes() -> None:
    with torch.device('meta'):
        groups = GroupChannelViT(img_size=96, patch_size=8, embed_dim=1024, depth=1, num_heads=16)
        dates = TemporalViT(img_size=224, patch_size=16, embed_dim=1024, depth=1, num_heads=16)
        assert build_decoder(groups).state_dict()['decoder_channel_embed'].shape == (1, 4, 128)
        assert build_decoder(dates).state_dict()['decoder_pos_embed'].shape == (1, 197, 320)


def _official_encoder(name: str, layout: dict[str, list[int]]) -> VisionTransformer:
    """The encoder of a state dict's shapes."""
    width = layout['cls_token'][-1]
    sizes: dict[str, Any] = {'embed_dim': width, 'depth': 1, 'num_heads': 16, 'num_classes': 0}
    if 'group' in name:
        return GroupChannelViT(img_size=96, patch_size=8, **sizes)
    if 'temporal' in name:
        return TemporalViT(img_size=224, patch_size=16, **sizes)
    return VisionTransformer(**sizes)


def test_official_state_dicts_fit(reference_dir: Path) -> None:
    paths = [
        p for p in sorted((reference_dir / 'keys').glob('*mae*.json')) if 'finetune' not in p.name
    ]
    if not paths:
        pytest.skip(f'{reference_dir}/keys has no layout of a masked autoencoder')
    for path in paths:
        layout = json.loads(path.read_text())
        with torch.device('meta'):
            decoder = build_decoder(_official_encoder(path.name, layout))
        own = {k: v for k, v in layout.items() if k.startswith('decoder') or k == 'mask_token'}
        assert {k: list(v.shape) for k, v in decoder.state_dict().items()} == own, path.name


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'width': 30, 'heads': 4}, 'width 30 does not divide into 4 heads'),
        ({'depth': 0}, 'depth 0'),
        ({'mlp_ratio': 0.0}, 'MLP ratio 0'),
        ({'width': 6, 'heads': 2}, 'of a decoder width of 6'),
    ],
)
def test_impossible_sizes(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_decoder(Plain(), **arguments)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'channel_embed_dim': 3}, 'channel_embed_dim is 3'),
        ({'channel_embed_dim': 20}, 'leaves a positive multiple of 4'),
        ({'channel_embed_dim': 6}, 'leaves a positive multiple of 4'),
        ({'prediction_order': 'bands'}, "prediction_order is 'bands'"),
    ],
)
def test_impossible_groups(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_decoder(Groups(channel_groups=((0, 1),)), **CASES['groups'].decoder | arguments)


def test_satmaes_order_needs_an_output_for_every_band() -> None:
    with pytest.raises(ConfigError, match='reads output 7 of the heads as band 7'):
        build_decoder(
            Groups(channel_groups=((0, 1), (7,))),
            20,
            2,
            2,
            channel_embed_dim=4,
            prediction_order='satmae',
        )


def test_impossible_dates() -> None:
    with pytest.raises(ConfigError, match='time_embed_dim is 10'):
        build_decoder(Dates(), 20, 2, 2, time_embed_dim=10)
    decoder = build_decoder(Dates(), 20, 2, 2, time_embed_dim=12)
    with pytest.raises(ConfigError, match='no timestamps'):
        decoder.positions(GridSize(4, 4), None)
