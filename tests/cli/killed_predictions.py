"""A process that runs a command again and again, and kills it at moments all over its length."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchgeo_explora import cli


def main(arguments: Sequence[str]) -> None:
    """Run as its own process, which never computes: its children run the command and are killed.

    Args:
        arguments: One, as JSON: those of the command, two folders for what it writes, unbroken and
            killed, and how often to kill it.
    """
    command, whole, out, kills = json.loads(*arguments)
    begun = time.monotonic()
    assert _end(_start(command, whole)) == 0
    length = time.monotonic() - begun
    expected = _files(Path(whole))
    _kill(command, Path(out), expected, length, kills)
    assert _end(_start(command, out, *_resumed(out))) == 0
    assert _files(Path(out)) == expected, 'the run that goes on ends with other bytes'
    assert not list(Path(out).glob('.torchgeo*'))
    print(json.dumps({'files': len(expected)}))  # noqa: T201


def _kill(
    command: list[str], out: Path, expected: Mapping[str, bytes], length: float, kills: int
) -> None:
    chance, number = random.Random(0), 0
    while number < kills:
        child = _start(command, out, *_resumed(out))
        # a run that goes on has less to do: moments within the first second of it, mostly
        time.sleep(chance.uniform(0, length) * chance.random())
        os.kill(child, signal.SIGKILL)
        status = _end(child)
        number += status == signal.SIGKILL
        for name, content in _files(out).items():
            assert content == expected[name], f'{name} is not complete after {number} kills'
        if status == 0:  # it was done before the blow: from the beginning
            assert _files(out) == expected
            shutil.rmtree(out)


def _start(command: list[str], folder: str | Path, *more: str) -> int:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os._exit(cli.main([*command, '--out', str(folder), *more]))
    return child


def _end(child: int) -> int:
    return os.waitpid(child, 0)[1]


def _resumed(out: str | Path) -> list[str]:
    return ['--resume'] if (Path(out) / 'run.json').is_file() else []


def _files(folder: Path) -> dict[str, bytes]:
    """Results: maps, styles, names, polygons, places."""
    return {
        path.name: path.read_bytes()
        for path in folder.glob('*')
        if path.suffix in {'.gpkg', '.qml', '.tif', '.xml'} and path.name[0] != '.'
    }
