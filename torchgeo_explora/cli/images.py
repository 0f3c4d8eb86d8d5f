"""The images of a command: found and checked once, split into what trains and what is scored."""

import warnings
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from torchgeo_explora.cli.settings import AdaptSettings, choose_workers
from torchgeo_explora.cli.values import chosen_scale, given_values, weights_say
from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.datamodules._base import ImageDataModule
from torchgeo_explora.datamodules._sampler import Passes
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.datasets._drawn import DrawnImages
from torchgeo_explora.datasets._headers import find_images, is_raster
from torchgeo_explora.datasets._statistics import BandStatistics, measure
from torchgeo_explora.datasets.geotiff_folder import STATISTICS_WINDOWS
from torchgeo_explora.datasets.image_folder import EXTENSIONS, image_root
from torchgeo_explora.errors import ConfigError, ImageError

LARGEST_SIDE = 256
"""Pixels to which images are reduced unless the user says otherwise; DINOv2 crops 224."""

CACHE_BYTES = 2**30
"""Decoded images up to this size are kept in memory."""

HEALTH_IMAGES = 1000
"""Unlabelled images that rank, spread and drift are measured on."""

DRAWN_IMAGES, MOST_PASSES = 256, 16
"""Windows of rasters that are drawn for it, and the passes that they come from at most."""

type Sample = dict[str, Tensor]


@dataclass(frozen=True)
class LabelledSplit:
    """Images with classes: neighbours and classifiers come from one part, scores from the other.

    Args:
        reference: Images whose labels are used.
        scored: Images that are classified.
        classes: Names of the classes.
        source: Where the two come from, in words.
        module: Data module that holds both.
    """

    reference: Dataset[Sample]
    scored: Dataset[Sample]
    classes: list[str]
    source: str
    module: ImageDataModule


