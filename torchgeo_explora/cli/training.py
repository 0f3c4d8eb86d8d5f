"""Training with little noise: one progress line, a checkpoint now and then, a table of metrics."""

import time
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

from torchgeo_explora._files import replacing
from torchgeo_explora.cli.console import duration, percent, say
from torchgeo_explora.cli.meter import Meter
from torchgeo_explora.objectives.probing import Progress
from torchgeo_explora.tasks.dinov2 import ExPLoRADINOv2
from torchgeo_explora.tasks.logger import Metrics, ResumableCSVLogger, read_metrics

SECONDS_BETWEEN_CHECKPOINTS = 300.0
TIMED_STEPS = 5
"""Steps after which the length of a run is estimated; the first ones are slower."""


class ProgressLine:
    """Shows the :class:`Progress` of a computation.

    Args:
        what: What is being done.
        unit: What is counted.
    """

    def __init__(self, what: str, unit: str = 'images') -> None:
        self.what, self.unit, self.meter = what, unit, Meter()
        self.meter.last = time.monotonic()  # short work needs no line before its last

    def __call__(self, state: Progress) -> None:
        """Show a state if it is time to."""
        finished = state.done == state.total
        rest = '' if state.remaining is None else f', {duration(state.remaining)} to go'
        tail = f' in {duration(state.seconds)}' if finished else rest
        rate = f'{state.rate:.0f}' if state.rate >= 10 else f'{state.rate:.2g}'
        self.meter.show(
            f'{self.what}: {state.done} of {state.total}, {rate} {self.unit}/s{tail}', finished
        )


class TrainingProgress(Callback):
    """Images a second, time to go and the loss; an estimate of the whole after a few steps."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.begun = self.start = 0.0
        self.first = self.images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.monotonic()
        self.first = _task(pl_module).micro_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Show where the run is."""
        task = _task(pl_module)
        done, total = task.micro_step, task.total_steps
        assert total is not None, 'the length of the run is known once it has begun'
        steps, elapsed = done - self.first, time.monotonic() - self.start
        if steps == 1:  # compilers, caches and loaders warm up in the first step
            self.begun = elapsed
        timed = elapsed - self.begun if steps > 1 else elapsed
        rate = max(steps - 1, 1) / max(timed, 1e-9)
        left = (total - done) / rate
        images = rate * len(batch['image'])
        if steps == TIMED_STEPS and total - done > TIMED_STEPS:
            say(f'Estimate: {duration(left)} at {images:.1f} images/s for {total - done} steps')
        finished = done >= total
        loss = float(trainer.callback_metrics['train_loss'])
        tail = f'in {duration(elapsed)}' if finished else f'{duration(left)} to go'
        self.meter.show(
            f'Step {done}/{total} ({percent(done / total)}), {images:.1f} images/s, '
            f'loss {loss:.3f}, {tail}',
            finished,
        )


class LastCheckpoint(Checkpoint):
    """Keeps one checkpoint to resume from, never half-written.

    Args:
        path: The checkpoint.
        every: Batches between checkpoints; None for about five minutes.
    """

    def __init__(self, path: Path, every: int | None) -> None:
        self.path, self.every = path, every
        self.last = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Write a checkpoint if it is time to.

        Raises:
            OutputError: If it cannot be written.
        """
        task = _task(pl_module)
        if self.every is None:
            due = time.monotonic() - self.last >= SECONDS_BETWEEN_CHECKPOINTS
        else:
            due = task.micro_step % self.every == 0
        if due or task.micro_step == task.total_steps:
            self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Write the checkpoint now.

        Raises:
            OutputError: If it cannot be written; an older one stays as it was.
        """
        for logger in trainer.loggers:
            if isinstance(logger, MetricsTable):
                logger.log_metrics({k: float(v) for k, v in trainer.logged_metrics.items()})
                logger.write()
        with replacing(self.path) as temporary:
            trainer.save_checkpoint(temporary)
        self.last = time.monotonic()


class MetricsTable(ResumableCSVLogger):
    """``metrics.csv``: a row for every batch at which something was logged.

    Args:
        folder: Of the run.
        task: Knows the step.
    """

    def __init__(self, folder: Path, task: ExPLoRADINOv2) -> None:
        super().__init__(folder)
        self.task = task

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers to the row of the present batch, whatever Lightning counts as a step."""
        values = {key: value for key, value in metrics.items() if key != 'epoch'}
        super().log_metrics(values, self.task.micro_step)

    def _kept(self) -> Metrics:
        """Rows before the present batch, which a checkpoint may have brought."""
        rows = read_metrics(self.path) if self.path.is_file() else {}
        return {step: row for step, row in rows.items() if step < self.task.micro_step}

    def save(self) -> None:
        """Lightning calls this after every row; :meth:`write` is called with checkpoints."""


def _task(module: LightningModule) -> ExPLoRADINOv2:
    assert isinstance(module, ExPLoRADINOv2), 'the command trains this task only'
    return module
