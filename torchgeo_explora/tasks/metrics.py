"""Metrics of benchmarks as torchmetrics modules, for any task that predicts classes."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.metrics import (
    accuracy,
    confusion_counts,
    macro_f1,
    macro_recall,
)

OFFICIAL = {'accuracy': accuracy, 'macro_recall': macro_recall, 'macro_f1': macro_f1}
"""What WILDS reports, by name."""


@final
class OfficialMetric(Metric):
    """One of WILDS' metrics over all batches and devices.

    Macro averages are over the classes that occur among the true ones, as in WILDS, not over all
    that the model knows, as in torchmetrics.

    Args:
        name: ``accuracy``, ``macro_recall`` or ``macro_f1``.
        num_classes: Number of classes that are predicted.

    Raises:
        ConfigError: If there is no such metric.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        if name not in OFFICIAL or num_classes < 1:
            raise ConfigError(
                f'The metric is {name!r} of {num_classes} classes: give one of '
                f'{", ".join(OFFICIAL)}, and at least one class.'
            )
        self.name, self.num_classes = name, num_classes
        empty = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state('counts', empty, dist_reduce_fx='sum')

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            preds: Scores of the classes (B, K), or predicted classes (B,).
            target: True classes (B,).

        Raises:
            ConfigError: If a class is not one of those that are predicted.
        """
        predicted = preds.argmax(dim=1) if preds.ndim == 2 else preds
        self.counts += confusion_counts(predicted, target, self.num_classes)

    def compute(self) -> Tensor:
        """The metric over all that was counted, 0 to 1."""
        return OFFICIAL[self.name](self.counts).float()


def official_metrics(names: Sequence[str], num_classes: int, prefix: str = '') -> MetricCollection:
    """The metrics that a benchmark reports; they share their counts.

    Args:
        names: Some of ``accuracy``, ``macro_recall`` and ``macro_f1``, for example the attribute
            ``official_metrics`` of a data module.
        num_classes: Number of classes that are predicted.
        prefix: Put before the names under which they are logged, for example ``val_``.

    Returns:
        The metrics, as ``<prefix>official_<name>``.

    Raises:
        ConfigError: If there is no such metric.
    """
    metrics = {f'official_{name}': OfficialMetric(name, num_classes) for name in names}
    return MetricCollection(dict[str, Metric | MetricCollection](metrics), prefix=prefix)
