"""Diagnostics on representations whose health is known by construction."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.diagnostics import (
    CollapseLimits,
    HealthCheck,
    HealthHistory,
    collapse_verdict,
    drift,
    effective_rank,
    feature_spread,
    linear_cka,
    mean_pairwise_cosine,
    prototype_usage,
)


def gaussian(count: int = 200, dim: int = 32, seed: int = 0, offset: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) + offset


@pytest.mark.parametrize('rank', [1, 3, 8])
def test_rank_of_equal_orthogonal_directions_is_their_number(rank: int) -> None:
    axes = torch.linalg.qr(gaussian(16, rank))[0].T  # (rank, 16)
    rows = torch.cat([axes, -axes])  # centred, all singular values equal
    assert effective_rank(rows) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(7 * rows) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(rows + 3) == pytest.approx(rank, rel=1e-4)


def test_rank_is_the_entropy_of_the_singular_values() -> None:
    x = gaussian(50, 8).double()
    singular = torch.linalg.svd(x - x.mean(0)).S
    share = (singular / singular.sum()).tolist()
    expected = math.exp(-sum(p * math.log(p) for p in share))
    assert effective_rank(x) == pytest.approx(expected)


def test_rank_of_constant_and_of_broken_features() -> None:
    assert effective_rank(torch.full((10, 4), 0.3)) == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan], [0.0, 1.0]])))


def test_cosine_equals_the_loop_over_pairs() -> None:
    x = gaussian(12, 5)
    pairs = [F.cosine_similarity(x[i], x[j], dim=0) for i in range(12) for j in range(12) if i != j]
    assert mean_pairwise_cosine(x) == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-6)
    assert mean_pairwise_cosine(torch.ones(5, 3)) == pytest.approx(1)


def test_spread_lies_between_a_point_and_the_sphere() -> None:
    assert feature_spread(torch.ones(5, 3)) == pytest.approx(0, abs=1e-9)
    sphere = gaussian(5000, 16, offset=0)
    assert feature_spread(sphere) == pytest.approx(1 / 4, rel=0.01)
    assert feature_spread(3 * sphere) == pytest.approx(feature_spread(sphere))


def test_drift_and_alignment_under_known_changes() -> None:
    x = gaussian()
    rotation = torch.linalg.qr(gaussian(32, 32, seed=1, offset=0))[0]
    assert drift(x, 5 * x) == pytest.approx(0, abs=1e-6)
    assert drift(x, -x) == pytest.approx(2)
    assert drift(x, x @ rotation) > 0.5
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, gaussian(seed=2)) < 0.5


def test_prototype_usage_of_the_extremes() -> None:
    spread = prototype_usage(torch.eye(8))
    assert [spread.used, spread.each, spread.entropy] == pytest.approx([8, 1, 1])
    one = prototype_usage(F.one_hot(torch.zeros(8, dtype=torch.int64), 8).float())
    assert [one.used, one.entropy] == pytest.approx([1, 0], abs=1e-9)
    flat = prototype_usage(torch.full((4, 16), 1 / 16))
    assert [flat.used, flat.each] == pytest.approx([16, 16])


# ---------------------------------------------------------------------------- verdict


def check(features: Tensor, step: int, **others: float | bool) -> HealthCheck:
    measured = HealthCheck(
        step, rank=effective_rank(features), cosine=mean_pairwise_cosine(features)
    )
    return replace(measured, **others)  # type: ignore[arg-type]


def history(*stages: Tensor) -> HealthHistory:
    base, *later = (check(x, 100 * step) for step, x in enumerate(stages))
    return HealthHistory(base, tuple(later))


def constant(x: Tensor) -> Tensor:
    return x.mean(dim=0, keepdim=True).expand_as(x) + 1e-4 * x


def rank_one(x: Tensor) -> Tensor:
    return x[:, :1] * torch.ones(x.shape[1]) + 1e-3 * x


def few_dimensions(x: Tensor) -> Tensor:
    """Dimensional collapse: images stay apart, in three dimensions of 32."""
    return F.pad(x[:, :3], (0, x.shape[1] - 3)) + 1e-3 * x


@pytest.mark.parametrize('collapse', [constant, rank_one, few_dimensions])
def test_every_kind_of_collapse_is_seen_at_the_second_check_and_not_before(
    collapse: Callable[[Tensor], Tensor],
) -> None:
    x = gaussian()
    assert not collapse_verdict(history(x, collapse(x))).collapsed
    verdict = collapse_verdict(history(x, x, collapse(x), collapse(x)))
    assert verdict.collapsed
    assert verdict.reason.startswith('At step 300 ')
    assert 'Lower the learning rate' in verdict.reason


def test_a_collapse_that_passes_is_forgiven() -> None:
    x = gaussian()
    assert not collapse_verdict(history(x, constant(x), x, constant(x), x)).collapsed


@pytest.mark.parametrize('kept', [16, 24, 32])
def test_narrowing_to_half_the_directions_is_no_collapse(kept: int) -> None:
    x = gaussian()
    narrow = x.clone()
    narrow[:, kept:] *= 0.01
    assert not collapse_verdict(history(x, *[narrow] * 5)).collapsed


def test_a_base_whose_images_are_alike_is_no_collapse() -> None:
    x = gaussian(offset=8)  # mean cosine above 0.95 from the start
    assert mean_pairwise_cosine(x) > 0.95
    assert not collapse_verdict(history(x, *[gaussian(offset=9)] * 5)).collapsed
    assert collapse_verdict(history(x, *[constant(x)] * 2)).collapsed


def test_a_loss_that_is_not_finite_stops_at_once() -> None:
    x = gaussian()
    broken = HealthHistory(check(x, 0), (check(x, 50, loss_finite=False),))
    assert 'no longer a finite number' in collapse_verdict(broken).reason
    nan = HealthHistory(check(x, 0), (check(x * math.nan, 50),))
    assert 'features are no longer finite' in collapse_verdict(nan).reason


def neighbours(base: float, *later: float, images: int | None = None) -> HealthHistory:
    checks = tuple(HealthCheck(10 * i, knn=value) for i, value in enumerate(later, start=1))
    return HealthHistory(HealthCheck(0, knn=base), checks, images)


def test_neighbours_must_stay_low_for_three_checks() -> None:
    assert not collapse_verdict(neighbours(0.8, 0.25, 0.1)).collapsed
    verdict = collapse_verdict(neighbours(0.8, 0.25, 0.1, 0.1))
    assert '10.0 % where the base had 80.0 %' in verdict.reason
    assert not collapse_verdict(neighbours(0.8, 0.75, 0.72, 0.71)).collapsed
    assert not collapse_verdict(neighbours(0.8, 0.6, 0.6, 0.75, 0.6, 0.6)).collapsed


def test_few_images_need_a_deeper_fall() -> None:
    fall = (0.6, 0.6, 0.6)
    assert collapse_verdict(neighbours(0.8, *fall, images=1000)).collapsed
    assert not collapse_verdict(neighbours(0.8, *fall, images=50)).collapsed


def test_checks_that_measured_something_else_do_not_break_a_row() -> None:
    mixed = neighbours(0.8, 0.1, 0.1, 0.1)
    between = [entry for x in mixed.checks for entry in (x, HealthCheck(x.step + 1, rank=5.0))]
    assert collapse_verdict(replace(mixed, checks=tuple(between))).collapsed


def test_one_prototype_for_all_is_a_collapse() -> None:
    def run(entropy: float) -> HealthHistory:
        checks = tuple(HealthCheck(step, prototypes=entropy) for step in range(3))
        return HealthHistory(HealthCheck(0), checks)

    assert 'to one prototype' in collapse_verdict(run(0.01)).reason
    assert not collapse_verdict(run(0.4)).collapsed


def test_limits_are_checked_and_obeyed() -> None:
    x = gaussian()
    strict = CollapseLimits(rank_fraction=0.9, checks=1)
    assert collapse_verdict(history(x, few_dimensions(x)), strict).collapsed
    for wrong in ({'rank_fraction': 2.0}, {'checks': 0}, {'prototypes': -1.0}):
        with pytest.raises(ConfigError):
            CollapseLimits(**wrong)


def test_images_that_the_base_cannot_tell_apart_are_no_collapse() -> None:
    later = tuple(HealthCheck(step, rank=0.0, cosine=1.0) for step in (10, 20, 30))
    for cosine in (1.0, 1 - 1e-9):
        base = HealthCheck(0, rank=0.0, cosine=cosine)
        assert not collapse_verdict(HealthHistory(base, later)).collapsed
    told_apart = HealthCheck(0, rank=0.0, cosine=1 - 1e-3)
    assert collapse_verdict(HealthHistory(told_apart, later)).collapsed
