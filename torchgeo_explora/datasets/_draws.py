"""Where windows are drawn: evenly over the ground with data, and as evenly over files as is asked.

All is arithmetic of whole numbers on the rasters' grids; nothing is read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from torchgeo_explora.errors import ConfigError

from ._grids import RasterWindow, starts

PARTS = 8
"""Points of a mask along a side of a window."""

STRATA = 2
"""Places of a grid of strata along a side of a window."""

TRIES = 10
"""Draws of a window that may hold too little data before the middle of its stratum is taken."""

type Points = NDArray[np.bool_]


class Validity:
    """Shares of pixels with data in any window of a raster, from points on a grid.

    Args:
        points: (rows, columns) whether there is data.
        height: Rows of the raster.
        width: Columns.
    """

    def __init__(self, points: Points, height: int, width: int) -> None:
        self._down, self._across = points.shape[0] / height, points.shape[1] / width
        sums = np.zeros((points.shape[0] + 1, points.shape[1] + 1), dtype=np.int64)
        sums[1:, 1:] = points.cumsum(axis=0).cumsum(axis=1)
        self._sums = sums

    def share(self, row: int, column: int, side: int) -> float:
        """Share of the points in a square window that have data; points are whole or out."""
        top, bottom = self._points(row, row + side, self._down, len(self._sums) - 1)
        left, right = self._points(column, column + side, self._across, self._sums.shape[1] - 1)
        sums = self._sums
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        return float(inside) / ((bottom - top) * (right - left))

    @staticmethod
    def _points(first: int, stop: int, density: float, count: int) -> tuple[int, int]:
        low = min(int(first * density), count - 1)
        return low, min(max(round(stop * density), low + 1), count)


@dataclass(frozen=True, eq=False)
class Strata:
    """Places in one raster from which windows are drawn, each as often as any other.

    Args:
        file: Position of the raster in the list of rasters.
        height: Rows of the raster.
        width: Columns.
        side: Pixels of a side of a window.
        rows: First row of the window in the middle of every stratum, (N,).
        columns: Its first column, (N,).
        validity: Which pixels have data.
        least: Least share of data in a window.
    """

    file: int
    height: int
    width: int
    side: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    validity: Validity
    least: float

    def __len__(self) -> int:
        """Number of strata."""
        return len(self.rows)

    def side_by_side(self) -> 'Strata':
        """Places of windows that do not overlap but at the raster's end."""
        return find_strata(
            self.file, (self.height, self.width), self.side, self.validity, self.least, 1
        )

    @property
    def windows(self) -> int:
        """Windows that fit side by side where there is data, at least one."""
        return max(round(len(self) / STRATA**2), 1)

    def window(self, stratum: int) -> RasterWindow:
        """The window in the middle of a stratum."""
        return self._at(int(self.rows[stratum]), int(self.columns[stratum]))

    def draw(self, stratum: int, rng: np.random.Generator) -> RasterWindow:
        """Draw a window around a stratum, with enough data."""
        reach = self.side // STRATA
        for _ in range(TRIES):
            moves = rng.integers(-reach // 2, reach - reach // 2 + 1, size=2)
            row = int(np.clip(self.rows[stratum] + moves[0], 0, self.height - self.side))
            column = int(np.clip(self.columns[stratum] + moves[1], 0, self.width - self.side))
            if self.validity.share(row, column, self.side) >= self.least:
                return self._at(row, column)
        return self.window(stratum)

    def _at(self, row: int, column: int) -> RasterWindow:
        return RasterWindow(self.file, row, column, self.side, self.side)


def find_strata(
    file: int,
    size: tuple[int, int],
    side: int,
    validity: Validity,
    least: float,
    strata: int = STRATA,
) -> Strata:
    """Lay a grid over a raster and keep the places with enough data.

    Args:
        file: Position of the raster in the list of rasters.
        size: Its height and width in pixels, neither below ``side``.
        side: Pixels of a side of a window.
        validity: Where it has data.
        least: Least share of data in a window.
        strata: Places along a side of a window.
    """
    height, width = size
    stride = max(side // strata, 1)
    places = [
        (row, column)
        for row, _ in starts(height, side, stride)
        for column, _ in starts(width, side, stride)
        if validity.share(row, column, side) >= least
    ]
    found = np.array(places, dtype=np.int64).reshape(-1, 2)
    return Strata(file, height, width, side, found[:, 0], found[:, 1], validity, least)


def share_out(areas: Sequence[int], total: int, balance: float) -> list[int]:
    """Share the windows of a pass out over files.

    Args:
        areas: Windows that fit into each file, at least 1.
        total: Windows of a pass, raised to the number of files.
        balance: 1 to share by area, 0 for as many of every file, between for a power of the area.

    Returns:
        Windows of every file, at least one each.

    Raises:
        ConfigError: If ``balance`` is not from 0 to 1.
    """
    if not 0 <= balance <= 1:
        raise ConfigError(f'balance is {balance}: give a number from 0 (files) to 1 (area).')
    weights = np.asarray(areas, dtype=np.float64) ** balance
    spare = max(total - len(areas), 0)
    exact = weights / weights.sum() * spare
    counts = np.floor(exact).astype(np.int64)
    rest = np.argsort(counts - exact, kind='stable')[: spare - int(counts.sum())]
    counts[rest] += 1
    return [int(count) + 1 for count in counts]


class WindowDraw:
    """The windows of every pass over some rasters, as a function of seed, pass and position.

    Every stratum of a raster is visited equally often: the draws of a raster, counted over all
    passes, go through permutations of its strata.

    Args:
        strata: Of every raster.
        counts: Windows of a pass from every raster.
        seed: Seed of all draws.
    """

    def __init__(self, strata: Sequence[Strata], counts: Sequence[int], seed: int) -> None:
        self.strata, self.counts, self.seed = list(strata), list(counts), seed
        self._ends = list(accumulate(counts))

    def __len__(self) -> int:
        """Windows of a pass."""
        return self._ends[-1]

    def window(self, index: int, epoch: int) -> RasterWindow:
        """Draw a window.

        Args:
            index: Position in the pass, from 0.
            epoch: Number of the pass, from 0.
        """
        number = int(np.searchsorted(self._ends, index, side='right'))
        strata, count = self.strata[number], self.counts[number]
        within = index - (self._ends[number] - count)
        lap, place = divmod(epoch * count + within, len(strata))
        order = _permutation(self.seed, number, lap, len(strata))
        rng = np.random.default_rng([self.seed, number, epoch, within])
        return strata.draw(int(order[place]), rng)


@lru_cache(maxsize=64)
def _permutation(seed: int, number: int, lap: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, number, lap]).permutation(length)
