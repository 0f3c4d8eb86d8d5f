"""Which blocks to unfreeze and which rank: candidates from the blocks, a choice from short trials."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.analysis.pilot import Candidate
from torchgeo_explora.analysis.study import BlockMeasures
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.diagnostics import effective_rank

RESAMPLES = 20
"""Draws of images, with replacement, that the spread of an effective rank is taken from."""
CLEAR, WEAK = 3.0, 2.0
"""Standard errors that a difference must have to be called clear, or weak. Several candidates are
compared with the reference: of five that are just as good, one seems better by two errors in about
one case of nine."""


@dataclass(frozen=True, eq=False)
class Trial:
    """What a candidate's trial with one seed was worth.

    Args:
        candidate: Blocks and rank.
        seed: Of the trial.
        right: Which scored images nearest neighbours classify correctly; None without labels.
        features: Class tokens of the scored images.
        seconds: Time of a step.
        trainable: Weights that trained.
    """

    candidate: Candidate
    seed: int
    right: Bool[Tensor, ' images'] | None
    features: Float[Tensor, 'images dim']
    seconds: float
    trainable: int

    @property
    def score(self) -> float:
        """Accuracy of nearest neighbours, or the effective rank of the features."""
        if self.right is not None:
            return self.right.double().mean().item()
        return effective_rank(self.features)


@dataclass(frozen=True)
class Comparison:
    """How a candidate's trials compare with those of the reference.

    Args:
        candidate: Blocks and rank.
        score: Mean over the seeds.
        gain: Mean difference to the reference on the same images with the same seeds.
        error: Standard error of ``gain``: of the images, and of the seeds where there are several.
        seconds: Time of a step.
        trainable: Weights that train.
    """

    candidate: Candidate
    score: float
    gain: float
    error: float
    seconds: float
    trainable: int


@dataclass(frozen=True)
class Advice:
    """What to unfreeze, with which rank, and how sure that is.

    Args:
        candidate: What is suggested.
        sure: ``clear``: better than the reference by three standard errors; ``weak``: by two;
            ``none``: no candidate is, and the reference is suggested.
        measure: ``neighbours`` with labels, ``effective rank`` without.
        base: Score of the model before any adaptation.
        reference: The paper's choice, the last block and rank 64.
        table: One entry a candidate.
    """

    candidate: Candidate
    sure: Literal['clear', 'weak', 'none']
    measure: Literal['neighbours', 'effective rank']
    base: float
    reference: Candidate
    table: tuple[Comparison, ...]

    @property
    def chosen(self) -> Comparison:
        """Comparison of what is suggested."""
        return next(row for row in self.table if row.candidate == self.candidate)


def turning_block(measures: BlockMeasures) -> int:
    """Return the block at which patches lose most of what they tell of their position.

    From there on patches speak of the whole image rather than of their place: of the blocks after
    the best one for positions, the one with the largest fall.

    Args:
        measures: Of all blocks of the base.

    Source: ExPLoRA, section 6.3, reads the blocks to unfreeze from such curves; this rule is ours.
    """
    known = measures.position_accuracy
    top = int(np.argmax(known))
    falls = known[top:-1] - known[top + 1 :]
    if len(falls) == 0:
        return measures.blocks[-1]
    return measures.blocks[top + 1 + int(np.argmax(falls))]


def draw_candidates(measures: BlockMeasures, ranks: Sequence[int]) -> list[Candidate]:
    """Return what is worth a trial, the paper's choice first.

    The last block alone, the last two, and the last with the turning block; each with every rank.

    Args:
        measures: Of all blocks of the base.
        ranks: Ranks to try; the largest is that of the reference.

    Raises:
        ConfigError: If there is no rank.
    """
    if not ranks:
        raise ConfigError('No rank is given to choose from: give some, for instance 8 and 64.')
    last = measures.blocks[-1]
    turn = turning_block(measures)
    sets = dict.fromkeys([(last,), (max(last - 1, 0), last), tuple(sorted({turn, last}))])
    blocks = [tuple(sorted(set(chosen))) for chosen in sets]
    found = [Candidate(b, rank) for rank in sorted(set(ranks), reverse=True) for b in blocks]
    return list(dict.fromkeys(found))


def advise(trials: Sequence[Trial], base: float, reference: Candidate) -> Advice:
    """Choose among candidates by their trials.

    The reference stays unless another is better by at least two standard errors; of those, the one
    with the largest gain in standard errors is taken.

    Args:
        trials: Every candidate with every seed, scored on the same images.
        base: Score of the model before any adaptation.
        reference: What to suggest where nothing is better.

    Raises:
        ConfigError: If the reference has no trial.

    Source: without labels, candidates are ranked by the effective rank of the features (Garrido et
    al. 2023, RankMe), here of class tokens after the final norm.
    """
    groups: dict[Candidate, dict[int, Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.candidate, {})[trial.seed] = trial
    if reference not in groups:
        raise ConfigError(f'There is no trial of {reference.name}, which others are compared with.')
    table = tuple(_compare(group, groups[reference]) for group in groups.values())
    best = max(table, key=lambda row: row.gain / row.error if row.error > 0 else 0.0)
    ratio = best.gain / best.error if best.error > 0 else 0.0
    sure: Literal['clear', 'weak', 'none'] = 'none'
    if ratio >= WEAK:
        sure = 'clear' if ratio >= CLEAR else 'weak'
    labelled = trials[0].right is not None
    return Advice(
        best.candidate if sure != 'none' else reference, sure,
        'neighbours' if labelled else 'effective rank', base, reference, table,
    )  # fmt: skip


def _compare(group: Mapping[int, Trial], reference: Mapping[int, Trial]) -> Comparison:
    seeds = sorted(group)
    gains, errors = zip(*(_difference(group[s], reference[s]) for s in seeds), strict=True)
    variance = sum(error**2 for error in errors) / len(seeds) ** 2
    if len(seeds) > 1:
        variance += float(np.var(gains, ddof=1)) / len(seeds)
    first = group[seeds[0]]
    return Comparison(
        first.candidate,
        float(np.mean([trial.score for trial in group.values()])),
        float(np.mean(gains)),
        math.sqrt(variance),
        float(np.median([trial.seconds for trial in group.values()])),
        first.trainable,
    )


def _difference(trial: Trial, reference: Trial) -> tuple[float, float]:
    """Difference of scores on the same images, and its standard error over draws of images."""
    if trial.right is not None and reference.right is not None:
        paired = trial.right.double() - reference.right.double()
        return paired.mean().item(), paired.std().item() / math.sqrt(len(paired))
    draws = _resampled(trial.features) - _resampled(reference.features)
    return trial.score - reference.score, float(draws.std(ddof=1))


def _resampled(features: Float[Tensor, 'images dim']) -> NDArray[np.float64]:
    """Effective ranks of draws of the images, the same draws for every candidate."""
    generator = torch.Generator().manual_seed(0)
    count = len(features)
    draws = [torch.randint(count, (count,), generator=generator) for _ in range(RESAMPLES)]
    return np.array([effective_rank(features[draw]) for draw in draws])
