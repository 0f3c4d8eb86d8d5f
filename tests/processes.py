"""Processes of their own that begin at once: forks of a server that has imported everything.

An interpreter that imports the package is ready after ten seconds and more; a fork of one that has
done so, and nothing else, is ready after some milliseconds. It can be killed, have its output read,
and end with a status like any other process. The server is the standard library's, one for the
whole run of the tests; it opens no file, computes nothing and has no thread, so that a fork begins
in the state of a new interpreter. All forks share its seed of hashes; it has another one than this
process.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload([
    'torchgeo.main',
    'torchgeo_explora.cli.adapt',
    'torchgeo_explora.cli.embed',
    'torchgeo_explora.cli.predict',
    'torchgeo_explora.models.segmentation',
])  # fmt: skip


class Fork:
    """A process that runs the `main` of a module.

    Args:
        module: Its `main` takes the arguments, and may return a status.
        arguments: Of the command line.
        output: File for what it prints; lines of errors are among it.
        environment: Further variables.
    """

    def __init__(
        self,
        module: ModuleType,
        *arguments: object,
        output: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.output = output
        output.touch()
        variables = {**os.environ, **(environment or {})}
        method = multiprocessing.get_start_method()
        given = (module.main, [str(word) for word in arguments], output, variables, method)
        self._process = FORKS.Process(target=_run, args=given)
        self._process.start()

    @property
    def status(self) -> int | None:
        """None as long as it runs; the number of a signal is negative."""
        return self._process.exitcode

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(encoding='utf-8')

    def wait(self, seconds: float = 280) -> int:
        """Wait for its end.

        Args:
            seconds: After these it is killed.

        Returns:
            Its status.
        """
        self._process.join(seconds)
        self.kill()
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        """Send SIGKILL, which does nothing to a process that has ended."""
        self._process.kill()
        self._process.join()

    def send(self, number: int) -> None:
        """Send a signal, which does nothing to a process that has ended."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def lines(self) -> Iterator[str]:
        """Lines that it prints, while it runs, each as soon as it is whole."""
        with self.output.open(encoding='utf-8') as file:
            rest, ended = '', False
            while not ended:
                ended = self.status is not None
                *whole, rest = (rest + file.read()).split('\n')
                yield from whole
                time.sleep(0.01)


def _run(
    main: Callable[[list[str]], int | None],
    arguments: list[str],
    output: Path,
    variables: Mapping[str, str],
    method: str,
) -> None:
    """In the fork: be as a new process is."""
    with output.open('ab') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method(
        method, force=True
    )  # of workers, which would have the server's
    os.environ.clear()
    os.environ.update(variables)
    np.random.seed()  # noqa: NPY002  # the server's, else; Python's own is drawn anew
    sys.exit(main(arguments))


@contextmanager
def fork(
    module: ModuleType,
    *arguments: object,
    output: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Fork]:
    """Start a process that does not outlive the block. Arguments are those of :class:`Fork`."""
    process = Fork(module, *arguments, output=output, environment=environment)
    try:
        yield process
    finally:
        process.kill()


def run(module: ModuleType, *arguments: object, output: Path) -> str:
    """Let a process run to its end, which has to be a good one.

    Returns:
        What it printed.
    """
    with fork(module, *arguments, output=output) as process:
        status = process.wait()
        assert status == 0, process.printed[-4000:]
        return process.printed


def run_ranks(module: ModuleType, *arguments: object, output: Path) -> str:
    """Run two ranks, started as by a cluster: each finds its number in its environment.

    Returns:
        What the first printed.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    shared = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'WORLD_SIZE': '2'}
    ranks = [
        Fork(
            module, *arguments, output=output.with_suffix(f'.{rank}'),
            environment={**shared, 'NODE_RANK': '0', 'LOCAL_RANK': str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for rank in ranks:
            status = rank.wait()
            assert status == 0, f'{-status and signal.strsignal(-status)}: {rank.printed[-4000:]}'
        return ranks[0].printed
    finally:
        for rank in ranks:
            rank.kill()
