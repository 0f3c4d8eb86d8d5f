"""What the data sets of Functional Map of the World share: classes, labels, lookup."""

import re
from abc import ABC
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ._index import PackedStrings, spread
from ._indexed import IndexedImages

# Order of the labels in SatMAE's tables; the names are fMoW's (arXiv:1711.07846), sorted.
CATEGORIES = (
    'airport', 'airport_hangar', 'airport_terminal', 'amusement_park', 'aquaculture',
    'archaeological_site', 'barn', 'border_checkpoint', 'burial_site', 'car_dealership',
    'construction_site', 'crop_field', 'dam', 'debris_or_rubble', 'educational_institution',
    'electric_substation', 'factory_or_powerplant', 'fire_station', 'flooded_road', 'fountain',
    'gas_station', 'golf_course', 'ground_transportation_station', 'helipad', 'hospital',
    'impoverished_settlement', 'interchange', 'lake_or_pond', 'lighthouse', 'military_facility',
    'multi-unit_residential', 'nuclear_powerplant', 'office_building', 'oil_or_gas_facility',
    'park', 'parking_lot_or_garage', 'place_of_worship', 'police_station', 'port', 'prison',
    'race_track', 'railway_bridge', 'recreational_facility', 'road_bridge', 'runway', 'shipyard',
    'shopping_mall', 'single-unit_residential', 'smokestack', 'solar_farm', 'space_facility',
    'stadium', 'storage_tank', 'surface_mine', 'swimming_pool', 'toll_booth', 'tower',
    'tunnel_opening', 'waste_disposal', 'water_treatment_facility', 'wind_farm', 'zoo',
)  # fmt: skip

BASES = ('', 'fmow', 'fmow-rgb', 'fmow_rgb', 'fmow-sentinel', 'fmow_sentinel')
"""Folders under the root that images are looked for in."""

PROBES = 32
"""Images that are looked for before a data set is said to be absent."""

_NUMBERS = {name: number for number, name in enumerate(CATEGORIES)}

# the last folder of a path that names a split: what stands before it is another machine's
_TAIL = re.compile(r'.*(?:^|/)((?:train|val|test|seq)(?:_gt)?/.+)')


class FMoW(IndexedImages, ABC):
    """Images of fMoW's 62 kinds of places.

    Attributes:
        classes: Names of the 62 classes, in the order of the labels.
    """

    classes = list(CATEGORIES)  # noqa: RUF012  # of one kind for all three, and never changed


def label_numbers(
    texts: Sequence[str],
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int16]], list[int]]:
    """Labels of classes that are given by name or by number.

    Args:
        texts: Names of classes, or numbers from 0 to 61.

    Returns:
        (N,) labels, -1 where there is none, and the positions of those.
    """
    numbers = {text: _label_number(text.strip()) for text in set(texts)}
    labels = np.fromiter((numbers[text] for text in texts), dtype=np.int16, count=len(texts))
    return labels, np.flatnonzero(labels < 0).tolist()


def _label_number(text: str) -> int:
    if text in _NUMBERS:
        return _NUMBERS[text]
    number = int(float(text)) if re.fullmatch(r'\d+(\.0+)?', text) is not None else -1
    return number if number < len(CATEGORIES) else -1


def from_split(path: str) -> str | None:
    """The part of a path from the folder of its split on, or None if no folder is one.

    Tables hold paths of the machine they were made on; ``train/airport/...`` is the same everywhere.

    Args:
        path: A path with forward slashes.
    """
    match = _TAIL.fullmatch(path)
    return None if match is None else match[1]


def find_folder(root: Path, forms: Iterable[PackedStrings]) -> tuple[PackedStrings, Path] | None:
    """Find what paths are relative to, by looking for some of the files.

    Args:
        root: Folder of the data set.
        forms: What the paths may be; the first of which a file is found is taken.

    Returns:
        The paths and the folder, or None if no file was found.
    """
    for form in forms:
        paths = [form[position] for position in spread(len(form), PROBES)]
        for base in BASES:
            folder = root / base
            if any((folder / path).is_file() for path in paths):
                return form, folder
    return None
