"""Shares a run out to the workers of a Ray cluster, and gives a dead worker's blocks to others.

Groups of blocks need nothing of one another, so that results are the bytes of a run without Ray
where torch computes with as many threads on processors of the same kind. Blocks and results are
written to a folder that all machines share; only the model and the list of rasters travel, once to
each worker.
"""

import importlib
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, final

from torchgeo_explora.errors import ConfigError, ExploraError
from torchgeo_explora.inference.jobs import Group
from torchgeo_explora.inference.pipeline import Tally
from torchgeo_explora.inference.ray_worker import Outcome, Share, UnitKey, Worker

OBJECT_STORE = 256 * 2**20
"""Bytes of shared memory that a cluster of our own has beside the model."""

SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class RayCluster:
    """Workers that compute blocks.

    Args:
        address: Of a cluster: ``auto``, ``host:port`` or ``ray://host:port``; None for one of our
            own on this machine, for as long as the run takes.
        workers: How many; None for as many as the cluster has cores, or GPUs, for.
        cores: Processor cores of a worker, and threads that torch computes with there.
        gpus: GPUs of a worker; a fraction lets workers share one. Where it is not 0, workers
            compute on their GPU.
        retries: How often blocks whose worker died are given to another.

    Raises:
        ConfigError: If a number is not possible.
    """

    address: str | None = None
    workers: int | None = None
    cores: int = 1
    gpus: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f'{self.workers} workers were asked for: give 1 or more.')
        if self.cores < 1 or self.gpus < 0 or self.retries < 0:
            raise ConfigError(
                f'A worker of {self.cores} cores and {self.gpus} GPUs with {self.retries} retries '
                'was asked for: give at least 1 core, and no negative number.'
            )

    @property
    def device(self) -> str:
        """Where a worker runs the model."""
        return 'cuda' if self.gpus > 0 else 'cpu'

    def places(self, resources: dict[str, float]) -> int:
        """Return how many workers a cluster has room for.

        Args:
            resources: What it has: ``CPU`` and ``GPU``.
        """
        room = [resources.get('CPU', 0.0) / self.cores]
        if self.gpus > 0:
            room.append(resources.get('GPU', 0.0) / self.gpus)
        return int(min(room))


def load_ray() -> Any:  # noqa: ANN401
    """Import Ray.

    Returns:
        The package.

    Raises:
        ConfigError: If it is not installed.
    """
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # it would report to its makers
    os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')  # or warn that it changes
    os.environ.setdefault('RAY_worker_niceness', '0')  # of a cluster of our own, 15 otherwise
    try:
        return importlib.import_module('ray')
    except ImportError as error:
        raise ConfigError(
            'Ray is not installed: install torchgeo-explora[ray], or leave --engine ray out.'
        ) from error


