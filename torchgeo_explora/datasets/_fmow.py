"""What the data sets of Functional Map of the World share: classes, labels, lookup, damage."""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError, NonGeoDataset

from torchgeo_explora.errors import ConfigError, ImageError

from ._crops import Cropping, Draw, draw_crop
from ._headers import READ_ERRORS, name_some
from ._index import ImageIndex, PackedStrings, spread

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

REPLACEMENTS = 100
"""Images in a row that may turn out to be damaged before a sample is given up."""

_FINE, _DAMAGED, _GAPS = 0, 1, 2

_NUMBERS = {name: number for number, name in enumerate(CATEGORIES)}

# the last folder of a path that names a split: what stands before it is another machine's
_TAIL = re.compile(r'.*(?:^|/)((?:train|val|test|seq)(?:_gt)?/.+)')


class FMoW(NonGeoDataset, ABC):
    """Images of an index, cut to squares, with a label each.

    An image that is missing or cannot be used is replaced by the next usable one, counted and named
    in a warning, as :class:`ImageFolder` does it. Whether an image is used depends on its file
    alone, never on what was drawn, so that a resumed run sees what the unbroken one would have.

    Sub-classes set up ``root`` and ``bands``, and call this constructor once they have an index.

    Args:
        index: Images and their labels.
        folder: What the index' paths are relative to.
        cropping: How images become squares.
        seed: Seed of what is drawn, at least 0.
        check_files: Whether to look for every file now, and leave missing ones out.

    Attributes:
        classes: Names of the 62 classes, in the order of the labels.
        index: Images and their labels, in tensors that loader workers share.
        skipped: Why entries were left out, by reason.
    """

    classes: ClassVar[list[str]] = list(CATEGORIES)
    root: Path
    bands: tuple[str, ...]
    skipped: dict[str, list[str]]

    def __init__(
        self, index: ImageIndex, folder: Path, cropping: Cropping, seed: int, check_files: bool
    ) -> None:
        if seed < 0:
            raise ConfigError(f'seed is {seed}: give a number of at least 0.')
        self.folder, self.cropping, self.seed = folder, cropping, seed
        self.index = self._existing(index) if check_files else index
        self._say_what_is_left_out()
        # written by loader workers, read by the process that started them
        self._state = torch.zeros(len(self.index), dtype=torch.uint8).share_memory_()

    @property
    def num_channels(self) -> int:
        """Bands of an image."""
        return len(self.bands)

    @property
    def labels(self) -> Tensor:
        """Class of every image, (N,) int64."""
        return self.index.labels.long()

    @property
    def damaged(self) -> list[str]:
        """Paths of the images that were found unusable so far, by any loader worker."""
        return self._in_state(_DAMAGED)

    @property
    def with_gaps(self) -> list[str]:
        """Paths of the images that were found to have pixels without data, which became 0."""
        return self._in_state(_GAPS)

    def _in_state(self, state: int) -> list[str]:
        rows = (self._state == state).nonzero()[:, 0].tolist()
        return [self.index.paths[row] for row in rows]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample, as it is drawn in the first pass over the data.

        Args:
            index: Position from 0.

        Returns:
            What :meth:`draw` returns.
        """
        return self.draw(index, 0)

    def draw(self, index: int, epoch: int) -> dict[str, Tensor]:
        """One sample of a pass over the data.

        Args:
            index: Position from 0.
            epoch: Number of the pass, from 0. Random choices depend on the seed, the pass and the
                position, and on nothing else.

        Returns:
            ``image``, float32 in [0, 1], and ``label``, int64.

        Raises:
            ImageError: If this image and the next 100 cannot be used.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} images')
        index %= len(self)
        for step in range(min(REPLACEMENTS + 1, len(self))):
            position = (index + step) % len(self)
            rng = np.random.default_rng([self.seed, epoch, index])
            if not self._unusable(position):
                sample = self._sample(position, draw_crop(rng), rng)
                if sample is not None:
                    return sample | {'label': self.index.labels[position].long()}
        raise ImageError(
            f'{self.folder / self.index.paths[index]} and the images after it cannot be used (see '
            'the warnings): give undamaged images.'
        )

    @abstractmethod
    def _sample(
        self, position: int, draw: Draw, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        """A sample without its label, or None if its image cannot be used."""

    @abstractmethod
    def _read(self, position: int) -> Tensor:
        """An image as it is: (C, H, W) bytes.

        Raises:
            OSError: Or another of ``READ_ERRORS``, if it cannot be used.
        """

    def _image(self, position: int, draw: Draw) -> Tensor | None:
        """One image cut to a square, float32 in [0, 1], or None and a warning."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', NotGeoreferencedWarning)
                image = self._read(position)
        except READ_ERRORS as error:
            self._note(position, error)
            return None
        return self.cropping.cut(image.float().div_(255), draw)

    def _unusable(self, position: int) -> bool:
        """Whether an image was found unusable before."""
        return bool(self._state[position] == _DAMAGED)

    def _path(self, position: int) -> Path:
        return self.folder / self.index.paths[position]

    def _note(self, position: int, error: BaseException) -> None:
        """Remember and name an image that cannot be used."""
        self._state[position] = _DAMAGED
        reason = ' '.join(str(error).split()) or type(error).__name__
        count = int((self._state == _DAMAGED).sum())
        warnings.warn(
            f'{self._path(position)} cannot be used and the next image takes its place ({reason}); '
            f'{count} of {len(self)} so far.',
            stacklevel=2,
        )

    def _note_gaps(self, position: int, pixels: int) -> None:
        """Remember an image with pixels without data; name the first one."""
        first = not bool((self._state == _GAPS).any())
        self._state[position] = _GAPS
        if first:
            warnings.warn(
                f'{self._path(position)} has {pixels} values without data (NaN or nodata), which '
                'become 0; other such images are only counted (attribute with_gaps).',
                stacklevel=2,
            )

    def _existing(self, index: ImageIndex) -> ImageIndex:
        """The entries whose files are there."""
        there = [(self.folder / index.paths[row]).is_file() for row in range(len(index))]
        kept = np.flatnonzero(there)
        if len(kept) < len(index):
            missing = [index.paths[row] for row in np.flatnonzero(np.logical_not(there)).tolist()]
            self.skipped['is missing'] = missing
            index = index.take(kept)
        if len(index) == 0:
            raise DatasetNotFoundError(self)
        return index

    def _say_what_is_left_out(self) -> None:
        for reason, items in self.skipped.items():
            count = f'{len(items)} of {len(items) + len(self.index)}'
            warnings.warn(
                f'{self.root}: {count} entries are left out: each {reason} ({name_some(items)}).',
                stacklevel=4,
            )


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
