"""Algorithms as plain modules: the DINOv2 objective, teacher averaging, schedules, recipes."""

from torchgeo_explora.objectives.dinov2 import DINOv2Config, DINOv2Losses, DINOv2Objective
from torchgeo_explora.objectives.ema import averaged_pairs, ema_update, shared_copy
from torchgeo_explora.objectives.mae import MAEConfig, MAEObjective, MAEOutput
from torchgeo_explora.objectives.presets import (
    PRESETS,
    CropConfig,
    OptimizationConfig,
    Recipe,
    Schedules,
    get_preset,
    make_schedules,
)
from torchgeo_explora.objectives.schedules import (
    WarmupCosine,
    linear_warmup,
    scaled_learning_rate,
)

__all__ = [
    'PRESETS',
    'CropConfig',
    'DINOv2Config',
    'DINOv2Losses',
    'DINOv2Objective',
    'MAEConfig',
    'MAEObjective',
    'MAEOutput',
    'OptimizationConfig',
    'Recipe',
    'Schedules',
    'WarmupCosine',
    'averaged_pairs',
    'ema_update',
    'get_preset',
    'linear_warmup',
    'make_schedules',
    'scaled_learning_rate',
    'shared_copy',
]
