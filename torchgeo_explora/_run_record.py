"""``run.json``: what a run was, so that it can be repeated and its results be explained.

One file in the folder of every run, written when the run begins and completed when it ends. A run
that goes on after a crash, and a test after a training in the same folder, add a *part* to it.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from torchgeo_explora import __version__
from torchgeo_explora._environment import environment
from torchgeo_explora._files import replacing
from torchgeo_explora.errors import CollapseError, ConfigError, ExploraError, OutputError

RECORD = 'run.json'
FORMAT = 'torchgeo-explora-run'
RUNNING, FINISHED, FAILED = 'running', 'finished', 'failed'
INTERRUPTED, COLLAPSED, BROKEN_OFF = 'interrupted', 'collapsed', 'broken off'

type Record = dict[str, Any]
"""What ``run.json`` holds."""


class RunRecord:
    """A record that is being written.

    Args:
        path: The file.
        content: What it holds so far.
    """

    def __init__(self, path: Path, content: Record) -> None:
        self.path, self.content = path, content

    @classmethod
    def begin(
        cls,
        path: Path,
        command: str,
        content: Mapping[str, Any],
        *,
        seed: int | None = None,
        device: torch.device | None = None,
        weights: Mapping[str, str | os.PathLike[str] | None] | None = None,
        part: Mapping[str, Any] | None = None,
    ) -> 'RunRecord':
        """Write what begins now, as a new part where the file is there already.

        Args:
            path: The file.
            command: What runs, for instance ``adapt``.
            content: What the whole run is: its settings. Kept as it is by later parts.
            seed: Of everything drawn; None where nothing is.
            device: Where torch computes.
            weights: What the run starts from, by role: files, which are hashed, or names.
            part: What else belongs to this part alone.

        Raises:
            ConfigError: If the file there is none of a run.
            OutputError: If it cannot be written.
        """
        record = cls(path, read_file(path) if path.is_file() else new_record(command, content))
        _settle(record.parts)
        record.parts.append(
            {
                'command': command,
                'state': RUNNING,
                'started': _now(),
                'ended': None,
                'seconds': None,
                'process': {'host': platform.node(), 'pid': os.getpid()},
                'seed': seed,
                'weights': {} if weights is None else {k: _hashed(v) for k, v in weights.items()},
                **({} if part is None else part),
                'environment': environment(device),
            }
        )
        record.write()
        return record

    @property
    def parts(self) -> list[Record]:
        """What ran, in its order."""
        parts: list[Record] = self.content.setdefault('parts', [])
        return parts

    def add(self, files: Iterable[str | os.PathLike[str]] = (), **results: object) -> None:
        """Add results to the present part; they are written when it ends.

        Args:
            files: Files that were written, which are hashed.
            results: Anything that is JSON.
        """
        part = self.parts[-1]
        hashes = {self._name(Path(file)): file_hash(Path(file)) for file in files}
        if hashes:
            part['files'] = part.get('files', {}) | hashes
        part.update(results)

    def adopt(self, parts: Iterable[Record]) -> None:
        """Put in parts that other processes recorded, before the present one."""
        own = self.parts[-1]
        self.content['parts'] = [
            *sorted((*self.parts[:-1], *parts), key=lambda part: str(part['started'])),
            own,
        ]

    def end(self, state: str = FINISHED, error: str | None = None) -> None:
        """Write how the present part ended.

        Args:
            state: ``finished``, ``failed``, ``interrupted`` or ``collapsed``.
            error: Why, in words.

        Raises:
            OutputError: If it cannot be written.
        """
        part, ended = self.parts[-1], _now()
        seconds = datetime.fromisoformat(ended) - datetime.fromisoformat(part['started'])
        part |= {'state': state, 'ended': ended, 'seconds': round(seconds.total_seconds(), 3)}
        if error is not None:
            part['error'] = error
        self.write()

    def end_with(self, error: BaseException) -> None:
        """Write that the present part ended with an error, unless even that cannot be written."""
        with suppress(OutputError):  # the error itself is what the user has to know
            self.end(*describe_error(error))

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            OutputError: If it cannot be written.
        """
        text = json.dumps(self.content, indent=2, default=str)
        with replacing(self.path) as temporary:
            temporary.write_text(f'{text}\n', encoding='utf-8')

    def _name(self, path: Path) -> str:
        folder = self.path.parent.resolve()
        inside = path.resolve().is_relative_to(folder)
        return str(path.resolve().relative_to(folder) if inside else path.resolve())


@contextmanager
def recording(
    folder: Path,
    command: str,
    content: Mapping[str, Any],
    *,
    seed: int | None = None,
    device: torch.device | None = None,
    weights: Mapping[str, str | os.PathLike[str] | None] | None = None,
) -> Iterator[RunRecord]:
    """Record what happens inside a ``with`` block in the folder of a run.

    Args:
        folder: Of the run; made if it is not there.
        command: What runs.
        content: Settings of the whole run, by name, as JSON.
        seed: Of everything drawn; None where nothing is.
        device: Where torch computes.
        weights: What the run starts from, by role: files or names.

    Yields:
        The record, to which results can be added.

    Raises:
        ConfigError: If the ``run.json`` there is none of a run.
        OutputError: If it cannot be written.
    """
    record = RunRecord.begin(
        folder / RECORD, command, content, seed=seed, device=device, weights=weights
    )
    with recorded(record):
        yield record


@contextmanager
def recorded(record: RunRecord) -> Iterator[None]:
    """End a record with the block, in the way that the block ends."""
    try:
        yield
    except BaseException as error:
        record.end_with(error)
        raise
    record.end()


def new_record(command: str, content: Mapping[str, Any]) -> Record:
    """Return a record without parts.

    Args:
        command: What runs.
        content: What the whole run is.
    """
    return {'format': FORMAT, 'command': command, 'version': __version__, **content, 'parts': []}


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return the state in which an error leaves a run, and the error in words."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, str(error) or 'stopped by the user'
    if isinstance(error, CollapseError):
        return COLLAPSED, str(error)
    name = '' if isinstance(error, ExploraError) else f'{type(error).__name__}: '
    return FAILED, f'{name}{error}'


def read_record(folder: Path) -> Record | None:
    """Return what ``run.json`` of a folder holds; None if there is none.

    Raises:
        ConfigError: If it cannot be read.
    """
    path = folder / RECORD
    return read_file(path) if path.is_file() else None


def read_file(path: Path) -> Record:
    """Read a record.

    Raises:
        ConfigError: If it is none.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'{path} cannot be read as the record of a run ({error}): take another folder.'
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get('parts', []), list):
        raise ConfigError(f'{path} is no record of a run: take another folder.')
    return content


def runs_here(folder: Path) -> bool:
    """Whether a record of this very process is being written in a folder."""
    content = read_record(folder)
    parts = [] if content is None else content.get('parts', [])
    own = {'host': platform.node(), 'pid': os.getpid()}
    return bool(parts) and parts[-1]['state'] == RUNNING and parts[-1]['process'] == own


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _hashed(source: str | os.PathLike[str] | None) -> Record:
    """Name what a run starts from, and hash it where it is a file."""
    if source is None:
        return {'source': 'random'}
    path = Path(source).expanduser()
    if not path.is_file():
        return {'source': str(source)}
    hashes = {'sha256': file_hash(path), 'bytes': path.stat().st_size}
    return {'source': str(path.resolve()), **hashes}


def _settle(parts: list[Record]) -> None:
    """Nothing of a run still runs when it is begun anew: it was killed."""
    for part in parts:
        if part['state'] == RUNNING:
            part['state'] = BROKEN_OFF


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec='milliseconds')
