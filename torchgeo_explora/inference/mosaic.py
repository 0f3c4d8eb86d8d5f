"""The blocks of a raster that are done, read as one: any part of it, all bands at once."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from torchgeo_explora.inference.jobs import Job, Unit
from torchgeo_explora.inference.layers import Layer
from torchgeo_explora.inference.windows import Block, Extent, Interval
from torchgeo_explora.inference.work import WorkFolder


class Mosaic:
    """One layer of a raster whose blocks are done, of bands that are stored together.

    Args:
        folder: With the blocks.
        job: The raster.
        layer: The layer.
    """

    def __init__(self, folder: WorkFolder, job: Job, layer: Layer) -> None:
        self.folder, self.layer = folder, layer
        self.units = [Unit(job, number) for number in range(len(job.blocks))]
        everything = Block(Interval(0, job.info.extent.height), Interval(0, job.info.extent.width))
        cells = everything.in_cells(job.cell)
        self.extent = Extent(cells.rows.length, cells.columns.length)

    def tiles(self, size: int) -> Iterator[Block]:
        """Cut the raster into squares, row by row.

        Args:
            size: Side in cells; those at the ends may be smaller.
        """
        height, width = self.extent.height, self.extent.width
        for top in range(0, height, size):
            for left in range(0, width, size):
                rows = Interval(top, min(top + size, height))
                yield Block(rows, Interval(left, min(left + size, width)))

    def read(self, part: Block) -> NDArray[np.float32]:
        """Read a part.

        Args:
            part: Which, in cells.

        Returns:
            (height, width, bands); NaN where there is no data.
        """
        shape = (part.rows.length, part.columns.length, len(self.layer.bands))
        values = np.full(shape, np.nan, dtype=np.float32)
        for unit in self.units:
            rows, columns = unit.cells.rows.clip(part.rows), unit.cells.columns.clip(part.columns)
            if rows.length > 0 and columns.length > 0:
                block = self.folder.open_cells(unit, self.layer)
                own = unit.cells
                values[rows.within(part.rows.first), columns.within(part.columns.first)] = block[
                    rows.within(own.rows.first), columns.within(own.columns.first)
                ]
        return values
