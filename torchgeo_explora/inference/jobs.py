"""What there is to do: rasters, cut into blocks, put into groups that need nothing of one another.

Batches span windows, blocks and files, but never groups. A group therefore gives the same numbers
to the last bit wherever and whenever it is computed, which is what resuming and sharding rest on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference.area import PixelArea
from torchgeo_explora.inference.fit import Fit
from torchgeo_explora.inference.raster import RasterInfo
from torchgeo_explora.inference.windows import (
    Block,
    Extent,
    Interval,
    WindowGrid,
    aligned_windows,
    centred_windows,
)
from torchgeo_explora.models import ModelSpec

BATCHES_A_GROUP = 16
"""Batches of a group that is put together from small blocks; its last one may be part-filled."""

FIXED_MEMORY = 64 * 2**20
"""Bytes for GDAL's cache, and for rows that are being finished and written."""

SPARE = 4
"""A quarter of the memory is left for what the C library keeps in pieces and does not give back,
where blocks can be as narrow as that."""

STRIPES_AHEAD = 3
"""Rows of windows that are read before they are needed."""

ROWS_HELD = 3
"""Rows of windows in memory: one is cut while the next is filled; another between two blocks."""

WINDOWS_ACROSS, SIZES_ACROSS = 20, 8
"""Blocks are as wide as 20 steps between windows, and at least 8 windows. Wider ones would take
more memory, and save little: one window in 21 is computed for two blocks."""


