"""Where samples stand in a data set that several processes share, and joining what they hold."""

import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler


def pick_loader(loaders: object, index: int) -> object:
    """Return one of the trainer's loaders, which is a list only where there are several."""
    return loaders[index] if isinstance(loaders, list | tuple) else loaders


def positions(loader: object, seen: int, count: int) -> list[int | None]:
    """Return where the samples of a batch stand in the data set.

    Args:
        loader: The data loader of this process.
        seen: Samples of earlier batches of this process.
        count: Samples of the batch.

    Returns:
        A position a sample; None for one that a distributed sampler repeats to give all processes
        equally many.
    """
    places: list[int | None] = list(range(seen, seen + count))
    sampler = loader.sampler if isinstance(loader, DataLoader) else None
    if not isinstance(sampler, DistributedSampler):
        return places
    total = len(sampler.dataset)  # type: ignore[arg-type]  # sized, or it could not be shared out
    shared = [place * sampler.num_replicas + sampler.rank for place in range(seen, seen + count)]
    return [place if place < total else None for place in shared]


def gathered[T](mine: T) -> list[T]:
    """Return what every process holds, in the order of the processes; has to be called on all."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    parts: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return [part for part in parts if part is not None]
