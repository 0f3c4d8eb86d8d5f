"""Colours of classes, and pictures of images of any bands."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import resolve_groups
from torchgeo_explora.tasks._pictures import stretch

type Picture = NDArray[np.uint8]
"""(H, W, 3), red, green and blue."""
type Color = tuple[int, int, int]
"""Red, green and blue in [0, 255]."""

TRUE_COLORS = (('red', 'green', 'blue'), ('B4', 'B3', 'B2'), ('R', 'G', 'B'))
"""Names that the bands of a picture in true colour go by."""
BACKGROUNDS = ('background', 'no building', 'padding', 'nodata')
"""Names of classes that are shown without a colour."""
GOLDEN = 0.61803398875
"""Steps of this share of the colour circle keep any number of hues apart."""
MAX_SIDE = 512
"""Largest side of a picture that is kept; larger images are thinned."""


def class_colors(names: Sequence[str], given: Sequence[Sequence[int]] | None = None) -> list[Color]:
    """Return a colour for every class, the same ones for the same number of classes.

    Args:
        names: Of the classes.
        given: Colours that the data set has for them.

    Raises:
        ConfigError: If there are fewer colours than classes.
    """
    if given is not None:
        if len(given) < len(names):
            raise ConfigError(
                f'{len(given)} colours are given for {len(names)} classes: give one for each.'
            )
        return [(int(red), int(green), int(blue)) for red, green, blue, *_ in given[: len(names)]]
    colors = [_color(index, len(names)) for index in range(len(names))]
    if names and names[0].casefold() in BACKGROUNDS:
        return [(0, 0, 0), *colors[: len(names) - 1]]
    return colors


def _color(index: int, count: int) -> Color:
    hsv = (index * GOLDEN % 1, 0.55 + 0.4 * (index % 2), 0.95 - 0.15 * (index % 3))
    rgb = colormaps['tab10'](index)[:3] if count <= 10 else hsv_to_rgb(hsv).tolist()
    red, green, blue = (round(255 * float(part)) for part in rgb)
    return red, green, blue


def shown_bands(bands: Sequence[str] | None, count: int) -> list[int]:
    """Choose the three bands of a picture: true colour where it is there, else the first ones.

    Args:
        bands: Names of the bands, if known.
        count: Number of bands.
    """
    if bands is not None and len(bands) == count:
        for names in TRUE_COLORS:
            try:
                return list(resolve_groups([str(band) for band in bands], [names])[0])
            except ConfigError:
                continue
    return [min(place, count - 1) for place in range(3)]


def photograph(image: NDArray[np.float32], bands: Sequence[int]) -> Picture:
    """Turn an image into a picture that can be looked at.

    Red, green and blue in [0, 1] are shown as they are, other bands and values are stretched.

    Args:
        image: (C, H, W) or, on several dates of which the first is shown, (T, C, H, W).
        bands: Of red, green and blue.
    """
    first = image[0] if image.ndim == 4 else image
    step = -(-max(first.shape[-2:]) // MAX_SIDE)
    shown = np.nan_to_num(first[list(bands), ::step, ::step].astype(np.float32))
    if first.shape[0] > 3 or shown.min() < 0 or shown.max() > 1:
        low, high = stretch(shown[None], jointly=first.shape[0] <= 3)
        shown = ((shown - low) / (high - low)).clip(0, 1)
    return np.round(255 * shown).astype(np.uint8).transpose(1, 2, 0)


def thinned(mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """Thin a mask (H, W) as :func:`photograph` thins its image."""
    step = -(-max(mask.shape) // MAX_SIDE)
    return mask[::step, ::step]
