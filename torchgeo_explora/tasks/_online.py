"""Measuring a backbone while it trains, without leaving a trace in the training."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from torchgeo.datamodules import BaseDataModule

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.probing import Features, extract_features

Measurement = dict[str, dict[str, float]]
"""Values by network and by metric."""

_NEEDED = ('backbones', 'collapse_reason', 'eval_transform')
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


class ProbedTask(Protocol):
    """What online probes need from a task.

    Attributes:
        eval_transform: Resizes, crops and normalises a batch of images in [0, 1].
        collapse_reason: Why training was stopped, set by the guard; None for a healthy run.
    """

    eval_transform: nn.Module
    collapse_reason: str | None

    def backbones(self) -> Mapping[str, VisionTransformer]:
        """Return the networks by name, ``student`` and ``teacher``."""


def probed(task: pl.LightningModule) -> ProbedTask:
    """Return a task that has what online probes need.

    Raises:
        ConfigError: If it has not.
    """
    absent = object()  # isinstance does not see sub-modules, which are no attributes of the class
    if any(getattr(task, name, absent) is absent for name in _NEEDED):
        raise ConfigError(
            f'{type(task).__name__} has no backbones to probe: use this callback with a '
            'pre-training task of this package, for example ExPLoRADINOv2.'
        )
    return cast('ProbedTask', task)


@contextmanager
def undisturbed(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Restore all random states and every module's mode after a measurement."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    with isolate_rng():
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


class OnlineCheck(Callback, ABC):
    """Measures the networks before training, every few optimizer steps, and at the end.

    Measured on the first process and sent to the others. Training goes on exactly as it would
    without: random states and modes are restored. What was measured is part of the checkpoint, so
    that a resumed run compares with the same base.

    Args:
        every_n_steps: Optimizer steps between two measurements.
        data: Data module that the images come from; the trainer's own by default.
        networks: Which of the task's networks are measured.
        dtype: ``float32``, or the half precision of autocast.
        batch_size: Images at once.
        seed: Draws the images.

    Raises:
        ConfigError: If an argument is not possible.
    """

    def __init__(
        self,
        every_n_steps: int,
        data: BaseDataModule | None,
        networks: Iterable[str],
        dtype: Literal['float32', 'bfloat16', 'float16'],
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        if every_n_steps < 1 or batch_size < 1:
            raise ConfigError(
                f'every_n_steps is {every_n_steps} and batch_size {batch_size}: both must be at '
                'least 1.'
            )
        if dtype not in DTYPES:
            raise ConfigError(f'dtype is {dtype!r}: use one of {", ".join(DTYPES)}.')
        self.every_n_steps, self.data, self.networks = every_n_steps, data, tuple(networks)
        self.dtype, self.batch_size, self.seed = DTYPES[dtype], batch_size, seed
        self.base: Measurement | None = None
        self.records: list[tuple[int, Measurement]] = []

    @abstractmethod
    def prepare(self, datamodule: BaseDataModule) -> None:
        """Choose the images.

        Args:
            datamodule: Set up.
        """

    @abstractmethod
    def measure(self, network: str, model: VisionTransformer, task: ProbedTask) -> dict[str, float]:
        """Measure one network; values by the name that they are logged under.

        Args:
            network: Its name.
            model: The network.
            task: Gives the transform.
        """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the images of the run."""
        if stage != 'fit':
            return
        names = set(probed(pl_module).backbones())
        if not set(self.networks) <= names:
            raise ConfigError(
                f'The networks to probe are {self.networks}, the task has {sorted(names)}: name '
                'some of those.'
            )
        datamodule = getattr(trainer, 'datamodule', None) if self.data is None else self.data
        if not isinstance(datamodule, BaseDataModule):
            raise ConfigError(
                f'{type(self).__name__} has no data module to take images from: give it one as '
                'data, or train with a TorchGeo data module.'
            )
        if self.data is not None:
            datamodule.prepare_data()
            datamodule.setup('fit')
        with isolate_rng():
            self.prepare(datamodule)

    def features(
        self, model: VisionTransformer, dataset: Dataset[Any], task: ProbedTask
    ) -> Features:
        """Features of the last block of all images of a data set, in its order."""
        loader = DataLoader(dataset, self.batch_size, collate_fn=default_collate)
        batches = ({k: v for k, v in batch.items() if isinstance(v, Tensor)} for batch in loader)
        return extract_features(model, batches, task.eval_transform, 1, dtype=self.dtype)

    def _measure_all(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Measurement:
        task = probed(pl_module)
        models = task.backbones()
        found: Measurement | None = None
        if trainer.is_global_zero:
            with undisturbed([pl_module]):
                found = {name: self.measure(name, models[name], task) for name in self.networks}
        # None on the other processes, where broadcasting fills it
        return trainer.strategy.broadcast(cast('Measurement', found))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the base, unless a checkpoint brought it."""
        if self.base is None:
            self.base = self._measure_all(trainer, pl_module)
            self._to_loggers(trainer, self.base)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Measure where it is time to."""
        if trainer.global_step % self.every_n_steps or not self._advance(trainer, pl_module):
            return
        for name, value in flat(self.records[-1][1]).items():  # for checkpoints to monitor
            pl_module.log(name, value, on_step=True, on_epoch=False, logger=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the result."""
        self._advance(trainer, pl_module)

    def _advance(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Measure unless this step was measured already."""
        step, last = trainer.global_step, self.records[-1][0] if self.records else 0
        if step == last:
            return False
        self.records.append((step, self._measure_all(trainer, pl_module)))
        self._to_loggers(trainer, self.records[-1][1])
        return True

    def _to_loggers(self, trainer: pl.Trainer, found: Measurement) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(flat(found), step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far."""
        return {'base': self.base, 'records': list(self.records)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was measured before.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self.base, self.records = state_dict['base'], list(state_dict['records'])


def flat(found: Measurement) -> dict[str, float]:
    """Values under the names that they are logged under, for example ``teacher/rank``."""
    return {
        f'{net}/{name}': value for net, values in found.items() for name, value in values.items()
    }
