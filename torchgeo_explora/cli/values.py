"""What raw values become before a model sees them: given, said by the weights, or measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchgeo_explora.cli.settings import AdaptSettings
from torchgeo_explora.datasets._bands import canonical_band
from torchgeo_explora.datasets._statistics import BandStatistics
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.models import InputSpec, read_input, read_metadata
from torchgeo_explora.models.input_spec import BYTES, timm_values

DARKEST, BRIGHTEST = 0.005, 0.995
"""Mean of all bands beyond which raw values are those of another unit or sensor."""

_COLOURS = (('red', 'green', 'blue'), ('r', 'g', 'b'), ('b4', 'b3', 'b2'))


@dataclass(frozen=True)
class Values:
    """How images are normalised.

    Args:
        mean: Mean of each band in [0, 1].
        std: Standard deviation of each band.
        source: Where they come from, in words.
    """

    mean: list[float]
    std: list[float]
    source: str


def weights_say(settings: AdaptSettings) -> InputSpec | None:
    """Return what the weights' file says of its images; None where it says nothing.

    Raises:
        WeightsError: If it cannot be understood.
    """
    if not Path(settings.weights).is_file():
        return None
    told = read_metadata(settings.weights)
    known = {'mean', 'std'} <= told.keys() or 'spec' in told
    return read_input(settings.weights, settings.model) if known else None


def given_values(settings: AdaptSettings) -> Values | None:
    """Return mean and std that the user gave.

    Raises:
        ConfigError: If they are not given together, of one length.
    """
    mean, std = settings.mean, settings.std
    if mean is None and std is None:
        return None
    if mean is None or std is None or len(mean) != len(std):
        raise ConfigError(
            f'--mean is {mean} and --std is {std}: give both, with one value for each band.'
        )
    return Values(mean, std, 'given')


def known_values(settings: AdaptSettings) -> Values:
    """Return mean and std without looking at an image: given, of the weights' file, or timm's.

    Raises:
        ConfigError: If mean and std are not given together.
    """
    given = given_values(settings)
    if given is not None:
        return given
    told = weights_say(settings)
    if told is not None:
        return Values(list(told.mean), list(told.std), f'said by {settings.weights}')
    mean, std, _ = timm_values(settings.model)
    return Values(list(mean), list(std), f'those of {settings.model} in timm')


def choose_values(settings: AdaptSettings, found: BandStatistics, channels: int) -> Values:
    """Choose mean and std of a run's images.

    Args:
        settings: Of the run.
        found: What was measured of the images.
        channels: Bands of the images.

    Raises:
        ConfigError: If those that are given or said are of another number of bands.
        ImageError: If the values are those of another sensor.
    """
    given, told = given_values(settings), weights_say(settings)
    pictures = channels == 3 and found.source == 'dtype'
    if given is not None or told is not None or pictures:
        values = known_values(settings)
    else:
        repeat = channels // len(found.mean)
        values = Values(list(found.mean) * repeat, list(found.std) * repeat, 'measured')
    if len(values.mean) != channels:
        raise ConfigError(
            f'The images have {channels} bands, and mean and std are of {len(values.mean)} '
            f'({values.source}): choose as many with --bands, or give --mean and --std.'
        )
    _check_range(found)
    return values


def _check_range(found: BandStatistics) -> None:
    if all(mean < DARKEST for mean in found.mean) or all(m > BRIGHTEST for m in found.mean):
        raise ImageError(
            f'The values of the images ({min(found.minimum):g} to {max(found.maximum):g}) nearly all '
            f'lie at one end of those that become 0 and 1 ({min(found.low):g} to '
            f'{max(found.high):g}): they are of another unit or sensor; give --scale LOW HIGH.'
        )


def chosen_scale(settings: AdaptSettings) -> list[Any] | None:
    """Return the raw values that become 0 and 1, for a data set; None to leave it to that.

    Raises:
        ConfigError: If they are not two different numbers.
    """
    if settings.scale is not None:
        return list(settings.scale)
    told = weights_say(settings)
    if told is None or told.scale is None or set(told.scale) == {BYTES}:
        return None
    return [[low for low, _ in told.scale], [high for _, high in told.scale]]


def is_rgb(bands: Sequence[str]) -> bool:
    """Whether bands are red, green and blue, in this order; three without names are taken for it.

    Args:
        bands: Names, or indexes where there are none.
    """
    if len(bands) != 3:
        return False
    names = tuple(canonical_band(name).lower() for name in bands)
    return names in _COLOURS or all(name.isdecimal() for name in names) or len({*names}) == 1


def recipe_for(bands: Sequence[str], jitter: Sequence[float]) -> dict[str, Any]:
    """Return what of a recipe changes for images that are no pictures.

    Hue, saturation and grey exist for red, green and blue alone. The task knows that of other
    numbers of bands than three.

    Args:
        bands: Names of the images' bands.
        jitter: The recipe's strengths for brightness, contrast, saturation and hue.
    """
    if len(bands) != 3 or is_rgb(bands):
        return {}
    brightness, contrast, _, _ = jitter
    return {'color_jitter': (brightness, contrast, 0.0, 0.0), 'grayscale_p': 0.0}
