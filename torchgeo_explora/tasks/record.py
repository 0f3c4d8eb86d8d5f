"""Callback that keeps ``run.json``: what a training or a test was, and how it ended."""

import inspect
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from torchgeo.datamodules import BaseDataModule

from torchgeo_explora._run_record import COLLAPSED, RECORD, RunRecord, runs_here
from torchgeo_explora.tasks._reports.write import finite
from torchgeo_explora.tasks.logger import begin_tables

WEIGHTS = ('weights', 'base_weights', 'decoder_weights')
"""Arguments of our tasks that name what a run starts from."""

SEED = 'PL_GLOBAL_SEED'
"""Variable in which Lightning keeps the seed of ``seed_everything``."""


class RunRecorder(Callback):
    """Writes ``run.json`` in the folder of a run.

    It holds the configuration, versions of packages, the package's commit, seeds, hardware, hashes
    of the weights that the run starts from and of those that it writes, metrics, times, and how it
    ended. A test after a training, and a run that goes on, add a part to the same file. A run that
    a command of this package leads is recorded by that command.

    Every task of this package has one; list it among the callbacks only to give it arguments.

    Args:
        enabled: Whether anything is written.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled
        self._record: RunRecord | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin to record, and tell the loggers which run the next rows are of."""
        begin_tables(trainer, stage)
        folder = trainer.log_dir  # asked for on every rank
        path = Path(trainer.default_root_dir if folder is None else folder)
        self._record = None
        if not self.enabled or not trainer.is_global_zero or runs_here(path):
            return
        if getattr(trainer, 'fast_dev_run', False):
            return
        self._record = RunRecord.begin(
            path / RECORD,
            stage,
            {},
            seed=pl_module.hparams.get('seed'),
            device=trainer.strategy.root_device,
            weights=starting_points(trainer, pl_module),
            part={
                'global_seed': int(os.environ[SEED]) if SEED in os.environ else None,
                'devices': trainer.world_size,
                'precision': str(trainer.precision),
                'config': describe_config(trainer, pl_module),
            },
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Record how it ended."""
        record, self._record = self._record, None
        if record is None:
            return
        if stage == 'fit':
            record.add(sorted(record.path.parent.glob('*.safetensors')))
        metrics = finite(trainer.callback_metrics)
        record.add(metrics=metrics, epochs=trainer.current_epoch, steps=trainer.global_step)
        reason = getattr(pl_module, 'collapse_reason', None)
        if reason is None:
            record.end()
        else:
            record.end(COLLAPSED, reason)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Record that it failed, as a run that failed is not torn down."""
        record, self._record = self._record, None
        if record is not None:
            record.end_with(exception)


def record_callbacks(trainer: pl.Trainer) -> list[Callback]:
    """Return the callback that records, for a task's ``configure_callbacks``.

    Args:
        trainer: Whose own is left to work, where it has one.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    there = any(isinstance(callback, RunRecorder) for callback in callbacks)
    return [] if there else [RunRecorder()]


def starting_points(trainer: pl.Trainer, task: pl.LightningModule) -> dict[str, str | None]:
    """Name what a run starts from, by role.

    Args:
        trainer: Knows of a checkpoint.
        task: One of this package.
    """
    found = {name: vars(task)[name] for name in WEIGHTS if name in vars(task)}
    named = {name: _name(value) for name, value in found.items()}
    if trainer.ckpt_path is not None:
        named['checkpoint'] = str(trainer.ckpt_path)
    return named


def describe_config(trainer: pl.Trainer, task: pl.LightningModule) -> dict[str, Any]:
    """Return the configuration of a run: that of the command, else what task and trainer tell.

    Args:
        trainer: Has the command's configuration, if one started it.
        task: One of this package.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, SaveConfigCallback):
            return _plain(callback.config.as_dict())
    data = getattr(trainer, 'datamodule', None)
    described = {'model': {'class_path': _path(task), 'init_args': _plain(task.hparams)}}
    if isinstance(data, BaseDataModule):
        described['data'] = {'class_path': _path(data), 'init_args': _plain(_arguments(data))}
    limits = ('max_epochs', 'max_steps', 'accumulate_grad_batches')
    return described | {'trainer': {name: getattr(trainer, name) for name in limits}}


def _name(value: object) -> str | None:
    """Name weights: a file, a member of an enum, timm's own, or None for random ones."""
    if isinstance(value, Enum):
        return f'{type(value).__name__}.{value.name}'
    if isinstance(value, bool):
        return 'timm' if value else None
    return None if value is None else str(value)


def _arguments(data: BaseDataModule) -> dict[str, Any]:
    """Arguments of a data module that it keeps, which has no hyper-parameters as tasks have."""
    names = inspect.signature(type(data).__init__).parameters
    return {name: vars(data)[name] for name in names if name in vars(data)} | data.kwargs


def _path(thing: object) -> str:
    return f'{type(thing).__module__}.{type(thing).__qualname__}'


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave what JSON can hold; the rest as text."""
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: object) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return _plain(value)
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