@dataclass(frozen=True)
class RunImages:
    """All images of a run.

    Args:
        module: What the model is adapted to.
        arguments: Of ``module``, for ``config.yaml``.
        labelled: What probes see; None where nothing has classes.
        skipped: Files that were left out, with the reason.
        statistics: What was measured of the bands.
        about: What that was measured on.
    """

    module: ImageDataModule
    arguments: dict[str, Any]
    labelled: LabelledSplit | None
    skipped: dict[str, str]
    statistics: BandStatistics
    about: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Images that the model is adapted to; windows of a pass over rasters."""
        return length(self.module.train_dataset)

    @property
    def bands(self) -> list[str]:
        """Names of the bands, or their indexes."""
        return [str(band) for band in getattr(self.module, 'bands', [])]

    def health_sample(self, seed: int) -> Dataset[Sample]:
        """Images that rank, spread and drift are measured on: some of those adapted to.

        Windows of rasters are taken from several passes where one has few.
        """
        dataset = adapted_to(self.module)
        if isinstance(dataset, DrawnImages) and self.count < DRAWN_IMAGES:
            return Subset(Passes(dataset), list(range(min(DRAWN_IMAGES, MOST_PASSES * self.count))))
        chosen = np.random.default_rng([seed, 1]).permutation(self.count)[:HEALTH_IMAGES]
        return Subset(dataset, sorted(chosen.tolist()))


def open_images(settings: AdaptSettings, patch: int, batch_size: int) -> RunImages:
    """Find, check and split the images of a run.

    Args:
        settings: Of the run.
        patch: Side of the model's patches in pixels.
        batch_size: Images of a batch.

    Raises:
        ImageError: If the images cannot be used.
        ConfigError: If an option does not fit them.
    """
    if settings.class_column is not None:
        raise ConfigError(
            f'--class-column {settings.class_column} was given with a folder of images: it names '
            'the classes of polygons on rasters; read the images as such by --read-as rasters.'
        )
    root = image_root(settings.folder)
    if settings.all_images and _tested(root):
        raise ConfigError(
            f'--all-images was given and {settings.folder} has a folder test: give the folder of '
            'the images to adapt to, and labelled ones as --labels.'
        )
    arguments = reading(settings, root, patch) | {
        'root': settings.folder,
        'batch_size': batch_size,
        'train_on_val': settings.all_images or _tested(root) or settings.labels is not None,
    }
    module = _opened(root, arguments)
    if settings.labels is None:
        split = _own_split(settings, module, arguments)
    else:
        split = separate_split(Path(settings.labels), arguments, module)
    measured = _measure(module, settings.seed)
    about = {'folder': settings.folder, 'bands': settings.bands, 'seed': settings.seed}
    return RunImages(module, arguments, split, left_out(module), measured, about)


def _measure(module: FolderDataModule, seed: int) -> BandStatistics:
    """Measure the bands on some images, spread over the folder."""
    folder = _folder(module)
    chosen = np.linspace(0, len(folder), min(STATISTICS_WINDOWS, len(folder)), endpoint=False)
    samples = (folder.pixels(int(index)) for index in chosen)
    names = folder.bands[: len(folder.scale.low)]
    found = (sample for sample in samples if sample is not None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        return measure(found, names, folder.scale, (1.0, 99.0), len(chosen), seed)


def reading(settings: AdaptSettings, root: Path, patch: int) -> dict[str, Any]:
    """Settle how the images under a folder are read.

    Args:
        settings: Of the run.
        root: Folder of images.
        patch: Side of the model's patches in pixels.

    Returns:
        Arguments of :class:`FolderDataModule`.

    Raises:
        ImageError: If the images cannot be used.
        ConfigError: If mean and std do not fit together.
    """
    options: dict[str, Any] = {
        'bands': settings.bands,
        'mode': 'rgb' if settings.grey else 'keep',
        'num_channels': needed_channels(settings, root),
        'min_size': patch,
        'seed': settings.seed,
    }
    train = root / 'train'
    with warnings.catch_warnings():  # what is left out is said once, by whoever loads the images
        warnings.simplefilter('ignore')
        survey = ImageFolder(
            train if train.is_dir() else root, scale=(0, 1), with_labels=False, **options
        )
    side = settings.image_size
    if side is None:
        sides = [_short_side(survey, index) for index in range(len(survey))]
        side = min(int(np.median(sides)), LARGEST_SIDE)
    cached = len(survey) * survey.num_channels * side**2 <= CACHE_BYTES
    scale = chosen_scale(settings)
    return (
        options
        | ({} if scale is None else {'scale': scale})
        | {
            'image_size': side,
            'cache': 'ram' if cached else 'none',
            'num_workers': choose_workers(settings.workers, cached),
        }
    )


def needed_channels(settings: AdaptSettings, root: Path) -> int | None:
    """Bands that the images must have; None for any.

    Pictures have three. Of GeoTIFFs any number will do, unless mean and std are given, or said by
    the weights' file.

    Args:
        settings: Of the run.
        root: Folder of images.

    Raises:
        ConfigError: If mean and std are not given together, of one length.
    """
    given, told = given_values(settings), weights_say(settings)
    if given is not None:
        return len(given.mean)
    if told is not None:
        return len(told.bands)
    rasters = all(is_raster(path) for path in find_images(root, EXTENSIONS))
    return None if rasters else 3


def _short_side(folder: ImageFolder, index: int) -> int:
    tile = folder.tiles[index]
    if tile.window is not None:
        return int(min(tile.window.height, tile.window.width))
    header = folder.headers[tile.file]
    return min(header.height, header.width)


def _tested(root: Path) -> bool:
    return (root / 'train').is_dir() and (root / 'test').is_dir()


def _opened(root: Path, arguments: dict[str, Any]) -> FolderDataModule:
    module = FolderDataModule(**{**arguments, 'root': root})
    module.setup('fit')
    return module


def _own_split(
    settings: AdaptSettings, module: FolderDataModule, arguments: dict[str, Any]
) -> LabelledSplit | None:
    """Probe the images themselves where their folders are classes."""
    if module.classes is None:
        return None
    train, held_out = adapted_to(module), module.test_dataset
    if _folder(module).classes is None:  # only the folder beside the training images has them
        beside = module.val_dataset if held_out is None else held_out
        assert isinstance(beside, ImageFolder), 'a share of images without classes has none'
        return separate_split(beside.root, arguments, module)
    source = f'{settings.folder}: train, scored on test (not adapted to)'
    if held_out is None:
        held_out, seen = module.val_dataset, 'adapted to as well' if settings.all_images else 'not'
        source = f'{settings.folder}: part of every class, scored on the rest ({seen} adapted to)'
    if held_out is None:
        return None
    return LabelledSplit(_without(train, held_out), held_out, module.classes, source, module)


def separate_split(
    folder: Path, arguments: dict[str, Any], like: FolderDataModule | None = None
) -> LabelledSplit:
    """Split a folder of labelled images into a reference and a scored part.

    Args:
        folder: Its ``test`` folder is scored where there is one, else a fifth of every class.
        arguments: Of :class:`FolderDataModule`.
        like: Images whose scale of values is to be used.

    Raises:
        ImageError: If the folder has no classes, or cannot be used.
    """
    root = image_root(folder)
    tested = _tested(root) and 'val_root' not in arguments
    scale = arguments.get('scale') if like is None else _scale(like)
    options = {'with_labels': True, 'train_on_val': tested, 'scale': scale}
    module = _opened(root, arguments | options)
    scored = module.test_dataset if tested else module.val_dataset
    if scored is None or module.classes is None:
        raise ImageError(
            f'{folder} has too few images to hold some back: give at least two of each class.'
        )
    part = 'train, scored on test' if tested else 'part of every class, scored on the rest'
    if 'val_root' in arguments:
        part = f'scored on {arguments["val_root"]}'
    source = f'{folder}: {part}'
    return LabelledSplit(adapted_to(module), scored, module.classes, source, module)


def adapted_to(module: ImageDataModule) -> Dataset[Sample]:
    """Return the training images of an opened module."""
    dataset = module.train_dataset
    assert dataset is not None, 'an opened module has training images'
    return dataset


def length(dataset: Dataset[Sample] | None) -> int:
    """Number of samples."""
    assert isinstance(dataset, Sized), 'data sets of folders know their length'
    return len(dataset)


def _without(train: Dataset[Sample], held_out: Dataset[Sample]) -> Dataset[Sample]:
    """Leave held-out images out of the reference, where training goes over all of them."""
    if isinstance(held_out, Subset) and held_out.dataset is train:
        kept = set(range(length(train))) - set(held_out.indices)
        return Subset(train, sorted(kept))
    return train


def _folder(module: FolderDataModule) -> ImageFolder:
    dataset = adapted_to(module)
    folder = dataset.dataset if isinstance(dataset, Subset) else dataset
    assert isinstance(folder, ImageFolder), 'a folder module reads an image folder'
    return folder


def _scale(module: FolderDataModule) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    scale = _folder(module).scale
    return None if scale.source == 'dtype' else (scale.low, scale.high)


def left_out(module: FolderDataModule) -> dict[str, str]:
    """Return the training files that cannot be read, with the reason."""
    folder = _folder(module)
    return {str(path): reason for path, reason in {**folder.skipped, **folder.damaged}.items()}


def loader(dataset: Dataset[Sample], batch_size: int, workers: int) -> DataLoader[Sample]:
    """Load a data set once, in its order; the global random state is not used."""
    return DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, generator=torch.Generator()
    )
