"""What a fitted model expects of an image and what its outputs mean."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models._input_checks import (
    check_images,
    check_names,
    find_bands,
    settle_images,
    settled_names,
)

TASKS = ('classification', 'segmentation')


@dataclass(frozen=True)
class ModelSpec:
    """Everything that using a fitted model takes beside its weights.

    Args:
        task: ``classification`` (a class an image) or ``segmentation`` (a class a pixel).
        model: timm name of the backbone.
        classes: Names of the classes, in the order of the outputs.
        bands: Names of the bands, in the order of the inputs.
        mean: Mean of each band of images in [0, 1].
        std: Standard deviation of each band of images in [0, 1].
        scale: For each band the raw values that become 0 and 1; None where that is not known, and
            images have to be given in [0, 1].
        image_size: Side in pixels of the images that the model was fitted on.
        resolution: Size of a pixel on the ground, in metres or the units of the images' coordinate
            reference system; None where it is not known or varies.
        colors: Red, green and blue (0 to 255) of each class; None without.
        ignore_index: Label that is no class, for pixels that no loss and no metric counts.
        options: What else the model is built from, as JSON: ``pooling`` of a classifier,
            ``decoder`` and its arguments of a segmenter; ``window`` where a classifier saw images
            enlarged or shrunk: their side before that, in pixels.
        version: Version of this package that wrote the model; entered when it is saved.
        weights_hash: SHA-256 of the weights; entered when it is saved.

    Raises:
        ConfigError: If a value is not possible, or values do not belong together.
    """

    task: Literal['classification', 'segmentation']
    model: str
    classes: tuple[str, ...]
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[tuple[float, float], ...] | None = None
    image_size: int = 224
    resolution: float | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None
    ignore_index: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    version: str = ''
    weights_hash: str = ''

    def __post_init__(self) -> None:
        """Turn lists, as JSON and YAML give them, into tuples, and check the values."""
        try:
            self._settle()
        except (TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f'The description of the model cannot be understood ({error}): give names as '
                'text, and numbers for each band and class.'
            ) from error
        self._check_names()
        check_images(self)
        self._check_colors()

    def _settle(self) -> None:
        object.__setattr__(self, 'classes', settled_names('classes', self.classes))
        settle_images(self)
        if self.colors is not None:
            colors = tuple((int(r), int(g), int(b)) for r, g, b in self.colors)
            object.__setattr__(self, 'colors', colors)
        json.dumps(self.options)  # raises where it is none

    def _check_names(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f'task is {self.task!r}: give {" or ".join(TASKS)}.')
        if not self.model:
            raise ConfigError('model is empty: give the timm name of the backbone.')
        check_names('classes', self.classes)

    def _check_colors(self) -> None:
        if self.colors is None:
            return
        values = [value for color in self.colors for value in color]
        if len(self.colors) != len(self.classes) or not all(0 <= v <= 255 for v in values):
            raise ConfigError(
                f'colors has {len(self.colors)} entries for {len(self.classes)} classes: give red, '
                'green and blue from 0 to 255 for each class.'
            )

    @property
    def window(self) -> int:
        """Side of what the model sees in one image, in pixels of ``resolution``."""
        return int(self.options.get('window', self.image_size))

    @property
    def seen_resolution(self) -> float | None:
        """Size on the ground of a pixel as the model sees it, after images were resized."""
        return None if self.resolution is None else self.resolution * self.window / self.image_size

    def to_json(self) -> str:
        """Return the description as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'ModelSpec':
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: If the text is no such object.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f'{text[:80]!r} is no description of a model ({error}).') from error
        known = {item.name for item in dataclasses.fields(cls)}
        required = ('task', 'model', 'classes', 'bands', 'mean', 'std')
        if not isinstance(values, Mapping) or not set(required) <= values.keys() <= known:
            raise ConfigError(
                f'{text[:80]!r} is no description of a model: it needs {", ".join(required)} and '
                f'may have {", ".join(sorted(known - set(required)))}; perhaps a newer version of '
                'torchgeo_explora wrote it.'
            )
        return cls(**values)

    def index_of(self, bands: Sequence[str]) -> tuple[int, ...]:
        """Return where each of the model's bands stands among others.

        Args:
            bands: Names of the bands that are there, in their order.

        Raises:
            ConfigError: If one is missing.
        """
        return find_bands(self.bands, bands)
