"""The folder of unfinished work: blocks that are done, so that nothing is computed twice."""

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchgeo_explora._run_record import RECORD, RunRecord, new_record, read_file, recorded
from torchgeo_explora.errors import ConfigError, OutputError
from torchgeo_explora.inference.jobs import Job, Unit
from torchgeo_explora.inference.layers import Kind, Layer
from torchgeo_explora.inference.windows import Block

FOLDER = '.torchgeo-explora-predict'


class WorkFolder:
    """Blocks that are done, inside the output folder.

    A block is a folder with one file a band. It gets its name when it is complete, which is the
    mark that it is done; so it does not matter how many programs work on the same folder.

    Args:
        out: Folder of the results.
        layers: What is written of a block.
        name: Of the folder.
    """

    def __init__(self, out: Path, layers: Sequence[Layer], name: str = FOLDER) -> None:
        self.out, self.layers = out, layers
        self.path = out / name
        self.record: RunRecord | None = None

    @property
    def manifest(self) -> Path:
        """What the work is, and the record of it; written first."""
        return self.out / RECORD

    @property
    def report(self) -> Path:
        """What became of it; written last."""
        return self.out / 'report.json'

    def start(
        self,
        manifest: Mapping[str, Any],
        go_on: bool,
        *,
        command: str = 'predict',
        device: torch.device | None = None,
        shard: str | None = None,
    ) -> None:
        """Write what the work is, or check that it is the same work; begin to record it.

        Args:
            manifest: Describes the work, as JSON.
            go_on: Whether the work may have begun.
            command: What is done.
            device: Where the model runs.
            shard: Name of the share of the work that this process does, for instance ``1-of-4``.

        Raises:
            ConfigError: If work has begun and may not have, or is other work.
            OutputError: If nothing can be written.
        """
        if self.manifest.is_file():
            self._check_same(manifest, go_on)
        else:
            RunRecord(self.manifest, new_record(command, manifest)).write()
        # shards write at the same time, each a file of its own
        path = self.manifest if shard is None else self._parts / f'{shard}.json'
        self.record = RunRecord.begin(path, command, {}, device=device, part={'shard': shard})

    def _check_same(self, manifest: Mapping[str, Any], go_on: bool) -> None:
        if not go_on:
            raise ConfigError(
                f'{self.out} holds a run already: go on with --resume, or choose another folder.'
            )
        differing = _differences(read_file(self.manifest), manifest)
        if differing:
            raise ConfigError(
                f'The run in {self.out} was started with other {", ".join(differing)}: '
                'use the same again, or choose another folder.'
            )

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """End the record of what :meth:`start` began with the block, in the way that it ends."""
        if self.record is None:
            yield
            return
        with recorded(self.record):
            yield

    @property
    def _parts(self) -> Path:
        return self.path / 'records'

    def job_folder(self, job: Job) -> Path:
        """Where the blocks of a raster are kept."""
        return self.path / f'raster-{job.number:06d}-{job.fingerprint}'

    def unit_folder(self, unit: Unit) -> Path:
        """Where a block is kept once it is done."""
        return self.job_folder(unit.job) / f'block-{unit.number:06d}'

    def is_done(self, unit: Unit) -> bool:
        """Whether a block is done."""
        folder, area = self.unit_folder(unit), unit.cells.area
        # sizes, because after a loss of power a name may be on disk and the content not
        return folder.is_dir() and all(
            _size(folder / name) == area * np.dtype(layer.dtype).itemsize * bands
            for layer in self.layers
            for name, bands in _files(layer).items()
        )

    def is_complete(self, job: Job) -> bool:
        """Whether all blocks of a raster are done."""
        return all(self.is_done(Unit(job, number)) for number in range(len(job.blocks)))

    def drop(self, job: Job) -> None:
        """Remove the blocks of a raster."""
        shutil.rmtree(self.job_folder(job), ignore_errors=True)

    def close(self) -> None:
        """Take over what shards recorded, and remove the folder."""
        if self.record is not None and self._parts.is_dir():
            found = [read_file(path)['parts'] for path in sorted(self._parts.glob('*.json'))]
            self.record.adopt(part for parts in found for part in parts)
        shutil.rmtree(self.path, ignore_errors=True)

    def open_block(self, unit: Unit, layer: Layer, band: int) -> NDArray[np.generic]:
        """Return one band of a block that is done, as a file that is read where it is looked at.

        Args:
            unit: The block.
            layer: What it belongs to.
            band: 0-based.

        Returns:
            (height, width).
        """
        shape = (unit.cells.rows.length, unit.cells.columns.length)
        path = self.unit_folder(unit) / _file_name(layer, band)
        return np.memmap(path, dtype=layer.dtype, mode='r', shape=shape)

    def open_cells(self, unit: Unit, layer: Layer) -> NDArray[np.generic]:
        """Return all bands of a block that is done, of a layer that stores them together.

        Args:
            unit: The block.
            layer: What they belong to.

        Returns:
            (height, width, bands), read where it is looked at.
        """
        shape = (unit.cells.rows.length, unit.cells.columns.length, len(layer.bands))
        path = self.unit_folder(unit) / _file_name(layer, 0)
        return np.memmap(path, dtype=layer.dtype, mode='r', shape=shape)


