"""Callbacks that watch a pre-training run, and stop it when the representation collapses."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Dataset
from torchgeo.datamodules import BaseDataModule

from torchgeo_explora.errors import CollapseError, ConfigError
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
)
from torchgeo_explora.objectives.probing import knn
from torchgeo_explora.tasks._online import OnlineCheck, ProbedTask, probed
from torchgeo_explora.tasks._subsets import draw, length

NETWORKS = ('student', 'teacher')
LOSS_EVERY = 50
"""Steps between two looks at whether the loss is finite, each of which waits for the device."""


class OnlineKNN(OnlineCheck):
    """Accuracy of nearest neighbours on labelled images while training.

    Logs ``teacher/knn`` and ``student/knn``, shares in [0, 1]. Labels are used for nothing else.

    Args:
        every_n_steps: Optimizer steps between two measurements.
        data: Data module with labelled training and validation images; the trainer's by default.
        train_images: Images, drawn from the training images, in which neighbours are looked up;
            never one of the validation images.
        val_images: Images, drawn from the validation images, that are classified.
        k: Number of neighbours.
        networks: Which of the task's networks are measured.
        dtype: ``float32``, or the half precision of autocast.
        batch_size: Images at once.
        seed: Draws the images.

    Raises:
        ConfigError: If an argument is not possible, or there are no labelled images.
    """

    def __init__(
        self,
        every_n_steps: int = 200,
        data: BaseDataModule | None = None,
        train_images: int = 2000,
        val_images: int = 1000,
        k: int = 20,
        networks: Iterable[str] = NETWORKS,
        dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32',
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps, data, networks, dtype, batch_size, seed)
        if min(train_images, val_images, k) < 1:
            raise ConfigError(
                f'train_images is {train_images}, val_images {val_images} and k {k}: each must be '
                'at least 1.'
            )
        self.train_images, self.val_images, self.k = train_images, val_images, k

    def prepare(self, datamodule: BaseDataModule) -> None:
        """Draw the images.

        Args:
            datamodule: Set up.
        """
        train, val = datamodule.train_dataset, datamodule.val_dataset
        if train is None or val is None:
            raise ConfigError(
                f'{type(datamodule).__name__} has no labelled images for nearest neighbours: leave '
                'OnlineKNN out, or give it a data module with class folders as data.'
            )
        self.bank = draw(train, self.train_images, self.seed, without=val)
        self.queries = draw(val, self.val_images, self.seed)

    def measure(self, network: str, model: VisionTransformer, task: ProbedTask) -> dict[str, float]:
        """Return the accuracy of one network.

        Args:
            network: Its name.
            model: The network.
            task: Gives the transform.
        """
        train, val = (self.features(model, images, task) for images in (self.bank, self.queries))
        return {'knn': knn(train, val, (self.k,)).accuracy[self.k]}


class FeatureHealth(OnlineCheck):
    """Rank and spread of the class tokens, and their drift from the base, while training.

    On a fixed subset of the training images; no labels are needed. Logs for each network ``rank``
    (effective rank), ``cosine`` (mean over pairs of images), ``spread``, ``drift`` (one minus the
    mean cosine with the base) and ``cka`` (linear alignment with the base).

    Args:
        every_n_steps: Optimizer steps between two measurements.
        data: Data module that the images come from; the trainer's by default.
        images: Number of images. The rank is at most this minus one: take more than the width.
        networks: Which of the task's networks are measured.
        dtype: ``float32``, or the half precision of autocast.
        batch_size: Images at once.
        seed: Draws the images.

    Raises:
        ConfigError: If an argument is not possible.
    """

    def __init__(
        self,
        every_n_steps: int = 200,
        data: BaseDataModule | None = None,
        images: int = 512,
        networks: Iterable[str] = NETWORKS,
        dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32',
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps, data, networks, dtype, batch_size, seed)
        if images < 2:
            raise ConfigError(f'images is {images}: the features of at least 2 can be compared.')
        self.images = images
        self.base_features: dict[str, Tensor] = {}

    def prepare(self, datamodule: BaseDataModule) -> None:
        """Draw the images.

        Args:
            datamodule: Set up.
        """
        dataset: Dataset[Any] | None = datamodule.train_dataset
        if dataset is None or length(dataset) < 2:
            raise ConfigError(
                f'{type(datamodule).__name__} has fewer than 2 training images: give more.'
            )
        self.subset = draw(dataset, self.images, self.seed)

    def measure(self, network: str, model: VisionTransformer, task: ProbedTask) -> dict[str, float]:
        """Return the health of one network.

        Args:
            network: Its name.
            model: The network.
            task: Gives the transform.
        """
        features = self.features(model, self.subset, task).last
        base = self.base_features.setdefault(network, features)
        return {
            'rank': effective_rank(features),
            'cosine': mean_pairwise_cosine(features),
            'spread': feature_spread(features),
            'drift': drift(base, features),
            'cka': linear_cka(base, features),
        }

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far, and the base's features."""
        return {**super().state_dict(), 'base_features': dict(self.base_features)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was measured before.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        super().load_state_dict(state_dict)
        self.base_features = dict(state_dict['base_features'])


class CollapseGuard(Callback):
    """Ends a run whose representation has collapsed, and says why in plain words.

    Judges what :class:`FeatureHealth` and, where it is there, :class:`OnlineKNN` measured (list
    both before it), the loss, and on demand how many prototypes are used. The rules are those of
    :func:`torchgeo_explora.objectives.diagnostics.collapse_verdict`.

    Args:
        on_collapse: ``stop`` ends training and has the task export nothing, ``raise`` raises,
            ``warn`` warns once and goes on.
        limits: Where collapse begins.
        loss_metric: Name that the task logs its loss under.
        prototypes_metric: Name that a task logs the entropy of the mean assignment under, after
            centring and as a share of log K; not judged by default, as before centring one
            prototype may lead in a healthy run.

    Raises:
        ConfigError: If an argument is not possible, or there is no :class:`FeatureHealth`.
        CollapseError: During training, with ``raise``.

    Attributes:
        reason: Why the run was found collapsed, or None.
    """

    def __init__(
        self,
        on_collapse: Literal['stop', 'raise', 'warn'] = 'stop',
        limits: CollapseLimits | None = None,
        loss_metric: str = 'train_loss',
        prototypes_metric: str | None = None,
    ) -> None:
        super().__init__()
        if on_collapse not in ('stop', 'raise', 'warn'):
            raise ConfigError(f'on_collapse is {on_collapse!r}: use stop, raise or warn.')
        self.on_collapse = on_collapse
        self.limits = CollapseLimits() if limits is None else limits
        self.loss_metric, self.prototypes_metric = loss_metric, prototypes_metric
        self.reason: str | None = None
        self.finite: Tensor | bool = True
        self.own: dict[int, HealthCheck] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the callbacks whose measurements are judged."""
        if stage != 'fit':
            return
        probed(pl_module)
        before = trainer.callbacks[: trainer.callbacks.index(self)]  # type: ignore[attr-defined]
        self.health = [c for c in before if isinstance(c, FeatureHealth)]
        self.neighbours = [c for c in before if isinstance(c, OnlineKNN)]
        if not self.health:
            raise ConfigError(
                'CollapseGuard has nothing to judge by: list FeatureHealth before it among the '
                'callbacks, and OnlineKNN where there are labelled images.'
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Look at the loss, and judge where something new was measured."""
        loss = trainer.callback_metrics.get(self.loss_metric)
        if loss is not None:
            self.finite = torch.isfinite(loss.detach()) & torch.as_tensor(self.finite).to(
                loss.device
            )
        step = trainer.global_step
        measured = {r[0] for check in (*self.health, *self.neighbours) for r in check.records[-1:]}
        if step in measured or (step > 0 and step % LOSS_EVERY == 0):
            self._judge(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge the result."""
        self._judge(trainer, pl_module)

    def _judge(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if step not in self.own:
            used = self._prototypes(trainer.callback_metrics)
            finite = trainer.strategy.reduce_boolean_decision(bool(self.finite), all=True)
            self.own[step] = HealthCheck(step, finite, prototypes=used)
        for network in sorted({name for check in self.health for name in check.networks}):
            verdict = collapse_verdict(self.history(network), self.limits)
            if verdict.collapsed:
                self._react(
                    trainer, probed(pl_module), f'The {network} collapsed. {verdict.reason}'
                )
                return

    def _prototypes(self, metrics: Mapping[str, Tensor]) -> float | None:
        if self.prototypes_metric is None or self.prototypes_metric not in metrics:
            return None
        return float(metrics[self.prototypes_metric])

    def history(self, network: str) -> HealthHistory:
        """Join everything that was measured of one network.

        Args:
            network: Its name.
        """
        values: dict[int, dict[str, float]] = {}
        base: dict[str, float] = {}
        for check in (*self.health, *self.neighbours):
            if check.base is not None:
                base |= check.base.get(network, {})
            for step, found in check.records:
                values.setdefault(step, {}).update(found.get(network, {}))
        checks = [_check(step, found) for step, found in values.items()] + list(self.own.values())
        checks.sort(key=lambda check: check.step)
        images = min((len(check.queries) for check in self.neighbours), default=None)
        return HealthHistory(_check(0, base), tuple(checks), images)

    def _react(self, trainer: pl.Trainer, task: ProbedTask, reason: str) -> None:
        first = self.reason is None
        self.reason = reason
        if self.on_collapse == 'raise':
            raise CollapseError(reason)
        if first:
            rank_zero_warn(reason)
        if self.on_collapse == 'stop':
            task.collapse_reason = reason
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What was seen of the loss and the prototypes, and the reason."""
        own = [(check.step, check.loss_finite, check.prototypes) for check in self.own.values()]
        return {'reason': self.reason, 'finite': bool(self.finite), 'own': own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was seen before.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self.reason, self.finite = state_dict['reason'], state_dict['finite']
        self.own = {
            step: HealthCheck(step, finite, prototypes=used)
            for step, finite, used in state_dict['own']
        }


def _check(step: int, values: Mapping[str, float]) -> HealthCheck:
    return HealthCheck(
        step, rank=values.get('rank'), cosine=values.get('cosine'), knn=values.get('knn')
    )
