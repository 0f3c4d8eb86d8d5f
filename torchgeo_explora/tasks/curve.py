"""The curve of a run, as a table and as a picture, without any logger."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from torchgeo_explora._figures import INK, LINE, new_figure, save_png, tidy
from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.tasks._pretraining import PretrainingTask

COLUMNS = ('step', 'train_loss', 'lr', 'val_loss')
SMOOTH = 0.02
"""Share of the curve that its moving mean covers."""

type Row = dict[str, float]


class LossCurve(Callback):
    """Writes ``curve.csv`` and ``curve.png``: the loss of every optimizer step, and its rate.

    The training loss is the mean over the micro-batches of a step, on the first process. Where the
    task validates, ``val_loss`` stands at the steps at which it did. What was recorded is part of
    checkpoints, so that the curve of a resumed run is whole; only a validation loss is missing
    where the checkpoint was written between an epoch's last batch and its validation.

    Args:
        every_n_steps: Optimizer steps between two writings; the last is at the end.

    Raises:
        ConfigError: If ``every_n_steps`` is less than 1, or the task does not pre-train.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ConfigError(f'every_n_steps is {every_n_steps}: give at least 1.')
        self.every_n_steps = every_n_steps
        self.rows: dict[int, Row] = {}
        self.window: list[Tensor] = []
        self.pending: dict[int, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse tasks that have no such curve."""
        if stage == 'fit' and not isinstance(pl_module, PretrainingTask):
            raise ConfigError(
                f'{type(pl_module).__name__} does not pre-train: use LossCurve with ExPLoRAMAE or '
                'ExPLoRADINOv2.'
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Record a micro-batch, and write where it is time to."""
        assert isinstance(pl_module, PretrainingTask), 'checked in setup'
        self.window.append(trainer.callback_metrics['train_loss'].detach())
        if pl_module.micro_step % pl_module.accumulate:
            return
        step = trainer.global_step
        self.pending[step] = torch.stack(self.window).mean()  # read later: no waiting here
        self.window = []
        self.rows[step] = {'lr': float(trainer.callback_metrics['lr'])}
        if step % self.every_n_steps == 0:
            self._write(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the validation loss."""
        value = trainer.callback_metrics.get('val_loss')
        if value is not None and not trainer.sanity_checking:
            self.rows.setdefault(trainer.global_step, {})['val_loss'] = float(value)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the whole curve."""
        self._write(trainer, pl_module)

    def _settle(self) -> None:
        for step, loss in self.pending.items():
            self.rows[step]['train_loss'] = float(loss)
        self.pending = {}

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PretrainingTask), 'checked in setup'
        self._settle()
        folder = pl_module.result_folder()
        if not trainer.is_global_zero or not pl_module.writes or not self.rows:
            return
        for path in write_curve(self.rows, folder):
            rank_zero_info(f'Wrote {path}')

    def state_dict(self) -> dict[str, Any]:
        """What was recorded, an unfinished window included."""
        self._settle()
        return {'rows': dict(self.rows), 'window': list(self.window)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was recorded before.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self.rows, self.window = dict(state_dict['rows']), list(state_dict['window'])


def write_curve(rows: dict[int, Row], folder: Path) -> list[Path]:
    """Write ``curve.csv`` and ``curve.png``; return their paths.

    Args:
        rows: Values by optimizer step.
        folder: Where they go.

    Raises:
        OutputError: If they cannot be written.
    """
    table = folder / 'curve.csv'
    with replacing(table) as path, path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({'step': step, **rows[step]} for step in sorted(rows))
    return [table, save_png(draw_curve(rows), folder / 'curve.png')]


def draw_curve(rows: dict[int, Row]) -> Figure:
    """Draw the losses and the learning rate over the optimizer steps.

    Args:
        rows: Values by optimizer step.
    """
    figure = new_figure(7.5, 4.6)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    steps, values = _series(rows, 'train_loss')
    width = max(1, round(SMOOTH * len(values)))
    if width > 1:
        losses.plot(steps, values, color=LINE, alpha=0.35, linewidth=0.8)
    mean = np.convolve(values, np.full(width, 1 / width), mode='valid') if values else np.empty(0)
    name = 'training' if width == 1 else f'training, mean of {width} steps'
    losses.plot(steps[width - 1 :], mean, color=LINE, label=name)
    steps, values = _series(rows, 'val_loss')
    if steps:
        losses.plot(steps, values, 'o-', color='#c8402f', markersize=3.5, label='validation')
    losses.legend(frameon=False, fontsize=8.5)
    tidy(losses, 'Loss')
    rates.plot(*_series(rows, 'lr'), color=INK, linewidth=1.2)
    tidy(rates, 'Learning rate')
    rates.set_xlabel('optimizer step', fontsize=9)
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    figure.tight_layout()
    return figure


def _series(rows: dict[int, Row], name: str) -> tuple[list[int], list[float]]:
    steps = [step for step in sorted(rows) if name in rows[step]]
    return steps, [rows[step][name] for step in steps]
