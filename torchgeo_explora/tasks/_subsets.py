"""Which samples of a data set a probe looks at, and which it must not."""

from collections.abc import Sized
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from torchgeo_explora.errors import ConfigError


def length(dataset: Dataset[Any]) -> int:
    """Number of samples.

    Raises:
        ConfigError: If the data set does not know it.
    """
    if not isinstance(dataset, Sized):
        raise ConfigError(
            f'{type(dataset).__name__} does not know how many images it holds, and a probe draws '
            'from all: use a data set with a length.'
        )
    return len(dataset)


def _origins(dataset: Dataset[Any]) -> tuple[Dataset[Any], list[int]]:
    """Data set that a subset is drawn from, and the index there of each sample."""
    if isinstance(dataset, Subset):
        return dataset.dataset, list(dataset.indices)
    return dataset, list(range(length(dataset)))


def shared_with(first: Dataset[Any], second: Dataset[Any]) -> set[int]:
    """Positions in ``first`` of the samples that ``second`` holds as well.

    Only views of one data set are seen through, not two folders with the same files.
    """
    base, indices = _origins(first)
    other, others = _origins(second)
    if base is not other:
        return set()
    taken = set(others)
    return {position for position, index in enumerate(indices) if index in taken}


def draw(
    dataset: Dataset[Any], count: int, seed: int, without: Dataset[Any] | None = None
) -> Subset[Any]:
    """Draw samples without repetition, in the data set's order.

    Args:
        dataset: Where to draw from.
        count: How many; fewer where there are not as many.
        seed: Draws them; the global random state is not used.
        without: Data set whose samples are left out.

    Raises:
        ConfigError: If nothing is left to draw from.
    """
    barred = set() if without is None else shared_with(dataset, without)
    free = [index for index in range(length(dataset)) if index not in barred]
    if not free:
        raise ConfigError(
            f'All {length(dataset)} training images are validation images as well, so neighbours '
            'would be found among the images themselves: hold some out, or give another data module.'
        )
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed))
    return Subset(dataset, sorted(free[index] for index in order[:count].tolist()))
