"""What the pre-training tasks share: windows of gradients, the position in a run, exact resumption.

A *step* is one micro-batch; the optimizer steps at the end of a window of ``accumulate`` of them.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask

from torchgeo_explora._files import write_tensors
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import resolve_groups
from torchgeo_explora.models.trained import TRAINED
from torchgeo_explora.tasks.record import record_callbacks

EMBEDDINGS = 'embeddings'
IMAGE_FACTS = ('bands', 'scale', 'resolution')


@dataclass(frozen=True)
class MicroBatch:
    """Outcome of one micro-batch.

    Args:
        loss: What is back-propagated, a scalar.
        logged: What is logged beside it, by name.
        images: Number of images.
        finish: Called after the backward pass.
    """

    loss: Tensor
    logged: Mapping[str, Tensor | float]
    images: int
    finish: Callable[[], object] = lambda: None


class PretrainingTask(BaseTask, ABC):
    """A pre-training run that can be cut anywhere and resumed exactly.

    A sub-class calls :meth:`begin` before ``super().__init__()``, and switches automatic
    optimization off after it.

    Attributes:
        micro_step: Micro-batches done.
        total_steps: Micro-batches of the whole run; None until it is known.
        accumulate: Micro-batches an optimizer step averages over.
        start: What blending goes back to; empty where the result is not blended.
        image_facts: What the data module says of the images, to be stored with the weights.
        collapse_reason: Why training was stopped, set by the guard; None for a healthy run.
    """

    ignore: Sequence[str] = ('weights',)
    monitor = 'train_loss'

    def begin(self, steps: int | None, accumulate: int) -> None:
        """Stand at the beginning of a run.

        Args:
            steps: Micro-batches of the run; None for as many as the trainer does.
            accumulate: Micro-batches of a window.
        """
        self.micro_step = 0
        self.total_steps = self._asked_steps = steps
        self.accumulate = accumulate
        self.start: dict[str, Tensor] = {}
        self.image_facts: dict[str, Any] = {}
        self.collapse_reason: str | None = None
        self._restored_gradients: dict[str, Tensor] = {}
        self._embedded: list[dict[str, Tensor]] = []

    @abstractmethod
    def backbones(self) -> dict[str, VisionTransformer]:
        """Return the networks that online probes look at."""

    @abstractmethod
    def summaries(self) -> Iterator[str]:
        """Say in words what the run starts from and what trains."""

    @abstractmethod
    def micro_batch(self, batch: dict[str, Any], window_start: int) -> MicroBatch:
        """Evaluate the next micro-batch; what is random hangs on its position alone.

        Args:
            batch: From the data module.
            window_start: First micro-batch of its window, at which schedules are read.
        """

    @abstractmethod
    def set_rates(self, optimizer: torch.optim.Optimizer, window_start: int, images: int) -> None:
        """Set the learning rates of an optimizer step.

        Args:
            optimizer: The optimizer.
            window_start: First micro-batch of its window.
            images: Images of a micro-batch.
        """

    @abstractmethod
    def after_optimizer_step(self, window_start: int, images: int) -> None:
        """Do what follows an optimizer step. Arguments as in :meth:`set_rates`."""

    @abstractmethod
    def evaluate(self, batch: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """Return losses of a batch by name, ``loss`` among them, and change nothing.

        Args:
            batch: From the data module.
            seed: Draws all that is random.
        """

    @abstractmethod
    def embed(self, batch: dict[str, Any]) -> Tensor:
        """Return one vector an image (B, D) by the network that is published."""

    @abstractmethod
    def export(self, folder: Path) -> list[Path]:
        """Write the result; return the paths.

        Args:
            folder: Where the files go.
        """

    @abstractmethod
    def describe_network(self) -> str:
        """Return what :func:`torchgeo_explora.models.trained.describe_training` gives."""

    @abstractmethod
    def band_names(self) -> Sequence[str] | None:
        """Return the names of the images' bands, in their order, if they are known."""

    def configure_callbacks(self) -> list[Callback]:
        """Add the record of the run."""
        return record_callbacks(self.trainer)

    def setup(self, stage: str) -> None:
        """Look whether the data module delivers what the task needs.

        Raises:
            ConfigError: If it has no test images for ``test``, for which the trainer would silently
                do nothing, or if its bands are others, or in another order.
        """
        datamodule = getattr(self.trainer, 'datamodule', None)
        if not isinstance(datamodule, BaseDataModule):
            return
        if stage == 'test' and datamodule.test_dataset is None:
            raise ConfigError(
                f'{type(datamodule).__name__} has no test images: give it some (a folder `test` '
                'beside `train`, for a folder of images), or leave the test out.'
            )
        expected, delivered = self.band_names(), getattr(datamodule, 'bands', None)
        if expected is not None and delivered is not None:
            check_bands(expected, delivered)
        self.take_facts(datamodule)

    def take_facts(self, datamodule: object) -> None:
        """Keep what a data module says of its images, to be stored with the weights.

        Args:
            datamodule: Set up; of its ``bands``, ``scale`` and ``resolution`` those that it has.
        """
        found = {name: getattr(datamodule, name, None) for name in IMAGE_FACTS}
        count = getattr(datamodule, 'num_channels', None)
        for name in ('bands', 'scale'):
            values = found[name]
            if values is not None and count is not None and len(values) != count:
                found[name] = None  # of the files' bands, not of those that the model is given
        bands = found['bands']
        if bands is not None and len({str(band) for band in bands}) < len(bands):
            found['bands'] = None  # a grey band that is repeated
        self.image_facts = {name: value for name, value in found.items() if value is not None}

    def on_fit_start(self) -> None:
        """Lay the schedules over the run and say what trains.

        A resumed run keeps the length that it began with, over which its schedules are laid; a
        warning says so where another one is asked for.
        """
        if self.total_steps is None:
            self.total_steps = self._trainer_steps()
        elif self._asked_steps not in (None, self.total_steps):
            rank_zero_warn(
                f'steps is {self._asked_steps}, and the run that is resumed was begun for '
                f'{self.total_steps}: it ends there, as its schedules were laid over that many. '
                'To train for longer, start a new run from its exported weights.'
            )
        # a checkpoint is meant to hold what Lightning warns of, the state after the step
        warnings.filterwarnings('ignore', 'Using ModelCheckpoint with manual optimization')
        for text in self.summaries():
            rank_zero_info(text)

    def _trainer_steps(self) -> int:
        trainer = self.trainer
        limits = []
        if trainer.max_steps > 0:
            limits.append(trainer.max_steps * self.accumulate)
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            trainer.fit_loop.setup_data()
            limits.append(int(trainer.max_epochs * trainer.num_training_batches))
        if not limits:
            raise ConfigError(
                'The run has no end: give the task steps, or the trainer max_epochs or max_steps.'
            )
        return min(limits)

    @property
    def run_length(self) -> int:
        """Micro-batches of the run, known from its start on."""
        assert self.total_steps is not None, 'the length of the run is known from on_fit_start'
        return self.total_steps

    def effective_batch(self, images: int) -> int:
        """Images that an optimizer step sees: batch x accumulation x ranks.

        Args:
            images: Images of a micro-batch on one device.
        """
        return images * self.accumulate * self.trainer.world_size

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Do one micro-batch, and an optimizer step at the end of an accumulation window."""
        window_start = self.micro_step - self.micro_step % self.accumulate
        last = (self.micro_step + 1) % self.accumulate == 0
        outcome = self.micro_batch(batch, window_start)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        self._put_back_gradients()
        with optimizer.toggle_model(sync_grad=last):
            self.manual_backward(outcome.loss / self.accumulate)
        outcome.finish()
        if last:
            self.set_rates(optimizer.optimizer, window_start, outcome.images)
            optimizer.step()
            optimizer.zero_grad()
            self.after_optimizer_step(window_start, outcome.images)
        loss = outcome.loss.detach()
        self.log('train_loss', loss, prog_bar=True, batch_size=outcome.images)
        self.log_dict(dict(outcome.logged), batch_size=outcome.images)
        self.micro_step += 1
        self.stop_when_done()

    def stop_when_done(self) -> None:
        """End the run where its schedules do."""
        if self.total_steps is not None and self.micro_step >= self.total_steps:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the position in the run, and the gradients of an unfinished window."""
        pending = self.micro_step % self.accumulate != 0
        # ranks have gradients of their own until a window's end; their mean serves all of them
        gradients = {
            name: self.trainer.strategy.reduce(p.grad.clone(), reduce_op='mean')
            for name, p in self.named_parameters()
            if pending and p.grad is not None
        }
        checkpoint['explora'] = {
            'micro_step': self.micro_step,
            'total_steps': self.total_steps,
            'start': self.start,
            'gradients': gradients,
        }
        checkpoint[TRAINED] = self.describe_network()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the position that a checkpoint holds."""
        state = checkpoint['explora']
        self.micro_step, self.total_steps = state['micro_step'], state['total_steps']
        self.start = state['start']
        self._restored_gradients = state['gradients']

    def _put_back_gradients(self) -> None:
        for name, gradient in self._restored_gradients.items():
            parameter = self.get_parameter(name)
            parameter.grad = gradient.to(parameter.device)
        self._restored_gradients = {}

    def result_folder(self) -> Path:
        """Folder of the files of the run; has to be asked for on every rank."""
        folder = self.trainer.log_dir
        return Path(self.trainer.default_root_dir if folder is None else folder)

    @property
    def writes(self) -> bool:
        """Whether files are written: not where a run is only tried out."""
        return not getattr(self.trainer, 'fast_dev_run', False)

    def on_fit_end(self) -> None:
        """Export the adapted weights, unless the representation collapsed.

        Reached also when a run is resumed that was killed between its last step and this.
        """
        folder = self.result_folder()
        if not self.writes or not self.trainer.is_global_zero:
            return
        if self.collapse_reason is not None:
            warnings.warn(f'No weights were exported: {self.collapse_reason}', stacklevel=1)
            return
        for path in self.export(folder):
            rank_zero_info(f'Wrote {path}')

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the losses of a batch, with randomness that hangs on its number alone."""
        losses = self.evaluate(batch, batch_idx)
        named = {f'test_{name}': value for name, value in losses.items()}
        self.log_dict(named, batch_size=len(batch['image']), sync_dist=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the ``embedding`` (B, D) of every image of a batch, and its ``label`` if any."""
        found = {'embedding': self.embed(batch).float().cpu()}
        if isinstance(batch.get('label'), Tensor):
            found['label'] = batch['label'].cpu()
        self._embedded.append(found)
        return found

    def on_predict_epoch_end(self) -> None:
        """Write all embeddings, in the order of the images; one file for each rank."""
        folder, parts = self.result_folder(), self._embedded
        self._embedded = []
        if not self.writes or not parts:
            return
        rank = f'_rank{self.global_rank}' if self.trainer.world_size > 1 else ''
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        path = folder / f'{EMBEDDINGS}{rank}.safetensors'
        write_tensors(path, tensors, {'model': str(self.hparams['model'])})
        rank_zero_info(f'Wrote {path}')


def check_bands(expected: Sequence[str], delivered: Sequence[object]) -> None:
    """Check that a data module delivers the bands that a task expects, in their order.

    Args:
        expected: Names of the task's bands.
        delivered: Names, or numbers, of the data module's; numbers are not compared.

    Raises:
        ConfigError: If it does not.
    """
    names = [band for band in delivered if isinstance(band, str)]
    if len(names) < max(1, len(delivered)):
        return
    same = len(names) == len(expected)
    if not same or resolve_groups(names, [list(expected)])[0] != tuple(range(len(names))):
        raise ConfigError(
            f'The data module delivers the bands {", ".join(names)}, the task expects '
            f'{", ".join(expected)}: give both the same bands in the same order.'
        )
