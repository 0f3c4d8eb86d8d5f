"""Counts of true against predicted classes, and the scores that follow from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

type Counts = NDArray[np.int64]
"""(K, K): how many samples of the class of the row were taken for the class of the column."""


def count_pairs(truth: Tensor, prediction: Tensor, classes: int) -> Tensor:
    """Count pairs of a true and a predicted class.

    Args:
        truth: Class indices in [0, K), any shape.
        prediction: Class indices in [0, K), the same shape.
        classes: Their number K.

    Returns:
        int64 (K, K), a row for every true class, on the device of ``truth``.
    """
    pairs = truth.flatten().long() * classes + prediction.flatten().long()
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


@dataclass(frozen=True)
class ClassScore:
    """How one class fared. A score is None where nothing defines it (0 / 0).

    Args:
        name: Of the class.
        support: Samples (images or pixels) that are of it.
        predicted: Samples that were taken for it.
        correct: Samples that are of it and were taken for it.
    """

    name: str
    support: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float | None:
        """Share of the predicted that is right; None if nothing was predicted."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> float | None:
        """Share of the class that was found; None if there is nothing of it."""
        return _ratio(self.correct, self.support)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None for a class neither there nor predicted."""
        return _ratio(2 * self.correct, self.support + self.predicted)

    @property
    def iou(self) -> float | None:
        """Intersection over union; None for a class neither there nor predicted."""
        return _ratio(self.correct, self.support + self.predicted - self.correct)

    def row(self) -> dict[str, str | int | float | None]:
        """Everything, for a table."""
        return {
            'class': self.name,
            'support': self.support,
            'predicted': self.predicted,
            'correct': self.correct,
            'precision': self.precision,
            'recall': self.recall,
            'f1': self.f1,
            'iou': self.iou,
        }


@dataclass(frozen=True)
class Confused:
    """How often one class was taken for another.

    Args:
        truth: Name of the true class.
        prediction: Name of the predicted class.
        count: Samples.
        share: Share of the true class, in [0, 1].
    """

    truth: str
    prediction: str
    count: int
    share: float


def class_scores(
    counts: Counts, names: Sequence[str], ignored: int | None = None
) -> list[ClassScore]:
    """Return the scores of every class.

    Args:
        counts: True against predicted classes.
        names: Of all classes.
        ignored: A class that is not scored.
    """
    columns = zip(names, counts.sum(axis=1), counts.sum(axis=0), counts.diagonal(), strict=True)
    return [
        ClassScore(name, int(support), int(predicted), int(correct))
        for index, (name, support, predicted, correct) in enumerate(columns)
        if index != ignored
    ]


def overall(scores: Sequence[ClassScore]) -> dict[str, int | float | None]:
    """Sum up: the share that is right, and plain means over the classes that define a score.

    Args:
        scores: Of the classes.

    Returns:
        ``samples``, ``classes_present``, ``accuracy``, and ``mean_precision``, ``mean_recall``
        (over classes that are present), ``mean_f1`` and ``mean_iou`` (over classes present or
        predicted); None where no class defines it.
    """
    samples = sum(score.support for score in scores)
    return {
        'samples': samples,
        'classes_present': sum(score.support > 0 for score in scores),
        'accuracy': _ratio(sum(score.correct for score in scores), samples),
        'mean_precision': _mean(score.precision for score in scores),
        'mean_recall': _mean(score.recall for score in scores),
        'mean_f1': _mean(score.f1 for score in scores),
        'mean_iou': _mean(score.iou for score in scores),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _ratio(sum(known), len(known))


def largest_confusions(counts: Counts, names: Sequence[str], limit: int) -> list[Confused]:
    """Return what was confused most often, most frequent first, at most ``limit`` pairs."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind='stable')[:limit]
    rows, columns = np.unravel_index(order, wrong.shape)
    supports = counts.sum(axis=1)
    return [
        Confused(names[row], names[column], int(wrong[row, column]),
                 float(wrong[row, column] / supports[row]))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if wrong[row, column] > 0
    ]  # fmt: skip
