"""An order of samples that depends on a seed and a position alone, so that a run can be resumed.

A shuffling loader draws a new order whenever it is iterated over: a run that is resumed in the
middle of an epoch sees other images than the unbroken run would have. Here sample number p of a run
is a pure function of (seed, p), and where to go on is asked of the trainer, whose checkpoints hold
the number of batches that were processed.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from torchgeo_explora.errors import ConfigError

type Sample = dict[str, Tensor]
"""A sample, or a batch of them."""


def shuffled(
    length: int, seed: int, start: int, stop: int, step: int = 1, keys: bool = False
) -> Iterator[int]:
    """Entries ``start, start + step, ... < stop`` of an endless sequence of permutations.

    Entry p is ``permutation(seed, p // length)[p % length]``. With ``keys`` the number of its pass,
    ``p // length``, times the length is added, from which :class:`Passes` learns of the pass.

    Args:
        length: Number of samples in the data set.
        seed: Seed of all permutations.
        start: First position.
        stop: Position before which to end.
        step: Distance between positions, above 1 where ranks share the sequence.
        keys: Whether to add the pass.

    Yields:
        Sample indexes from 0 to ``length - 1``, plus ``length`` for every pass with ``keys``.
    """
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for position in range(start, stop, step):
        if position // length != epoch:
            epoch = position // length
            order = np.random.default_rng([seed, epoch]).permutation(length)
        yield int(order[position % length]) + (epoch * length if keys else 0)


class _Positions(Dataset[int]):
    """Stands for a data set of which only the length is known."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class DrawnDataset(Protocol):
    """A data set that draws something, anew in every pass over it."""

    def __len__(self) -> int: ...

    def draw(self, index: int, epoch: int) -> Sample:
        """Sample ``index`` as it is drawn in pass ``epoch``."""
        ...


class Passes(Dataset[Sample]):
    """Hands the number of the pass to a data set that draws something.

    Loader workers live longer than an epoch and are told nothing but positions, so the sampler puts
    the pass into these: key k stands for sample ``k % length`` in pass ``k // length``.

    Args:
        dataset: A data set with a method ``draw``.
    """

    def __init__(self, dataset: DrawnDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, key: int) -> Sample:
        """The sample of a key."""
        epoch, index = divmod(key, len(self.dataset))
        return self.dataset.draw(index, epoch)


class ResumableSampler(DistributedSampler[int]):
    """Shuffled samples in an order that can be taken up at any position.

    Iterating yields this rank's samples from ``start`` to the next multiple of ``total``: the rest
    of an epoch when a run is resumed within it, a whole epoch otherwise. Epochs follow one another
    without a gap in the sequence of permutations, so that no image is dropped at an epoch's end,
    and a data set smaller than a batch is repeated to fill it.

    It derives from ``DistributedSampler`` because Lightning puts its own sampler, which would
    shuffle anew, in the place of any other one when a run is distributed.

    Args:
        length: Number of samples in the data set.
        seed: Seed of the order, at least 0.
        total: Samples of an epoch on each rank; None for as many as there are, or the share of
            them.
        start: Samples that each rank has taken already, asked for whenever iteration begins.
        rank: This process's number; ranks take every ``world_size``-th position.
        world_size: Number of processes.
        keys: Whether to yield keys of :class:`Passes` rather than indexes.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        total: int | None = None,
        start: int | Callable[[], int] = 0,
        rank: int = 0,
        world_size: int = 1,
        keys: bool = False,
    ) -> None:
        if length < 1 or seed < 0 or not 0 <= rank < world_size:
            raise ConfigError(
                f'length {length}, seed {seed}, rank {rank} of {world_size}: give at least one '
                'sample, a seed of at least 0 and a rank below the number of processes.'
            )
        super().__init__(_Positions(length), num_replicas=world_size, rank=rank, seed=seed)
        self.length = length
        self.total = max(length // world_size, 1) if total is None else total
        if self.total < 1:
            raise ConfigError(f'total is {total}: give at least one sample for each epoch.')
        self.start, self.keys = start, keys

    def __iter__(self) -> Iterator[int]:
        """This rank's samples from where the run stands to the end of the epoch."""
        start = self.start() if callable(self.start) else self.start
        stop = (start // self.total + 1) * self.total
        world = self.num_replicas
        first, last = start * world + self.rank, stop * world
        return shuffled(self.length, self.seed, first, last, world, self.keys)

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank."""
        return self.total


class ResumableLoader(DataLoader[Sample]):
    """A loader over a :class:`ResumableSampler`, whose order is written into checkpoints.

    Lightning stores what ``state_dict`` returns. A run that is resumed with another data set, seed
    or batch size would silently see other images than the unbroken one; it is refused here.

    Args:
        dataset: Data set of ``sampler.length`` samples.
        sampler: Order of the samples.
        batch_size: Samples of a batch.
        num_workers: Processes that load images; they stay between epochs.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        sampler: ResumableSampler,
        batch_size: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=default_collate,
            drop_last=True,
            persistent_workers=num_workers > 0,
        )
        self._order = {
            'samples': sampler.length,
            'seed': sampler.seed,
            'batch_size': batch_size,
            'batches_per_epoch': sampler.total // batch_size,
            'processes': sampler.num_replicas,
        }

    def state_dict(self) -> dict[str, int]:
        """What the order of samples depends on, apart from the position."""
        return dict(self._order)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Compare with the order of the run that is resumed.

        Args:
            state: What ``state_dict`` returned in that run.

        Raises:
            ConfigError: If the order is another one.
        """
        changed = [
            f'{name} was {state.get(name)} and is {value}'
            for name, value in self._order.items()
            if state.get(name) != value
        ]
        if changed:
            raise ConfigError(
                f'The run to be resumed drew its images in another order ({"; ".join(changed)}): '
                'resume it with the data and settings it was started with, or start a new run.'
            )
