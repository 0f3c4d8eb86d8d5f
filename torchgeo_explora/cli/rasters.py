"""The windows of rasters that a run is adapted to, and what it is scored on."""

import warnings
from pathlib import Path
from typing import Any

from torchgeo_explora.cli.images import LabelledSplit, RunImages, adapted_to, separate_split
from torchgeo_explora.cli.settings import AdaptSettings, choose_workers
from torchgeo_explora.cli.values import chosen_scale, given_values, weights_say
from torchgeo_explora.datamodules import GeoTIFFDataModule, LabelledGeoTIFFDataModule
from torchgeo_explora.datasets import GeoTIFFFolder
from torchgeo_explora.errors import ConfigError


def open_rasters(
    settings: AdaptSettings, patch: int, batch_size: int, statistics: Path | None = None
) -> RunImages:
    """Look at the rasters of a run, measure their bands, and divide what has labels.

    Args:
        settings: Of the run.
        patch: Side of the model's patches in pixels.
        batch_size: Windows of a batch.
        statistics: What was measured when the run began, of a run that goes on.

    Raises:
        ConfigError: If an option does not fit.
        ImageError: If the rasters cannot be used.
        LabelError: If the labels cannot be used.
    """
    _check(settings)
    # draws are not limited to what stands side by side: batches are full
    images, arguments = _look(settings, patch, statistics, batch_size)
    workers = choose_workers(settings.workers, cached=False)
    module = GeoTIFFDataModule(**arguments, batch_size=batch_size, num_workers=workers)
    module.take(images)
    labelled = None if settings.labels is None else _labelled(settings, images, module, workers)
    skipped = {str(path): reason for path, reason in images.skipped.items()}
    whole = {**arguments, 'batch_size': batch_size, 'num_workers': workers}
    return RunImages(module, whole, labelled, skipped, images.statistics, images.measured_on)


def folder_of(module: GeoTIFFDataModule) -> GeoTIFFFolder:
    """Return the rasters that an opened module draws windows from."""
    images = adapted_to(module)
    assert isinstance(images, GeoTIFFFolder), 'the module draws windows of rasters'
    return images


def _check(settings: AdaptSettings) -> None:
    if settings.all_images:
        raise ConfigError(
            '--all-images was given with rasters, of which nothing is held out: leave it out.'
        )
    if settings.class_column is not None and settings.labels is None:
        raise ConfigError(
            f'--class-column {settings.class_column} was given without --labels: name the vector '
            'file of polygons.'
        )


def _look(
    settings: AdaptSettings, patch: int, statistics: Path | None, batch_size: int
) -> tuple[GeoTIFFFolder, dict[str, Any]]:
    given, told = given_values(settings), weights_say(settings)
    count = len(given.mean) if given is not None else None if told is None else len(told.bands)
    arguments: dict[str, Any] = {
        'sources': settings.sources,
        'image_size': settings.image_size,
        'bands': settings.bands,
        'mode': 'rgb' if settings.grey else 'keep',
        'length': settings.windows,
        'balance': settings.balance,
        'min_valid': settings.min_valid,
        'scale': chosen_scale(settings),
        'resolution': settings.resolution,
        'num_channels': count,
        'min_size': patch,
        'seed': settings.seed,
    }
    with warnings.catch_warnings():
        # what is left out is said in one list
        warnings.filterwarnings('ignore', message=r'\d+ of \d+ rasters are left out')
        images = GeoTIFFFolder(**arguments, statistics=statistics, min_length=batch_size)
    return images, arguments | {'image_size': images.image_size, 'length': len(images)}


def _labelled(
    settings: AdaptSettings, images: GeoTIFFFolder, module: GeoTIFFDataModule, workers: int
) -> LabelledSplit:
    assert settings.labels is not None, 'asked for only where there are labels'
    path = Path(settings.labels)
    if path.is_dir() or path.suffix.lower() == '.zip':
        return separate_split(path, _folder_arguments(settings, images, module, workers))
    if not path.is_file():
        raise ConfigError(
            f'--labels {path} is not there: give a folder of images or a vector file.'
        )
    if settings.class_column is None:
        raise ConfigError(
            f'{path} is taken for a vector file of polygons: name the column of their classes as '
            '--class-column, or give a folder with one sub-folder of images a class.'
        )
    labels = LabelledGeoTIFFDataModule(
        module.options, path, settings.class_column, module.batch_size, workers, settings.seed,
        min_cover=settings.min_cover,
    )  # fmt: skip
    labels.take(images)
    reference, scored = labels.train_dataset, labels.val_dataset
    assert reference is not None and scored is not None and labels.classes is not None
    source = (
        f'{path}: windows that one class covers by {100 * settings.min_cover:g} %, scored on blocks '
        'of ground held out (their pixels are adapted to, without labels)'
    )
    return LabelledSplit(reference, scored, labels.classes, source, labels)


def _folder_arguments(
    settings: AdaptSettings, images: GeoTIFFFolder, module: GeoTIFFDataModule, workers: int
) -> dict[str, Any]:
    """How labelled images are read: as the rasters are."""
    scale = images.scale
    options = {} if scale.source == 'dtype' else {'scale': (list(scale.low), list(scale.high))}
    return options | {
        'bands': settings.bands,
        'mode': 'rgb' if settings.grey else 'keep',
        'num_channels': images.num_channels,
        'min_size': 1,
        'seed': settings.seed,
        'image_size': images.image_size,
        'cache': 'none',
        'num_workers': workers,
        'batch_size': module.batch_size,
    }
