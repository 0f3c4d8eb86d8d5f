"""What a backbone expects of an image: bands, values, normalisation, sizes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models._build import build_backbone
from torchgeo_explora.models._checkpoint import Checkpoint, read_checkpoint, read_metadata
from torchgeo_explora.models._input_checks import check_images, find_bands, settle_images
from torchgeo_explora.models._sources import open_weights
from torchgeo_explora.models._stored import architecture_in
from torchgeo_explora.models.fitted import backbone_of, is_fitted, read_spec
from torchgeo_explora.models.spec import ModelSpec
from torchgeo_explora.models.trained import TRAINED

RGB = ('red', 'green', 'blue')
"""Bands of models that were trained on pictures."""

PICTURE_SIDE = 224
"""Side in pixels that a model is given where nothing names one; that of the paper's images."""

BYTES = (0.0, 255.0)


@dataclass(frozen=True)
class InputSpec:
    """What a model expects of an image; fields as in :class:`ModelSpec`.

    Args:
        bands: Names of the bands, in the order of the inputs.
        mean: Mean of each band of images in [0, 1].
        std: Standard deviation of each band of images in [0, 1].
        scale: For each band the raw values that become 0 and 1; None where that is not known, and
            images have to be given in [0, 1].
        image_size: Side in pixels of the images that the model was trained on.
        resolution: Size of a pixel on the ground, in metres or the units of the images' coordinate
            reference system; None where it is not known or varies.
        source: Where all this is known from, in words.

    Raises:
        ConfigError: If a value is not possible, or values do not belong together.
    """

    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[tuple[float, float], ...] | None = None
    image_size: int = PICTURE_SIDE
    resolution: float | None = None
    source: str = ''

    def __post_init__(self) -> None:
        """Turn lists into tuples, and check the values."""
        try:
            settle_images(self)
            check_images(self)
        except (TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f'The description of the images cannot be understood ({error}): give names as '
                'text, and numbers for each band.'
            ) from error

    @classmethod
    def of(cls, spec: ModelSpec, source: str = '') -> 'InputSpec':
        """Return what a fitted model expects.

        Args:
            spec: Describes the model.
            source: Where that is known from, in words.
        """
        return cls(
            spec.bands, spec.mean, spec.std, spec.scale, spec.image_size, spec.resolution, source
        )

    def index_of(self, bands: tuple[str, ...] | list[str]) -> tuple[int, ...]:
        """Return where each of the model's bands stands among others.

        Args:
            bands: Names of the bands that are there, in their order.

        Raises:
            ConfigError: If one is missing.
        """
        return find_bands(self.bands, bands)

    def texts(self) -> dict[str, Any]:
        """Return what a weights file stores of it, as :func:`save_backbone` takes it."""
        known = {
            'bands': self.bands,
            'mean': self.mean,
            'std': self.std,
            'scale': self.scale,
            'size': self.image_size,
            'resolution': self.resolution,
        }
        return {name: value for name, value in known.items() if value is not None}


def read_input(weights: str | Path, model: str | None = None) -> InputSpec:
    """Read what a backbone expects of an image.

    Fitted models, merged weights, deltas and training checkpoints of this package say it. Stock
    weights do not: they are taken for those of a model of RGB bytes with timm's mean and standard
    deviation, and ``source`` says so.

    Args:
        weights: A weights file, or else the name of a member of a weights enum.
        model: timm name of the model, where the file does not tell it.

    Raises:
        ConfigError: If mean and standard deviation of the model's bands are not known.
        WeightsError: If the file cannot be read.
    """
    path = Path(weights).expanduser()
    if model is not None and not path.exists():
        named = open_weights(model, str(weights))
        assert named is not None, 'a name stands for weights'
        return input_of(named, model)
    told = read_metadata(path)
    if 'mean' in told and 'std' in told and 'spec' not in told:
        return _from_texts(told, str(path))  # without reading the tensors
    return input_of(read_checkpoint(path), model)


def input_of(checkpoint: Checkpoint, model: str | None = None) -> InputSpec:
    """Return what a backbone expects of an image, from its weights.

    Args:
        checkpoint: What was read.
        model: timm name of the model, where the weights do not tell it.

    Raises:
        ConfigError: If mean and standard deviation of the model's bands are not known.
        WeightsError: If the weights are those of no vision transformer.
    """
    source, told = checkpoint.source, checkpoint.metadata
    if is_fitted(checkpoint):
        return InputSpec.of(read_spec(checkpoint), f'the fitted model {source}')
    if TRAINED in told:
        facts = json.loads(told[TRAINED])['facts']
        told = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    if 'mean' in told and 'std' in told:
        return _from_texts(told, source)
    return _from_timm(checkpoint, model, told)


def _from_texts(told: Mapping[str, str], source: str) -> InputSpec:
    try:
        found = {name: json.loads(told[name]) for name in _STORED if name in told}
        size = found.pop('size', PICTURE_SIDE)
        count = len(found['mean'])
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f'{source} describes its images in a way that cannot be understood ({error}): write it '
            'again with this version of torchgeo_explora.'
        ) from error
    bands = found.pop('bands', None)
    named = usual_bands(count) if bands is None else tuple(map(str, bands))
    try:
        return InputSpec(bands=named, image_size=size, source=f'the metadata of {source}', **found)
    except ConfigError as error:
        raise WeightsError(f'{source} does not describe its images: {error}') from error


_STORED = ('bands', 'mean', 'std', 'scale', 'size', 'resolution')


def usual_bands(count: int) -> tuple[str, ...]:
    """Names of bands that nobody named: three are those of a picture.

    Args:
        count: Number of bands.
    """
    return RGB if count == len(RGB) else tuple(str(number) for number in range(1, count + 1))


def _from_timm(checkpoint: Checkpoint, model: str | None, told: Mapping[str, str]) -> InputSpec:
    source, found = checkpoint.source, architecture_in(backbone_of(checkpoint))
    name = told.get('base', found.timm_name()) if model is None else model
    if name is None:
        raise ConfigError(
            f'{source} does not say which model it belongs to ({found.describe()}): name it.'
        )
    mean, std, side = timm_values(name)
    if len(mean) != found.bands:
        raise ConfigError(
            f'{source} takes {found.bands} bands and does not tell their mean and standard '
            f'deviation, and timm knows those of {len(mean)}: use weights that this package wrote.'
        )
    patch = max(found.patch)
    words = f'{source} says nothing of its images: taken are RGB bytes, and for {name} timm names '
    words += f'mean {", ".join(f"{v:g}" for v in mean)} and std {", ".join(f"{v:g}" for v in std)}'
    return InputSpec(
        usual_bands(found.bands), mean, std, (BYTES,) * found.bands, side // patch * patch,
        source=words,
    )  # fmt: skip


def timm_values(model: str) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Return mean, standard deviation and side of the images that timm names for a model.

    Args:
        model: timm name.

    Returns:
        Mean and standard deviation of each band of images in [0, 1], and the side in pixels, at
        most 224, since models of larger images are used on smaller ones.

    Raises:
        ConfigError: If there is no such model.
    """
    with torch.device('meta'):
        backbone = build_backbone(model, None, None, 0, {})
    own = cast('dict[str, Any]', backbone.pretrained_cfg)
    side = min(own.get('input_size', (3, PICTURE_SIDE, PICTURE_SIDE))[-1], PICTURE_SIDE)
    return tuple(own.get('mean', ())), tuple(own.get('std', ())), int(side)
