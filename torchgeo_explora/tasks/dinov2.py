"""D-ExPLoRA as a TorchGeo task: adapt a DINOv2 encoder to unlabelled images of a new domain."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapters import AdapterReport, apply_explora, blend, trained_in_full
from torchgeo_explora.layers.tokens import encode, global_token, patch_grid
from torchgeo_explora.models import create_backbone
from torchgeo_explora.models.trained import describe_training
from torchgeo_explora.objectives.dinov2 import DINOv2Losses, DINOv2Objective
from torchgeo_explora.objectives.presets import (
    Recipe,
    Schedules,
    get_preset,
    make_schedules,
    recipe_fields,
)
from torchgeo_explora.objectives.prototypes import prototypes_from_images
from torchgeo_explora.objectives.steps import (
    clip_gradients,
    make_multicrop,
    make_optimizer,
    micro_batch,
    set_rates,
    step_seed,
)
from torchgeo_explora.tasks._pretraining import MicroBatch, PretrainingTask
from torchgeo_explora.tasks._publish import normalization, publish
from torchgeo_explora.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD, EvalTransform


class ExPLoRADINOv2(PretrainingTask):
    """Continue DINOv2 pre-training with most weights frozen (Khanna et al. 2025).

    Batches hold ``image``, float32 (B, C, H, W) in [0, 1]; cropping, augmentation and
    normalisation happen here, on the device. Every argument from ``rank`` on replaces one
    number of the preset; ``None`` keeps the preset's.

    Args:
        model: Name of any timm vision transformer.
        weights: Where to start: ``True`` for timm's own weights, a file, an enum or its name;
            ``None`` for random weights (for tests).
        preset: ``paper`` (the published script), ``workshop``, or ``small`` (a few thousand
            images and one GPU or a CPU); see :mod:`torchgeo_explora.objectives.presets`.
        in_channels: Number of bands of the images.
        mean: Mean of each band in [0, 1]; ImageNet's when not given and there are 3 bands.
        std: Standard deviation of each band.
        bands: Names of the bands, stored with the weights.
        eval_size: Side of the images that online probes see, in pixels.
        drop_path: Largest rate of stochastic depth in the student.
        seed: Seed of the new weights, crops and masks.
        grad_checkpointing: Recompute activations in the backward pass to save memory.
        rank: Rank of the low-rank updates.
        unfreeze_blocks: Blocks trained in full; the paper's [L] is ``[-1]``.
        alpha: Numerator of the low-rank scale.
        targets: What gets low-rank updates.
        mlp_rank: Rank in the MLP.
        train_norms: Whether norms train.
        train_cls_token: Whether the class token trains.
        train_patch_embed: Whether the patch embedding trains; by default for other than 3 bands.
        train_all: Train the whole encoder instead.
        prototypes: Number of prototypes.
        hidden_dim: Width of the heads' hidden layers.
        separate_head: Whether iBOT has a head of its own.
        centering: ``sinkhorn_knopp`` or ``softmax``.
        dino_weight: Weight of the class-token loss.
        ibot_weight: Weight of the masked-patch loss.
        koleo_weight: Weight of the KoLeo term.
        train_mask_token: Whether the mask token trains.
        global_size: Side of the global crops.
        local_size: Side of the local crops.
        n_local: Number of local crops.
        global_scale: Range of the area of global crops.
        local_scale: Range of the area of local crops.
        color_jitter: Strengths for brightness, contrast, saturation, hue.
        grayscale_p: Probability of grey crops.
        blur_p: Probabilities of blur (first global, second global, local).
        solarize_p: Probabilities of solarising.
        steps: Micro-batches of the run; as many as the trainer does where the preset has none.
        accumulate: Micro-batches an optimizer step averages over.
        base_lr: Learning rate for an effective batch of 1,024 images.
        head_lr_scale: Rate of the heads relative to the backbone's.
        unfrozen_lr_scale: Rate of blocks trained in full relative to the backbone's.
        min_lr: Learning rate at the end.
        warmup: Share of the run over which the rate rises.
        head_start: Share of the run during which only the heads train.
        freeze_last_layer: Share of the run during which prototypes do not train.
        weight_decay: Weight decay at the start.
        weight_decay_end: Weight decay at the end.
        clip: Largest gradient norm of each sub-module.
        momentum: Teacher momentum at the start.
        momentum_end: Teacher momentum at the end.
        teacher_temperature: Temperature of the targets.
        prototype_init: ``random``, or ``images`` to start prototypes at the images' features.
        publish: Which network is exported, ``teacher`` or ``student``.
        blend: How far from the base towards the adapted weights the exported ones lie.

    Raises:
        ConfigError: If an argument is not possible.
        WeightsError: If the weights cannot be read or do not fit.
    """

    def __init__(
        self,
        model: str = 'vit_small_patch14_dinov2',
        weights: WeightsEnum | str | bool | None = None,
        preset: Literal['paper', 'workshop', 'small'] = 'paper',
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bands: Sequence[str] | None = None,
        eval_size: int = 224,
        drop_path: float = 0.0,
        seed: int = 0,
        grad_checkpointing: bool = False,
        rank: int | None = None,
        unfreeze_blocks: Sequence[int] | None = None,
        alpha: float | None = None,
        targets: Sequence[str] | None = None,
        mlp_rank: int | None = None,
        train_norms: bool | None = None,
        train_cls_token: bool | None = None,
        train_patch_embed: bool | None = None,
        train_all: bool | None = None,
        prototypes: int | None = None,
        hidden_dim: int | None = None,
        separate_head: bool | None = None,
        centering: Literal['sinkhorn_knopp', 'softmax'] | None = None,
        dino_weight: float | None = None,
        ibot_weight: float | None = None,
        koleo_weight: float | None = None,
        train_mask_token: bool | None = None,
        global_size: int | None = None,
        local_size: int | None = None,
        n_local: int | None = None,
        global_scale: tuple[float, float] | None = None,
        local_scale: tuple[float, float] | None = None,
        color_jitter: tuple[float, float, float, float] | None = None,
        grayscale_p: float | None = None,
        blur_p: tuple[float, float, float] | None = None,
        solarize_p: tuple[float, float, float] | None = None,
        steps: int | None = None,
        accumulate: int | None = None,
        base_lr: float | None = None,
        head_lr_scale: float | None = None,
        unfrozen_lr_scale: float | None = None,
        min_lr: float | None = None,
        warmup: float | None = None,
        head_start: float | None = None,
        freeze_last_layer: float | None = None,
        weight_decay: float | None = None,
        weight_decay_end: float | None = None,
        clip: float | None = None,
        momentum: float | None = None,
        momentum_end: float | None = None,
        teacher_temperature: float | None = None,
        prototype_init: Literal['random', 'images'] | None = None,
        publish: Literal['teacher', 'student'] | None = None,
        blend: float | None = None,
    ) -> None:
        arguments = dict(locals())
        overrides = {key: arguments[key] for key in recipe_fields() & arguments.keys()}
        if in_channels != 3 and train_patch_embed is None:
            overrides['train_patch_embed'] = True  # the model never saw these bands
        self.recipe: Recipe = get_preset(preset).override(**overrides)
        self.weights = weights
        self.mean = normalization(mean, IMAGENET_MEAN, in_channels, 'mean')
        self.std = normalization(std, IMAGENET_STD, in_channels, 'std')
        self.begin(self.recipe.optimization.steps, self.recipe.optimization.accumulate)
        super().__init__()
        self.automatic_optimization = False

    def configure_models(self) -> None:
        """Build student, teacher, heads and augmentation."""
        hparams = self.hparams
        student, self.load_report = create_backbone(
            hparams['model'],
            self.weights,
            in_chans=hparams['in_channels'],
            seed=hparams['seed'],
            drop_path_rate=hparams['drop_path'],
        )
        student.set_grad_checkpointing(hparams['grad_checkpointing'])
        generator = torch.Generator().manual_seed(hparams['seed'])
        self.adapter_report: AdapterReport = apply_explora(student, self.recipe.adapter, generator)
        self.start = trained_in_full(student)
        self.model = DINOv2Objective(
            student, self.recipe.objective, self.load_report.mask_token, generator
        )
        bands = hparams['in_channels']
        self.multicrop = make_multicrop(self.recipe.crops, bands, self.mean, self.std)
        self.eval_transform = EvalTransform(hparams['eval_size'], self.mean, self.std)
        self._check_sizes(student)

    def _check_sizes(self, student: VisionTransformer) -> None:
        crops, bands = self.recipe.crops, self.hparams['in_channels']
        for side in (crops.global_size, crops.local_size, self.hparams['eval_size']):
            patch_grid(student, torch.empty(0, bands, side, side, device='meta'))

    def backbones(self) -> dict[str, VisionTransformer]:
        """Return the networks that online probes look at."""
        return {'student': self.model.student, 'teacher': self.model.teacher}

    def forward(self, images: Tensor) -> Tensor:
        """Return tokens (B, tokens, D) of normalised images, before any blending with the base."""
        return encode(self.backbones()[self.recipe.optimization.publish], images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over what trains; its rates are set before every step."""
        return make_optimizer(self.model, self.adapter_report.unfrozen, self.recipe.optimization)

    def summaries(self) -> Iterator[str]:
        """Say in words what the run starts from and what trains."""
        yield self.load_report.summary()
        yield self.adapter_report.summary()

    def band_names(self) -> Sequence[str] | None:
        """Return the names of the images' bands, in their order, if they are known."""
        bands: Sequence[str] | None = self.hparams['bands']
        return bands

    def on_train_start(self) -> None:
        """Start the prototypes at images' features; do nothing where a run was done already."""
        self.stop_when_done()
        if self.micro_step == 0 and self.recipe.optimization.prototype_init == 'images':
            self._start_prototypes()

    def _start_prototypes(self) -> None:
        loader = self.trainer.train_dataloader
        assert loader is not None, 'Lightning sets the loaders up before training starts'
        if isinstance(loader, DataLoader):
            # one of its own: with persistent workers all share one iterator, the trainer's
            loader = DataLoader(
                loader.dataset,
                loader.batch_size,
                sampler=loader.sampler,
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
            )
        images = (batch['image'].to(self.device) for batch in loader)
        with self.trainer.precision_plugin.forward_context():
            count = prototypes_from_images(self.model, self.multicrop, images, self.hparams['seed'])
        rank_zero_info(f'{count} prototypes start at features of the images.')

    def schedules(self, batch_size: int) -> Schedules:
        """Return the curves of this run.

        Args:
            batch_size: Images of a micro-batch on one device.
        """
        effective = self.effective_batch(batch_size)
        return make_schedules(self.recipe.optimization, self.run_length, effective)

    def micro_batch(self, batch: dict[str, Any], window_start: int) -> MicroBatch:
        """Augment and evaluate, with randomness that depends on the step alone."""
        images: Tensor = batch['image']
        schedules = self.schedules(len(images))
        seed = step_seed(self.hparams['seed'], self.micro_step, self.global_rank)
        temperature = schedules.teacher_temperature(window_start)
        losses = self._losses(images, seed, temperature)
        logged: dict[str, Tensor | float] = {
            f'train_{name}': value for name, value in losses.displayed().items()
        }
        logged |= {
            'prototype_usage': losses.usage,
            'lr': schedules.backbone_lr(window_start),
            'teacher_momentum': schedules.momentum(window_start),
            'teacher_temperature': temperature,
        }
        finish = partial(self.model.update_centers, losses)
        return MicroBatch(losses.total, logged, len(images), finish)

    def _losses(self, images: Tensor, seed: int, temperature: float) -> DINOv2Losses:
        return micro_batch(self.model, self.multicrop, self.recipe.crops, images, seed, temperature)

    def set_rates(self, optimizer: torch.optim.Optimizer, window_start: int, images: int) -> None:
        """Set the rates of every part."""
        set_rates(optimizer, self.schedules(images), self.recipe.optimization, window_start)

    def after_optimizer_step(self, window_start: int, images: int) -> None:
        """Move the teacher."""
        self.model.update_teacher(self.schedules(images).momentum(window_start))

    def evaluate(self, batch: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """Return the losses of a batch at the final temperature of the targets.

        What remains for the last batch may be one image, which has no nearest neighbour for the
        KoLeo loss: it is left out, and that is said.
        """
        if len(batch['image']) == 1 and seed > 0:
            rank_zero_info('The last batch holds one image, and the losses need two: left out.')
            return {}
        temperature = self.recipe.optimization.teacher_temperature
        losses = self._losses(batch['image'], step_seed(seed, 0, self.global_rank), temperature)
        return {'loss': losses.total, **losses.displayed()}

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """Return the class token (B, D) of every image, before any blending with the base."""
        model = self.backbones()[self.recipe.optimization.publish]
        return global_token(model, encode(model, self.eval_transform(batch['image'])))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip here, where float16's loss scale has been taken out of the gradients."""
        clip_gradients(self.model, self.recipe.optimization.clip)

    def describe_network(self) -> str:
        """Say in a checkpoint which network in it would be published, and what it is."""
        optimization = self.recipe.optimization
        facts = {'base': self.hparams['model'], **self._images()}
        return describe_training(
            self.backbones()[optimization.publish],
            f'model.{optimization.publish}.',
            self.adapter_report.config,
            facts,
            optimization.blend,
        )

    def export(self, folder: Path) -> list[Path]:
        """Write ``explora.safetensors`` and ``adapter.safetensors``; return their paths.

        Args:
            folder: Where the two files go.
        """
        optimization, hparams = self.recipe.optimization, self.hparams
        metadata = {
            'base': hparams['model'],
            'start': self.load_report.source or 'random',
            'method': 'D-ExPLoRA',
            'network': optimization.publish,
            'blend': optimization.blend,
            'micro_steps': self.micro_step,
            **self._images(),
        }
        model = blend(self.backbones()[optimization.publish], self.start, optimization.blend)
        return publish(model, self.recipe.adapter, folder, metadata, self.adapter_report.trained)

    def _images(self) -> dict[str, Any]:
        """What the weights are to say of their images."""
        bands, size = self.hparams['bands'], self.recipe.crops.global_size
        own = {'bands': bands, 'mean': self.mean, 'std': self.std, 'size': size}
        return self.image_facts | {name: v for name, v in own.items() if v is not None}
