"""An index of many image files in a few tensors, which loader workers share.

A list of half a million strings takes over 100 MB in every worker: Python counts references inside
each object, so that forked pages are copied as soon as they are read. Tensors have no such counts;
forked workers read the parent's pages, and spawned ones are sent a handle to shared memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BATCH = 8_192
"""Strings that are held as Python objects at a time."""


class Strings(Protocol):
    """A sequence of strings that never changes and costs loader workers no memory of their own."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...

    def take(self, order: NDArray[np.integer]) -> Self:
        """The strings at these positions, in this order."""
        ...


class PackedStrings:
    """A sequence of strings that never changes, in two tensors.

    Args:
        strings: The strings.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [string.encode() for string in strings]
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        self._ends = torch.from_numpy(lengths.cumsum())
        self._bytes = torch.frombuffer(bytearray(b''.join([*encoded, b'\0'])), dtype=torch.uint8)

    @classmethod
    def join(cls, parts: Sequence['PackedStrings']) -> 'PackedStrings':
        """One sequence after the other, without ever holding all of their strings.

        Args:
            parts: The sequences.
        """
        joined = cls([])
        starts = np.cumsum([0, *(len(part._bytes) - 1 for part in parts)]).tolist()
        ends = [part._ends + start for part, start in zip(parts, starts, strict=False)]
        joined._ends = torch.cat([joined._ends, *ends])
        joined._bytes = torch.cat([*(part._bytes[:-1] for part in parts), joined._bytes])
        return joined

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = 0 if index == 0 else int(self._ends[index - 1])
        return self._bytes[start : int(self._ends[index])].numpy().tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, order: NDArray[np.integer]) -> Self:
        """The strings at these positions, in this order."""
        return type(self)([self[index] for index in order.tolist()])

    def map(self, change: Callable[[str], str | None]) -> 'PackedStrings | None':
        """Each string changed, or None as soon as one cannot be.

        Args:
            change: Gives a string, or None where there is none.
        """
        parts = []
        for start in range(0, len(self), BATCH):
            batch = [change(self[k]) for k in range(start, min(start + BATCH, len(self)))]
            changed = [string for string in batch if string is not None]
            if len(changed) < len(batch):
                return None
            parts.append(PackedStrings(changed))
        return PackedStrings.join(parts)


@dataclass(frozen=True)
class ImageIndex:
    """Files and what is known of them; entry i of every column is sample i's.

    Args:
        paths: Path of every image.
        labels: Class of every image, (N,) int16.
        hours: Hours since 1970 (UTC) of the exposures, (N,) int64; None where it is not known.
        metadata: What else is known of every image, (N, F) int32; None where there is nothing.
    """

    paths: Strings
    labels: Tensor
    hours: Tensor | None = None
    metadata: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, order: NDArray[np.integer]) -> 'ImageIndex':
        """The entries at these positions, in this order.

        Args:
            order: Positions.
        """
        rows = torch.from_numpy(order.astype(np.int64))
        return replace(
            self,
            paths=self.paths.take(order),
            labels=self.labels[rows],
            hours=None if self.hours is None else self.hours[rows],
            metadata=None if self.metadata is None else self.metadata[rows],
        )


def timestamp_features(hours: Tensor) -> Tensor:
    """Year, month and hour as SatMAE's temporal encoding takes them.

    Args:
        hours: Hours since 1970, (...) int64.

    Returns:
        (..., 3) float32: year - 2002, month - 1 and hour of the day.
    """
    moments = hours.numpy().astype('datetime64[h]')
    years = moments.astype('datetime64[Y]').astype(np.int64) + 1970
    months = moments.astype('datetime64[M]').astype(np.int64) % 12
    clock = (moments - moments.astype('datetime64[D]')).astype(np.int64)
    return torch.from_numpy(np.stack([years - 2002, months, clock], axis=-1)).float()


def spread(count: int, wanted: int) -> Sequence[int]:
    """Positions spread evenly over a sequence, its first and last among them.

    Args:
        count: Length of the sequence, at least 1.
        wanted: Number of positions, if there are as many.

    Returns:
        Ascending positions.
    """
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(int)).tolist()  # type: ignore[no-any-return]
