"""The images of an analysis: which they are, how they are read, and what people see of them."""

import argparse
import copy
import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from torchgeo_explora.cli.choices import parse_bands
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.datasets.image_folder import image_root
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import InputSpec
from torchgeo_explora.models.input_spec import BYTES

COLORS = ('red', 'green', 'blue')
STRETCH = (2.0, 98.0)
"""Percentiles that are shown darkest and brightest where values are no bytes."""


@dataclass(frozen=True, eq=False)
class AnalysedImages:
    """Images of an analysis.

    Args:
        parts: Folders of images: one, or those of training and test.
        chosen: Numbers of the images that are looked at, ascending, over all parts.
        held_out: Positions among them that probes are scored on; None to draw some.
        classes: Names of the classes, or None.
        source: What they are, in words.
        key: Tells them from other images.
    """

    parts: tuple[ImageFolder, ...]
    chosen: tuple[int, ...]
    held_out: tuple[int, ...] | None
    classes: list[str] | None
    source: str
    key: str

    @property
    def dataset(self) -> Dataset[dict[str, Tensor]]:
        """The images that are looked at."""
        return Subset(ConcatDataset(self.parts), self.chosen)

    def file_of(self, number: int) -> Path:
        """Return the file of an image, by its number over all parts."""
        part, index = self.place(number)
        return Path(self.parts[part].file_of(index))

    def place(self, number: int) -> tuple[int, int]:
        """Return the part and the position in it of an image, by its number over all parts."""
        first = len(self.parts[0])
        return (0, number) if number < first else (1, number - first)

    def label_of(self, number: int) -> int:
        """Return the class of an image, by its number over all parts; 0 where there are none."""
        part, index = self.place(number)
        labels = self.parts[part].labels
        return 0 if labels is None else int(labels[index])

    def left_out(self) -> dict[str, str]:
        """Return the files that cannot be read, with the reason."""
        return {
            str(path): reason
            for part in self.parts
            for path, reason in {**part.skipped, **part.damaged}.items()
        }


def open_analysed(
    args: argparse.Namespace, inputs: Sequence[InputSpec], side: int
) -> AnalysedImages:
    """Find and check the images, and draw those that are looked at.

    Args:
        args: Of the command.
        inputs: What each model expects.
        side: Of the images in pixels.

    Raises:
        ImageError: If the images cannot be used.
        ConfigError: If the models expect other values.
    """
    root = image_root(Path(args.images).expanduser())
    options = reading(args, inputs, side)
    held = next((root / name for name in ('test', 'val') if (root / name).is_dir()), None)
    with warnings.catch_warnings():  # what is left out is said once, by the command
        warnings.simplefilter('ignore')
        if held is not None and (root / 'train').is_dir():
            train = ImageFolder(root / 'train', **options)
            own = None if train.scale.source == 'dtype' else (train.scale.low, train.scale.high)
            more = {'classes': train.classes, 'with_labels': train.classes is not None}
            parts = [train, ImageFolder(held, **(options | more | {'scale': own}))]
        else:
            parts = [ImageFolder(root, **options)]
    chosen, held_out = draw_images([len(part) for part in parts], args.sample, args.seed)
    where = f'scored on {held.name}' if held is not None and len(parts) > 1 else 'of one folder'
    count = sum(len(part) for part in parts)
    source = f'{len(chosen):,} of {count:,} images under {args.images}, {where}'
    found = AnalysedImages(tuple(parts), chosen, held_out, parts[0].classes, source, '')
    return replace(found, key=_key(found, root))


def reading(args: argparse.Namespace, inputs: Sequence[InputSpec], side: int) -> dict[str, Any]:
    """Return how images are read, as arguments of :class:`ImageFolder`.

    Args:
        args: Of the command.
        inputs: What each model expects.
        side: Of the images in pixels.

    Raises:
        ConfigError: If the models expect other values.
    """
    mode: Literal['rgb', 'keep'] = 'rgb' if args.grey else 'keep'
    return {
        'image_size': side,
        'bands': None if args.bands is None else parse_bands(args.bands),
        'mode': mode,
        'num_channels': len(inputs[0].bands),
        'scale': common_scale(inputs) if args.scale is None else tuple(args.scale),
        'seed': args.seed,
    }


