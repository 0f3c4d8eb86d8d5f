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
from torchgeo_explora.inference.raster import (
    SETTINGS,
    Handles,
    read_block,
    scale_to_unit,
    valid_pixels,
)
from torchgeo_explora.inference.windows import Block, Interval, Span


@dataclass(frozen=True)
class Strip:
    """What was read of a raster.

    Args:
        values: (bands, height, width) in [0, 1]; 0 where there is no data.
        wanted: (height, width) where there is data, inside the area of interest.
    """

    values: NDArray[np.float32]
    wanted: NDArray[np.bool_]


def read_stripe(handles: Handles, stripe: Stripe) -> Strip:
    """Read, scale and mask a part of a raster.

    Args:
        handles: Open rasters.
        stripe: What to read.

    Returns:
        What was read. Where no window of the block comes near the area of interest nothing is
        read, and values are 0.

    Raises:
        ImageError: If it cannot be read.
    """
    job, block = stripe.unit.job, stripe.block
    bands = len(job.fit.low)
    shape = (block.rows.length, block.columns.length)
    inside = np.ones(shape, dtype=np.bool_) if job.area is None else job.area.mask(block)
    if job.area is not None and not job.area.meets(_with_windows(stripe)):
        return Strip(np.zeros((bands, *shape), dtype=np.float32), inside)
    with rasterio.Env(**SETTINGS), handles.borrow(job.info.path) as source:
        pixels = read_block(source, job.info, job.fit.selection, block)
    values = scale_to_unit(pixels, job.fit.low, job.fit.high)
    return Strip(values, inside & valid_pixels(pixels))


def _with_windows(stripe: Stripe) -> Block:
    """All that windows which see a stripe can see."""
    size, block = stripe.unit.job.grid.rows.size, stripe.block
    return Block(Interval(block.rows.first - size, block.rows.stop + size), block.columns)


def read_ahead(
    handles: Handles, pool: ThreadPoolExecutor, wanted: Iterable[Stripe]
) -> Iterator[tuple[Stripe, Future[Strip]]]:
    """Read a few stripes before they are needed.

    Args:
        handles: Open rasters.
        pool: Threads that read.
        wanted: What to read.

    Yields:
        Each stripe with what is or will be read, in order.
    """
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


class StripBuffer:
    """The rows of a block that the present row of windows reads.

    Args:
        unit: The block.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        grid, block = unit.job.grid, unit.block
        self.rows = grid.rows.touching(block.rows)
        self.columns = grid.columns.touching(block.columns)
        self.row = -1
        self._size = grid.rows.size
        self._left = self.columns[0].start
        width = self.columns[-1].start + grid.columns.size - self._left
        bands = len(unit.job.fit.low)
        self._values = np.zeros((bands, self._size, width), dtype=np.float32)
        self._wanted = np.zeros((self._size, width), dtype=np.bool_)

    def advance(self, strip: Strip) -> None:
        """Go on to the next row of windows.

        Args:
            strip: What that row needs beside the present one.
        """
        fresh = strip.wanted.shape[0]
        kept = 0
        if self.row >= 0:
            step = self.rows[self.row + 1].start - self.rows[self.row].start
            kept = self._filled() - step
            for plane in (*self._values, self._wanted):  # one by one: a copy is made of each
                plane[:kept] = plane[step : step + kept].copy()
        self.row += 1
        width = strip.wanted.shape[1]
        self._values[:, kept : kept + fresh, :width] = strip.values
        self._wanted[kept : kept + fresh, :width] = strip.wanted
        self._wanted[kept + fresh :] = False
        self._reflect(width)

    def _filled(self) -> int:
        length = self.unit.job.grid.rows.length
        return min(self.rows[self.row].start + self._size, length) - self.rows[self.row].start

    def _reflect(self, width: int) -> None:
        """Continue a raster that is smaller than a window by its mirror image."""
        down = mirrored(self._filled(), self._size)
        across = mirrored(width, self._values.shape[2])
        if len(across) > width:
            self._values[:, :, width:] = self._values[:, :, across[width:]]
        if self._filled() < self._size:
            self._values[:, self._filled() :] = self._values[:, down[self._filled() :]]

    def wanted(self, rows: Interval) -> NDArray[np.bool_]:
        """Return where a prediction is wanted.

        Args:
            rows: Rows of the raster that the present row of windows reads.

        Returns:
            (rows, columns of the block).
        """
        down = rows.within(self.rows[self.row].start)
        return self._wanted[down, self.unit.block.columns.within(self._left)].copy()

    def window(self, column: Span) -> Tensor | None:
        """Cut out a window of the present row.

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
