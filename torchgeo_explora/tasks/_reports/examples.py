"""A few samples of a test, chosen without keeping the others."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from torchgeo_explora.tasks._reports.colors import Picture


@dataclass(frozen=True, eq=False)
class Example:
    """A sample with what it is and what it was taken for.

    Args:
        index: Its position in the data set.
        picture: Of it.
        truth: Class index, or indices (H, W); -1 where it is not scored.
        prediction: The same of the prediction.
        confidence: Probability of the predicted class; None for masks.
        error: Share of the scored pixels that is wrong; 0 or 1 for an image.
    """

    index: int
    picture: Picture
    truth: NDArray[np.int64]
    prediction: NDArray[np.int64]
    confidence: float | None
    error: float

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return self.error == 0


@dataclass(frozen=True, eq=False)
class Ranked:
    """A sample and what it was chosen by.

    Args:
        rank: Higher is chosen first.
        example: The sample.
    """

    rank: float
    example: Example


@dataclass(eq=False)
class Top:
    """The samples of a stream with the highest ranks.

    Args:
        count: How many are kept.
    """

    count: int
    _heap: list[tuple[float, int, Example]] = field(default_factory=list)

    def offer(self, rank: float, index: int, make: Callable[[], Example]) -> None:
        """Keep a sample if it is among the highest; it is only made then.

        Args:
            rank: What decides.
            index: Position in the data set, which decides between equal ranks: the first wins.
            make: Makes the sample.
        """
        key = (rank, -index)
        if self.count == 0 or (len(self._heap) == self.count and key <= self._heap[0][:2]):
            return
        push = heapq.heappush if len(self._heap) < self.count else heapq.heapreplace
        push(self._heap, (*key, make()))

    def ranked(self) -> list[Ranked]:
        """Return what was kept with its rank, highest first."""
        return [Ranked(rank, example) for rank, _, example in sorted(self._heap, reverse=True)]


def highest(parts: Iterable[Sequence[Ranked]], count: int) -> list[Ranked]:
    """Return the highest of what several streams kept, highest first.

    Args:
        parts: From :meth:`Top.ranked`.
        count: How many.
    """
    everything = [item for part in parts for item in part]
    return sorted(everything, key=lambda item: (-item.rank, item.example.index))[:count]


def lot(seed: int, index: int) -> float:
    """Draw a number in [0, 1) for a sample; it hangs on nothing but its position.

    Args:
        seed: Of the draw.
        index: Position of the sample.
    """
    return float(np.random.default_rng([seed, index]).random())
