"""One step of masked autoencoding in plain torch, shared by Lightning's task and the benchmarks."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from torchgeo_explora.objectives.mae import MAEObjective, MAEOutput
from torchgeo_explora.objectives.mae_presets import MAEOptimizationConfig, ViewConfig
from torchgeo_explora.objectives.param_groups import adamw, is_matrix
from torchgeo_explora.objectives.steps import MASKS
from torchgeo_explora.transforms._resample import crop_and_resize, draw_boxes
from torchgeo_explora.transforms.normalize import resize_and_centre


def random_views(
    images: Float[Tensor, 'batch *dates bands h w'], config: ViewConfig, seed: int
) -> Float[Tensor, 'batch *dates bands size size']:
    """Cut a view out of every image, the same one of all its bands and dates.

    Args:
        images: In [0, 1].
        config: Size and strength.
        seed: Source of everything random.

    Returns:
        Views in [0, 1], antialiased bicubic.
    """
    generator = torch.Generator().manual_seed(seed)
    stack = images.flatten(1, -3).float()  # (b, dates, bands, h, w) -> (b, dates * bands, h, w)
    height, width = stack.shape[-2:]
    if config.random_crop:
        shape, scale = (len(stack), 1), (config.crop_scale[0], config.crop_scale[1])
        boxes = draw_boxes(shape, height, width, scale, generator, flip_p=config.flip_p)
        stack = crop_and_resize(stack, boxes.to(stack.device), config.image_size)[0]
    else:
        stack = resize_and_centre(stack, config.image_size, config.image_size)
        flip = torch.rand(len(stack), generator=generator) < config.flip_p
        flip = flip.to(stack.device)[:, None, None, None]
        stack = torch.where(flip, stack.flip(-1), stack)
    views: Tensor = stack.unflatten(1, images.shape[1:-2])
    return views


def mae_micro_batch(
    objective: MAEObjective,
    images: Float[Tensor, 'batch *dates bands h w'],
    seed: int,
    timestamps: Float[Tensor, 'batch dates 3'] | None = None,
) -> MAEOutput:
    """Mask a batch and compute its loss.

    Args:
        objective: Encoder and decoder.
        images: Normalised views.
        seed: Source of everything random.
        timestamps: Of the dates of temporal images.
    """
    # apart from the draws of views and stochastic depth, which share the seed
    noise = objective.draw_noise(images, torch.Generator().manual_seed(seed ^ MASKS))
    devices = [images.device] if images.device.type == 'cuda' else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)  # for stochastic depth
        output: MAEOutput = objective(images, noise, timestamps)
    return output


def make_mae_optimizer(objective: MAEObjective, config: MAEOptimizationConfig) -> torch.optim.AdamW:
    """Return AdamW over what trains; rates are set before every step by :func:`set_mae_rates`.

    Args:
        objective: Encoder and decoder.
        config: Betas.
    """
    trained = [p for p in objective.parameters() if p.requires_grad]
    decaying = [p for p in trained if is_matrix(p)]
    others = [p for p in trained if not is_matrix(p)]
    groups: list[dict[str, object]] = [
        {'params': params, 'decay': decay}
        for params, decay in ((decaying, True), (others, False))
        if params
    ]
    return adamw(groups, config.betas)


def set_mae_rates(optimizer: Optimizer, config: MAEOptimizationConfig, rate: float) -> None:
    """Set learning rate and weight decay of every group.

    Args:
        optimizer: From :func:`make_mae_optimizer`.
        config: Weight decay.
        rate: Learning rate.
    """
    for group in optimizer.param_groups:
        group['lr'] = rate
        group['weight_decay'] = config.weight_decay if group['decay'] else 0.0


def clip_mae_gradients(objective: MAEObjective, limit: float) -> None:
    """Clip the norm of all gradients together; a limit of 0 clips nothing."""
    if limit > 0:
        trained = [p for p in objective.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(trained, limit)
