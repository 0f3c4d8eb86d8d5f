"""Where windows of a raster lie, and which of its pixels each of them decides. Whole numbers only.

A raster is covered separately along its two axes. Along an axis, window number i reads ``size``
pixels from ``start`` on and contributes to the pixels from ``first`` to before ``stop``. Windows of
a raster are all pairs of a span down and a span across, so everything about them, the sum of
weights included, is a product of something down and something across.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from torchgeo_explora.errors import ConfigError


@dataclass(frozen=True)
class Extent:
    """Size of a raster or of a window.

    Args:
        height: Rows in pixels.
        width: Columns in pixels.
    """

    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width


@dataclass(frozen=True)
class Interval:
    """Pixels of an axis from ``first`` to before ``stop``.

    Args:
        first: First pixel.
        stop: Pixel after the last.
    """

    first: int
    stop: int

    @property
    def length(self) -> int:
        """Number of pixels; 0 where there is none."""
        return max(self.stop - self.first, 0)

    def clip(self, other: 'Interval') -> 'Interval':
        """Pixels that are in both; of length 0 where there is none."""
        return Interval(max(self.first, other.first), min(self.stop, other.stop))

    def within(self, origin: int) -> slice:
        """Return the slice of an array that begins at pixel ``origin``."""
        return slice(self.first - origin, self.stop - origin)

    def in_cells(self, cell: int) -> 'Interval':
        """Cells that hold some of the pixels.

        Args:
            cell: Pixels of a cell; cells begin at pixel 0.
        """
        return Interval(self.first // cell, -(-self.stop // cell))


@dataclass(frozen=True)
class Span:
    """A window along one axis.

    Args:
        start: First pixel that is read.
        output: Pixels to which the window contributes.
    """

    start: int
    output: Interval

    def in_cells(self, cell: int) -> 'Span':
        """Return the window with cells for pixels.

        Args:
            cell: Pixels of a cell.
        """
        return Span(self.start // cell, self.output.in_cells(cell))


@dataclass(frozen=True)
class Axis:
    """All windows along one axis of a raster, by ascending start.

    Args:
        length: Pixels of the raster.
        size: Pixels that a window reads; where the raster is shorter, the rest lies outside.
        spans: The windows.
    """

    length: int
    size: int
    spans: tuple[Span, ...]

    def touching(self, core: Interval) -> tuple[Span, ...]:
        """Windows that contribute to some of the pixels.

        Args:
            core: Pixels of the raster.
        """
        low = bisect_right(self.spans, core.first, key=lambda span: span.output.stop)
        high = bisect_left(self.spans, core.stop, key=lambda span: span.output.first)
        return self.spans[low:high]

    def in_cells(self, cell: int) -> 'Axis':
        """Return the windows with cells for pixels.

        Args:
            cell: Pixels of a cell; what windows contribute to begins at multiples of it.
        """
        spans = tuple(span.in_cells(cell) for span in self.spans)
        return Axis(-(-self.length // cell), -(-self.size // cell), spans)

    def cut(self, limit: int) -> tuple[Interval, ...]:
        """Cut the axis where the fewest windows lie across.

        Args:
            limit: Most pixels of a piece; a piece is never shorter than from one window to the
                next, so that it may be longer than a very small limit.

        Returns:
            Pieces of about the same length that cover the axis once.
        """
        pieces = -(-self.length // max(limit, 1))
        step = -(-len(self.spans) // min(pieces, len(self.spans)))
        firsts = [span.output.first for span in self.spans]
        while step > 1 and _longest(firsts, step, self.length) > limit:
            step -= 1
        ends = [*firsts[::step], self.length]
        return tuple(map(Interval, ends[:-1], ends[1:]))


def _longest(firsts: Sequence[int], step: int, length: int) -> int:
    ends = [*firsts[::step], length]
    return max(stop - first for first, stop in itertools.pairwise(ends))


def overlapping_windows(length: int, size: int, overlap: int) -> Axis:
    """Windows at a constant distance that overlap; the last is moved back into the raster.

    Every window contributes to all pixels that it reads.

    Args:
        length: Pixels of the raster along the axis.
        size: Pixels of a window.
        overlap: Pixels that neighbours share, at least.

    Returns:
        The windows; a single one where the raster is not longer than a window.

    Raises:
        ConfigError: If a length is not positive, or the overlap is not below the window's size.
    """
    _check_sizes(length, size)
    if not 0 <= overlap < size:
        raise ConfigError(
            f'An overlap of {overlap} pixels was given for windows of {size}: choose 0 to '
            f'{size - 1}, or a fraction below 1.'
        )
    last = max(length - size, 0)
    starts = [*range(0, last, size - overlap), last]
    spans = (Span(start, Interval(start, min(start + size, length))) for start in starts)
    return Axis(length, size, tuple(spans))


def aligned_windows(length: int, size: int, overlap: int, cell: int) -> Axis:
    """Windows that overlap and begin at whole cells, so that each sees the same cells whole.

    The last window may reach beyond the raster's end, by less than a cell.

    Args:
        length: Pixels of the raster along the axis.
        size: Pixels of a window, a multiple of ``cell``.
        overlap: Pixels that neighbours share, at least; a multiple of ``cell``.
        cell: Pixels of a cell.

    Returns:
        The windows; a single one where the raster is not longer than a window.

    Raises:
        ConfigError: If a length is not positive, or the overlap is not below the window's size.
    """
    assert size % cell == 0, 'windows hold whole cells'
    assert overlap % cell == 0, 'neighbours share whole cells'
    whole = overlapping_windows(-(-length // cell), size // cell, overlap // cell)
    starts = (span.start * cell for span in whole.spans)
    spans = (Span(start, Interval(start, min(start + size, length))) for start in starts)
    return Axis(length, size, tuple(spans))


def centred_windows(length: int, size: int, stride: int) -> Axis:
    """Windows around cells that lie side by side; each contributes to its own cell only.

    Near the raster's ends windows are moved back into it, so that a cell may lie off its centre.

    Args:
        length: Pixels of the raster along the axis.
        size: Pixels of a window.
        stride: Pixels of a cell; the last cell may be shorter.

    Returns:
        One window for each cell.

    Raises:
        ConfigError: If a length is not positive, or cells are larger than windows.
    """
    _check_sizes(length, size)
    if not 1 <= stride <= size:
        raise ConfigError(
            f'A stride of {stride} pixels was given for windows of {size}: choose 1 to {size}, so '
            'that every pixel is seen.'
        )
    last = max(length - size, 0)
    spans = (
        Span(
            min(max(first + stride // 2 - size // 2, 0), last),
            Interval(first, min(first + stride, length)),
        )
        for first in range(0, length, stride)
    )
    return Axis(length, size, tuple(spans))


def _check_sizes(length: int, size: int) -> None:
    if length < 1 or size < 1:
        raise ConfigError(
            f'{length} pixels of raster and windows of {size} were given: both are at least 1.'
        )


@dataclass(frozen=True)
class Block:
    """A rectangle of a raster that is predicted in one go.

    Args:
        rows: Its rows.
        columns: Its columns.
    """

    rows: Interval
    columns: Interval

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.rows.length * self.columns.length

    def in_cells(self, cell: int) -> 'Block':
        """Cells that hold some of the pixels.

        Args:
            cell: Pixels of a cell.
        """
        return Block(self.rows.in_cells(cell), self.columns.in_cells(cell))


@dataclass(frozen=True)
class WindowGrid:
    """All windows of a raster.

    Args:
        rows: Windows from top to bottom.
        columns: Windows from left to right.
    """

    rows: Axis
    columns: Axis

    @property
    def count(self) -> int:
        """Number of windows."""
        return len(self.rows.spans) * len(self.columns.spans)

    def in_cells(self, cell: int) -> 'WindowGrid':
        """Return the windows with cells for pixels.

        Args:
            cell: Pixels of a cell.
        """
        return WindowGrid(self.rows.in_cells(cell), self.columns.in_cells(cell))

    def blocks(self, limit: Extent) -> tuple[Block, ...]:
        """Cut the raster into blocks, row by row.

        Windows across the border of two blocks are computed in both of them, so that blocks need
        nothing of one another.

        Args:
            limit: Largest size of a block.
        """
        return tuple(
            Block(rows, columns)
            for rows in self.rows.cut(limit.height)
            for columns in self.columns.cut(limit.width)
        )

    def windows_in(self, block: Block) -> int:
        """Return how many windows contribute to a block.

        Args:
            block: Part of the raster.
        """
        rows, columns = self.rows.touching(block.rows), self.columns.touching(block.columns)
        return len(rows) * len(columns)
