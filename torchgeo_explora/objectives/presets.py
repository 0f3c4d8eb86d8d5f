"""Complete recipes for D-ExPLoRA: the published script, the workshop paper, and small data.

Lengths of warm-ups are shares of the run, so that a recipe keeps its shape at any number of
steps. A step is one micro-batch; the optimizer steps once every ``accumulate`` of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torchgeo_explora.adapters.config import ExPLoRAConfig
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.dinov2 import DINOv2Config
from torchgeo_explora.objectives.schedules import (
    WarmupCosine,
    linear_warmup,
    scaled_learning_rate,
)


@dataclass(frozen=True)
class CropConfig:
    """Sizes of the crops and strength of their augmentation.

    Args:
        global_size: Side of the two global crops, in pixels.
        local_size: Side of the local crops, in pixels.
        n_local: Number of local crops.
        global_scale: Range of the share of the image a global crop covers.
        local_scale: The same for local crops.
        color_jitter: Strengths for brightness, contrast, saturation and hue.
        grayscale_p: Probability of a grey crop.
        blur_p: Probabilities of blurring the first, the second global and the local crops;
            the default is what DINOv2 really trains with, not what it documents.
        solarize_p: Probabilities of solarising the first, the second global and local crops.
        mask_probability: Share of the global crops with masked patches.
        mask_ratio: Range of the share of masked patches in those.
    """

    global_size: int = 224
    local_size: int = 98
    n_local: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grayscale_p: float = 0.2
    blur_p: tuple[float, float, float] = (0.0, 0.9, 0.5)
    solarize_p: tuple[float, float, float] = (0.0, 0.2, 0.0)
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)


@dataclass(frozen=True)
class OptimizationConfig:
    """How long, how fast and how the teacher follows.

    Args:
        steps: Micro-batches of the whole run; ``None`` for as many as the trainer will do.
        accumulate: Micro-batches an optimizer step averages over.
        base_lr: Learning rate for an effective batch of 1,024; scaled by the square root.
        head_lr_scale: Rate of the heads relative to the backbone's.
        unfrozen_lr_scale: Rate of the blocks trained in full relative to the backbone's.
        min_lr: Learning rate at the end.
        warmup: Share of the run over which the rate rises.
        head_start: Share of the run during which only the heads train.
        freeze_last_layer: Share of the run during which the heads' prototypes do not train.
        weight_decay: Weight decay at the start; none for biases, norms and scales.
        weight_decay_end: Weight decay at the end (cosine in between).
        betas: Of AdamW.
        clip: Largest gradient norm of each sub-module (backbone, heads); 0 for no clipping.
        momentum: Teacher momentum at the start; per optimizer step.
        momentum_end: Teacher momentum at the end (cosine in between).
        teacher_temperature: Temperature of the targets after its warm-up.
        teacher_temperature_start: Temperature at the start.
        teacher_temperature_warmup: Share of the run over which it rises.
        prototype_init: ``random`` (the paper), or ``images`` to start the prototypes at features
            of the images, see :mod:`torchgeo_explora.objectives.prototypes`.
        publish: Which of the two networks is exported.
        blend: How far from the base towards the adapted weights the exported ones lie; 1 is the
            paper, less keeps more of the base, see :func:`torchgeo_explora.adapters.blend`.
    """

    steps: int | None = 200_000
    accumulate: int = 32
    base_lr: float = 1e-3
    head_lr_scale: float = 1.0
    unfrozen_lr_scale: float = 1.0
    min_lr: float = 1e-6
    warmup: float = 0.05
    head_start: float = 0.0
    freeze_last_layer: float = 0.015
    weight_decay: float = 0.0
    weight_decay_end: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 3.0
    momentum: float = 0.994
    momentum_end: float = 1.0
    teacher_temperature: float = 0.07
    teacher_temperature_start: float = 0.04
    teacher_temperature_warmup: float = 0.15
    prototype_init: Literal['random', 'images'] = 'random'
    publish: Literal['teacher', 'student'] = 'teacher'
    blend: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.publish not in ('teacher', 'student'):
            raise ConfigError(f'publish is {self.publish!r}: use teacher (the paper) or student.')
        if not 0 < self.blend <= 1:
            raise ConfigError(f'blend is {self.blend}: give a share above 0, at most 1.')
        if self.prototype_init not in ('random', 'images'):
            raise ConfigError(
                f'prototype_init is {self.prototype_init!r}: use random (the paper) or images.'
            )
        if self.accumulate < 1 or (self.steps is not None and self.steps < 1):
            raise ConfigError(
                f'steps {self.steps} and accumulate {self.accumulate} were given: use 1 or more.'
            )
        shares = ('warmup', 'head_start', 'freeze_last_layer', 'teacher_temperature_warmup')
        wrong = {name: getattr(self, name) for name in shares if not 0 <= getattr(self, name) <= 1}
        if wrong:
            raise ConfigError(f'{wrong}: these are shares of the run; use values from 0 to 1.')


@dataclass(frozen=True)
class Recipe:
    """All numbers of a D-ExPLoRA run.

    Args:
        adapter: What trains.
        objective: Heads and losses.
        crops: Augmentation and masks.
        optimization: Rates and schedules.
        batch_size: Images of a micro-batch that the numbers were chosen for.
        source: Where the numbers come from.
    """

    adapter: ExPLoRAConfig = field(default_factory=ExPLoRAConfig)
    objective: DINOv2Config = field(default_factory=DINOv2Config)
    crops: CropConfig = field(default_factory=CropConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    batch_size: int = 8
    source: str = ''

    def override(self, **values: Any) -> 'Recipe':  # noqa: ANN401
        """Return the recipe with some fields of its parts replaced.

        Args:
            values: Field names of any part; ``None`` leaves a field as it is.

        Raises:
            ConfigError: If no part has such a field.
        """
        return override_parts(self, PARTS, values)


PARTS = ('adapter', 'objective', 'crops', 'optimization')


def override_parts[R](recipe: R, parts: Sequence[str], values: Mapping[str, Any]) -> R:
    """Return a recipe with some fields of its parts replaced.

    Args:
        recipe: A frozen dataclass whose parts are frozen dataclasses.
        parts: Names of its parts.
        values: Field names of any part; ``None`` leaves a field as it is.

    Raises:
        ConfigError: If no part has such a field.
    """
    left = {name: value for name, value in values.items() if value is not None}
    new = {}
    for name in parts:
        part = getattr(recipe, name)
        own = {f.name for f in dataclasses.fields(part)} & set(left)
        new[name] = dataclasses.replace(part, **{key: left.pop(key) for key in own})
    if left:
        raise ConfigError(f'A recipe has no field {", ".join(sorted(left))}.')
    return dataclasses.replace(recipe, **new)  # type: ignore[type-var]


def recipe_fields() -> set[str]:
    """Return the names of all numbers of a recipe."""
    parts = (ExPLoRAConfig, DINOv2Config, CropConfig, OptimizationConfig)
    return {field.name for part in parts for field in dataclasses.fields(part)}


@dataclass(frozen=True)
class Schedules:
    """Every quantity that changes from micro-batch to micro-batch.

    Args:
        backbone_lr: Learning rate of the backbone.
        head_lr: Learning rate of the heads.
        prototype_lr: Learning rate of the heads' last layer.
        weight_decay: Weight decay.
        momentum: Teacher momentum.
        teacher_temperature: Temperature of the teacher's targets.
    """

    backbone_lr: WarmupCosine
    head_lr: WarmupCosine
    prototype_lr: WarmupCosine
    weight_decay: WarmupCosine
    momentum: WarmupCosine
    teacher_temperature: WarmupCosine


def make_schedules(config: OptimizationConfig, steps: int, effective_batch: int) -> Schedules:
    """Lay a recipe's curves over a run.

    Args:
        config: The recipe's numbers.
        steps: Micro-batches of the run.
        effective_batch: Images an optimizer step sees.
    """
    rate = scaled_learning_rate(config.base_lr, effective_batch)
    warmup = round(config.warmup * steps)
    head_rate = rate * config.head_lr_scale
    frozen = round(config.freeze_last_layer * steps)
    return Schedules(
        backbone_lr=WarmupCosine(
            rate, config.min_lr, steps, warmup, delay=round(config.head_start * steps)
        ),
        head_lr=WarmupCosine(head_rate, config.min_lr, steps, warmup),
        prototype_lr=WarmupCosine(head_rate, config.min_lr, steps, warmup, frozen=frozen),
        weight_decay=WarmupCosine(config.weight_decay, config.weight_decay_end, steps),
        momentum=WarmupCosine(config.momentum, config.momentum_end, steps),
        teacher_temperature=linear_warmup(
            config.teacher_temperature_start,
            config.teacher_temperature,
            round(config.teacher_temperature_warmup * steps),
        ),
    )


PRESETS: dict[str, Recipe] = {
    'paper': Recipe(
        batch_size=8,
        source='published script pretrain_dino.sh: 8 images x 4 GPUs x 32 accumulated = 1,024',
    ),
    'workshop': Recipe(
        adapter=ExPLoRAConfig(rank=32),
        optimization=OptimizationConfig(
            accumulate=1, base_lr=5e-3, freeze_last_layer=0.005, momentum=0.992
        ),
        batch_size=32,
        source='ICML 2024 workshop version, appendix D.1: 32 images, 5e-3, 200,000 updates',
    ),
    'small': Recipe(
        adapter=ExPLoRAConfig(rank=32),
        objective=DINOv2Config(prototypes=2048),
        crops=CropConfig(
            global_size=98,
            local_size=42,
            n_local=6,
            # half of DINOv2's jitter, no grey and no solarising: colour tells land covers apart
            color_jitter=(0.2, 0.2, 0.1, 0.05),
            grayscale_p=0.0,
            solarize_p=(0.0, 0.0, 0.0),
        ),
        optimization=OptimizationConfig(
            steps=None,
            accumulate=1,
            base_lr=1.2e-3,  # 3e-4 at 64 images
            head_lr_scale=6.6,
            unfrozen_lr_scale=0.33,
            warmup=0.06,
            head_start=0.08,
            momentum=0.97,
            prototype_init='images',
            publish='student',
            blend=0.7,  # most of the gain in neighbours, none of the loss in a linear probe
        ),
        batch_size=64,
        source="this package's own, for a few thousand images and one GPU or a CPU",
    ),
}


def get_preset(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f'There is no preset {name!r}: use one of {", ".join(PRESETS)}.')
    return PRESETS[name]
