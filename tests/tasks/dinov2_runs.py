"""Small D-ExPLoRA runs, in this process or in one that can be killed, or on two ranks.

Arguments of a process: ``IMAGES OUT [--resume CHECKPOINT] [--devices N] [--task JSON]``.
It prints a line after every micro-batch and writes the weights of every rank at the end.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.tasks import ExPLoRADINOv2
from torchgeo_explora.tasks._pretraining import PretrainingTask

SMALL: dict[str, Any] = {
    'model': 'test_vit', 'preset': 'small', 'eval_size': 32, 'rank': 4, 'prototypes': 24,
    'hidden_dim': 16, 'global_size': 32, 'local_size': 16, 'n_local': 2, 'accumulate': 3,
    'base_lr': 0.1, 'head_start': 0.0, 'blend': 1.0,
}  # fmt: skip
BATCH = 4


def make_task(**arguments: Any) -> ExPLoRADINOv2:  # noqa: ANN401
    """A task that takes a fraction of a second a step."""
    return ExPLoRADINOv2(**{**SMALL, **arguments})


def make_data(root: Path, **arguments: Any) -> FolderDataModule:  # noqa: ANN401
    """Unlabelled images."""
    options = {'image_size': 32, 'batch_size': BATCH, 'with_labels': False, **arguments}
    return FolderDataModule(root, **options)


def make_trainer(folder: Path, **arguments: Any) -> Trainer:  # noqa: ANN401
    """A silent trainer."""
    options: dict[str, Any] = {
        'accelerator': 'cpu', 'devices': 1, 'max_epochs': 3, 'logger': False,
        'enable_checkpointing': False, 'enable_progress_bar': False, 'enable_model_summary': False,
        'default_root_dir': folder, **arguments,
    }  # fmt: skip
    return Trainer(**options)


def weights(task: LightningModule) -> dict[str, Tensor]:
    """A copy of everything a checkpoint holds of the networks."""
    return {name: value.detach().clone() for name, value in task.state_dict().items()}


class SaveEveryBatch(Callback):
    """Write a checkpoint after every micro-batch, within accumulation windows too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *arguments: object) -> None:
        task = arguments[0]
        assert isinstance(task, PretrainingTask)
        trainer.save_checkpoint(self.folder / f'{task.micro_step}.ckpt')


class Report(Callback):
    """Print how far the run is."""

    def on_train_batch_end(self, trainer: Trainer, *arguments: object) -> None:
        task = arguments[0]
        assert isinstance(task, PretrainingTask)
        loss = trainer.callback_metrics['train_loss'].item()
        if trainer.is_global_zero:
            print(json.dumps({'step': task.micro_step, 'loss': loss}), flush=True)  # noqa: T201


def main(arguments: Sequence[str]) -> None:
    """Run as its own process.

    Args:
        arguments: As above.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('images', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--resume', type=Path)
    parser.add_argument('--devices', type=int, default=1)
    parser.add_argument('--task', type=json.loads, default={})
    options = parser.parse_args(arguments)
    saver = ModelCheckpoint(
        options.out / 'checkpoints', every_n_train_steps=1, save_top_k=-1, save_last=True
    )
    trainer = make_trainer(
        options.out,
        callbacks=[saver, Report()],
        enable_checkpointing=True,
        devices=options.devices,
        strategy='auto' if options.devices == 1 else 'ddp',
    )
    task = make_task(**options.task)
    data = make_data(options.images)
    resume = None if options.resume is None else str(options.resume)
    trainer.fit(task, data, ckpt_path=resume)
    torch.save(weights(task), options.out / f'rank{trainer.global_rank}.pt')
