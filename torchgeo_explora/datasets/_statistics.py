"""What values the bands of some images have: measured once, kept, and used from then on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError

from ._pixels import Pixels, Scale

BINS = 64
"""Bars of a histogram."""

MOST_VALUES = 2**20
"""Values of a band that are kept to take percentiles from."""


@dataclass(frozen=True)
class BandStatistics:
    """Values of every band where there is data.

    Args:
        bands: Names of the bands.
        low: Raw value that becomes 0.
        high: Raw value that becomes 1.
        minimum: Smallest of the raw values kept.
        maximum: Largest of them.
        mean: Mean of the values scaled to [0, 1], what lies outside clipped.
        std: Their standard deviation.
        histogram: Number of the values kept in each of 64 equal parts of [0, 1], per band.
        valid: Share of the pixels looked at that hold data, per band.
        pixels: Pixels looked at.
        images: Images or windows that they come from.
        source: Where ``low`` and ``high`` come from: ``dtype``, ``given`` or ``percentiles``.
    """

    bands: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    histogram: tuple[tuple[int, ...], ...]
    valid: tuple[float, ...]
    pixels: int
    images: int
    source: str

    @property
    def scale(self) -> Scale:
        """Values that become 0 and 1."""
        return Scale(self.low, self.high, self.source)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> 'BandStatistics':
        """Read what :meth:`to_dict` gave.

        Raises:
            ConfigError: If it is something else.
        """
        names = {field.name for field in fields(cls)}
        if set(content) != names:
            raise ConfigError(
                f'statistics hold {", ".join(sorted(content)) or "nothing"}: give what this '
                'package wrote, or leave them out to measure them.'
            )
        settled = {name: _tuples(value) for name, value in content.items()}
        return cls(**settled)


def _tuples(value: object) -> Any:  # noqa: ANN401  # whatever JSON holds
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def measure(
    samples: Iterable[Pixels],
    bands: Sequence[str],
    scale: Scale | None,
    percentiles: tuple[float, float],
    most: int,
    seed: int,
) -> BandStatistics:
    """Measure bands on some images, looking at each pixel once.

    Args:
        samples: (bands, height, width) of one type; one at a time is in memory.
        bands: Names of the bands.
        scale: Raw values that become 0 and 1; None for percentiles.
        percentiles: Lower and upper, in per cent.
        most: Images that there are at most; each gives an equal part of the values kept.
        seed: Draws the values that are kept.

    Returns:
        The statistics; a band without data or of a single value keeps a width of 1.
    """
    each = max(MOST_VALUES // max(most, 1), 1)
    rng = np.random.default_rng([seed, 2])
    kept: list[list[NDArray[np.float64]]] = [[] for _ in bands]
    valid, pixels, images = np.zeros(len(bands)), 0, 0
    for sample in samples:
        images, pixels = images + 1, pixels + int(sample[0].size)
        for band, values in enumerate(sample):
            found = values.compressed().astype(np.float64)
            valid[band] += found.size
            if found.size > each:
                found = found[rng.choice(found.size, each, replace=False)]
            kept[band].append(found)
    columns = [np.concatenate(values) if values else np.empty(0) for values in kept]
    ends = _ends(columns, percentiles) if scale is None else scale
    shares = tuple((valid / max(pixels, 1)).tolist())
    return _summary(tuple(bands), columns, ends, shares, pixels, images)


def _ends(columns: Sequence[NDArray[np.float64]], percentiles: tuple[float, float]) -> Scale:
    low, high = [], []
    for values in columns:
        bottom, top = np.percentile(values, percentiles).tolist() if values.size else (0.0, 1.0)
        low.append(bottom)
        high.append(top if top > bottom else bottom + 1)
    return Scale(tuple(low), tuple(high), 'percentiles')


def _summary(
    bands: tuple[str, ...],
    columns: Sequence[NDArray[np.float64]],
    ends: Scale,
    valid: tuple[float, ...],
    pixels: int,
    images: int,
) -> BandStatistics:
    found: dict[str, list[Any]] = {name: [] for name in _MEASURED}
    for column, low, high in zip(columns, ends.low, ends.high, strict=True):
        values = column if column.size else np.array([low])  # a band without data
        unit = ((values - low) / (high - low)).clip(0, 1)
        found['minimum'].append(values.min())
        found['maximum'].append(values.max())
        found['mean'].append(unit.mean())
        found['std'].append(unit.std() if unit.std() > 0 else 1.0)
        counts = np.histogram(unit, BINS, (0, 1))[0] * bool(column.size)
        found['histogram'].append(tuple(map(int, counts)))
    numbers = {n: tuple(map(float, found[n])) for n in _MEASURED if n != 'histogram'}
    return BandStatistics(
        bands, ends.low, ends.high, histogram=tuple(found['histogram']), valid=valid,
        pixels=pixels, images=images, source=ends.source, **numbers,
    )  # fmt: skip


_MEASURED = ('minimum', 'maximum', 'mean', 'std', 'histogram')


def write_statistics(path: Path, found: BandStatistics, about: Mapping[str, Any]) -> None:
    """Write statistics, and what they were measured on.

    Args:
        path: A ``.json`` file.
        found: The statistics.
        about: What they depend on.

    Raises:
        OutputError: If it cannot be written.
    """
    content = {'statistics': found.to_dict(), 'about': dict(about)}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def read_statistics(path: Path, about: Mapping[str, Any] | None = None) -> BandStatistics:
    """Read what :func:`write_statistics` wrote.

    Args:
        path: The file.
        about: What they must have been measured on; None for anything.

    Raises:
        ConfigError: If it cannot be read, or was measured on something else.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        found = BandStatistics.from_dict(content['statistics'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f'{path} holds no statistics ({error}): measure them again.') from error
    other = (
        {} if about is None else {k: v for k, v in about.items() if content['about'].get(k) != v}
    )
    if other:
        raise ConfigError(
            f'{path} was measured on other images or in another way ({", ".join(sorted(other))} '
            'differ): name another file, or remove it to measure again.'
        )
    return found
