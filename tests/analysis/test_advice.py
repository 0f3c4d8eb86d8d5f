"""Advice follows the trials, and the paper's choice where they do not tell."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.vits import make_vit
from torchgeo_explora.analysis import AnalysisConfig, TokenProbeConfig, TokenProbeScore
from torchgeo_explora.analysis.advice import Trial, advise, draw_candidates, turning_block
from torchgeo_explora.analysis.pilot import Candidate, run_pilot
from torchgeo_explora.analysis.study import BlockMeasures, measure_model
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives import get_preset
from torchgeo_explora.objectives.diagnostics import effective_rank
from torchgeo_explora.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD

from .conftest import Drawn

LAST, TWO = Candidate((11,), 64), Candidate((10, 11), 64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_positions(*accuracies: float) -> BlockMeasures:
    config = AnalysisConfig(tokens=16, batch_size=4, probe=TokenProbeConfig(steps=1))
    vit = make_vit('patch8', depth=len(accuracies))
    found = measure_model(vit, Drawn(4, labels=False), config=config)
    scores = tuple(TokenProbeScore(a, 1, 0, 1, 1) for a in accuracies)
    return dataclasses.replace(found, position=scores)


@pytest.mark.parametrize(
    ('accuracies', 'block'),
    [((0.4, 0.9, 0.8, 0.3, 0.1), 3), ((0.9, 0.5, 0.4, 0.3), 1), ((0.1, 0.2, 0.9), 2)],
)
def test_the_turning_block_is_where_position_is_lost(
    accuracies: tuple[float, ...], block: int
) -> None:
    assert turning_block(with_positions(*accuracies)) == block


def test_candidates_begin_with_the_papers_choice_and_come_once() -> None:
    found = draw_candidates(with_positions(0.4, 0.9, 0.3, 0.2, 0.1), [8, 64, 8])
    assert found[0] == Candidate((4,), 64)
    assert found[0].name == '[4]-r64'
    blocks = [(4,), (3, 4), (2, 4)]
    assert found == [Candidate(b, rank) for rank in (64, 8) for b in blocks]
    assert draw_candidates(with_positions(0.9, 0.8, 0.1), [8]) == [
        Candidate((2,), 8), Candidate((1, 2), 8),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match='No rank'):
        draw_candidates(with_positions(0.9, 0.8), [])


def trial(candidate: Candidate, right: Tensor | None, seed: int = 0, **more: Tensor) -> Trial:
    return Trial(candidate, seed, right, more.get('features', torch.zeros(2, 2)), 1.0, 10)


def answers(count: int, share: float) -> Tensor:
    return torch.arange(count) < round(share * count)


@pytest.mark.parametrize(
    ('share', 'sure'),
    [(0.7, 'clear'), (0.506, 'weak'), (0.502, 'none'), (0.5, 'none'), (0.3, 'none')],
)
def test_labelled_trials_decide_beyond_their_error(share: float, sure: str) -> None:
    trials = [trial(LAST, answers(1000, 0.5)), trial(TWO, answers(1000, share))]
    found = advise(trials, 0.4, LAST)
    assert found.sure == sure
    assert found.candidate == (LAST if sure == 'none' else TWO)
    assert found.measure == 'neighbours'
    row = found.table[1]
    difference = answers(1000, share).double() - answers(1000, 0.5).double()
    assert row.gain == pytest.approx(share - 0.5)
    assert row.error == pytest.approx(difference.std().item() / 1000**0.5)


def test_seeds_that_disagree_make_it_less_sure() -> None:
    trials = [trial(LAST, answers(1000, 0.5), seed) for seed in (0, 1)]
    alike = [trial(TWO, answers(1000, 0.6), seed) for seed in (0, 1)]
    apart = [trial(TWO, answers(1000, share), seed) for seed, share in ((0, 0.72), (1, 0.48))]
    first, second = advise([*trials, *alike], 0.4, LAST), advise([*trials, *apart], 0.4, LAST)
    assert first.chosen.gain == pytest.approx(second.table[1].gain)
    assert (first.sure, second.sure) == ('clear', 'none')
    assert second.table[1].error > 5 * first.chosen.error


def test_without_labels_the_effective_rank_decides() -> None:
    narrow = random(200, 20) * torch.logspace(0, -2, 20)
    wide = random(200, 20)
    trials = [trial(LAST, None, features=narrow), trial(TWO, None, features=wide)]
    found = advise(trials, 3.0, LAST)
    assert (found.candidate, found.sure, found.measure) == (TWO, 'clear', 'effective rank')
    assert found.chosen.score == effective_rank(wide)
    assert found.chosen.gain == pytest.approx(effective_rank(wide) - effective_rank(narrow))
    same = advise([trials[0], trial(TWO, None, features=narrow)], 3.0, LAST)
    assert (same.candidate, same.sure) == (LAST, 'none')


def test_a_missing_reference_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'no trial of \[11\]-r64'):
        advise([trial(TWO, None)], 0, LAST)


RECIPE = get_preset('small').override(
    global_size=32, local_size=16, n_local=1, prototypes=16, hidden_dim=16, base_lr=0.05,
    blend=1.0,
)  # fmt: skip


def test_a_trial_trains_what_it_says_and_leaves_the_base() -> None:
    vit = make_vit('patch8', embed_dim=24, depth=3)
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    images = random(12, 3, 32, 32).sigmoid()
    pilots = [
        run_pilot(
            vit, torch.zeros(1, 24), RECIPE, candidate, images, IMAGENET_MEAN, IMAGENET_STD, 3
        )
        for candidate in (Candidate((2,), 4), Candidate((1, 2), 4), Candidate((2,), 4))
    ]
    assert all(torch.equal(v, before[k]) for k, v in vit.state_dict().items())
    first, second, again = (pilot.model.state_dict() for pilot in pilots)
    assert set(first) == set(before)
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    mlp = 'blocks.1.mlp.fc1.weight'
    assert torch.equal(first[mlp], before[mlp])
    assert not torch.equal(second[mlp], before[mlp])
    assert not torch.equal(first['blocks.0.attn.qkv.weight'], before['blocks.0.attn.qkv.weight'])
    assert pilots[1].trainable > pilots[0].trainable
    assert pilots[0].seconds > 0


def test_a_trial_without_steps_is_refused() -> None:
    vit = make_vit('patch8')
    with pytest.raises(ConfigError, match='0 steps on 4 images'):
        run_pilot(vit, torch.zeros(1, 24), RECIPE, Candidate((2,), 4), torch.rand(4, 3, 32, 32),
                  IMAGENET_MEAN, IMAGENET_STD, 0)  # fmt: skip
