"""Rasters through a model: threads read, batches span windows and files, one thread writes."""

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError, ExploraError, ImageError, WeightsError
from torchgeo_explora.inference.canvas import Canvas
from torchgeo_explora.inference.jobs import Group, Job, Stripe, Unit, stripes
from torchgeo_explora.inference.layers import Kind, Layer, layer_values
from torchgeo_explora.inference.pages import release
from torchgeo_explora.inference.raster import SETTINGS, Handles
from torchgeo_explora.inference.reading import WindowRow, read_ahead
from torchgeo_explora.inference.windows import Interval, Span
from torchgeo_explora.inference.work import UnitWriter, WorkFolder

MOST_ROWS_WAITING = 32
"""Rows of windows without data that may wait for a batch to fill up."""

MOST_WRITES_WAITING = 4


def softmax(logits: Tensor) -> Tensor:
    """Return probabilities.

    Args:
        logits: Of one image, classes first.
    """
    return logits.softmax(0)


@dataclass(frozen=True)
class Runner:
    """How a model is run.

    Args:
        model: Takes images (batch, bands, size, size) in [0, 1]; returns logits (batch, classes) or
            (batch, classes, cells, cells).
        device: Where.
        dtype: Type that it computes in.
        classes: Number of its outputs.
        size: Side of the images.
        to_planes: Turns the logits of one image, float32 with classes first, to what is averaged.
        cell: Side in pixels of what the model has one output for; 1 for one a pixel.
        share: Whether the share of an image that is wanted becomes one more plane.
    """

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    classes: int
    size: int
    to_planes: Callable[[Tensor], Tensor] = softmax
    cell: int = 1
    share: bool = False

    @property
    def planes(self) -> int:
        """Numbers that are averaged, a pixel of the result."""
        return self.classes + self.share

    def run(self, images: Tensor) -> Tensor:
        """Run the model.

        Args:
            images: (batch, bands, size, size) in [0, 1].

        Returns:
            (batch, classes, 1, 1) or (batch, classes, cells, cells).

        Raises:
            WeightsError: If the model returns anything else.
        """
        low = self.dtype != torch.float32
        context = torch.autocast(self.device.type, self.dtype) if low else nullcontext()
        with torch.inference_mode(), context:
            logits = self._forward(images.to(self.device, non_blocking=True))
        if logits.ndim == 2:
            logits = logits[:, :, None, None]
        sides = {(1, 1), (self.size // self.cell,) * 2}
        if logits.shape[:2] != (len(images), self.classes) or tuple(logits.shape[2:]) not in sides:
            raise WeightsError(
                f'The model returns {tuple(logits.shape)} for images of {tuple(images.shape)}: it '
                f'must give {self.classes} classes for an image, or for each of its pixels.'
            )
        return logits

    def _forward(self, images: Tensor) -> Tensor:
        try:
            logits: Tensor = self.model(images)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f'A batch of {len(images)} windows of {self.size} pixels does not fit into the '
                'memory of the device: lower --batch.'
            ) from error
        return logits


@dataclass(frozen=True)
class Part:
    """Something that happens to a block, in the order of its windows.

    Args:
        unit: The block.
        row: The window down; None at the end of a row of windows.
        column: The window across.
        share: Of the window that is wanted.
        finished: Row of the result before which all rows are final, at the end of a row.
        wanted: (rows, columns) where a result is wanted, of the rows that become final.
    """

    unit: Unit
    row: Span | None = None
    column: Span | None = None
    share: float = 1.0
    finished: int = 0
    wanted: NDArray[np.bool_] | None = None


@dataclass
class Tally:
    """What became of the work.

    Args:
        pixels: Pixels that are through.
        total: Pixels of all groups.
        windows: Windows that the model saw.
        empty: Windows without a wanted pixel, which it did not.
        failed: Why rasters failed, by number.
        workers: Workers of a cluster that are at it; 0 without a cluster.
        deaths: Workers that died, and whose blocks others computed.
        started: Time, of the monotonic clock.
    """

    total: int
    pixels: int = 0
    windows: int = 0
    empty: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    workers: int = 0
    deaths: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time so far."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Pixels a second."""
        return self.pixels / max(self.seconds, 1e-9)

    @property
    def remaining(self) -> float | None:
        """Seconds to go; None before it can be told."""
        return None if self.pixels == 0 else (self.total - self.pixels) / self.rate


class Writer:
    """One thread that writes; what goes wrong there is raised here."""

    def __init__(self) -> None:
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WRITES_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name='writer')
        self._thread.start()

    def _work(self) -> None:
        with rasterio.Env(**SETTINGS):
            while (task := self._tasks.get()) is not None:
                if self._error is None:
                    try:
                        task()
                    except BaseException as error:  # raised again in the other thread
                        self._error = error

    def put(self, task: Callable[[], None]) -> None:
        """Have something done after everything that was given before.

        Raises:
            BaseException: What went wrong before.
        """
        if self._error is not None:
            raise self._error
        self._tasks.put(task)

    def close(self) -> None:
        """Wait for everything.

        Raises:
            BaseException: What went wrong.
        """
        self.stop()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Wait for everything and let errors be."""
        if self._thread.is_alive():
            self._tasks.put(None)
            self._thread.join()


class Pipeline:
    """Computes groups of blocks.

    Args:
        runner: Runs the model.
        folder: Where blocks are kept.
        batch: Windows of a batch.
        threads: Threads that read.
        tally: Counts.
        kept: Whether a block is written; others are computed only for the sake of their group.
        progress: Told of the tally now and then.
        completed: Told in the writing thread that a block was written.
        render: Turns averages (planes, rows, columns) to what a layer holds, given where there is
            data.
    """

    def __init__(
        self,
        runner: Runner,
        folder: WorkFolder,
        batch: int,
        threads: int,
        tally: Tally,
        kept: Callable[[Unit], bool],
        progress: Callable[[Tally], None],
        completed: Callable[[Unit], None],
        render: Callable[[Layer, Tensor, Tensor], NDArray[np.generic]] = layer_values,
    ) -> None:
        self.runner, self.folder, self.tally = runner, folder, tally
        self.batch, self.threads = batch, threads
        self.kept, self.progress, self.completed, self.render = kept, progress, completed, render
        self._images: Tensor | None = None
        self._filled = 0
        self._parts: list[Part] = []
        self._canvas: Canvas | None = None
        self._output: UnitWriter | None = None

    def run(self, groups: Sequence[Group]) -> None:
        """Compute groups.

        Rasters that cannot be read are noted in the tally, and the others go on.

        Args:
            groups: In order.

        Raises:
            ExploraError: If the model does not fit, or nothing can be written.
        """
        handles, self._writer = Handles(), Writer()
        try:
            with ThreadPoolExecutor(self.threads, thread_name_prefix='reader') as pool:
                for group in groups:
                    self._run_group(group, handles, pool)
            self._writer.close()
        finally:
            self._writer.stop()
            if self._output is not None:
                self._output.abandon()
            handles.close()

    def _run_group(self, group: Group, handles: Handles, pool: ThreadPoolExecutor) -> None:
        for unit, reading in read_ahead(handles, pool, self._wanted(group)):
            if self._has_failed(unit.job):
                continue
            try:
                row = reading.result()
            except ImageError as error:
                self.fail(unit.job, error)
                continue
            self._cut(row)
        self._flush()

    def _wanted(self, group: Group) -> Iterator[Stripe]:
        return (s for unit in group for s in stripes(unit) if not self._has_failed(unit.job))

    def _has_failed(self, job: Job) -> bool:
        return job.number in self.tally.failed

    def fail(self, job: Job, error: ExploraError) -> None:
        """Note that a raster cannot be predicted."""
        self.tally.failed[job.number] = str(error)

    def _cut(self, row: WindowRow) -> None:
        """Cut the windows of a row, and say which rows are final after it."""
        unit, span = row.unit, row.rows[row.row]
        for column in row.columns:
            image = row.window(column)
            if image is None:
                self.tally.empty += 1
            else:
                share = row.share(column) if self.runner.share else 1.0
                self._add_image(image, Part(unit, span, column, share))
        block = unit.block.rows
        last = row.row + 1 == len(row.rows)
        stop = block.stop if last else row.rows[row.row + 1].output.first
        final = Interval(max(span.output.first, block.first), stop)
        if final.length > 0:
            finished = final.in_cells(unit.job.cell).stop
            self._parts.append(Part(unit, finished=finished, wanted=row.wanted(final)))
        waiting = sum(part.row is None for part in self._parts)
        if self._filled == 0 or waiting > MOST_ROWS_WAITING:
            self._flush()

    def _add_image(self, image: Tensor, part: Part) -> None:
        if self._images is None:
            pinned = self.runner.device.type == 'cuda'
            self._images = torch.empty((self.batch, *image.shape), pin_memory=pinned)
        self._images[self._filled] = image
        self._filled += 1
        self._parts.append(part)
        if self._filled == self.batch:
            self._flush()

    def _flush(self) -> None:
        """Run the model on what there is, and do what waited for it, in order."""
        parts, self._parts = self._parts, []
        outputs: Iterator[Tensor] = iter(())
        if self._filled > 0:
            assert self._images is not None, 'there are images'
            outputs = iter(self.runner.run(self._images[: self._filled]))
            self.tally.windows += self._filled
            # a new one on a GPU: the old one may still be on its way there
            self._images = self._images if self.runner.device.type == 'cpu' else None
            self._filled = 0
        for part in parts:
            output = None if part.row is None else next(outputs)
            if not self._has_failed(part.unit.job):
                self._do(part, output)

    def _do(self, part: Part, output: Tensor | None) -> None:
        canvas = self._canvas_of(part.unit)
        if output is None:
            self._finish_rows(canvas, part)
            return
        assert part.row is not None, 'an output is that of a window'
        assert part.column is not None, 'an output is that of a window'
        with torch.inference_mode():
            planes = self.runner.to_planes(output.float())
            if self.runner.share:
                planes = torch.cat([planes, torch.full_like(planes[:1], part.share)])
            canvas.add(part.row, part.column, planes)

    def _canvas_of(self, unit: Unit) -> Canvas:
        if self._canvas is None or self._canvas.unit is not unit:
            self._canvas = None  # its memory is free before more is taken
            release(unit.block.area)
            self._canvas = Canvas(unit, self.runner.planes, self.runner.device)
        return self._canvas

    def _finish_rows(self, canvas: Canvas, part: Part) -> None:
        unit, first = part.unit, canvas.top
        assert part.wanted is not None, 'the end of a row tells what is wanted'
        with torch.inference_mode():
            wanted = torch.from_numpy(part.wanted).to(self.runner.device)
            for done in canvas.finish(part.finished):
                if not self.kept(unit):
                    continue
                valid = wanted[done.rows.within(first)]
                values = {
                    layer.kind: self.render(layer, done.values, valid)
                    for layer in self.folder.layers
                }
                self._writer.put(functools.partial(self._write, unit, values))
        cell, block = unit.job.cell, unit.block
        rows = min(part.finished * cell, block.rows.stop) - first * cell
        self.tally.pixels += rows * block.columns.length
        self.progress(self.tally)
        if part.finished == unit.cells.rows.stop and self.kept(unit):
            self._writer.put(lambda: self._end(unit))

    def _write(self, unit: Unit, values: Mapping[Kind, NDArray[np.generic]]) -> None:
        """Write rows of a block, in the writing thread."""
        if self._output is None or self._output.unit is not unit:
            if self._output is not None:
                self._output.abandon()  # of a raster that failed
            self._output = UnitWriter(self.folder, unit)
        self._output.write(values)

    def _end(self, unit: Unit) -> None:
        """Complete a block, in the writing thread."""
        assert self._output is not None, 'its rows were written'
        self._output.finish()
        self._output = None
        self.completed(unit)
