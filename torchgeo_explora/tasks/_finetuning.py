"""What the fine-tuning tasks share: the start, what trains and how, and the file that comes out."""

import inspect
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchgeo.tasks import BaseTask
from torchvision.models._api import WeightsEnum

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.tokens import fast_attention
from torchgeo_explora.models import LoadReport, ModelSpec, create_backbone
from torchgeo_explora.models.fitted import find_backbone
from torchgeo_explora.models.trained import TRAINED, describe_training
from torchgeo_explora.objectives.finetuning import (
    FineTuningConfig,
    finetuning_groups,
    finetuning_optimizer,
    prepare_backbone,
    step_randomness,
)
from torchgeo_explora.objectives.schedules import HalfCosine, linearly_scaled_learning_rate
from torchgeo_explora.objectives.steps import step_seed
from torchgeo_explora.tasks._autoencoder import check_groups, find_channels
from torchgeo_explora.tasks._facts import DataFacts, check_classes, statistics
from torchgeo_explora.tasks._pretraining import check_bands
from torchgeo_explora.tasks.mae import input_bands
from torchgeo_explora.tasks.record import record_callbacks
from torchgeo_explora.tasks.report import report_callbacks
from torchgeo_explora.transforms import Normalize

FITTED = 'model.safetensors'
# Arguments of TorchGeo's tasks that its losses and metrics ask for and that ours leave away
GIVEN = {'task': 'multiclass', 'num_labels': None, 'pos_weight': None}


