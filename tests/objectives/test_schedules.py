"""Schedules and recipes against arrays written out step by step, and the published numbers."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from torchgeo_explora.adapters import ExPLoRAConfig
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives import (
    PRESETS,
    OptimizationConfig,
    WarmupCosine,
    get_preset,
    linear_warmup,
    make_schedules,
    scaled_learning_rate,
)


def _written_out(schedule: WarmupCosine, extra: int = 5) -> list[float]:
    """The whole schedule as an array, the way DINOv2 lays it out."""
    s = schedule
    ramp = np.linspace(s.start, s.peak, s.warmup).tolist()
    length = s.total - s.warmup - s.delay
    cosine = [
        s.final + 0.5 * (s.peak - s.final) * (1 + math.cos(math.pi * i / length))
        for i in range(length)
    ]
    values = [s.start] * s.delay + ramp + cosine
    values[: s.frozen] = [0.0] * s.frozen
    return values[: s.total] + [s.final] * extra


@pytest.mark.parametrize('total', [15, 97])
@pytest.mark.parametrize('warmup', [0, 1, 2, 9])
@pytest.mark.parametrize(('frozen', 'delay'), [(0, 0), (3, 0), (0, 4), (6, 2)])
@pytest.mark.parametrize(('start', 'peak', 'final'), [(0.0, 1e-3, 1e-6), (0.3, 0.1, 0.2)])
def test_warmup_cosine(
    total: int, warmup: int, frozen: int, delay: int, start: float, peak: float, final: float
) -> None:
    schedule = WarmupCosine(peak, final, total, warmup, start, frozen, delay)
    found = [schedule(step) for step in range(total + 5)]
    assert found == pytest.approx(_written_out(schedule), rel=1e-12, abs=1e-15)


def test_marks() -> None:
    rate = WarmupCosine(peak=2.0, final=0.5, total=100, warmup=11, start=0.0)
    assert (rate(0), rate(5), rate(10)) == (0.0, 1.0, 2.0)  # the ramp has both its ends
    assert rate(11) == 2.0
    assert rate(11 + 89 // 2) == pytest.approx(1.25, rel=0.02)
    assert [rate(step) for step in (99, 100, 10**9)] == pytest.approx([0.5] * 3, abs=1e-3)


def test_linear_warmup() -> None:
    temperature = linear_warmup(0.04, 0.07, 4)
    found = [temperature(step) for step in range(6)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert [linear_warmup(0.04, 0.07, 0)(step) for step in (0, 1)] == [0.07, 0.07]


def test_scaled_learning_rate() -> None:
    assert scaled_learning_rate(1e-3, 1024) == 1e-3
    assert scaled_learning_rate(5e-3, 32) == pytest.approx(8.84e-4, rel=1e-3)
    assert scaled_learning_rate(1e-3, 4096) == pytest.approx(2e-3)


def test_paper_preset() -> None:
    """Spec sections C.1 and C.2: the published script on 4 GPUs."""
    recipe = get_preset('paper')
    config, objective, crops = recipe.optimization, recipe.objective, recipe.crops
    ranks = 4
    effective = recipe.batch_size * ranks * config.accumulate
    assert (recipe.batch_size, config.accumulate, effective) == (8, 32, 1024)
    assert config.steps == 200_000
    assert config.steps // config.accumulate == 6_250  # updates
    curves = make_schedules(config, config.steps, effective)
    assert curves.backbone_lr(0) == 0.0
    assert curves.backbone_lr(9_998) < 1e-3
    assert curves.backbone_lr(9_999) == curves.backbone_lr(10_000) == 1e-3
    assert curves.backbone_lr(200_000) == 1e-6
    assert curves.head_lr == curves.backbone_lr
    assert [curves.prototype_lr(step) for step in (0, 2_999)] == [0.0, 0.0]
    assert curves.prototype_lr(3_000) == curves.head_lr(3_000) > 0
    assert {curves.weight_decay(step) for step in (0, 100_000, 200_000)} == {0.0}
    assert curves.momentum(0) == 0.994
    assert curves.momentum(100_000) == pytest.approx(0.997)
    assert curves.momentum(200_000) == 1.0
    temperatures = [curves.teacher_temperature(step) for step in (0, 29_999, 30_000, 199_999)]
    assert temperatures == pytest.approx([0.04, 0.07, 0.07, 0.07])
    assert (config.betas, config.clip, config.publish) == ((0.9, 0.999), 3.0, 'teacher')
    sizes = objective.prototypes, objective.bottleneck_dim, objective.hidden_dim
    assert (sizes, objective.head_layers) == ((65_536, 256, 2048), 3)
    assert (objective.centering, objective.separate_head) == ('sinkhorn_knopp', False)
    weights = objective.dino_weight, objective.ibot_weight, objective.koleo_weight
    assert (weights, objective.student_temperature) == ((1.0, 1.0, 0.1), 0.1)
    assert not objective.train_mask_token
    assert (crops.global_size, crops.local_size, crops.n_local) == (224, 98, 8)
    assert (crops.global_scale, crops.local_scale) == ((0.32, 1.0), (0.05, 0.32))
    assert crops.blur_p == (0.0, 0.9, 0.5)  # what it was really trained with
    assert (crops.mask_probability, crops.mask_ratio) == (0.5, (0.1, 0.5))
    assert recipe.adapter == ExPLoRAConfig(rank=64, unfreeze_blocks=(-1,), alpha=1.0)


def test_workshop_preset() -> None:
    """The workshop paper: 32 images, 5e-3 for 1,024, an update a step, rank 32."""
    recipe = get_preset('workshop')
    config = recipe.optimization
    assert config.steps == 200_000
    assert (recipe.batch_size, config.accumulate, recipe.adapter.rank) == (32, 1, 32)
    curves = make_schedules(config, config.steps, recipe.batch_size * config.accumulate)
    assert curves.backbone_lr(10_000) == pytest.approx(8.84e-4, rel=1e-3)
    assert curves.weight_decay(0) == curves.weight_decay(200_000) == 0.0


@pytest.mark.parametrize('name', PRESETS)
@pytest.mark.parametrize('steps', [1, 7, 400])
def test_presets_keep_their_shape_at_any_length(name: str, steps: int) -> None:
    curves = make_schedules(get_preset(name).optimization, steps, 64)
    for field in dataclasses.fields(curves):
        curve = getattr(curves, field.name)
        values = [curve(step) for step in range(steps + 2)]
        assert all(math.isfinite(value) and value >= 0 for value in values)
        assert values[-1] == curve.final


def test_head_start_and_rates() -> None:
    config = OptimizationConfig(
        head_start=0.2, warmup=0.1, head_lr_scale=3.0, freeze_last_layer=0.05, base_lr=1.0
    )
    curves = make_schedules(config, 100, 1024)
    assert all(curves.backbone_lr(step) == 0 for step in range(21))
    assert curves.backbone_lr(21) > 0
    assert (curves.backbone_lr(29), curves.head_lr(9)) == (1.0, 3.0)
    assert [curves.prototype_lr(step) for step in range(5)] == [0.0] * 5
    assert curves.prototype_lr(50) == curves.head_lr(50)


def test_override() -> None:
    recipe = get_preset('small')
    other = recipe.override(rank=8, prototypes=100, n_local=3, base_lr=0.5, warmup=None)
    assert (other.adapter.rank, other.objective.prototypes) == (8, 100)
    assert (other.crops.n_local, other.optimization.base_lr) == (3, 0.5)
    assert other.optimization.warmup == recipe.optimization.warmup
    assert recipe == get_preset('small')
    with pytest.raises(ConfigError, match='no field learning_rate'):
        recipe.override(learning_rate=1.0)
    with pytest.raises(ConfigError, match=r'no preset .*: use one of paper, workshop, small'):
        get_preset('large')


@pytest.mark.parametrize(
    'arguments',
    [{'accumulate': 0}, {'steps': 0}, {'warmup': 1.5}, {'head_start': -0.1}],
)
def test_impossible_numbers(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        OptimizationConfig(**arguments)


def test_unknown_network() -> None:
    config = OptimizationConfig()
    object.__setattr__(config, 'publish', 'both')  # tests check the annotations before
    with pytest.raises(ConfigError, match="publish is 'both': use teacher"):
        config.__post_init__()
