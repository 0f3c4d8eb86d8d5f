"""Reads rasters ahead of the model, in threads, and cuts windows out of what was read."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.inference.jobs import STRIPES_AHEAD, Stripe, Unit
from torchgeo_explora.inference.pages import zeros
from torchgeo_explora.inference.raster import (
    SETTINGS,
    Handles,
    Pixels,
    read_block,
    scale_to_unit,
    valid_pixels,
)
from torchgeo_explora.inference.windows import Block, Interval, Span


@dataclass(frozen=True)
class Strip:
    """What was read of a raster, as its file has it: a byte a value often, instead of four.

    Args:
        pixels: (bands, height, width); None where nothing had to be read.
        wanted: (height, width) where there is data, inside the area of interest.
    """

    pixels: Pixels | None
    wanted: NDArray[np.bool_]


def read_stripe(handles: Handles, stripe: Stripe) -> Strip:
    """Read and mask a part of a raster.

    Args:
        handles: Open rasters.
        stripe: What to read.

    Returns:
        What was read. Where no window of the block comes near the area of interest nothing is.

    Raises:
        ImageError: If it cannot be read.
    """
    job, block = stripe.unit.job, stripe.block
    shape = (block.rows.length, block.columns.length)
    inside = np.ones(shape, dtype=np.bool_) if job.area is None else job.area.mask(block)
    if job.area is not None and not job.area.meets(_with_windows(stripe)):
        return Strip(None, inside)
    with rasterio.Env(**SETTINGS), handles.borrow(job.info.path) as source:
        pixels = read_block(source, job.info, job.fit.selection, block)
    return Strip(pixels, inside & valid_pixels(pixels))


def _with_windows(stripe: Stripe) -> Block:
    """All that windows which see a stripe can see."""
    size, block = stripe.unit.job.grid.rows.size, stripe.block
    return Block(Interval(block.rows.first - size, block.rows.stop + size), block.columns)


def read_ahead(
    handles: Handles, pool: ThreadPoolExecutor, wanted: Iterable[Stripe]
) -> Iterator[tuple[Unit, Future['WindowRow']]]:
    """Read rows of windows before they are needed.

    Rows of a block take turns with two pieces of memory: one is cut into windows while the other
    is filled.

    Args:
        handles: Open rasters.
        pool: Threads that read. They take work in order, so that filling a row never waits for
            what is queued behind it.
        wanted: What to read.

    Yields:
        Each row of windows, in order: its block, and what is or will be read. Only the last one
        that was yielded may be looked at.
    """
    present: tuple[Unit, Future[WindowRow]] | None = None
    used: Future[WindowRow] | None = None
    for stripe, read in _stripes_ahead(handles, pool, wanted):
        before = None if present is None or present[0] is not stripe.unit else present[1]
        spare = None if before is None else used
        coming = pool.submit(_fill, stripe, read, before, spare)
        if present is not None:
            yield present
            used = present[1]  # whoever asks for more has done with it
        present = stripe.unit, coming
        if before is None:
            used = None
    if present is not None:
        yield present


def _stripes_ahead(
    handles: Handles, pool: ThreadPoolExecutor, wanted: Iterable[Stripe]
) -> Iterator[tuple[Stripe, Future[Strip]]]:
    waiting: deque[tuple[Stripe, Future[Strip]]] = deque()
    try:
        for stripe in wanted:
            waiting.append((stripe, pool.submit(read_stripe, handles, stripe)))
            if len(waiting) > STRIPES_AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()


def _fill(
    stripe: Stripe,
    read: Future[Strip],
    before: Future['WindowRow'] | None,
    spare: Future['WindowRow'] | None,
) -> 'WindowRow':
    """Fill a row of windows from the row before and what was read, in memory that is spare."""
    above = None if before is None else before.result()
    row = WindowRow(stripe.unit) if spare is None else spare.result()
    row.fill(stripe.row, above, read.result())
    return row


class WindowRow:
    """The pixels of a block that one row of its windows reads.

    Args:
        unit: The block.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        grid, block = unit.job.grid, unit.block
        self.rows = grid.rows.touching(block.rows)
        self.columns = grid.columns.touching(block.columns)
        self.row = 0
        self._size = grid.rows.size
        self._left = self.columns[0].start
        width = self.columns[-1].start + grid.columns.size - self._left
        bands = len(unit.job.fit.low)
        self._values = zeros((bands, self._size, width), np.float32)
        self._wanted = zeros((self._size, width), np.bool_)

    def fill(self, row: int, above: 'WindowRow | None', strip: Strip) -> None:
        """Take the pixels of a row of windows.

        Args:
            row: Position of the row among those of the block.
            above: The row before; None for the first.
            strip: What is to be read beside the row before.
        """
        self.row = row
        kept = 0 if above is None else self._take(above)
        fresh, width = strip.wanted.shape
        place = self._values[:, kept : kept + fresh, :width]
        if strip.pixels is None:
            place[:] = 0
        else:
            fit = self.unit.job.fit
            scale_to_unit(strip.pixels, fit.low, fit.high, place)
        self._wanted[kept : kept + fresh, :width] = strip.wanted
        self._wanted[kept + fresh :] = False
        self._reflect(width)

    def _take(self, above: 'WindowRow') -> int:
        """Copy what both rows read; return how many pixels down that is."""
        step = self.rows[self.row].start - self.rows[above.row].start
        kept = above._filled() - step
        self._values[:, :kept] = above._values[:, step : step + kept]
        self._wanted[:kept] = above._wanted[step : step + kept]
        return kept

    def _filled(self) -> int:
        length = self.unit.job.grid.rows.length
        return min(self.rows[self.row].start + self._size, length) - self.rows[self.row].start

    def _reflect(self, width: int) -> None:
        """Continue a raster that ends within a window by its mirror image in that window."""
        down = mirrored(self._filled(), self._size)
        last = self.columns[-1].start - self._left
        across = last + mirrored(width - last, self._size)
        if last + self._size > width:
            self._values[:, :, width:] = self._values[:, :, across[width - last :]]
        if self._filled() < self._size:
            self._values[:, self._filled() :] = self._values[:, down[self._filled() :]]

    def wanted(self, rows: Interval) -> NDArray[np.bool_]:
        """Return where a prediction is wanted.

        Args:
            rows: Rows of the raster that the row of windows reads.

        Returns:
            (rows, columns of the block), in cells; wanted where some pixel of a cell is.
        """
        down = rows.within(self.rows[self.row].start)
        wanted = self._wanted[down, self.unit.block.columns.within(self._left)]
        return any_in_cells(wanted, self.unit.job.cell)

    def share(self, column: Span) -> float:
        """Return which share of a window is wanted.

        Args:
            column: The window across.

        Returns:
            Between 0 and 1, of the pixels that lie in the raster.
        """
        grid, left = self.unit.job.grid, column.start - self._left
        width = min(grid.columns.length - column.start, self._size)
        seen = self._wanted[: self._filled(), left : left + width]
        return float(np.count_nonzero(seen) / seen.size)

    def window(self, column: Span) -> Tensor | None:
        """Cut out a window.

        Args:
            column: The window across.

        Returns:
            (bands, size, size) in [0, 1], a view; None if no pixel that it contributes to is wanted.
        """
        span, block = self.rows[self.row], self.unit.block
        down = span.output.clip(block.rows).within(span.start)
        across = column.output.clip(block.columns).within(self._left)
        if not self._wanted[down, across].any():
            return None
        left = column.start - self._left
        return torch.from_numpy(self._values[:, :, left : left + self._size])


def any_in_cells(mask: NDArray[np.bool_], cell: int) -> NDArray[np.bool_]:
    """Return which cells hold a pixel of a mask.

    Args:
        mask: (height, width), from the corner of a cell on.
        cell: Side of a cell in pixels; the last ones may be cut off.

    Returns:
        (rows, columns) of cells.
    """
    if cell == 1:
        return mask.copy()
    whole = np.pad(mask, [(0, -length % cell) for length in mask.shape])
    split = whole.reshape(whole.shape[0] // cell, cell, whole.shape[1] // cell, cell)
    found: NDArray[np.bool_] = split.any(axis=(1, 3))
    return found


def mirrored(length: int, size: int) -> NDArray[np.intp]:
    """Return positions that continue an axis by its mirror image, again and again.

    Args:
        length: Pixels that there are.
        size: Pixels that are needed.

    Returns:
        (max(length, size),) positions from 0 to ``length - 1``.
    """
    position = np.arange(max(length, size))
    period = max(2 * length - 2, 1)
    turned: NDArray[np.intp] = np.minimum(position % period, -position % period)
    return turned
