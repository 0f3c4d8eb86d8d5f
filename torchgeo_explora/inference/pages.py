"""Large arrays that give their memory back to the system at once."""

import math
import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def zeros[T: np.generic](shape: Sequence[int], dtype: type[T]) -> NDArray[T]:
    """Return zeros in pages of their own.

    What malloc takes for a block of a raster stays in its heap in pieces once the block is done:
    after fifteen blocks that was more than the blocks took themselves.

    Args:
        shape: Of the array.
        dtype: Type of its values.

    Returns:
        The array. Its memory is that of the system again when nothing refers to it any more.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, max(size, 1))
    return np.frombuffer(pages, dtype=dtype, count=math.prod(shape)).reshape(shape)