class FineTuningTask(BaseTask):
    """A backbone fine-tuned with labels, beside one of TorchGeo's tasks that has loss and metrics.

    Sub-classes take the arguments below, call :meth:`make_backbone` in ``configure_models``, and
    evaluate training batches inside :meth:`training_randomness`.

    Hyper-parameters that it reads: ``model``, ``labels``, ``num_classes``, ``bands``, ``groups``,
    ``in_channels``, ``image_size``, ``mean``, ``std``, ``ignore_index``, ``method``, ``rank``,
    ``alpha``, ``targets``, ``unfreeze_blocks``, ``train_norms``, ``train_patch_embed``,
    ``drop_path``, ``grad_checkpointing``, ``base_lr``, ``min_lr``, ``warmup_epochs``,
    ``weight_decay``, ``betas``, ``layer_decay``, ``reference_images``, ``seed``.

    Attributes:
        model: Backbone and head or decoder, which takes normalised images.
        facts: What the data module says of its images.
    """

    ignore: Sequence[str] = ('weights', 'base_weights')
    model: nn.Module
    load_report: LoadReport
    weights: WeightsEnum | str | bool | None
    base_weights: WeightsEnum | str | bool | None
    facts: DataFacts = DataFacts()

    def make_backbone(self, img_size: int | None) -> VisionTransformer:
        """Build, load and adapt the backbone.

        Args:
            img_size: Side in pixels that position embeddings are stored for; as the weights have
                them when not given.

        Raises:
            ConfigError: If an argument is not possible.
            WeightsError: If the weights cannot be read or do not fit.
        """
        hparams = self.hparams
        for name, value in GIVEN.items():
            hparams.setdefault(name, value)
        if hparams['reference_images'] < 0:
            raise ConfigError(
                f'reference_images is {hparams["reference_images"]}: give a number of images, or '
                '0 for no file of their features.'
            )
        channels = find_channels(hparams['bands'], hparams['groups'], hparams['in_channels'])
        vit, self.load_report = create_backbone(
            hparams['model'],
            self.weights,
            img_size,
            channels.count,
            seed=hparams['seed'],
            base_weights=self.base_weights,
            **channels.model_arguments(),
        )
        check_groups(vit, channels)
        self.in_channels = input_bands(vit)
        mean, std = (statistics(hparams[n], n, vit, self.load_report) for n in ('mean', 'std'))
        self.normalize = Normalize(mean, std)
        generator = torch.Generator().manual_seed(hparams['seed'])
        self.adapter_report = prepare_backbone(vit, self._config(), generator)
        # a fit leaves every module in the mode that it has, and stochastic depth is for training
        return vit.train()

    def _config(self) -> FineTuningConfig:
        names = FineTuningConfig.__dataclass_fields__
        config = FineTuningConfig(
            **{n: self.hparams[n] for n in names if self.hparams[n] is not None}
        )
        wanted = self.hparams['train_patch_embed']
        if wanted is None and self.load_report.source is not None:
            new = {*self.load_report.added, *self.load_report.changed}
            wanted = any(key.startswith('patch_embed') for key in new)
        return replace(config, train_patch_embed=bool(wanted))

    @property
    def backbone(self) -> VisionTransformer:
        """The vision transformer inside the model."""
        return find_backbone(self.model)[1]

    def setup(self, stage: str) -> None:
        """Take over what the data module says, and look whether it fits.

        Raises:
            ConfigError: If its bands or classes are not those of the task.
        """
        datamodule = getattr(self.trainer, 'datamodule', None)
        self.facts = DataFacts.of(datamodule)
        bands: Sequence[str] | None = self.hparams['bands']
        if bands is not None and self.facts.bands is not None:
            check_bands(bands, self.facts.bands)
        known: Sequence[str] | None = self.hparams['labels']
        if known is None and self.facts.classes is not None:
            self.hparams['labels'] = list(self.facts.classes)
        elif known is not None and self.facts.classes is not None:
            check_classes(known, self.facts.classes)

    def configure_callbacks(self) -> list[Callback]:
        """Add the reports of a test, the files of a prediction and the record of the run."""
        return report_callbacks(self.trainer) + record_callbacks(self.trainer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a rate for each layer; a warm-up and half a cosine, step by step.

        Raises:
            ConfigError: If the run has no end, or the batch size is not known.
        """
        hparams = self.hparams
        rate = linearly_scaled_learning_rate(hparams['base_lr'], self.effective_batch())
        root, vit = find_backbone(self.model)
        groups = finetuning_groups(
            self.model, root, len(vit.blocks), rate, hparams['weight_decay'], hparams['layer_decay']
        )
        first, second = hparams['betas']
        optimizer = finetuning_optimizer(groups, (first, second))
        total, warmup = self._steps()
        curve = HalfCosine(1.0, min(1.0, hparams['min_lr'] / rate), total, warmup)
        # a function, not the curve itself: a resumed run follows the present length of the run
        schedule = LambdaLR(optimizer, lambda step: curve(step))
        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': schedule, 'interval': 'step'},
        }

    def _steps(self) -> tuple[int, int]:
        """Optimizer steps of the run, and those of its warm-up."""
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ConfigError('The run has no end: give the trainer max_epochs or max_steps.')
        window = self.trainer.accumulate_grad_batches
        epoch = math.ceil(self.trainer.num_training_batches / window)
        warmup = round(self.hparams['warmup_epochs'] * epoch)
        if warmup > total // 2:
            rank_zero_info(f'The warm-up of {warmup} steps is cut to half of the {total} steps.')
        return int(total), min(warmup, int(total) // 2)

    def effective_batch(self) -> int:
        """Images that an optimizer step sees: batch x accumulation x ranks.

        Raises:
            ConfigError: If the batch size is not known.
        """
        datamodule = getattr(self.trainer, 'datamodule', None)
        loader = self.trainer.train_dataloader
        sizes = (
            getattr(datamodule, 'train_batch_size', None),
            getattr(datamodule, 'batch_size', None),
            getattr(loader, 'batch_size', None),
        )
        batch = next((size for size in sizes if size is not None), None)
        if batch is None:
            raise ConfigError(
                'The batch size is not known, and the learning rate depends on it: use a data '
                'module with a batch_size.'
            )
        return int(batch) * self.trainer.accumulate_grad_batches * self.trainer.world_size

    @contextmanager
    def training_randomness(self, tokens: int) -> Iterator[int]:
        """Let everything random in a training step hang on seed, step and rank alone.

        Args:
            tokens: Length of the sequences that the backbone sees.

        Yields:
            The seed of the step, for augmentation.
        """
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        seed = step_seed(self.hparams['seed'], step, self.global_rank)
        with ExitStack() as stack:
            stack.enter_context(step_randomness(self.model, seed, self.device))
            if not self.backbone.grad_checkpointing:  # it computes again outside of this context
                stack.enter_context(fast_attention(self.device, tokens))
            yield seed

    def on_fit_start(self) -> None:
        """Say what the run starts from and what trains."""
        rank_zero_info(self.load_report.summary())
        rank_zero_info(self.adapter_report.summary())
        every = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        rest = every - self.adapter_report.trainable_parameters
        rank_zero_info(f'{rest:,} weights of the head train as well.')

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint how the backbone in it was made; keep only arguments of the task.

        The command line makes the task again from the arguments that a checkpoint holds.
        """
        own = inspect.signature(type(self).__init__).parameters
        saved: dict[str, Any] = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        for name in [key for key in saved if key not in own and not key.startswith('_')]:
            del saved[name]
        root, vit = find_backbone(self.model)
        facts = {
            'base': self.hparams['model'],
            'labels': self.hparams['labels'],
            **self.image_facts(),
        }
        checkpoint[TRAINED] = describe_training(
            vit, f'model.{root}', self.adapter_report.config, facts
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes.

        Raises:
            ConfigError: If it names other classes.
        """
        told = json.loads(checkpoint.get(TRAINED, '{}'))
        if told.get('root') != f'model.{find_backbone(self.model)[0]}':
            raise ConfigError(
                f'The checkpoint is none of {type(self).__name__}: to start from the network in it, '
                'give it as weights.'
            )
        stored = told['facts'].get('labels')
        known: Sequence[str] | None = self.hparams['labels']
        if stored is not None and known is not None:
            check_classes(stored, known)

    def image_facts(self) -> dict[str, Any]:
        """Bands, mean and spread of the images, for files."""
        bands = self.hparams['bands']
        bands = self.facts.bands if bands is None else bands
        if bands is None or len(bands) != self.in_channels or len(set(bands)) < len(bands):
            bands = [f'band {index + 1}' for index in range(self.in_channels)]
        statistics = {'mean': self.normalize.mean.tolist(), 'std': self.normalize.std.tolist()}
        return {'bands': [str(band) for band in bands], **statistics}

    def on_fit_end(self) -> None:
        """Write the fitted model."""
        folder = self.result_folder()
        if getattr(self.trainer, 'fast_dev_run', False) or not self.trainer.is_global_zero:
            return
        for path in self.export(folder):
            rank_zero_info(f'Wrote {path}')

    def result_folder(self) -> Path:
        """Folder of the files of the run; has to be asked for on every rank."""
        folder = self.trainer.log_dir
        return Path(self.trainer.default_root_dir if folder is None else folder)

    @abstractmethod
    def export(self, folder: Path) -> list[Path]:
        """Write the result; return the paths.

        Args:
            folder: Where the files go.
        """

    def describe(self, task: str, options: dict[str, Any], image_size: int) -> ModelSpec:
        """Describe the fitted model.

        Args:
            task: ``classification`` or ``segmentation``.
            options: What else the network is built from.
            image_size: Side in pixels of the images that it was fitted on.
        """
        facts, labels, count = self.facts, self.hparams['labels'], self.hparams['num_classes']
        classes = [f'class {i}' for i in range(count)] if labels is None else labels
        images = self.image_facts()
        scale = facts.scale if facts.scale is None or len(facts.scale) == self.in_channels else None
        colors = facts.colors
        return ModelSpec(
            task=task,  # type: ignore[arg-type]  # checked when built
            model=self.hparams['model'],
            classes=tuple(classes),
            bands=tuple(images['bands']),
            mean=tuple(images['mean']),
            std=tuple(images['std']),
            scale=scale,
            image_size=image_size,
            resolution=facts.resolution,
            colors=colors if colors is None or len(colors) == len(classes) else None,
            ignore_index=self.hparams['ignore_index'],
            options=options,
        )