def common_scale(
    inputs: Sequence[InputSpec],
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the raw values that become 0 and 1, of the models that tell them.

    Models of bytes do not: what their images hold is scaled by its own type.

    Args:
        inputs: What each model expects.

    Raises:
        ConfigError: If models tell different ones.
    """
    told = {item.scale for item in inputs if item.scale is not None}
    scales = {scale for scale in told if set(scale) != {BYTES}}
    if len(scales) > 1:
        raise ConfigError(
            f'The models were trained on raw values of different ranges ({sorted(scales)}): give '
            'one by --scale LOW HIGH, or compare models of one.'
        )
    if not scales:
        return None
    (ends,) = scales
    return tuple(low for low, _ in ends), tuple(high for _, high in ends)


def draw_images(
    counts: Sequence[int], sample: int | None, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Draw images, and find those among them that belong to the second part.

    Args:
        counts: Images of each part.
        sample: How many to draw; None for all.
        seed: Draws them.

    Returns:
        Their numbers over all parts, ascending; positions of those of the second part, or None
        where there is one part.
    """
    order = np.random.default_rng([seed, 3]).permutation(sum(counts))
    chosen = sorted(order[: len(order) if sample is None else sample].tolist())
    if len(counts) == 1:
        return tuple(chosen), None
    held_out = tuple(place for place, number in enumerate(chosen) if number >= counts[0])
    return tuple(chosen), held_out


def _key(images: AnalysedImages, root: Path) -> str:
    """Hash of which images these are and how they are read."""
    digest = hashlib.sha256()
    for part in images.parts:
        settings = (part.image_size, part.mode, part.bands, part.scale)
        digest.update(repr(settings).encode())
        for header in part.headers:
            size = header.path.stat().st_size
            digest.update(f'{header.path.relative_to(root)} {size}\n'.encode())
    digest.update(repr(images.chosen).encode())
    return digest.hexdigest()


def find_pictures(
    images: AnalysedImages, names: Sequence[str] | None, show: int, seed: int
) -> list[int]:
    """Choose the images that maps are drawn of.

    Args:
        images: Of the analysis.
        names: Paths or ends of paths, as the user gave them; None to draw some.
        show: How many to draw, of those held out where there are such.
        seed: Draws them.

    Returns:
        Numbers over all parts.

    Raises:
        ConfigError: If there is no such image.
    """
    if names is not None:
        return [_find(images, name) for name in names]
    places = range(len(images.chosen)) if images.held_out is None else images.held_out
    order = np.random.default_rng([seed, 4]).permutation(len(places))
    drawn = [images.chosen[places[index]] for index in order.tolist()]
    return sorted(drawn, key=_turns(images, drawn))[:show]


def _turns(images: AnalysedImages, drawn: Sequence[int]) -> Callable[[int], int]:
    """How many images of its class were drawn before each: classes take turns."""
    seen: dict[int, int] = {}
    turn = {}
    for number in drawn:
        label = images.label_of(number)
        turn[number] = seen[label] = seen.get(label, -1) + 1
    return turn.__getitem__


def _find(images: AnalysedImages, name: str) -> int:
    wanted = Path(name).expanduser()
    for number in range(sum(len(part) for part in images.parts)):
        path = images.file_of(number)
        if path == wanted or path.parts[-len(wanted.parts) :] == wanted.parts:
            return number
    raise ConfigError(
        f'--pictures {name}: there is no such image in the folder; one there is '
        f'{images.file_of(0).name}.'
    )


def read_pictures(images: AnalysedImages, numbers: Sequence[int], side: int) -> Tensor:
    """Read images at another size.

    Args:
        images: Of the analysis.
        numbers: Over all parts.
        side: In pixels.

    Returns:
        (n, bands, side, side) in [0, 1].
    """
    return torch.stack([_at_size(images, number, side) for number in numbers])


def _at_size(images: AnalysedImages, number: int, side: int) -> Tensor:
    part, index = images.place(number)
    folder = copy.copy(images.parts[part])
    folder.image_size = side
    return folder[index]['image']


def composites(pictures: Tensor, bands: Sequence[str], bytes_: bool) -> list[NDArray[np.float32]]:
    """Return images as people see them: red, green and blue in [0, 1].

    Args:
        pictures: (n, bands, h, w) in [0, 1].
        bands: Their names.
        bytes_: Whether values are those of pictures, and need no stretch.
    """
    names = [name.lower() for name in bands]
    index = [names.index(color) for color in COLORS] if set(COLORS) <= set(names) else [0, 1, 2]
    shown = pictures[:, [min(i, len(names) - 1) for i in index]].permute(0, 2, 3, 1).numpy()
    if bytes_:
        return list(shown.clip(0, 1))
    low, high = np.percentile(shown, STRETCH)
    return list(((shown - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32))
