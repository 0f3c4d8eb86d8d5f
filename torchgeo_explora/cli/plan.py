"""Settle what a run will do, before anything is written: model, sizes, images, steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchgeo_explora.cli import replay_model  # noqa: F401  # makes the model of `replay` known to timm
from torchgeo_explora.cli.choices import choose_precision
from torchgeo_explora.cli.console import say
from torchgeo_explora.cli.images import RunImages, open_images
from torchgeo_explora.cli.rasters import open_rasters
from torchgeo_explora.cli.settings import AdaptSettings, weights_argument
from torchgeo_explora.cli.values import Values, choose_values, known_values, recipe_for
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import create_backbone
from torchgeo_explora.objectives.presets import Recipe, get_preset, recipe_fields
from torchgeo_explora.tasks.dinov2 import ExPLoRADINOv2

IMAGES_SEEN = 48_000
"""Length of a run of preset ``small`` unless the user says otherwise."""

MOST_EPOCHS = 200
"""Passes over a small folder within that length."""


@dataclass(frozen=True)
class Plan:
    """A run that is ready to begin.

    Args:
        settings: What the user asked for.
        images: What it is adapted to and scored on.
        arguments: Of the task, for ``config.yaml``.
        values: How images are normalised.
        task: The task.
        batch_size: Images of a batch.
        steps: Batches of the whole run.
        device: Where it runs.
        precision: Lightning's name.
    """

    settings: AdaptSettings
    images: RunImages
    arguments: dict[str, Any]
    values: Values
    task: ExPLoRADINOv2
    batch_size: int
    steps: int
    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the arithmetic."""
        return torch.bfloat16 if self.precision.startswith('bf16') else torch.float32

    def config(self) -> dict[str, Any]:
        """The same run for ``torchgeo fit --config``."""
        return {
            'seed_everything': self.settings.seed,
            'trainer': {
                'accelerator': 'gpu' if self.device.type == 'cuda' else 'cpu',
                'devices': 1,
                'precision': self.precision,
                'max_epochs': -1,
                'num_sanity_val_steps': 0,
                'limit_val_batches': 0,
            },
            'model': {
                'class_path': 'torchgeo_explora.tasks.ExPLoRADINOv2',
                'init_args': self.arguments,
            },
            'data': {
                'class_path': f'torchgeo_explora.datamodules.{type(self.images.module).__name__}',
                'init_args': self.images.arguments,
            },
        }


def make_plan(
    settings: AdaptSettings, device: torch.device, statistics: Path | None = None
) -> Plan:
    """Check everything that can be checked, and build the task.

    Args:
        settings: What the user asked for.
        device: Where to run.
        statistics: What was measured of the bands when the run began, of one that goes on.

    Raises:
        ConfigError: If an option is wrong.
        ImageError: If the images cannot be used.
        WeightsError: If the weights cannot be read or do not fit.
    """
    recipe = get_preset(settings.preset).override(
        **{k: v for k, v in settings.extra.items() if k in recipe_fields()}
    )
    patch = patch_size(settings.model)
    wished = recipe.batch_size if settings.batch_size is None else settings.batch_size
    images = find_images(settings, patch, wished, statistics)
    batch_size = min(wished, images.count)
    if batch_size < 2:
        raise ConfigError(
            f'There is 1 image in a batch ({images.count} in {settings.images}): the losses '
            'compare images with one another, so give at least 2.'
        )
    if batch_size != wished:
        say(f'Batches hold all {batch_size} images: there are not {wished}.')
        images.module.batch_size = images.arguments['batch_size'] = batch_size
    steps = count_steps(settings, recipe, images.count, batch_size)
    channels = images.module.num_channels
    values = choose_values(settings, images.statistics, channels)
    arguments = task_arguments(settings, recipe, patch, steps, values, images.bands)
    task = ExPLoRADINOv2(**arguments)
    task.take_facts(images.module)
    precision = choose_precision(settings.precision, device)
    return Plan(settings, images, arguments, values, task, batch_size, steps, device, precision)


def find_images(
    settings: AdaptSettings, patch: int, batch_size: int, statistics: Path | None = None
) -> RunImages:
    """Open what a run is adapted to: a folder of images, or windows of rasters.

    Args:
        settings: Of the run.
        patch: Side of the model's patches in pixels.
        batch_size: Images of a batch.
        statistics: What was measured of the rasters' bands when the run began.

    Raises:
        ExploraError: If they cannot be used.
    """
    if settings.sources is not None:
        return open_rasters(settings, patch, batch_size, statistics)
    return open_images(settings, patch, batch_size)


def patch_size(model: str) -> int:
    """Side of a model's patches in pixels.

    Raises:
        ConfigError: If there is no such model.
    """
    with torch.device('meta'):
        backbone, _ = create_backbone(model)
    height, width = backbone.patch_embed.patch_size
    return int(max(height, width))


def count_steps(settings: AdaptSettings, recipe: Recipe, images: int, batch_size: int) -> int:
    """Number of batches of a run.

    Args:
        settings: What the user asked for.
        recipe: Gives the number where the user does not.
        images: Images of an epoch.
        batch_size: Images of a batch.
    """
    epoch = max(images // batch_size, 1)
    if settings.steps is not None:
        return settings.steps
    if settings.epochs is not None:
        return settings.epochs * epoch
    if recipe.optimization.steps is not None:
        return recipe.optimization.steps
    return min(-(-IMAGES_SEEN // batch_size), MOST_EPOCHS * epoch)


def task_arguments(
    settings: AdaptSettings,
    recipe: Recipe,
    patch: int,
    steps: int,
    values: Values,
    bands: Sequence[str],
) -> dict[str, Any]:
    """Arguments of the task; those that keep the recipe's value are left out.

    Crops are rounded to whole patches, since the recipes' own sizes are those of patch 14. Bands that
    are no colours are neither turned grey nor change their hue.

    Args:
        settings: What the user asked for.
        recipe: The recipe with the user's changes.
        patch: Side of the model's patches in pixels.
        steps: Batches of the whole run.
        values: How images are normalised.
        bands: Names of the bands, as far as they are known.
    """
    crops = recipe.crops
    sides = {'global_size': crops.global_size, 'local_size': crops.local_size}
    sides = {name: whole_patches(side, patch) for name, side in sides.items()}
    eval_size = sides['global_size'] if settings.eval_size is None else settings.eval_size
    chosen = {
        'model': settings.model,
        'weights': weights_argument(settings.weights),
        'preset': settings.preset,
        'in_channels': len(values.mean),
        'mean': values.mean,
        'std': values.std,
        'bands': list(bands) if bands and len({*bands}) == len(bands) else None,
        'eval_size': eval_size,
        'seed': settings.seed,
        'steps': steps,
        'rank': settings.rank,
        'unfreeze_blocks': settings.unfreeze,
        **sides,
        **recipe_for(bands, crops.color_jitter),
        **settings.extra,
    }
    return {key: value for key, value in chosen.items() if value is not None}


def whole_patches(side: int, patch: int) -> int:
    """Round a side to whole patches, at least one."""
    return max(round(side / patch), 1) * patch


def statistics(settings: AdaptSettings) -> tuple[list[float], list[float]]:
    """Mean and std to normalise with: given, those of the weights file, or the model's own."""
    values = known_values(settings)
    return values.mean, values.std
