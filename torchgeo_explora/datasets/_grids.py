"""Windows on the grids of rasters: whole numbers of pixels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ._ground import Boxes, Place


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class RasterWindow:
    """A part of a raster.

    Args:
        file: Position of the raster in the list of rasters.
        row: First row.
        column: First column.
        height: Rows, fewer than a full window has where the raster is smaller.
        width: Columns, likewise.
        covered_rows: How many of the first rows belong to the window above.
        covered_columns: How many of the first columns belong to the window to the left.
        slack: Pixels by which the window may be moved in any direction.
    """

    file: int
    row: int
    column: int
    height: int
    width: int
    covered_rows: int = 0
    covered_columns: int = 0
    slack: int = 0


def starts(length: int, side: int, stride: int) -> list[tuple[int, int]]:
    """First pixels of windows along one axis.

    The last window is moved back so that it ends with the raster and every window is full.

    Args:
        length: Pixels of the raster.
        side: Pixels of a window.
        stride: Pixels from one window to the next, at most ``side``.

    Returns:
        First pixel of every window, and how many of its pixels the one before has.
    """
    firsts = [*range(0, max(length - side, 0), stride), max(length - side, 0)]
    before = [0, *(first + side for first in firsts)]
    return [(first, max(end - first, 0)) for first, end in zip(firsts, before, strict=False)]


def grid(file: int, place: Place, size: Size, stride: Size) -> list[RasterWindow]:
    """Windows that cover a raster, row by row.

    Args:
        file: Position of the raster in the list of rasters.
        place: The raster.
        size: Size of a window; a raster that is smaller is one window of its own size.
        stride: From one window to the next.

    Returns:
        Windows.
    """
    return [
        RasterWindow(
            file, row, column, min(size.height, place.height), min(size.width, place.width),
            covered_rows, covered_columns,
        )
        for row, covered_rows in starts(place.height, size.height, stride.height)
        for column, covered_columns in starts(place.width, size.width, stride.width)
    ]  # fmt: skip


def boxes(windows: Iterable[RasterWindow]) -> Boxes:
    """Row, column, height and width of windows, (N, 4)."""
    rows = [(window.row, window.column, window.height, window.width) for window in windows]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def by_file(windows: Sequence[RasterWindow]) -> dict[int, list[int]]:
    """Positions of the windows of every raster."""
    found: dict[int, list[int]] = {}
    for position, window in enumerate(windows):
        found.setdefault(window.file, []).append(position)
    return found


def widened(window: RasterWindow, place: Place, slack: int) -> RasterWindow:
    """The window and all that it may be moved over, within its raster."""
    row, column = max(window.row - slack, 0), max(window.column - slack, 0)
    return replace(
        window,
        row=row,
        column=column,
        height=min(window.row + window.height + slack, place.height) - row,
        width=min(window.column + window.width + slack, place.width) - column,
    )


def moved(window: RasterWindow, place: Place, rng: np.random.Generator) -> RasterWindow:
    """Draw a window of the same size at most ``slack`` pixels away, within its raster.

    Args:
        window: Where to start from.
        place: Its raster.
        rng: Source of randomness.

    Returns:
        The window, all of whose pixels are its own.
    """
    area = widened(window, place, window.slack)
    return replace(
        window,
        row=area.row + int(rng.integers(area.height - window.height + 1)),
        column=area.column + int(rng.integers(area.width - window.width + 1)),
    )
