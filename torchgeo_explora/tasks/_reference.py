"""The features of the images that a model was fitted on, summarised beside it when the fit ends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchgeo.datasets import GeoDataset

from torchgeo_explora.adapters import merge_lora
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import FeatureOrigin, backbone_fingerprint, fit_feature_reference
from torchgeo_explora.models.feature_reference import REFERENCE, tapped_features
from torchgeo_explora.models.fitted import find_backbone
from torchgeo_explora.objectives.probing.features import evaluation_mode
from torchgeo_explora.tasks._finetuning import FineTuningTask
from torchgeo_explora.tasks._subsets import draw

BATCH = 16
"""Images of a batch where no loader tells."""

type Batch = dict[str, Any]


def write_reference(
    task: FineTuningTask,
    folder: Path,
    image_size: int,
    view: Callable[[Tensor], Tensor] = lambda images: images,
) -> list[Path]:
    """Write ``features.safetensors``: what the images of a fit look like to the fitted model.

    Training images are seen without augmentation; those of validation, where there are any, give
    the unit of the distance. Whatever stands in the way is said and ends no fit.

    Args:
        task: A task whose fit has ended.
        folder: Where the file goes.
        image_size: Side in pixels of the images that the model was fitted on.
        view: Gives images that size, where the task itself does not.

    Returns:
        The path written; none where no images are wanted or there are too few.

    Raises:
        OutputError: If the file cannot be written.
    """
    path, count = folder / REFERENCE, task.hparams['reference_images']
    path.unlink(missing_ok=True)  # of an earlier fit, and of its weights
    if count == 0:
        return []
    train, val = (_features(task, split, count, view) for split in ('train', 'val'))
    backbone = find_backbone(merge_lora(task.model))[1]
    origin = FeatureOrigin(task.hparams['model'], backbone_fingerprint(backbone), image_size)
    try:
        reference = fit_feature_reference(train, origin, val)
    except ConfigError as error:  # too few images, for instance
        rank_zero_info(f'No {REFERENCE} was written, and maps will have no distance: {error}')
        return []
    return [reference.save(path)]


def _features(
    task: FineTuningTask, split: str, count: int, view: Callable[[Tensor], Tensor]
) -> Tensor:
    """Features of some images of a split (images, dim)."""
    forward = task.trainer.precision_plugin.forward_context()
    kept = [torch.zeros(0, task.backbone.embed_dim)]
    with evaluation_mode(task), forward, tapped_features(task.backbone) as tapped:
        for batch in _batches(task, split, count):
            task(view(batch['image']), batch.get('timestamps'))
            kept.append(tapped.pop().cpu())
            if sum(map(len, kept)) >= count:
                break
    return torch.cat(kept)[:count]


def _batches(task: FineTuningTask, split: str, count: int) -> Iterator[Batch]:
    """Batches of a split on the task's device, treated as the data module treats them."""
    loader = _loader(task, split, count)
    for batch in () if loader is None else loader:
        moved: Batch = task.trainer.strategy.batch_to_device(batch, task.device)
        yield moved


def _loader(task: FineTuningTask, split: str, count: int) -> DataLoader[Any] | None:
    """Images drawn from a data set; where it cannot be drawn from, those of the trainer's loader."""
    trainer = task.trainer
    datamodule = getattr(trainer, 'datamodule', None)
    given: Any = trainer.train_dataloader if split == 'train' else trainer.val_dataloaders
    loader = next(iter(given), None) if isinstance(given, list | tuple) else given
    dataset: Dataset[Any] | None = getattr(datamodule, f'{split}_dataset', None)
    if dataset is None or isinstance(dataset, GeoDataset):
        return loader if isinstance(loader, DataLoader) else None
    return DataLoader(
        draw(dataset, count, task.hparams['seed']),
        batch_size=BATCH if loader is None else loader.batch_size,
        num_workers=getattr(datamodule, 'num_workers', 0),
        collate_fn=getattr(datamodule, 'collate_fn', default_collate),
        generator=torch.Generator(),
    )


def centre(images: Tensor, size: int) -> Tensor:
    """Cut the centre out of images that are larger than those that the model was fitted on.

    Args:
        images: (..., height, width).
        size: Longest side that is kept.
    """
    height, width = images.shape[-2:]
    top, left = max(height - size, 0) // 2, max(width - size, 0) // 2
    return images[..., top : top + size, left : left + size]
