"""What is kept of a test while it runs; its size does not grow with the number of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.tasks._reports.classes import ClassInfo
from torchgeo_explora.tasks._reports.colors import photograph, shown_bands, thinned
from torchgeo_explora.tasks._reports.examples import Example, Ranked, Top, highest, lot
from torchgeo_explora.tasks._reports.scores import Counts, count_pairs

DRAWN = {False: 24, True: 6}
"""Images, and tiles with masks (True), that are drawn by lot."""
WORST = {False: 12, True: 3}
"""Mistakes that are shown, and tiles with most errors (True)."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """A batch with its predictions; a true class of -1 is not scored.

    Args:
        images: (B, C, H, W) or (B, T, C, H, W).
        truth: Class indices, (B,) or (B, H, W).
        prediction: Class indices, the same shape.
        confidence: Probability of the predicted class (B,); None for masks.
    """

    images: Tensor
    truth: Tensor
    prediction: Tensor
    confidence: Tensor | None


def read_batch(batch: Mapping[str, Any], logits: Tensor, info: ClassInfo) -> Predicted:
    """Lay truth and prediction of a batch side by side.

    Args:
        batch: ``image``, and ``label`` or ``mask``.
        logits: Of the model, (B, K) or (B, K, H, W).
        info: What is known of the classes.

    Raises:
        ConfigError: If there is no truth, or classes that the model does not know.
    """
    key = 'mask' if info.dense else 'label'
    if not isinstance(batch.get(key), Tensor) or not isinstance(batch.get('image'), Tensor):
        raise ConfigError(
            f'The test batches hold {sorted(batch)}; a report needs image and {key}: use a data '
            'set with labels.'
        )
    prediction, confidence = decide(logits, info)
    truth = batch[key].long()
    truth = truth.squeeze(1) if info.dense and truth.ndim == 4 else truth
    if info.ignore_index is not None:
        truth = torch.where(truth == info.ignore_index, -1, truth)
    _check_truth(truth, prediction, info)
    return Predicted(batch['image'], truth, prediction, None if info.dense else confidence)


def decide(scores: Tensor, info: ClassInfo, probabilities: bool = False) -> tuple[Tensor, Tensor]:
    """Return the most probable class and its probability.

    Args:
        scores: (B, K) or (B, K, H, W); K is 1 if binary.
        info: What is known of the classes.
        probabilities: Whether the scores are probabilities already, not logits.
    """
    if info.kind == 'binary':
        positive = (scores if probabilities else scores.float().sigmoid())[:, 0]
        return (positive >= 0.5).long(), torch.maximum(positive, 1 - positive)
    certainty = scores if probabilities else scores.float().softmax(dim=1)
    confidence, prediction = certainty.max(dim=1)
    return prediction, confidence


def _check_truth(truth: Tensor, prediction: Tensor, info: ClassInfo) -> None:
    if truth.shape != prediction.shape:
        raise ConfigError(
            f'Labels are of shape {tuple(truth.shape)} and predictions of {tuple(prediction.shape)}'
            ': give one class for each.'
        )
    ignored = -1 if info.ignore_index is not None else 0  # -1 stands for what is not scored
    strange = (truth < ignored) | (truth >= len(info.names))
    if strange.any():
        found = truth[strange].unique().tolist()[:5]
        raise ConfigError(
            f'The test labels hold {found}, and the model knows the classes 0 to '
            f'{len(info.names) - 1}: leave these images out, or set ignore_index.'
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was collected.

    Args:
        counts: True against predicted classes, (K, K).
        drawn: Samples drawn by lot, with their ranks.
        worst: Most confident mistakes, or tiles with most errors, with their ranks.
        unscored: Labels (images or pixels) that are not scored.
        images: How many were tested.
    """

    counts: Counts
    drawn: list[Ranked]
    worst: list[Ranked]
    unscored: int
    images: int


class Collector:
    """Counts pairs of classes and keeps a few samples.

    Args:
        info: What is known of the classes.
        drawn: Samples drawn by lot.
        worst: Worst samples.
        seed: Of the lot.
        bands: Names of the bands shown; chosen by default.
    """

    def __init__(
        self,
        info: ClassInfo,
        drawn: int | None = None,
        worst: int | None = None,
        seed: int = 0,
        bands: Sequence[str] | None = None,
    ) -> None:
        self.info, self.seed = info, seed
        self.bands = info.bands if bands is None else tuple(bands)
        self.drawn = Top(DRAWN[info.dense] if drawn is None else drawn)
        self.worst = Top(WORST[info.dense] if worst is None else worst)
        self.counts: Tensor | None = None
        self.unscored = self.images = 0
        self.seen = 0

    def add(self, batch: Predicted, positions: Sequence[int | None]) -> None:
        """Count a batch.

        Args:
            batch: Images and classes.
            positions: Of its samples in the data set; None for one that is there only to fill
                up a distributed batch, and does not count.
        """
        self.seen += len(positions)
        rows = [row for row, position in enumerate(positions) if position is not None]
        truth, prediction = batch.truth[rows], batch.prediction[rows]
        scored = truth >= 0
        counts = count_pairs(truth[scored], prediction[scored], len(self.info.names))
        self.counts = counts if self.counts is None else self.counts + counts
        self.unscored += int((~scored).sum())
        self.images += len(rows)
        wrong = (scored & (truth != prediction)).reshape(len(rows), -1).sum(dim=1)
        errors = wrong / scored.reshape(len(rows), -1).sum(dim=1).clamp(min=1)
        sure = [None] * len(rows) if batch.confidence is None else batch.confidence[rows].tolist()
        for row, error, confidence in zip(rows, errors.tolist(), sure, strict=True):
            self._offer(batch, row, positions[row], error, confidence)

    def _offer(
        self, batch: Predicted, row: int, index: int | None, error: float, sure: float | None
    ) -> None:
        assert index is not None, 'only what counts is offered'

        def make() -> Example:
            image = batch.images[row].float().cpu().numpy()
            shown = photograph(image, shown_bands(self.bands, image.shape[-3]))
            masks = (_array(batch.truth[row]), _array(batch.prediction[row]))
            return Example(index, shown, *masks, sure, error)

        self.drawn.offer(lot(self.seed, index), index, make)
        if error > 0:
            self.worst.offer(error if sure is None else sure, index, make)

    def outcome(self) -> Outcome:
        """Return what was collected."""
        count = len(self.info.names)
        empty = torch.zeros(count, count, dtype=torch.int64)
        counts = (empty if self.counts is None else self.counts).cpu().numpy()
        return Outcome(counts, self.drawn.ranked(), self.worst.ranked(), self.unscored, self.images)

    def joined(self, parts: Sequence[Outcome]) -> Outcome:
        """Return what several processes collected together.

        Args:
            parts: Of all of them.
        """
        return Outcome(
            np.sum([part.counts for part in parts], axis=0),
            highest([part.drawn for part in parts], self.drawn.count),
            highest([part.worst for part in parts], self.worst.count),
            sum(part.unscored for part in parts),
            sum(part.images for part in parts),
        )


def _array(mask: Tensor) -> NDArray[np.int64]:
    array: NDArray[np.int64] = mask.cpu().numpy()
    return thinned(array) if array.ndim == 2 else array
