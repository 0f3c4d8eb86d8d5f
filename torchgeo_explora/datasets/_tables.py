"""Tables of fMoW's images, in the spellings found in the wild, to an index."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from torchgeo_explora.errors import ImageError

from ._csv import Chunk, Column, parse_hours, read_chunks
from ._fmow import from_split, label_numbers
from ._headers import name_some
from ._index import ImageIndex, PackedStrings

_CLASS = ('category', 'label', 'class', 'class_name', 'target', 'y')
_PATH = ('image_path', 'path', 'img_path', 'image', 'filename', 'file_name', 'file')
_TIME = ('timestamp', 'time', 'datetime', 'date')

# SatMAE and ExPLoRA read these tables by position, whatever the columns are called.
RGB_COLUMNS = (Column('label', _CLASS, position=0), Column('path', _PATH, position=1))
TEMPORAL_COLUMNS = (*RGB_COLUMNS, Column('time', _TIME, position=2))

SENTINEL_COLUMNS = (
    Column('label', _CLASS),
    Column('location', ('location_id', 'location')),
    Column('image', ('image_id',)),
    Column('time', _TIME, required=False),
    Column('path', _PATH, required=False),
)


@dataclass
class Table:
    """What was read of a table.

    Args:
        source: The file.
        paths: Paths as the table has them, with forward slashes, in pieces; empty if it has none.
        built: Paths in the data set's layout, from other columns, in pieces.
        labels: Class of every image, in pieces.
        hours: Hours since 1970 of every image, in pieces; empty if there is no such column.
        skipped: Rows that are left out, by reason.
        turned: Number of paths whose backslashes became slashes.
    """

    source: Path
    paths: list[PackedStrings] = field(default_factory=list)
    built: list[PackedStrings] = field(default_factory=list)
    labels: list[NDArray[np.int16]] = field(default_factory=list)
    hours: list[NDArray[np.int64]] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    turned: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.labels))

    def forms(self, changes: Sequence[Callable[[str], str | None]]) -> Iterator[PackedStrings]:
        """What the paths on the disk may be, likely ones first.

        Args:
            changes: Ways in which paths of the data set's layout may differ from it.

        Yields:
            A path for every row.
        """
        built, given = PackedStrings.join(self.built), PackedStrings.join(self.paths)
        for paths in (built, given, given.map(from_split)):
            for change in (None, *changes):
                form = paths if change is None or paths is None else paths.map(change)
                if form is not None and len(form) == len(self):
                    yield form

    def index(self, paths: PackedStrings) -> ImageIndex:
        """An index of the rows, in the order of the file.

        Args:
            paths: Path of every row.
        """
        hours = torch.from_numpy(np.concatenate(self.hours)) if self.hours else None
        return ImageIndex(paths, torch.from_numpy(np.concatenate(self.labels)), hours)


def read_table(path: Path, columns: Sequence[Column], split: str = '') -> Table:
    """Read a table of images; rows that cannot be used are left out and noted.

    Args:
        path: A comma-separated file.
        columns: What to read.
        split: Folder of the split, for paths that are built from identifiers.

    Returns:
        The rows.

    Raises:
        ImageError: If the file cannot be read, lacks a column, has ambiguous paths, or no row that
            can be used.
    """
    table = Table(path)
    for chunk in read_chunks(path, columns):
        _append(table, chunk, split)
    if len(table) == 0:
        reasons = [f'{reason}: {name_some(items)}' for reason, items in table.skipped.items()]
        raise ImageError(
            f'{path} has no row that can be used ({"; ".join(reasons) or "it is empty"}): give a '
            'table with one image in each row.'
        )
    if table.turned:
        warnings.warn(
            f'{path} has Windows paths: the backslashes of {table.turned} paths are read as '
            'slashes.',
            stacklevel=4,
        )
    return table


def _append(table: Table, chunk: Chunk, split: str) -> None:
    """Check the rows of a chunk and keep the good ones."""
    _skip(table, 'has too few columns', [f'row {row}' for row in chunk.ragged])
    good = np.ones(len(chunk.rows), dtype=bool)
    labels, unknown = label_numbers(chunk.columns['label'])
    _refuse(table, chunk, 'label', 'has no class of fMoW', unknown, good)
    hours = None
    if 'time' in chunk.columns:
        hours, valid = parse_hours(chunk.columns['time'])
        late = np.flatnonzero(~valid).tolist()
        _refuse(table, chunk, 'time', 'has no timestamp like 2016-05-09T07:54:11Z', late, good)
    if 'location' in chunk.columns:
        built, broken = _layout_paths(chunk, split)
        _refuse(table, chunk, 'image', 'has no whole number as location or image', broken, good)
        table.built.append(_kept(built, good))
    if 'path' in chunk.columns:
        table.paths.append(_kept(_forward(table, chunk), good))
    table.labels.append(labels[good])
    if hours is not None:
        table.hours.append(hours[good])


def _refuse(
    table: Table,
    chunk: Chunk,
    column: str,
    reason: str,
    places: Sequence[int],
    good: NDArray[np.bool_],
) -> None:
    """Take rows out, and note what they hold."""
    texts = chunk.columns[column]
    _skip(table, reason, [f'row {chunk.rows[place]}: {texts[place]!r}' for place in places])
    good[list(places)] = False


def _kept(texts: Sequence[str], good: NDArray[np.bool_]) -> PackedStrings:
    return PackedStrings([texts[place] for place in np.flatnonzero(good).tolist()])


def _skip(table: Table, reason: str, items: list[str]) -> None:
    if items:
        table.skipped.setdefault(reason, []).extend(items)


def _layout_paths(chunk: Chunk, split: str) -> tuple[list[str], list[int]]:
    """Paths in fMoW-Sentinel's layout, and the positions of rows whose numbers are none."""
    names, locations, images = (
        [text.strip().removesuffix('.0') for text in chunk.columns[name]]
        for name in ('label', 'location', 'image')
    )
    rows = list(zip(names, locations, images, strict=True))
    broken = [
        place
        for place, (_, location, image) in enumerate(rows)
        if not (location.isdecimal() and image.isdecimal())
    ]
    paths = [
        f'{split}/{name}/{name}_{location}/{name}_{location}_{image}.tif'
        for name, location, image in rows
    ]
    return paths, broken


def _forward(table: Table, chunk: Chunk) -> list[str]:
    """Paths with forward slashes.

    A backslash is a letter like others where slashes separate folders: a path with both is not
    guessed at.
    """
    texts = chunk.columns['path']
    if not any('\\' in text for text in texts):
        return [text.strip() for text in texts]
    mixed = [place for place, text in enumerate(texts) if '\\' in text and '/' in text]
    if mixed:
        raise ImageError(
            f'{table.source}, row {chunk.rows[mixed[0]]}: {texts[mixed[0]]!r} has both slashes and '
            'backslashes, so that it is not clear which separate folders: write slashes only.'
        )
    table.turned += sum('\\' in text for text in texts)
    return [text.strip().replace('\\', '/') for text in texts]
