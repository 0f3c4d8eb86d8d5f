"""The training of a run: begun, gone on with, or done already."""

import signal
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from torchgeo_explora.cli.console import say
from torchgeo_explora.cli.plan import Plan
from torchgeo_explora.cli.run_folder import RunFolder
from torchgeo_explora.cli.scoring import HEADLINE_K
from torchgeo_explora.cli.training import LastCheckpoint, MetricsTable, TrainingProgress
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.tasks.callbacks import CollapseGuard, FeatureHealth, OnlineKNN


def train(plan: Plan, folder: RunFolder, checks: int) -> dict[str, Any]:
    """Train, or do what is left of it; export the weights.

    Args:
        plan: Of the run.
        folder: Of the run.
        checks: Looks at the representation while training.

    Returns:
        How long it took, for the report.

    Raises:
        ConfigError: If the checkpoint cannot be read.
        KeyboardInterrupt: If the user stops it.
    """
    if folder.merged.is_file() and folder.adapter.is_file():
        plan.task.micro_step = plan.steps
        return {'seconds': None, 'resumed_at': plan.steps}
    resumed_at = _load_finished(plan, folder)
    start = time.monotonic()
    if resumed_at == plan.steps:
        plan.task.export(folder.path)
        return {'seconds': 0.0, 'resumed_at': resumed_at}
    _fit(plan, folder, checks)
    seconds = time.monotonic() - start
    done = plan.task.micro_step - (0 if resumed_at is None else resumed_at)
    return {
        'seconds': round(seconds, 1),
        'resumed_at': resumed_at,
        'images_per_second': round(done * plan.batch_size / seconds, 2),
    }


def _load_finished(plan: Plan, folder: RunFolder) -> int | None:
    """Return the step of the checkpoint, and take up its weights if training was finished."""
    if not folder.checkpoint.is_file():
        return None
    try:
        content = torch.load(folder.checkpoint, map_location='cpu', weights_only=True, mmap=True)
        step = int(content['explora']['micro_step'])
    except Exception as error:
        raise ConfigError(
            f'{folder.checkpoint} cannot be read ({type(error).__name__}): start a new run '
            'elsewhere.'
        ) from error
    say(f'Going on from step {step} of {plan.steps}')
    if step == plan.steps:
        plan.task.load_state_dict(content['state_dict'])
        plan.task.micro_step = step
    return step


def _fit(plan: Plan, folder: RunFolder, checks: int) -> None:
    metrics = MetricsTable(folder.path, plan.task)
    trainer = Trainer(
        accelerator='gpu' if plan.device.type == 'cuda' else 'cpu',
        devices=1,
        precision=plan.precision,  # type: ignore[arg-type]
        max_epochs=-1,
        logger=metrics,
        callbacks=_callbacks(plan, folder, checks),
        log_every_n_steps=max(min(plan.steps // 50, 10), 1),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path,
    )
    checkpoint = str(folder.checkpoint) if folder.checkpoint.is_file() else None
    handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            # said at the end, in one sentence
            warnings.filterwarnings('ignore', message=r'No weights were exported|The \w+ collapsed')
            trainer.fit(plan.task, datamodule=plan.images.module, ckpt_path=checkpoint)
    except SystemExit as end:  # what Lightning makes of Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from end
        raise
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    metrics.write()


def _callbacks(plan: Plan, folder: RunFolder, checks: int) -> list[Callback]:
    accumulate = plan.task.recipe.optimization.accumulate
    every = max(plan.steps // accumulate // checks, 1)
    dtype: Any = 'bfloat16' if plan.dtype == torch.bfloat16 else 'float32'
    networks = (plan.task.recipe.optimization.publish,)
    callbacks: list[Callback] = [
        TrainingProgress(),
        FeatureHealth(every, networks=networks, dtype=dtype, seed=plan.settings.seed),
        CollapseGuard(),
        LastCheckpoint(folder.checkpoint, plan.settings.checkpoint_every),
    ]
    split = plan.images.labelled
    if split is not None and split.module.val_dataset is not None:
        data = None if split.module is plan.images.module else split.module
        neighbours = OnlineKNN(
            every, data, networks=networks, dtype=dtype, k=HEADLINE_K, seed=plan.settings.seed,
            val_images=500,
        )  # fmt: skip
        callbacks.insert(1, neighbours)
    return callbacks
