"""Adds up the outputs of overlapping windows of a block, holding a window's height of rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchgeo_explora.inference.blending import axis_weights, weight_sum
from torchgeo_explora.inference.jobs import Unit
from torchgeo_explora.inference.pages import zeros
from torchgeo_explora.inference.windows import Interval, Span

MOST_ROWS, BYTES_AT_ONCE = 64, 2 * 2**20
"""Of rows that are finished together, or planes that are added: many take memory, and fall out of
the processor's cache."""


@dataclass(frozen=True)
class Finished:
    """Rows of a block that no further window contributes to.

    Args:
        rows: Which rows of the raster, in cells.
        values: (planes, rows, columns) float64, averaged over windows.
    """

    rows: Interval
    values: Tensor


class Canvas:
    """Sums of outputs times weights, for the rows of a block that windows still contribute to.

    Windows are added row by row; rows above the next row of windows are then final.

    Args:
        unit: The block that is predicted.
        planes: Outputs a pixel.
        device: Where sums are held.
    """

    def __init__(self, unit: Unit, planes: int, device: torch.device) -> None:
        self.unit, self.block, self._cell = unit, unit.cells, unit.job.cell
        grid, block = unit.job.grid.in_cells(unit.job.cell), unit.cells
        self.top = block.rows.first
        """First row of cells that is not finished."""
        height = max(span.output.length for span in grid.rows.touching(block.rows))
        shape = (planes, height, block.columns.length)
        # on a CPU without a copy
        self._sums = torch.from_numpy(zeros(shape, np.float64)).to(device)
        down, across = (
            torch.from_numpy(axis_weights(axis)).to(device, torch.float64)
            for axis in (grid.rows, grid.columns)
        )
        self._weights = down[:, None] * across[None, :]
        self._down, self._across = (
            torch.from_numpy(weight_sum(axis, core)).to(device, torch.float64)
            for axis, core in ((grid.rows, block.rows), (grid.columns, block.columns))
        )

    def add(self, row: Span, column: Span, output: Tensor) -> None:
        """Add the output of a window.

        Args:
            row: The window down.
            column: The window across.
            output: (planes, height, width) of all cells that the window reads, float32; or
                (planes, 1, 1) for one output for the whole window.
        """
        row, column = row.in_cells(self._cell), column.in_cells(self._cell)
        down = row.output.clip(Interval(self.top, self.block.rows.stop))
        across = column.output.clip(self.block.columns)
        if output.shape[1:] != (1, 1):
            output = output[:, down.within(row.start), across.within(column.start)]
        weights = self._weights[down.within(row.output.first), across.within(column.output.first)]
        place = self._sums[:, down.within(self.top), across.within(self.block.columns.first)]
        many = max(BYTES_AT_ONCE // (8 * weights.numel()), 1)  # a copy is made of each
        for sums, planes in zip(place.split(many), output.split(many), strict=True):
            sums.addcmul_(planes.to(torch.float64), weights)

    def finish(self, stop: int) -> Iterator[Finished]:
        """Take rows that no further window contributes to, some at a time.

        Args:
            stop: Row of cells after the last of them.

        Yields:
            The rows.
        """
        done = 0
        many = self._rows_at_once()
        while self.top < stop:
            rows = Interval(self.top, min(self.top + many, stop))
            down = self._down[rows.within(self.block.rows.first)]
            sums = self._sums[:, done : done + rows.length]
            yield Finished(rows, sums / (down[:, None] * self._across[None, :]))
            done, self.top = done + rows.length, rows.stop
        self._scroll(done)

    def _rows_at_once(self) -> int:
        of_a_row = self._sums[:, 0].numel() * self._sums.element_size()
        return max(min(BYTES_AT_ONCE // of_a_row, MOST_ROWS), 1)

    def _scroll(self, rows: int) -> None:
        kept = self._sums.shape[1] - rows
        for plane in self._sums:  # one by one, because a copy is made of each
            plane[:kept] = plane[rows:].clone()
            plane[kept:] = 0