@contextmanager
def connected(cluster: RayCluster, share: Share) -> Iterator[Any]:
    """Connect to a cluster, or start one; one that is connected already is used.

    Args:
        cluster: Which.
        share: What workers will be sent, which a cluster of our own needs memory for.

    Yields:
        Ray.

    Raises:
        ConfigError: If there is no such cluster.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {'log_to_driver': False, 'logging_level': 'ERROR'}
    if cluster.address is None:
        tensors = itertools.chain(share.runner.model.parameters(), share.runner.model.buffers())
        weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        quiet |= {'include_dashboard': False, 'object_store_memory': OBJECT_STORE + 2 * weights}
        if cluster.workers is not None and cluster.gpus == 0:
            quiet['num_cpus'] = cluster.workers * cluster.cores
    try:
        ray.init(address=cluster.address or 'local', **quiet)
    except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f'Ray at {cluster.address or "this machine"} cannot be used '
            f'({" ".join(str(error).split())}): give the address of a cluster that runs, or none '
            'for workers on this machine.'
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Task:
    """Something that a worker does.

    Args:
        kind: Take the model, compute a group of blocks, or write the results of a raster.
        number: Of the group or raster.
    """

    kind: Literal['prepare', 'compute', 'assemble']
    number: int


@final
class RayRun:
    """A run that workers share.

    Args:
        cluster: The workers.
        share: What they are sent.
        tally: Counts, and rasters that failed.
        progress: Told of the tally now and then.
        written: Told the number and the files of a raster whose results are written.
        joint: Whether results of a raster take the blocks of all of them, so that workers write
            none.
    """

    def __init__(
        self,
        cluster: RayCluster,
        share: Share,
        tally: Tally,
        progress: Callable[[Tally], None],
        written: Callable[[int, list[str]], None],
        joint: bool,
    ) -> None:
        self.cluster, self.share, self.tally = cluster, share, tally
        self.progress, self.written, self.joint = progress, written, joint
        self._groups: list[tuple[UnitKey, ...]] = []
        self._queue: deque[Task] = deque()
        self._left: Counter[int] = Counter()  # groups that a raster waits for
        self._lost: Counter[Task] = Counter()  # workers that died of a task
        self._workers: dict[int, Any] = {}
        self._idle: list[int] = []
        self._numbers = itertools.count()
        self._running: dict[Any, tuple[int, Task]] = {}
        self._finished = 0  # pixels of groups that are through
        self._pixels: dict[int, int] = {}  # of the groups that workers are at
        self._asked: dict[Any, int] = {}  # workers that were asked for them

    def run(self, groups: Sequence[Group], complete: Sequence[int]) -> None:
        """Compute groups and write results.

        Args:
            groups: The groups.
            complete: Rasters whose blocks are done, and whose results are to be written.

        Raises:
            ExploraError: If workers cannot be had, the model does not fit, or nothing can be
                written.
        """
        self._groups = [tuple((u.job.number, u.number) for u in group) for group in groups]
        for group in self._groups:
            self._left.update({number for number, _ in group})
        self._queue.extend(Task('assemble', number) for number in complete)
        self._queue.extend(Task('compute', number) for number in range(len(groups)))
        if not self._queue:
            return
        with connected(self.cluster, self.share) as ray:
            self._ray = ray
            try:
                self._work()
            finally:
                self._dismiss()

    def _work(self) -> None:
        ray = self._ray
        self._sent = ray.put(self.share)
        for _ in range(min(self._size(), len(self._queue))):
            self._hire()
        while self._running:
            ready, _ = ray.wait(list(self._running), timeout=SECONDS_BETWEEN_LOOKS)
            for reference in ready:
                number, task = self._running.pop(reference)
                self._receive(number, task, reference)
            self._look()

    def _size(self) -> int:
        resources = self._ray.cluster_resources()
        places = self.cluster.places(resources)
        if places < 1:
            raise ConfigError(
                f'A worker takes {self.cluster.cores} cores and {self.cluster.gpus:g} GPUs, and '
                f'the cluster has {resources.get("CPU", 0):g} and {resources.get("GPU", 0):g} in '
                'all: ask for less.'
            )
        return places if self.cluster.workers is None else self.cluster.workers

    def _hire(self) -> None:
        """Ask for a worker; it gets its first task once it has the model."""
        number = next(self._numbers)
        needs = {'num_cpus': self.cluster.cores, 'num_gpus': self.cluster.gpus}
        # a second thread tells how far the first one is
        self._workers[number] = self._ray.remote(**needs, max_concurrency=2)(Worker).remote()
        task = Task('prepare', 0)
        self._running[self._workers[number].prepare.remote(self._sent)] = number, task

    def _receive(self, number: int, task: Task, reference: Any) -> None:  # noqa: ANN401
        """Take what a worker did, and give it something else to do."""
        errors = self._ray.exceptions
        try:
            result = self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ExploraError):  # as it would have been raised here
                raise error.cause from error
            raise
        except (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        ) as error:
            self._bury(number, task, error)
            return
        if task.kind == 'prepare':
            self.tally.workers += 1
            self._lost.pop(task, None)
        elif task.kind == 'assemble':
            self.written(task.number, result)
        else:
            self._count(self._groups[task.number], result)
        self._idle.append(number)
        self._employ()

    def _employ(self) -> None:
        """Give idle workers what is left to do."""
        while self._idle and self._queue:
            task = self._queue.popleft()
            if task.kind == 'assemble':
                number = self._idle.pop()
                call = self._workers[number].assemble.remote(task.number)
            else:
                keys, failed = self._groups[task.number], dict(self.tally.failed)
                if all(job in failed for job, _ in keys):
                    continue
                number = self._idle.pop()
                call = self._workers[number].compute.remote(keys, failed)
                self._pixels[number] = 0
            self._running[call] = number, task

    def _count(self, keys: Sequence[UnitKey], outcome: Outcome) -> None:
        self._finished += outcome.pixels
        self.tally.windows += outcome.windows
        self.tally.empty += outcome.empty
        self.tally.failed |= outcome.failed
        self._close(keys)

    def _close(self, keys: Sequence[UnitKey]) -> None:
        """Note that a group is through, and have results written that waited for it."""
        for job in dict.fromkeys(job for job, _ in keys):
            self._left[job] -= 1
            if self._left[job] == 0 and job not in self.tally.failed and not self.joint:
                self._queue.appendleft(Task('assemble', job))

    def _bury(self, number: int, task: Task, error: Exception) -> None:
        """Give the task of a dead worker to a new one, unless too many died of it."""
        self._ray.kill(self._workers.pop(number))  # it may be cut off, and not dead
        self._lost[task] += 1
        if task.kind == 'prepare':
            if self._lost[task] > self.cluster.retries:
                raise ConfigError(
                    f'{self._lost[task]} workers died before they had the model '
                    f'({_one_line(error)}): give them more memory, or ask for fewer.'
                )
        else:
            self.tally.workers -= 1
            self.tally.deaths += 1
            self._give_back(task, error)
        self._employ()
        if self._queue:
            self._hire()

    def _give_back(self, task: Task, error: Exception) -> None:
        if self._lost[task] <= self.cluster.retries:
            self._queue.appendleft(task)
            return
        why = f'{self._lost[task]} workers died at it, the last one so: {_one_line(error)}'
        keys = self._groups[task.number] if task.kind == 'compute' else ((task.number, 0),)
        for job in {job for job, _ in keys}:
            path = self.share.jobs[job].info.path
            self.tally.failed.setdefault(job, f'{path} cannot be computed: {why}')
        if task.kind == 'compute':
            self._close(keys)

    def _look(self) -> None:
        """Show how far the run is; never wait for a worker to say it."""
        self._hear()
        busy = [number for number, task in self._running.values() if task.kind == 'compute']
        for number in busy:
            if number not in self._asked.values():
                self._asked[self._workers[number].pixels.remote()] = number
        pixels = self._finished + sum(self._pixels[number] for number in busy)
        if pixels != self.tally.pixels:
            self.tally.pixels = pixels
            self.progress(self.tally)

    def _hear(self) -> None:
        if not self._asked:
            return
        asked = list(self._asked)
        answered, _ = self._ray.wait(asked, num_returns=len(asked), timeout=0)
        for reference in answered:
            number = self._asked.pop(reference)
            with suppress(self._ray.exceptions.RayError):  # of a worker that died
                self._pixels[number] = self._ray.get(reference)

    def _dismiss(self) -> None:
        for worker in self._workers.values():
            self._ray.kill(worker)


def _one_line(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return text if len(text) <= 300 else f'{text[:300]}…'
