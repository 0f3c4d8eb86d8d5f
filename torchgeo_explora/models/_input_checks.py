"""What every description of a model's images is checked for."""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from torchgeo_explora.errors import ConfigError


class Images(Protocol):
    """The part of a description that speaks of the images."""

    @property
    def bands(self) -> tuple[str, ...]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def scale(self) -> tuple[tuple[float, float], ...] | None: ...
    @property
    def image_size(self) -> int: ...
    @property
    def resolution(self) -> float | None: ...


def settle_images(item: Images) -> None:
    """Turn the lists of JSON and YAML into tuples of names and numbers, in a frozen description.

    Raises:
        ConfigError: If a band has no name.
        TypeError: If something is no number, or no list.
        ValueError: As well.
    """
    settled: dict[str, object] = {'bands': settled_names('bands', item.bands)}
    for name in ('mean', 'std'):
        settled[name] = tuple(map(float, getattr(item, name)))
    if item.scale is not None:
        settled['scale'] = tuple((float(low), float(high)) for low, high in item.scale)
    for name, value in settled.items():
        object.__setattr__(item, name, value)


def settled_names(name: str, items: Iterable[object]) -> tuple[str, ...]:
    """Return names as a tuple.

    Raises:
        ConfigError: If one is empty or no text.
    """
    return tuple(_text(name, item) for item in items)


def _text(name: str, item: object) -> str:
    if not isinstance(item, str) or not item:
        raise ConfigError(f'{name} holds {item!r}: give a name.')
    return item


def check_names(name: str, names: Sequence[str]) -> None:
    """Check that there are names, each once.

    Raises:
        ConfigError: If not.
    """
    twice = sorted({item for item in names if names.count(item) > 1})
    if not names or twice:
        found = f'{", ".join(twice)} more than once' if twice else 'none'
        raise ConfigError(f'{name} holds {found}: name every one, once.')


def check_images(item: Images) -> None:
    """Check names and numbers of the bands, and the sizes.

    Raises:
        ConfigError: If a value is not possible, or values do not belong together.
    """
    check_names('bands', item.bands)
    for name in ('mean', 'std', 'scale'):
        values = getattr(item, name)
        if values is not None and len(values) != len(item.bands):
            raise ConfigError(
                f'{name} has {len(values)} values for {len(item.bands)} bands: give one a band.'
            )
    if not all(map(math.isfinite, (*item.mean, *item.std))) or min(item.std) <= 0:
        raise ConfigError(
            f'mean is {item.mean}, std is {item.std}: give finite numbers, std above 0.'
        )
    ends = () if item.scale is None else item.scale
    if any(not (math.isfinite(a) and math.isfinite(b)) or a == b for a, b in ends):
        raise ConfigError(
            f'scale is {ends}: give two different finite raw values a band, those that become '
            '0 and 1.'
        )
    if item.image_size < 1:
        raise ConfigError(f'image_size is {item.image_size}: give positive whole pixels.')
    if item.resolution is not None and not 0 < item.resolution < math.inf:
        raise ConfigError(f'resolution is {item.resolution}: give a positive number, or none.')


def find_bands(own: Sequence[str], others: Sequence[str]) -> tuple[int, ...]:
    """Return where each of a model's bands stands among others.

    Args:
        own: Names of the model's bands.
        others: Names of the bands that are there, in their order.

    Raises:
        ConfigError: If one is missing.
    """
    missing = [band for band in own if band not in others]
    if missing:
        raise ConfigError(
            f'The model needs the bands {", ".join(own)}; {", ".join(missing)} '
            f'{"is" if len(missing) == 1 else "are"} not among {", ".join(others)}.'
        )
    return tuple(list(others).index(band) for band in own)
