"""Groups of bands, by name, for any sensor."""

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence

from torchgeo_explora.errors import ConfigError

SATMAE_BANDS = ('B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12')
"""Bands of the images that SatMAE's and ExPLoRA's published models take, in their order."""

SENTINEL2_GROUPS: dict[str, tuple[str, ...]] = {
    'visible_nir': ('B2', 'B3', 'B4', 'B8'),
    'red_edge': ('B5', 'B6', 'B7', 'B8A'),
    'swir': ('B11', 'B12'),
}
"""Groups of Sentinel-2's bands by pixel size and wavelength (SatMAE, Cong et al. 2022, section 5.1).
B1, B9 and B10, of 60 m pixels, are in none."""

# B01, b1 and B1 are the same band of Sentinel-2; data sets spell them differently.
_SENTINEL2 = re.compile(r'B0*(\d{1,2})(A?)', re.IGNORECASE)

Groups = Mapping[str, Sequence[str]] | Sequence[Sequence[str]]


def resolve_groups(bands: Sequence[str], groups: Groups) -> tuple[tuple[int, ...], ...]:
    """Find the bands of every group among the bands of the images.

    Names are compared as they are, but that Sentinel-2's may be spelled ``B2``, ``B02`` or ``b2``.
    A band may be in several groups, which is warned of, or in none.

    Args:
        bands: Names of the images' bands, in their order.
        groups: Names of the bands of each group, by a group's name or in a list.

    Returns:
        0-based bands of every group, in the order given.

    Raises:
        ConfigError: If there is no group, one is empty or names a band twice, a name is not among
            the bands, or two bands have the same name.
    """
    listed = groups.items() if isinstance(groups, Mapping) else enumerate(groups)
    named = {str(key): names for key, names in listed}
    places = _places(bands)
    if not named:
        raise ConfigError('There is no group of bands: give at least one list of band names.')
    found = {key: _resolve(f'Group {key}', names, bands, places) for key, names in named.items()}
    _report_shared(bands, found)
    return tuple(found.values())


def _canonical(name: str) -> str:
    match = _SENTINEL2.fullmatch(name.strip())
    return name.strip() if match is None else f'B{int(match[1])}{match[2].upper()}'


def _places(bands: Sequence[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for index, name in enumerate(bands):
        earlier = places.setdefault(_canonical(name), index)
        if earlier != index:
            raise ConfigError(
                f'Bands {earlier} and {index} of the images are both named {name}: name each band '
                'differently.'
            )
    return places


def _resolve(
    group: str, names: Sequence[str], bands: Sequence[str], places: Mapping[str, int]
) -> tuple[int, ...]:
    if isinstance(names, str) or not names:
        what = f'the text {names!r}' if isinstance(names, str) and names else 'empty'
        raise ConfigError(f'{group} of bands is {what}: give a list of one or more band names.')
    wanted = [_canonical(name) for name in names]
    for name, key in zip(names, wanted, strict=True):
        if key not in places:
            raise _unknown(group, name, bands)
        if wanted.count(key) > 1:
            raise ConfigError(f'{group} names band {name} twice: name it once.')
    return tuple(places[key] for key in wanted)


def _unknown(group: str, name: str, bands: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(name, bands, n=1)
    hint = f' (did you mean {near[0]}?)' if near else ''
    return ConfigError(
        f'{group} names band {name}, which the images do not have{hint}: choose from '
        f'{", ".join(bands)}.'
    )


def _report_shared(bands: Sequence[str], found: Mapping[str, tuple[int, ...]]) -> None:
    for index, name in enumerate(bands):
        holders = [key for key, group in found.items() if index in group]
        if len(holders) > 1:
            warnings.warn(
                f'Band {name} is in the groups {" and ".join(holders)}: each of them embeds it.',
                stacklevel=3,
            )


def as_groups(groups: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return groups of band indices as tuples.

    Args:
        groups: 0-based bands of every group.

    Raises:
        ConfigError: If there is no group, one is empty or has a band twice, or an index is no
            whole number from 0.
    """
    found = tuple(tuple(group) for group in groups if _is_list(group))
    wrong = [i for group in found for i in group if type(i) is not int or i < 0]
    twice = [group for group in found if len(set(group)) < len(group)]
    if len(found) < len(groups) or not found or () in found or wrong or twice:
        raise ConfigError(
            f'channel_groups is {groups}: give one or more groups, each a list of different '
            '0-based band indices, for instance [[0, 1, 2, 6], [3, 4, 5, 7], [8, 9]]; '
            'resolve_groups makes them from band names.'
        )
    return found


def _is_list(group: object) -> bool:
    return isinstance(group, Iterable) and not isinstance(group, str)


def bands_needed(groups: Sequence[Sequence[int]]) -> int:
    """Return the least number of bands of images that have all of the groups' bands."""
    return 1 + max(index for group in groups for index in group)