def process_name() -> str:
    """Name of this process, unlike that of any other on the machines that share a folder."""
    return f'{platform.node()}-{os.getpid()}'


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(now))
    return [key for key in sorted(plain) if before.get(key) != plain[key]]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _file_name(layer: Layer, band: int) -> str:
    return f'{layer.kind}-{band:04d}.raw'


def _files(layer: Layer) -> dict[str, int]:
    """Files of a layer, and how many bands each of them holds."""
    if layer.together:
        return {_file_name(layer, 0): len(layer.bands)}
    return {_file_name(layer, band): 1 for band in range(len(layer.bands))}


class UnitWriter:
    """Writes a block, some rows at a time, and names it when it is complete.

    Args:
        folder: The folder of work.
        unit: The block.

    Raises:
        OutputError: If it cannot be written.
    """

    def __init__(self, folder: WorkFolder, unit: Unit) -> None:
        self.folder, self.unit = folder, unit
        final = folder.unit_folder(unit)
        self.temporary = final.with_name(f'{final.name}.{process_name()}.part')
        self._files: dict[str, list[BufferedWriter]] = {}
        self._stack = ExitStack()
        try:
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(parents=True)
            for layer in folder.layers:
                self._files[layer.kind] = [
                    self._stack.enter_context((self.temporary / name).open('wb'))
                    for name in _files(layer)
                ]
        except OSError as error:
            self.abandon()
            raise refused(final, error) from error

    def write(self, values: Mapping[Kind, NDArray[np.generic]]) -> None:
        """Add rows.

        Args:
            values: (bands, rows, columns) of each layer, by its kind.

        Raises:
            OutputError: If they cannot be written.
        """
        try:
            for kind, bands in values.items():
                files = self._files[kind]
                parts = bands if len(files) == len(bands) else [bands.transpose(1, 2, 0)]
                for file, part in zip(files, parts, strict=True):
                    file.write(np.ascontiguousarray(part).data)
        except OSError as error:
            raise refused(self.temporary, error) from error

    def finish(self) -> None:
        """Name the block, unless another program has done it in the meantime.

        Raises:
            OutputError: If it cannot be written.
        """
        final = self.folder.unit_folder(self.unit)
        try:
            self._stack.close()
            if not self.folder.is_done(self.unit):
                shutil.rmtree(final, ignore_errors=True)
                self.temporary.rename(final)
        except OSError as error:
            raise refused(final, error) from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Remove what is not complete."""
        with suppress(OSError):  # what could not be flushed to a full disk is removed below
            self._stack.close()
        shutil.rmtree(self.temporary, ignore_errors=True)


def refused(path: Path, error: OSError) -> OutputError:
    """Return an error for a file that cannot be written.

    Args:
        path: Of the file.
        error: What went wrong.
    """
    return OutputError(
        f'{path} could not be written ({error.strerror or error}): make room, or choose a folder '
        'that can be written to, and go on with --resume.'
    )


def blocks_in_rows(job: Job, block: Block) -> list[int]:
    """Return which blocks of a job have pixels in some rows.

    Args:
        job: The job.
        block: Whose rows.
    """
    return [
        number for number, other in enumerate(job.blocks) if other.rows.clip(block.rows).length > 0
    ]
