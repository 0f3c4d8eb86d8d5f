"""What is measured of a model before and after: probes where there are labels, health always."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import Dataset

from torchgeo_explora.cli.images import LabelledSplit, Sample, length, loader
from torchgeo_explora.objectives.diagnostics import (
    drift,
    effective_rank,
    feature_spread,
    linear_cka,
)
from torchgeo_explora.objectives.probing import (
    Features,
    Progress,
    extract_features,
    knn,
    logistic_regression,
)
from torchgeo_explora.transforms import EvalTransform

HEADLINE_K = 20
"""Neighbours of the headline number, as DINOv2 reports."""


@dataclass(frozen=True)
class Evaluation:
    """How features are made.

    Args:
        transform: Resizes, crops and normalises.
        device: Where the model runs.
        dtype: Number type of the model's arithmetic.
        workers: Processes that load images.
        batch_size: Images at once.
    """

    transform: EvalTransform
    device: torch.device
    dtype: torch.dtype
    workers: int = 0
    batch_size: int = 64

    def features(
        self,
        model: VisionTransformer,
        dataset: Dataset[Sample],
        blocks: int = 1,
        progress: Callable[[Progress], None] | None = None,
    ) -> Features:
        """Extract the features of a data set in its order."""
        return extract_features(
            model,
            loader(dataset, self.batch_size, self.workers),
            self.transform,
            min(blocks, len(model.blocks)),
            self.device,
            self.dtype,
            progress,
            length(dataset),
        )


@dataclass(frozen=True)
class Health:
    """State of a representation without labels.

    Args:
        effective_rank: Directions that the features use.
        spread: Mean standard deviation of the dimensions of normalised features.
        dim: Width of the features.
        images: Number of images it was measured on.
        drift: One minus the mean cosine to the base's features; None for the base.
        cka: Linear centred kernel alignment with the base's features; None for the base.
    """

    effective_rank: float
    spread: float
    dim: int
    images: int
    drift: float | None = None
    cka: float | None = None

    @classmethod
    def of(cls, features: Features, base: Features | None = None) -> 'Health':
        """Measure class tokens of the last block."""
        x = features.last
        rank, spread = effective_rank(x), feature_spread(x)
        if base is None:
            return cls(rank, spread, x.shape[1], len(x))
        return cls(rank, spread, x.shape[1], len(x), drift(base.last, x), linear_cka(base.last, x))


@dataclass(frozen=True)
class Scores:
    """Shares of the scored images that are classified correctly.

    Args:
        knn: By number of neighbours.
        linear: By logistic regression on class and mean patch tokens.
        reference_images: Images whose labels were used.
        scored_images: Images that were classified.
        classes: Number of classes.
        note: What was clipped; None for nothing.
    """

    knn: dict[int, float]
    linear: float
    reference_images: int
    scored_images: int
    classes: int
    note: str | None

    @property
    def headline(self) -> float:
        """Accuracy of nearest neighbours that is put first."""
        return self.knn[HEADLINE_K]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return {**asdict(self), 'knn': {str(k): accuracy for k, accuracy in self.knn.items()}}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> 'Scores':
        """Read what :meth:`to_dict` gave."""
        return cls(**{**content, 'knn': {int(k): v for k, v in content['knn'].items()}})


def score(
    reference: Features, scored: Features, split: LabelledSplit, device: torch.device
) -> Scores:
    """Score features by nearest neighbours and by logistic regression.

    Args:
        reference: Features whose labels are used.
        scored: Features that are classified.
        split: Where they come from.
        device: Where to compute.
    """
    neighbours = knn(reference, scored, device=device)
    linear = logistic_regression(reference, scored, device=device)
    return Scores(
        neighbours.accuracy,
        linear.accuracy,
        len(reference),
        len(scored),
        len(split.classes),
        neighbours.note,
    )


@dataclass(frozen=True)
class Verdict:
    """Whether an adaptation helped.

    Args:
        outcome: ``helped``, ``mixed``, ``within noise`` or ``did not help``.
        sentence: The numbers and what to do.
        noise: Standard error of a difference of accuracies.
    """

    outcome: str
    sentence: str
    noise: float


def judge(before: Scores, after: Scores) -> Verdict:
    """Compare probes before and after.

    A change counts where it exceeds the standard error of the difference of two accuracies,
    taken as independent; both are measured on the same images, so this errs on the careful side.
    """
    changes, noises = [], []
    for old, new in ((before.headline, after.headline), (before.linear, after.linear)):
        changes.append(new - old)
        noises.append(sqrt((old * (1 - old) + new * (1 - new)) / after.scored_images))
    rose = [change > noise for change, noise in zip(changes, noises, strict=True)]
    fell = [change < -noise for change, noise in zip(changes, noises, strict=True)]
    outcome, advice = _outcome(rose, fell)
    return Verdict(outcome, f'{compare(before, after)}: {advice}', max(noises))


def compare(before: Scores, after: Scores) -> str:
    """Write the headline numbers before and after."""
    pairs = (
        ('kNN', before.headline, after.headline),
        ('linear', before.linear, after.linear),
    )
    return ', '.join(f'{name} {100 * old:.1f} -> {100 * new:.1f} %' for name, old, new in pairs)


def _outcome(rose: list[bool], fell: list[bool]) -> tuple[str, str]:
    if any(rose) and not any(fell):
        return 'helped', 'helped'
    if any(rose):
        better, worse = ('neighbours', 'the linear probe') if rose[0] else (
            'the linear probe', 'neighbours'
        )  # fmt: skip
        return 'mixed', (
            f'mixed. {better.capitalize()} gained and {worse} lost: '
            'adapt for longer, or keep the original weights for that use'
        )
    if any(fell):
        return 'did not help', 'did not help: keep the original weights'
    return 'within noise', 'no change beyond the noise of so few images: keep the original weights'
