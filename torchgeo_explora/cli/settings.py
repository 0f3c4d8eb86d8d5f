"""Everything that decides what a run does; written into its folder, and read again to resume."""

import argparse
import dataclasses
import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from torchgeo_explora.cli.choices import parse_bands
from torchgeo_explora.cli.parser import MODEL
from torchgeo_explora.cli.sources import settle_sources
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.tasks.dinov2 import ExPLoRADINOv2

_TASK = inspect.signature(ExPLoRADINOv2.__init__).parameters
# Have an option of their own, or are settled by the images.
_OWN = {
    'self', 'model', 'weights', 'preset', 'in_channels', 'mean', 'std', 'bands', 'eval_size',
    'seed', 'rank', 'unfreeze_blocks', 'steps',
}  # fmt: skip
EXTRA = tuple(sorted(set(_TASK) - _OWN))
"""Arguments of the task that ``--set`` takes."""


@dataclass(frozen=True)
class AdaptSettings:
    """What ``adapt`` does. Fields are the command's options; None leaves a choice to the program.

    Args:
        folder: Images, absolute path; empty for rasters.
        model: timm name.
        weights: Where to start, as the user wrote it (an absolute path where it is a file).
        preset: Recipe.
        epochs: Passes over the images.
        steps: Batches of the whole run.
        batch_size: Images of a batch.
        rank: Rank of the low-rank updates.
        unfreeze: Blocks trained in full.
        extra: Further arguments of the task.
        labels: Labelled images or polygons, absolute path.
        all_images: Whether held-out images are adapted to as well.
        bands: Bands to read.
        grey: Whether a single band is repeated.
        image_size: Side in pixels when read.
        eval_size: Side in pixels that probes see.
        mean: Mean of each band.
        std: Standard deviation of each band.
        seed: Seed of everything.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``bf16`` or ``32``.
        workers: Processes that load images.
        checkpoint_every: Batches between checkpoints.
        sources: Rasters, absolute paths or addresses; None for a folder of images.
        read_as: ``images`` or ``rasters``; ``auto`` before it is looked at.
        windows: Windows of a pass over rasters.
        balance: How a pass is shared out over rasters.
        min_valid: Least share of pixels with data in a window.
        resolution: Metres to which pixels are resampled.
        scale: Raw values that become 0 and 1.
        class_column: Column of ``labels`` that names classes, where that is a vector file.
        min_cover: Least share of a window that its class covers.
        report: ``full``, or ``short`` without measures of the blocks and pictures of features.
    """

    folder: str
    model: str = MODEL
    weights: str = 'timm'
    preset: str = 'small'
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    rank: int | None = None
    unfreeze: list[int] | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    labels: str | None = None
    all_images: bool = False
    bands: list[int | str] | None = None
    grey: bool = False
    image_size: int | None = None
    eval_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    seed: int = 0
    device: str = 'auto'
    precision: str = 'auto'
    workers: int | None = None
    checkpoint_every: int | None = None
    sources: list[str] | None = None
    read_as: str = 'auto'
    windows: int | None = None
    balance: float = 0.5
    min_valid: float = 0.9
    resolution: float | None = None
    scale: list[float] | None = None
    class_column: str | None = None
    min_cover: float = 0.5
    report: str = 'full'

    @property
    def images(self) -> str:
        """What the images are, in words."""
        if self.sources is None:
            return self.folder
        first, more = self.sources[0], len(self.sources) - 1
        return first if more == 0 else f'{first} and {more} more rasters'

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        """Read the options that were given; the rest keeps its default.

        Raises:
            ConfigError: If there is no folder, or an option is wrong.
        """
        given = given_options(args)
        if not {'folder', 'sources'} & given.keys():
            raise ConfigError(
                'No folder of images was given: name one, or rasters, or go on with a run by '
                '--resume.'
            )
        return cls(**given)

    @classmethod
    def from_json(cls, text: str, source: Path) -> Self:
        """Read what :meth:`to_dict` gave.

        Raises:
            ConfigError: If it is something else.
        """
        try:
            return cls(**json.loads(text)['settings'])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f'{source} holds no settings of a run ({error}): start a new run elsewhere.'
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return dataclasses.asdict(self)

    def check_unchanged(self, args: argparse.Namespace) -> None:
        """Refuse options that differ from those of the run that is resumed.

        Where images are loaded and how often a checkpoint is written changes no result.

        Raises:
            ConfigError: Naming them.
        """
        own = self.to_dict()
        changed = [
            f'{name} was {own[name]} and is {value}'
            for name, value in given_options(args).items()
            if own[name] != value and name not in HARMLESS
        ]
        if changed:
            raise ConfigError(
                f'The run cannot be resumed with other settings ({"; ".join(changed)}): leave '
                'them out, or start a new run in another folder.'
            )

    def resumed(self, args: argparse.Namespace) -> Self:
        """Return these settings with the harmless ones that were given."""
        given = {k: v for k, v in given_options(args).items() if k in HARMLESS}
        return dataclasses.replace(self, **given)


HARMLESS = ('workers', 'checkpoint_every', 'report')


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of :class:`AdaptSettings` that a command line gives."""
    names = {field.name for field in dataclasses.fields(AdaptSettings)}
    given = {k: v for k, v in vars(args).items() if k in names and v is not None}
    if given.get('sources') == []:
        del given['sources']
    if 'sources' in given:
        asset = getattr(args, 'asset', None)
        given |= settle_sources(given['sources'], given.get('read_as', 'auto'), asset)
    given = {k: v for k, v in given.items() if v is not None}
    for name in ('folder', 'labels'):
        if given.get(name):
            given[name] = str(Path(given[name]).expanduser().resolve())
    if 'weights' in given:
        given['weights'] = _weights(given['weights'])
    if 'bands' in given:
        given['bands'] = parse_bands(given['bands'])
    if 'extra' in given:
        given['extra'] = _extra(given['extra'])
    return given


def _weights(text: str) -> str:
    path = Path(text).expanduser()
    return str(path.resolve()) if path.exists() else text


def weights_argument(text: str) -> str | bool | None:
    """Translate the option ``--weights`` to the argument of the task."""
    return {'timm': True, 'random': None}.get(text, text)


def _extra(pairs: list[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` pairs; values are YAML.

    Raises:
        ConfigError: If a pair is none, or the key is no number of a recipe.
    """
    extra: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition('=')
        if not sign or key not in EXTRA:
            raise ConfigError(f'--set {pair}: give KEY=VALUE with KEY one of {", ".join(EXTRA)}.')
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f'--set {pair}: {text!r} is no YAML value.') from error
        # YAML 1.1 takes 1e-4 for a text
        extra[key] = _number(value) if isinstance(value, str) else value
    return extra


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def choose_workers(given: int | None, cached: bool) -> int:
    """Number of loading processes: none where all images are in memory."""
    if given is not None:
        return given
    return 0 if cached else min((os.cpu_count() or 2) - 1, 8)
