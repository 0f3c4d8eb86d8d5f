"""Algorithms as plain modules: the DINOv2 and MAE objectives, averaging, schedules, recipes."""

from torchgeo_explora.objectives.dinov2 import DINOv2Config, DINOv2Losses, DINOv2Objective
from torchgeo_explora.objectives.ema import averaged_pairs, ema_update, shared_copy
from torchgeo_explora.objectives.mae import MAEConfig, MAEObjective, MAEOutput
from torchgeo_explora.objectives.mae_presets import (
    MAE_PRESETS,
    DecoderConfig,
    MAEOptimizationConfig,
    MAERecipe,
    ViewConfig,
    get_mae_preset,
    mae_learning_rate,
)
from torchgeo_explora.objectives.pca import PCAAccumulator, PCABasis, basis_metadata
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
    HalfCosine,
    WarmupCosine,
    linear_warmup,
    linearly_scaled_learning_rate,
    scaled_learning_rate,
)

__all__ = [
    'MAE_PRESETS',
    'PRESETS',
    'CropConfig',
    'DINOv2Config',
    'DINOv2Losses',
    'DINOv2Objective',
    'DecoderConfig',
    'HalfCosine',
    'MAEConfig',
    'MAEObjective',
    'MAEOptimizationConfig',
    'MAEOutput',
    'MAERecipe',
    'OptimizationConfig',
    'PCAAccumulator',
    'PCABasis',
    'Recipe',
    'Schedules',
    'ViewConfig',
    'WarmupCosine',
    'averaged_pairs',
    'basis_metadata',
    'ema_update',
    'get_mae_preset',
    'get_preset',
    'linear_warmup',
    'linearly_scaled_learning_rate',
    'mae_learning_rate',
    'make_schedules',
    'scaled_learning_rate',
    'shared_copy',
]
