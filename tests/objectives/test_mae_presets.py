"""Recipes of M-ExPLoRA against the published numbers, and its schedule against MAE's formula."""

import dataclasses
import math
from typing import Any

import pytest

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives import (
    MAE_PRESETS,
    DecoderConfig,
    HalfCosine,
    MAEOptimizationConfig,
    ViewConfig,
    get_mae_preset,
    linearly_scaled_learning_rate,
    mae_learning_rate,
)
from torchgeo_explora.objectives.mae_presets import PARTS, mae_recipe_fields


@pytest.mark.parametrize(('epochs', 'length', 'warmup'), [(4, 5, 1), (10, 3, 0), (20, 4, 3)])
def test_half_cosine(epochs: int, length: int, warmup: int) -> None:
    """MAE sets the rate by the fraction of epochs that have passed, at every iteration."""
    peak, final = 3e-4, 1e-5
    curve = HalfCosine(peak, final, epochs * length, warmup * length)
    for step in range(epochs * length):
        epoch = step / length
        if epoch < warmup:
            expected = peak * epoch / warmup
        else:
            passed = (epoch - warmup) / (epochs - warmup)
            expected = final + (peak - final) * 0.5 * (1 + math.cos(math.pi * passed))
        assert curve(step) == pytest.approx(expected, rel=1e-9)
    assert curve(epochs * length) == curve(10**9) == final


def test_scaled_learning_rate() -> None:
    assert linearly_scaled_learning_rate(1.5e-4, 1024) == pytest.approx(6e-4)
    assert linearly_scaled_learning_rate(4.5e-4, 1024) == pytest.approx(1.8e-3)
    assert linearly_scaled_learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)  # MAE's own


RANKS = 4
PUBLISHED: dict[str, tuple[float, int, int, tuple[int, ...], int, int]] = {
    # peak rate, warm-up in epochs, rank, blocks, rank of the decoder, epochs
    'paper': (6e-4, 1, 64, (-1,), 8, 200),
    'script': (1.8e-3, 1, 64, (-1,), 8, 400),
    'sentinel': (1.8e-3, 1, 32, (0, -1), 32, 50),
    'temporal': (6e-4, 1, 32, (-1,), 32, 200),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_numbers(name: str) -> None:
    """Spec sections D and E.3, on 4 GPUs."""
    peak, warmup, rank, blocks, decoder_rank, epochs = PUBLISHED[name]
    recipe, length = get_mae_preset(name), 363
    config = recipe.optimization
    effective = recipe.batch_size * RANKS * config.accumulate
    assert (effective, recipe.epochs) == (1024, epochs)
    curve = mae_learning_rate(config, epochs * length, effective)
    assert curve(0) == 0.0
    assert curve(warmup * length) == pytest.approx(peak)
    assert curve(warmup * length - 1) == pytest.approx(peak * (1 - 1 / length))
    assert curve(epochs * length) == config.min_lr == 0.0
    assert (config.betas, config.weight_decay, config.clip) == ((0.9, 0.95), 0.0, 0.0)
    assert (recipe.adapter.rank, recipe.adapter.unfreeze_blocks) == (rank, blocks)
    assert recipe.adapter.train_norms and recipe.adapter.train_cls_token
    assert recipe.adapter.alpha == recipe.decoder.decoder_alpha == 1.0
    decoder = recipe.decoder
    sizes = decoder.decoder_width, decoder.decoder_depth, decoder.decoder_heads
    assert (sizes, decoder.decoder_rank) == ((512, 8, 16), decoder_rank)
    assert (recipe.objective.mask_ratio, recipe.objective.masking) == (0.75, 'independent')
    assert recipe.objective.norm_pix_loss
    assert recipe.views.crop_scale == (0.2, 1.0)
    assert recipe.views.image_size == (96 if name == 'sentinel' else 224)
    new = (recipe.adapter.train_patch_embed, bool(decoder.train_decoder_pred))
    assert new == ((True, True) if name == 'sentinel' else (False, False))


@pytest.mark.parametrize('name', MAE_PRESETS)
@pytest.mark.parametrize('steps', [1, 7, 400])
def test_presets_keep_their_shape_at_any_length(name: str, steps: int) -> None:
    curve = mae_learning_rate(get_mae_preset(name).optimization, steps, 64)
    values = [curve(step) for step in range(steps + 1)]
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert values[-1] == 0.0


def test_override_reaches_every_part() -> None:
    recipe = get_mae_preset('small').override(
        rank=7, decoder_rank=3, mask_ratio=0.5, image_size=64, base_lr=1.0, min_lr=None
    )
    assert (recipe.adapter.rank, recipe.decoder.decoder_rank) == (7, 3)
    assert (recipe.objective.mask_ratio, recipe.views.image_size) == (0.5, 64)
    assert (recipe.optimization.base_lr, recipe.optimization.min_lr) == (1.0, 0.0)
    with pytest.raises(ConfigError, match='no field momentum'):
        recipe.override(momentum=0.9)


def test_no_name_means_two_numbers() -> None:
    recipe = get_mae_preset('paper')
    names = [f.name for part in PARTS for f in dataclasses.fields(getattr(recipe, part))]
    assert len(names) == len(set(names)) == len(mae_recipe_fields())


@pytest.mark.parametrize(
    ('part', 'values', 'words'),
    [
        (DecoderConfig, {'decoder_heads': 3}, 'a multiple of the heads'),
        (DecoderConfig, {'decoder_rank': 600}, 'rank from 0 to 512'),
        (ViewConfig, {'crop_scale': (0.0, 1.0)}, '0 < smallest'),
        (ViewConfig, {'crop_scale': (0.9, 0.2)}, '0 < smallest'),
        (ViewConfig, {'flip_p': 1.5}, 'a probability'),
        (MAEOptimizationConfig, {'warmup': 1.5}, 'share of the run'),
        (MAEOptimizationConfig, {'accumulate': 0}, 'use 1 or more'),
        (MAEOptimizationConfig, {'base_lr': -1.0}, 'negative'),
    ],
)
def test_impossible_numbers(part: type, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        part(**values)


@pytest.mark.parametrize('ratio', [0.0, 1.0, -0.1, 1.5])
def test_mask_ratio_leaves_something_on_both_sides(ratio: float) -> None:
    with pytest.raises(ConfigError, match='above 0 and below 1'):
        get_mae_preset('paper').override(mask_ratio=ratio)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match='use one of paper, script, sentinel, temporal, small'):
        get_mae_preset('workshop')
