"""Weights of overlapping windows: positive everywhere, and divided by their exact sum.

Weights are whole numbers. A float32 probability times a weight, and the sum of such products, fit
into a float64 without rounding, so that windows which agree on a value give exactly this value.
"""

import numpy as np
from numpy.typing import NDArray

from torchgeo_explora.inference.windows import Axis, Interval

type Weights = NDArray[np.int64]


def taper(size: int, ramp: int) -> Weights:
    """Weights of a window along one axis: they rise by 1 a pixel, stay, and fall by 1 a pixel.

    Neighbours that overlap by ``ramp`` pixels have weights of constant sum there.

    Args:
        size: Pixels of the window.
        ramp: Pixels that the weights rise for; 0 or 1 for equal weights.

    Returns:
        (size,) from 1 to at most ``max(ramp, 1)``.
    """
    position = np.arange(size, dtype=np.int64)
    distance = np.minimum(position, size - 1 - position) + 1  # to beyond the nearer end
    weights: Weights = np.minimum(distance, max(ramp, 1))
    return weights


def axis_weights(axis: Axis) -> Weights:
    """Weights of every window of an axis.

    The ramp is as long as the overlap of the first two windows, and at most half a window.

    Args:
        axis: Windows along one axis.

    Returns:
        (pixels of a window,), the first one being that of the window's first output pixel.
    """
    spans = axis.spans
    length = max(span.output.length for span in spans)
    shared = spans[0].output.clip(spans[1].output).length if len(spans) > 1 else 0
    return taper(length, min(shared, length // 2))


def weight_sum(axis: Axis, core: Interval) -> Weights:
    """Sum of all windows' weights in every pixel of a part of an axis.

    Args:
        axis: Windows along one axis.
        core: The part.

    Returns:
        (pixels of the part,), positive.
    """
    weights, total = axis_weights(axis), np.zeros(core.length, dtype=np.int64)
    for span in axis.touching(core):
        here = span.output.clip(core)
        total[here.within(core.first)] += weights[here.within(span.output.first)]
    return total
