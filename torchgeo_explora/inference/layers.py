"""What is written of averaged probabilities: classes, the probabilities, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import ModelSpec

type Kind = Literal['pred', 'probabilities', 'uncertainty', 'embedding', 'rgb', 'windows']

MEASURES = ('entropy', 'margin', 'distance')

DISTANCE = 'distance'

MOST_CLASSES = 255
"""Classes that bytes can tell apart, 255 being nodata; more are written in 16 bits."""


@dataclass(frozen=True)
class Layer:
    """One raster that is written.

    Args:
        kind: What it holds; the end of its name.
        bands: What each band holds.
        dtype: NumPy's name of the data type.
        nodata: Value of pixels without data.
        together: Whether the bands of a pixel are stored side by side, for hundreds of bands.
    """

    kind: Kind
    bands: tuple[str, ...]
    dtype: str
    nodata: float
    together: bool = False


def choose_layers(
    spec: ModelSpec, probabilities: bool = False, uncertainty: Sequence[str] = ()
) -> tuple[Layer, ...]:
    """Choose what is written; classes always are.

    Args:
        spec: Describes the model.
        probabilities: Whether a band of probabilities is written for each class.
        uncertainty: Measures of uncertainty: ``entropy`` in [0, 1], 0 where one class has all
            probability and 1 where all are equal; ``margin``, from the likeliest class to the
            next; ``distance`` of the windows to the images that the model was fitted on, 1 being
            the 99th percentile of such images.

    Returns:
        The layers.

    Raises:
        ConfigError: If a measure is unknown, or there are too many classes.
    """
    unknown = [name for name in uncertainty if name not in MEASURES]
    if unknown:
        raise ConfigError(
            f'There is no uncertainty {unknown[0]!r}: choose from {", ".join(MEASURES)}.'
        )
    limit = np.iinfo(np.uint16).max
    if len(spec.classes) > limit:
        raise ConfigError(f'The model has {len(spec.classes)} classes; at most {limit} fit a map.')
    small = len(spec.classes) <= MOST_CLASSES
    layers = [Layer('pred', ('class',), 'uint8' if small else 'uint16', 255 if small else limit)]
    if probabilities:
        layers.append(Layer('probabilities', spec.classes, 'float32', math.nan))
    if uncertainty:
        layers.append(Layer('uncertainty', tuple(uncertainty), 'float32', math.nan))
    return tuple(layers)


def layer_values(
    layer: Layer, values: Tensor, valid: Tensor, classes: int | None = None
) -> NDArray[np.generic]:
    """Compute what a layer holds.

    Args:
        layer: The layer.
        values: (classes, height, width) probabilities; behind them, for a layer with the distance,
            the distance.
        valid: (height, width) where there is data.
        classes: Number of classes; None for all planes.

    Returns:
        (bands, height, width) of the layer's data type.
    """
    probabilities = values[:classes]
    if layer.kind == 'pred':
        bands = likeliest(probabilities)[None]
    elif layer.kind == 'probabilities':
        bands = probabilities.to(torch.float32)
    else:
        measures = {'entropy': entropy, 'margin': margin}
        planes = [
            values[-1] if name == DISTANCE else measures[name](probabilities)
            for name in layer.bands
        ]
        bands = torch.stack(planes).to(torch.float32)
    bands = bands.masked_fill(~valid, layer.nodata)
    return bands.cpu().numpy().astype(layer.dtype)


def likeliest(probabilities: Tensor) -> Tensor:
    """Return the class of the largest probability; of several, the first.

    Plane by plane, which takes a tenth (3 classes) to a third (30) of the time of ``argmax``.

    Args:
        probabilities: (classes, height, width).

    Returns:
        (height, width) int32.
    """
    best = probabilities[0].clone()
    index = torch.zeros_like(best, dtype=torch.int32)
    for number, plane in enumerate(probabilities[1:], start=1):
        larger = plane > best
        index.masked_fill_(larger, number)
        torch.maximum(best, plane, out=best)
    return index


def entropy(probabilities: Tensor) -> Tensor:
    """Return entropy over its largest possible value.

    Args:
        probabilities: (classes, height, width).

    Returns:
        (height, width) in [0, 1]; 0 of a single class.
    """
    classes = len(probabilities)
    total = torch.special.entr(probabilities).sum(0)
    return total / math.log(classes) if classes > 1 else torch.zeros_like(total)


def margin(probabilities: Tensor) -> Tensor:
    """Return the difference between the two largest probabilities.

    Args:
        probabilities: (classes, height, width).

    Returns:
        (height, width) in [0, 1]; 1 of a single class.
    """
    if len(probabilities) == 1:
        return torch.ones_like(probabilities[0])
    first, second = probabilities.topk(2, dim=0).values
    difference: Tensor = first - second
    return difference
