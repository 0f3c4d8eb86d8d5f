"""Tables of images: columns by their spellings in the wild, in pieces, with bad rows named."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchgeo_explora.errors import ImageError

CHUNK = 32_768
"""Rows that are held as Python strings at a time."""

# Dates are UTC throughout; another offset is refused rather than taken for it.
_TIMESTAMP = re.compile(
    r'\d{4}-\d\d-\d\d[T ]\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|\+00:?00)?', re.ASCII
)


@dataclass(frozen=True)
class Column:
    """A column that is looked for.

    Args:
        name: Name under which it is returned.
        spellings: Names that it has in files, lower case.
        required: Whether a table without it is refused.
        position: Where it stands in files whose names are others; None if it has no fixed place.
    """

    name: str
    spellings: tuple[str, ...]
    required: bool = True
    position: int | None = None


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table.

    Args:
        columns: Texts by column; every list has the same length.
        rows: Number of each row in the file, the first after the header being 2.
        ragged: Numbers of the rows that are too short and left out.
    """

    columns: dict[str, list[str]]
    rows: list[int]
    ragged: list[int]


def read_chunks(path: Path, columns: Sequence[Column]) -> Iterator[Chunk]:
    """Read a comma-separated table with a header, a piece at a time.

    Args:
        path: The file.
        columns: What to read; other columns are left out.

    Yields:
        Rows in the order of the file.

    Raises:
        ImageError: If the file cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding='utf-8-sig', newline='') as file:
            reader = csv.reader(file)
            places = _places(path, next(reader, []), columns)
            yield from _pieces(reader, places)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageError(
            f'{path} cannot be read ({error}): give a comma-separated table in UTF-8.'
        ) from error


def _pieces(rows: Iterator[list[str]], places: dict[str, int]) -> Iterator[Chunk]:
    """Rows in pieces; each row is dropped as soon as its columns are taken.

    Millions of rows held at a time would keep the garbage collector busy.
    """
    last, numbered = max(places.values()), enumerate(rows, start=2)
    while True:
        chunk = Chunk({name: [] for name in places}, [], [])
        taken = [(chunk.columns[name], place) for name, place in places.items()]
        number = 0
        for number, row in islice(numbered, CHUNK):
            if len(row) > last:
                chunk.rows.append(number)
                for column, place in taken:
                    column.append(row[place])
            elif row:
                chunk.ragged.append(number)
        if number == 0:
            return
        yield chunk


def _places(path: Path, header: Sequence[str], columns: Sequence[Column]) -> dict[str, int]:
    """Where each column stands."""
    names = [name.strip().lower() for name in header]
    places: dict[str, int] = {}
    for column in columns:
        found = [names.index(name) for name in column.spellings if name in names]
        if found:
            places[column.name] = found[0]
    for column in columns:
        place = column.position
        free = place is not None and place < len(names) and place not in places.values()
        if column.name not in places and place is not None and free:
            places[column.name] = place
    missing = [column for column in columns if column.required and column.name not in places]
    if missing:
        raise ImageError(
            f'{path} has the columns {", ".join(header) or "(none)"}, but none of them is '
            f'{" or ".join(map(repr, missing[0].spellings))}: rename the column that is meant.'
        )
    return places


def parse_hours(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Hours since 1970 of timestamps like ``2016-05-09T07:54:11Z``.

    Args:
        texts: Timestamps in UTC; minutes and seconds may be missing, ``T`` may be a space.

    Returns:
        (N,) hours, 0 where the text is no timestamp, and (N,) whether it is one.
    """
    valid = np.array([_TIMESTAMP.fullmatch(text.strip()) is not None for text in texts], dtype=bool)
    stems = [
        text.strip()[:13] if ok else '1970-01-01T00' for text, ok in zip(texts, valid, strict=True)
    ]
    try:
        return np.array(stems, dtype='datetime64[h]').astype(np.int64), valid
    except ValueError:  # a 31st of June somewhere
        return _parse_each(stems, valid)


def _parse_each(
    stems: Sequence[str], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    hours = np.zeros(len(stems), dtype=np.int64)
    for place, stem in enumerate(stems):
        try:
            hours[place] = np.datetime64(stem, 'h').astype(np.int64)
        except ValueError:
            valid[place] = False
    return hours, valid
