"""One training step in plain torch, shared by the Lightning task and the benchmarks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from torchgeo_explora.layers.masking import block_masks
from torchgeo_explora.layers.tokens import fast_attention, patch_grid
from torchgeo_explora.objectives.dinov2 import DINOv2Losses, DINOv2Objective
from torchgeo_explora.objectives.param_groups import clip_gradients, make_optimizer, set_rates
from torchgeo_explora.objectives.presets import CropConfig
from torchgeo_explora.transforms.multicrop import MultiCrop

# Keeps the masks' draws apart from those of crops and stochastic depth, which share the seed
MASKS = 1 << 62

__all__ = [
    'clip_gradients',
    'make_multicrop',
    'make_optimizer',
    'micro_batch',
    'set_rates',
    'step_seed',
]


def make_multicrop(
    config: CropConfig, bands: int, mean: Sequence[float], std: Sequence[float]
) -> MultiCrop:
    """Build the augmentation of a recipe.

    Args:
        config: Sizes and strengths.
        bands: Number of bands; hue, saturation and grey exist for three only.
        mean: Mean of each band in [0, 1].
        std: Standard deviation of each band.
    """
    return MultiCrop(
        config.global_size,
        config.local_size,
        config.n_local,
        config.global_scale,
        config.local_scale,
        color_jitter=config.color_jitter,
        grayscale_p=config.grayscale_p,
        blur_p=config.blur_p,
        solarize_p=config.solarize_p,
        bands='rgb' if bands == 3 else 'any',
        mean=mean,
        std=std,
    )


def step_seed(seed: int, micro_step: int, rank: int = 0) -> int:
    """Mix seed, micro-batch and rank into one number; all that is random in a step hangs on it.

    Two runs that reach the same micro-batch therefore draw the same, also after a resume.
    """
    return ((seed * 10_000_019 + micro_step) * 4096 + rank) % 2**63


def micro_batch(
    objective: DINOv2Objective,
    multicrop: MultiCrop,
    config: CropConfig,
    images: Float[Tensor, 'b c h w'],
    seed: int,
    temperature: float,
) -> DINOv2Losses:
    """Augment and mask a batch and compute its losses.

    Args:
        objective: Student, teacher and heads.
        multicrop: Augmentation.
        config: Shares of masked crops and patches.
        images: Images in [0, 1].
        seed: Source of everything random, see :func:`step_seed`.
        temperature: Teacher temperature.
    """
    crops = multicrop(images, seed)
    grid = patch_grid(objective.student, crops.global_)
    mask = block_masks(
        grid,
        len(crops.global_),
        config.mask_probability,
        config.mask_ratio,
        generator=torch.Generator().manual_seed(seed ^ MASKS),
    )
    devices = [images.device] if images.device.type == 'cuda' else []
    with torch.random.fork_rng(devices), fast_attention(images.device, grid.area):
        torch.manual_seed(seed)  # for stochastic depth
        losses: DINOv2Losses = objective(crops.global_, crops.local, mask, temperature)
    return losses
