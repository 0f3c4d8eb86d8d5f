"""fMoW-temporal: several dates of a place a sample, as SatMAE's temporal model sees them."""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from torchgeo_explora.errors import ConfigError

from ._crops import Cropping, Draw
from ._fmow_boxes import hours_of, read_notes
from ._fmow_pictures import FMoWPictures
from ._headers import READ_ERRORS
from ._index import Strings, timestamp_features
from ._plots import plot_sample
from ._tables import TEMPORAL_COLUMNS

# everything but the date's number: pictures of one kind of one place
_DATE = re.compile(r'(.*)_\d+(_(?:ms)?rgb\.\w+)')


class FMoWTemporal(FMoWPictures):
    """Functional Map of the World as sequences: a picture and others of the same place.

    Layouts are those of :class:`FMoWRGB`; a table needs a column of timestamps, and the raw data set
    has them in its JSON files. Pictures of one place are those whose paths differ in the number of
    the date alone.

    Sample i is picture i followed by ``dates - 1`` other pictures of its place, drawn without
    replacement; where there are fewer, those are repeated, and a picture without others is repeated
    itself (SatMAE, section 4.1). All dates are cut by one draw. A picture that cannot be used is
    replaced by another date; if it is picture i itself, by the next sample.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``. With tables, ``val`` and ``test`` are the same images.
        cropping: How pictures become squares; None for 224 pixels of the centre. Its size is needed, for
            dates differ in theirs.
        dates: Number of pictures in a sample.
        kind: ``rgb`` (pan-sharpened) or ``msrgb`` pictures of the raw data set.
        cut_boxes: Whether to cut images to their boxes; ``auto`` for where JSON files are.
        seed: Seed of random crops and of the choice of dates.
        csv: Table to read instead of the split's, an absolute path or relative to ``root``.
        check_files: Look for every file at once and leave missing ones out.

    Raises:
        DatasetNotFoundError: If the images are not there.
        ImageError: If the table cannot be used.
        ConfigError: If an argument is not possible.
    """

    def __init__(
        self,
        root: Path | str = 'data',
        split: Literal['train', 'val', 'test'] = 'train',
        cropping: Cropping | None = None,
        dates: int = 3,
        kind: Literal['rgb', 'msrgb'] = 'rgb',
        cut_boxes: Literal['auto'] | bool = 'auto',
        seed: int = 0,
        csv: Path | str | None = None,
        check_files: bool = False,
    ) -> None:
        cropping = Cropping(224) if cropping is None else cropping
        if dates < 1 or cropping.size is None:
            raise ConfigError(
                f'dates is {dates}, the size of the squares {cropping.size}: give at least 1 for '
                'both, for the dates of a place differ in size.'
            )
        super().__init__(
            root, split, TEMPORAL_COLUMNS, kind, cut_boxes, cropping, seed, csv, check_files
        )
        self.dates = dates
        self._members, self._place, self._starts = _group(self.index.paths)

    def siblings(self, position: int) -> list[int]:
        """Other pictures of a picture's place.

        Args:
            position: Position of a picture.

        Returns:
            Their positions, ascending.
        """
        place = int(self._place[position])
        members = self._members[int(self._starts[place]) : int(self._starts[place + 1])]
        return [member for member in members.tolist() if member != position]

    def _sample(
        self, position: int, draw: Draw, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        others = rng.permutation(self.siblings(position)).astype(int).tolist()
        found: list[tuple[Tensor, int]] = []
        for row in [position, *others]:
            if len(found) == self.dates:
                break
            date = self._date(row, draw)
            if date is not None:
                found.append(date)
            elif row == position:
                return None
        cycle = found[1:] if len(found) > 1 else found
        found += [cycle[k % len(cycle)] for k in range(self.dates - len(found))]
        hours = torch.tensor([hour for _, hour in found])
        return {
            'image': torch.stack([image for image, _ in found]),
            'timestamps': timestamp_features(hours),
        }

    def _date(self, row: int, draw: Draw) -> tuple[Tensor, int] | None:
        """A picture and its time, or None if it cannot be used."""
        if self._unusable(row):
            return None
        image = self._image(row, draw)
        if image is None:
            return None
        if self.index.hours is not None:
            return image, int(self.index.hours[row])
        try:
            return image, hours_of(read_notes(self._path(row).with_suffix('.json')))
        except READ_ERRORS as error:
            self._note(row, error)
            return None

    def plot(
        self, sample: dict[str, Tensor], show_titles: bool = True, suptitle: str | None = None
    ) -> Figure:
        """Draw the dates of a sample side by side.

        Args:
            sample: What ``__getitem__`` returns, with ``prediction`` or not.
            show_titles: Whether to write the class, and each picture's month.
            suptitle: Title of the figure, instead of the class.

        Returns:
            A figure.
        """
        months = [
            f'{2002 + int(year)}-{1 + int(month):02d}, {int(hour):02d} h'
            for year, month, hour in sample['timestamps'].tolist()
        ]
        return plot_sample(sample, self.bands, self.classes, show_titles, suptitle, months)


def _group(paths: Strings) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures by place.

    Args:
        paths: Path of every picture.

    Returns:
        Positions of the pictures, place by place, (N,); the place of every picture, (N,); where
        each place starts in the first, (places + 1,).
    """
    numbers: dict[str, int] = {}
    place = np.empty(len(paths), dtype=np.int32)
    for row in range(len(paths)):
        path = paths[row]
        match = _DATE.fullmatch(path)
        key = path if match is None else match[1] + match[2]
        place[row] = numbers.setdefault(key, len(numbers))
    members = np.argsort(place, kind='stable').astype(np.int32)
    starts = np.concatenate([[0], np.bincount(place, minlength=len(numbers)).cumsum()])
    return torch.from_numpy(members), torch.from_numpy(place), torch.from_numpy(starts)
