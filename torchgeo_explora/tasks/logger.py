"""Logger whose table a run that goes on continues, and which a test leaves alone."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from torchgeo_explora._files import replacing
from torchgeo_explora.errors import OutputError

TABLE = 'metrics.csv'
SHARE = 0.02
"""Share of the time that may go into writing the table."""

type Metrics = dict[int, dict[str, float]]
"""Values by step and by name."""


class ResumableCSVLogger(Logger):
    """Writes ``metrics.csv``: a row a step, a column a metric.

    Lightning's ``CSVLogger`` deletes the table that it finds when a run goes on in its folder, and
    when a test or a validation is written there. Here a fit that starts from a checkpoint keeps the
    rows up to the checkpoint's step, so that its table is that of an unbroken run; a fit from the
    start begins a new table; and what is logged by other stages goes to a table of their own,
    ``test_metrics.csv``, ``validate_metrics.csv`` or ``predict_metrics.csv``.

    The tasks of this package say which of these is the case. With other tasks rows are only added.

    Args:
        save_dir: Folder of the run, in which the tasks write as well.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.folder = Path(save_dir).expanduser()
        self.path = self.folder / TABLE
        self.trainer: pl.Trainer | None = None
        self.rows: Metrics | None = None
        self.quiet_until = 0.0

    @property
    def name(self) -> str:
        """No sub-folder."""
        return ''

    @property
    def version(self) -> str:
        """No sub-folder."""
        return ''

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    def begin(self, trainer: pl.Trainer, stage: str) -> None:
        """Say which run the next rows are of.

        Args:
            trainer: Its steps tell from where a run goes on.
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
        """
        self.trainer, self.rows = trainer, None
        if stage == TrainerFn.FITTING:
            self.path = self.folder / TABLE
        else:
            self.path = self.folder / f'{TrainerFn(stage).value}_{TABLE}'
            self.rows = {}

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """The settings are in ``run.json`` and ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of a step.

        Args:
            metrics: Numbers by name.
            step: Optimizer steps; the one after the last row if not given.

        Raises:
            OutputError: If the table of the run that goes on cannot be read.
        """
        if self.rows is None:
            self.rows = self._kept()
        if step is None:
            step = max(self.rows, default=-1) + 1
        row = self.rows.setdefault(step, {})
        row.update({name: float(value) for name, value in metrics.items()})

    def _kept(self) -> Metrics:
        """Rows of the run that goes on."""
        trainer = self.trainer
        if not self.path.is_file() or (trainer is not None and trainer.ckpt_path is None):
            return {}
        rows = read_metrics(self.path)
        if trainer is None:
            return rows
        return {step: row for step, row in rows.items() if step <= trainer.global_step}

    @rank_zero_only
    def save(self) -> None:
        """Write the table, unless that was done so lately that it would cost time."""
        if time.monotonic() >= self.quiet_until:
            self.write()

    @rank_zero_only
    def write(self) -> None:
        """Write the table.

        Raises:
            OutputError: If it cannot be written; the one before stays as it was.
        """
        if not self.rows:
            return
        begun = time.monotonic()
        columns = sorted({name for row in self.rows.values() for name in row})
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as path, path.open('w', newline='', encoding='utf-8') as file:
            table = csv.DictWriter(file, ['step', *columns])
            table.writeheader()
            for step, row in sorted(self.rows.items()):
                whole = {'epoch': int(row['epoch'])} if 'epoch' in row else {}
                table.writerow({'step': step, **row, **whole})
        ended = time.monotonic()
        self.quiet_until = ended + (ended - begun) / SHARE

    def after_save_checkpoint(self, checkpoint_callback: object) -> None:
        """Write the table, and the next row at once: Lightning logs a step after its checkpoint.

        Args:
            checkpoint_callback: Wrote the checkpoint.
        """
        self.write()
        self.quiet_until = 0.0

    def finalize(self, status: str) -> None:
        """Write the table, however the run ended.

        Args:
            status: How it ended.
        """
        self.write()


def read_metrics(path: Path) -> Metrics:
    """Read what :meth:`ResumableCSVLogger.write`, or Lightning's ``CSVLogger``, wrote.

    Args:
        path: The table.

    Returns:
        Values by step and by name.

    Raises:
        OutputError: If it is no such table.
    """
    rows: Metrics = {}
    try:
        with path.open(newline='', encoding='utf-8') as file:
            for row in csv.DictReader(file):
                values = {k: float(v) for k, v in row.items() if v and k != 'step'}
                rows.setdefault(int(row['step']), {}).update(values)
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f'{path} is no table of metrics with a column "step" and numbers: move it away, or give '
            'the run another folder.'
        ) from error
    return rows


def begin_tables(trainer: pl.Trainer, stage: str) -> None:
    """Tell the loggers of this kind which run the next rows are of.

    Args:
        trainer: Has the loggers.
        stage: Which of its stages begins.
    """
    for logger in trainer.loggers:
        if isinstance(logger, ResumableCSVLogger):
            logger.begin(trainer, stage)
