"""Memory that goes back to the system as soon as it is not needed."""

import ctypes
import math
import mmap
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORTH_IT = 2**20
"""Pixels of a block that takes far longer to compute than its memory to be given back."""


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


def release(pixels: int) -> None:
    """Give memory that was freed back to the system, where the C library keeps it: glibc.

    Args:
        pixels: Of the block or raster that is next; before small ones it would take longer than it
            is worth.
    """
    if sys.platform == 'linux' and pixels >= WORTH_IT:
        trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
        if trim is not None:
            trim(0)
