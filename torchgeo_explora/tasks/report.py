"""Callback that writes what a test finds, and both callbacks that write for a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.tasks._reports.classes import ClassInfo, class_info, task_kind
from torchgeo_explora.tasks._reports.collect import Collector, Outcome, read_batch
from torchgeo_explora.tasks._reports.loaders import gathered, pick_loader, positions
from torchgeo_explora.tasks._reports.write import finite, write_report
from torchgeo_explora.tasks.predictions import PredictionWriter

FOLDER = 'test_report'


class TestReport(Callback):
    """Writes at the end of ``test`` what one wants to see of a classification or segmentation.

    In ``test_report/`` of the run's folder:

    * ``confusion.png`` and ``confusion.csv``: a row for every true class;
    * ``classes.png`` and ``classes.csv``: support, precision, recall, F1 and IoU of every class;
    * ``examples.png``: predictions beside the truth, of images drawn by lot, and of the most
      confident mistakes (of the tiles with most errors, for masks);
    * ``report.json``: all of it in numbers, and the task's own metrics.

    Several test loaders have a folder each, ``test_report_0/`` and so on. It works with any task
    of TorchGeo whose ``forward`` gives the logits of one class an image or a pixel. Only the few
    images that are shown are kept, so that memory does not grow with the test.

    Args:
        examples: Images drawn by lot; None for 24, or 6 tiles with masks.
        mistakes: Worst images; None for 12, or 3 tiles with masks.
        bands: Names of the bands shown as red, green and blue; chosen by default.
        folder: Name of the folder in that of the run.
        seed: Of the lot.

    Raises:
        ConfigError: If a number is negative; in a test, if the task is none of these or an image
            has a class that the model does not know.
    """

    __test__ = False  # not one of pytest's

    def __init__(
        self,
        examples: int | None = None,
        mistakes: int | None = None,
        bands: Sequence[str] | None = None,
        folder: str = FOLDER,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (('examples', examples), ('mistakes', mistakes), ('seed', seed)):
            if value is not None and value < 0:
                raise ConfigError(f'{name} is {value}: give at least 0.')
        self.examples, self.mistakes, self.seed = examples, mistakes, seed
        self.bands, self.folder = bands, folder
        self._hook: RemovableHandle | None = None
        self._logits: Tensor | None = None
        self._collectors: dict[int, Collector] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to listen to the task."""
        task_kind(pl_module)
        self._collectors, self._logits = {}, None
        self._hook = pl_module.register_forward_hook(self._listen)

    def _listen(self, module: torch.nn.Module, inputs: object, output: object) -> None:
        self._logits = output.detach() if isinstance(output, Tensor) else None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop listening."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop listening, as a test that failed is not torn down."""
        self._stop()

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._logits = None

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        logits, self._logits = self._logits, None
        if logits is None:
            raise ConfigError(
                f'{type(pl_module).__name__} gave no logits for a test batch, and TestReport needs '
                'them: use it with a task for classification or segmentation.'
            )
        if dataloader_idx not in self._collectors:
            info = class_info(trainer, pl_module, logits)
            self._collectors[dataloader_idx] = self._collector(info)
        collector = self._collectors[dataloader_idx]
        predicted = read_batch(batch, logits, collector.info)
        loader = pick_loader(trainer.test_dataloaders, dataloader_idx)
        collector.add(predicted, positions(loader, collector.seen, len(predicted.truth)))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather what all processes saw, and write it."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        # a process may have had no batch of a loader, and has to take part all the same
        mine = {number: (c.outcome(), c.info) for number, c in self._collectors.items()}
        found = gathered(mine)
        self._collectors = {}
        if not trainer.is_global_zero or getattr(trainer, 'fast_dev_run', False):
            return
        about = {
            'task': type(pl_module).__name__,
            'checkpoint': None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            'metrics': finite(trainer.callback_metrics),
        }
        numbers = sorted({number for part in found for number in part})
        for number in numbers:
            parts = [part[number] for part in found if number in part]
            info = parts[0][1]
            joined = self._collector(info).joined([outcome for outcome, _ in parts])
            several = f'_{number}' if len(numbers) > 1 else ''
            self._write(joined, info, about, folder / f'{self.folder}{several}')

    def _collector(self, info: ClassInfo) -> Collector:
        return Collector(info, self.examples, self.mistakes, self.seed, self.bands)

    def _write(
        self, outcome: Outcome, info: ClassInfo, about: Mapping[str, Any], folder: Path
    ) -> None:
        if outcome.counts.sum() == 0:
            rank_zero_info('No test report: nothing in the test images has a label to score.')
            return
        for path in write_report(folder, outcome, info, about):
            rank_zero_info(f'Wrote {path}')


def report_callbacks(trainer: pl.Trainer) -> list[Callback]:
    """Return the callbacks that write what a test and a prediction find.

    For a task's ``configure_callbacks``.

    Args:
        trainer: Those that it has already are left out, so that the user's own arguments count.
    """
    there = {type(callback) for callback in trainer.callbacks}  # type: ignore[attr-defined]
    wanted: tuple[type[Callback], ...] = (TestReport, PredictionWriter)
    return [callback() for callback in wanted if callback not in there]