@dataclass(frozen=True)
class Tiling:
    """How rasters are cut into windows.

    Args:
        size: Side of a window in pixels.
        overlap: Pixels that neighbours share, of a segmentation model.
        stride: Side of the cell that a window decides, of a classification model; None for a
            segmentation model.
        batch: Windows of a batch.
        block: Longest side of a block in pixels.
        memory: Bytes that a block may take beside the model.
        cell: Side in pixels of what becomes one pixel of the result.
    """

    size: int
    overlap: int
    stride: int | None
    batch: int
    block: int
    memory: int
    cell: int = 1

    def grid(self, extent: Extent) -> WindowGrid:
        """Lay windows over a raster.

        Args:
            extent: Its size.

        Raises:
            ConfigError: If overlap or stride are not possible.
        """
        rows, columns = (
            aligned_windows(length, self.size, self.overlap, self.cell)
            if self.stride is None
            else centred_windows(length, self.size, self.stride)
            for length in (extent.height, extent.width)
        )
        return WindowGrid(rows, columns)

    @property
    def step(self) -> int:
        """Pixels from one window to the next."""
        return self.size - self.overlap if self.stride is None else self.stride

    def block_limit(self, planes: int, bands: int, itemsize: int = 4) -> Extent:
        """Return how large blocks may be within the memory.

        Args:
            planes: Outputs of the model a pixel of the result.
            bands: Bands that it reads.
            itemsize: Bytes of a value in the raster.

        Raises:
            ConfigError: If not even a window fits.
        """
        held = self.size if self.stride is None else self.stride
        raw = (STRIPES_AHEAD + 1) * (itemsize + 1)  # a byte for the mask
        scaled = 4 * ROWS_HELD
        sums = -(-planes * 8 * held // self.cell**2)
        column = sums + self.size * bands * (raw + scaled)
        cells = -(-self.size // self.cell)
        window = self.size**2 * self.batch * bands * 8 + planes * 8 * cells**2  # one output
        room = self.memory - FIXED_MEMORY - window
        if room // column < 2 * self.size:
            need = FIXED_MEMORY + window + 2 * self.size * column
            raise ConfigError(
                f'{self.memory // 2**20} MB were allowed, and windows of {self.size} pixels in '
                f'batches of {self.batch} take at least {-(-need // 2**20)} MB: raise '
                '--max-memory, or lower --batch or --window.'
            )
        width = max((room - self.memory // SPARE) // column - self.size, self.size)
        enough = max(WINDOWS_ACROSS * self.step, SIZES_ACROSS * self.size)
        return Extent(self.block, min(width, enough, self.block))


def tiling(
    spec: ModelSpec,
    window: int | None = None,
    overlap: float | None = None,
    stride: int | None = None,
    batch: int = 16,
    block: int = 8192,
    memory: int = 256 * 2**20,
) -> Tiling:
    """Choose windows for a model.

    Args:
        spec: Describes the model.
        window: Side in pixels; None for that of the images it was fitted on, before they were
            resized.
        overlap: Of a segmentation model: a fraction of the window below 1, or whole pixels; None
            for a quarter.
        stride: Of a classification model: side of the cells that get one class; None for the
            window's.
        batch: Windows of a batch.
        block: Longest side of a block in pixels.
        memory: Bytes that a block may take beside the model.

    Raises:
        ConfigError: If a number is not possible, or belongs to a model of the other kind.
    """
    size = spec.window if window is None else window
    for name, number in (('window', size), ('batch', batch), ('block', block)):
        if number < 1:
            raise ConfigError(f'{name} is {number}: give 1 or more.')
    if spec.task == 'classification':
        if overlap is not None:
            raise ConfigError('An overlap is of segmentation models: give --stride instead.')
        return Tiling(size, 0, size if stride is None else stride, batch, block, memory)
    if stride is not None:
        raise ConfigError('A stride is of classification models: give --overlap instead.')
    return Tiling(size, _overlap(size, overlap), None, batch, block, memory)


def _overlap(size: int, overlap: float | None) -> int:
    if overlap is None:
        return size // 4
    if overlap < 1:
        return round(overlap * size)
    if overlap != int(overlap):
        raise ConfigError(f'overlap is {overlap}: give a fraction below 1, or whole pixels.')
    return int(overlap)


@dataclass(frozen=True)
class Job:
    """One raster to predict.

    Args:
        number: Position in the list of all rasters.
        fingerprint: Differs where the raster or its blocks do.
        target: Where results go, relative to the output folder, without the end of the name.
        info: Header of the raster.
        fit: What the model is given of it.
        grid: All its windows.
        blocks: Its blocks.
        area: Pixels to predict; None for all.
        cell: Side in pixels of what becomes one pixel of the result: 1 for maps, a patch for
            embeddings of patches.
    """

    number: int
    fingerprint: str
    target: str
    info: RasterInfo
    fit: Fit
    grid: WindowGrid
    blocks: tuple[Block, ...]
    area: PixelArea | None
    cell: int = 1


@dataclass(frozen=True)
class Unit:
    """A block of a job.

    Args:
        job: The job.
        number: Position of the block in it.
    """

    job: Job
    number: int

    @property
    def block(self) -> Block:
        """The block."""
        return self.job.blocks[self.number]

    @property
    def cells(self) -> Block:
        """The block in pixels of the result."""
        return self.block.in_cells(self.job.cell)

    @property
    def windows(self) -> int:
        """Number of windows that contribute to the block."""
        return self.job.grid.windows_in(self.block)


type Group = tuple[Unit, ...]


def group_units(jobs: Iterable[Job], batch: int) -> list[Group]:
    """Put the blocks of all jobs into groups, in order.

    Args:
        jobs: The jobs.
        batch: Windows of a batch.

    Returns:
        Groups of at least 16 batches, where there are as many windows.
    """
    groups: list[Group] = []
    pending: list[Unit] = []
    windows = 0
    for unit in (Unit(job, number) for job in jobs for number in range(len(job.blocks))):
        pending.append(unit)
        windows += unit.windows
        if windows >= BATCHES_A_GROUP * batch:
            groups.append(tuple(pending))
            pending, windows = [], 0
    return [*groups, tuple(pending)] if pending else groups


@dataclass(frozen=True)
class Stripe:
    """The part of a raster that a row of windows of a block needs beside the row before.

    Args:
        unit: The block.
        row: Position of the row of windows among those of the block.
        rows: Pixels to read down; may be none.
        columns: Pixels to read across.
    """

    unit: Unit
    row: int
    rows: Interval
    columns: Interval

    @property
    def block(self) -> Block:
        """What to read."""
        return Block(self.rows, self.columns)


def stripes(unit: Unit) -> Sequence[Stripe]:
    """List what has to be read for a block, every pixel once.

    Args:
        unit: The block.

    Returns:
        One stripe for each row of windows, from top to bottom.
    """
    grid, block = unit.job.grid, unit.block
    across = grid.columns.touching(block.columns)
    right = min(across[-1].start + grid.columns.size, grid.columns.length)
    columns = Interval(across[0].start, right)
    result, read = [], 0
    for number, span in enumerate(grid.rows.touching(block.rows)):
        stop = min(span.start + grid.rows.size, grid.rows.length)
        result.append(Stripe(unit, number, Interval(max(span.start, read), stop), columns))
        read = stop
    return result
