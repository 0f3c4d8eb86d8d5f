"""Pixels of images and rasters: windows, bands, nodata, scaling to [0, 1], resizing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from rasterio.windows import Window
from torch import Tensor
from torch.nn import functional

from torchgeo_explora.errors import ConfigError, ImageError

from ._bands import canonical_band
from ._headers import ImageHeader, is_raster

type Pixels = np.ma.MaskedArray[tuple[int, ...], np.dtype[np.generic]]
"""(bands, height, width) of a file's own type; pixels without data are masked."""

_NATIVE = ('L', 'LA', 'RGB', 'RGBA', 'I;16', 'I;16B', 'I', 'F')


@dataclass(frozen=True)
class Tile:
    """A part of an image file, or all of it.

    Args:
        file: Position of the file in the list of headers.
        window: Part of the raster in pixels; None for all of it.
    """

    file: int
    window: Window | None


@dataclass(frozen=True)
class Scale:
    """Values of each band that become 0 and 1; what lies outside is clipped.

    Args:
        low: Value that becomes 0, one per band.
        high: Value that becomes 1, one per band.
        source: Where they come from: ``dtype``, ``given`` or ``percentiles``.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    source: str


def given_scale(scale: Sequence[float | Sequence[float]], bands: int) -> Scale:
    """Scale from a user's ``(low, high)``, each a number or one number per band.

    Args:
        scale: Low and high.
        bands: Number of bands.

    Returns:
        The scale.

    Raises:
        ConfigError: If it is not two numbers, or two lists of as many numbers as there are bands,
            with every low below its high.
    """
    if len(scale) == 2:
        low, high = (
            (float(side),) * bands if isinstance(side, int | float) else tuple(map(float, side))
            for side in scale
        )
        pairs = list(zip(low, high, strict=False))
        if len(low) == len(high) == bands and all(a < b for a, b in pairs):
            return Scale(low, high, 'given')
    raise ConfigError(
        f'scale is {scale!r}: give (low, high), each one number or {bands} numbers (one per band), '
        'with low below high.'
    )


def split_windows(header: ImageHeader, tile: int | None) -> list[Window | None]:
    """Windows of a raster that is large on both sides; otherwise the image as a whole.

    Windows lie on a grid from the upper left corner; the last of a row or column is moved back into
    the raster, so that all pixels are covered and every window is full.

    Args:
        header: An image.
        tile: Side of a window in pixels; a raster is split from twice that. None for never.

    Returns:
        Windows, row by row, or ``[None]``.
    """
    if tile is None or not is_raster(header.path) or min(header.height, header.width) < 2 * tile:
        return [None]
    rows = [min(row, header.height - tile) for row in range(0, header.height, tile)]
    columns = [min(column, header.width - tile) for column in range(0, header.width, tile)]
    return [Window(column, row, tile, tile) for row in rows for column in columns]


def drop_empty(
    header: ImageHeader, windows: list[Window | None], indexes: Sequence[int]
) -> list[Window | None]:
    """Leave out windows without a single pixel of data."""
    if not is_masked(header, indexes) or windows == [None]:
        return windows
    with rasterio.open(header.path) as source:
        return [window for window in windows if source.dataset_mask(window=window).any()]


def select_bands(
    header: ImageHeader,
    bands: Sequence[int | str] | None,
    band_names: Sequence[str] | None = None,
) -> tuple[int, ...]:
    """Indexes of bands that were asked for by 1-based index or by name.

    Args:
        header: An image.
        bands: Indexes or names; None for all bands but alpha, or all that ``band_names`` names.
            Sentinel-2's names may be spelled ``B2`` or ``B02``.
        band_names: Names of all bands of the file, in order; None for its own descriptions.

    Returns:
        1-based indexes in the file.

    Raises:
        ImageError: If the image has no such band, or not as many bands as there are names.
    """
    names = header.names if band_names is None else tuple(band_names)
    if len(names) != len(header.names):
        raise ImageError(
            f'{header.path} has {len(header.names)} bands, but band_names has {len(names)}, '
            f'{list(names)}: name all bands of the files, in order.'
        )
    if bands is None:
        return header.indexes if band_names is None else tuple(range(1, len(names) + 1))
    lookup: dict[int | str, int] = {}
    for index, name in enumerate(names, start=1):
        lookup |= {index: index, name: index} if name else {index: index}
    spelled = {
        canonical_band(name): index for name, index in lookup.items() if isinstance(name, str)
    }
    lookup = {band: spelled.get(canonical_band(str(band)), 0) for band in bands} | lookup
    missing = [band for band in bands if lookup[band] == 0]
    if missing:
        raise ImageError(
            f'{header.path} has no band {missing[0]!r}; it has '
            f'{sorted((band for band in lookup if lookup[band]), key=str)}: give 1-based indexes '
            'or descriptions from this list.'
        )
    return tuple(lookup[band] for band in bands)


def is_masked(header: ImageHeader, indexes: Sequence[int]) -> bool:
    """Whether pixels of these bands may be without data.

    Where an alpha channel is itself asked for, it is a band like others and masks nothing.
    """
    return header.masked and set(indexes) <= set(header.indexes)


def read_pixels(header: ImageHeader, window: Window | None, indexes: Sequence[int]) -> Pixels:
    """Decode bands of an image or of a window of it.

    Args:
        header: The image.
        window: Part of a raster; None for all of it.
        indexes: 1-based bands.

    Returns:
        (bands, height, width) of the file's data type; pixels without data and NaN are masked.
    """
    if is_raster(header.path):
        masked = is_masked(header, indexes)
        with rasterio.open(header.path) as source:
            values = np.ma.asarray(source.read(list(indexes), window=window, masked=masked))
    else:
        values = np.ma.asarray(_read_picture(header.path)[[index - 1 for index in indexes]])
    if values.dtype.kind == 'f':
        values = np.ma.masked_invalid(values, copy=False)
    return values


def _read_picture(path: Path) -> NDArray[np.generic]:
    """(bands, height, width) of a file that PIL reads, alpha last where there is one."""
    with Image.open(path) as image:
        image.load()
        grey = image.convert('L') if image.mode == '1' else image
        values = np.asarray(grey if grey.mode in _NATIVE else grey.convert('RGB'))
    return np.atleast_3d(values).transpose(2, 0, 1)


def to_unit(values: Pixels, scale: Scale) -> Float[Tensor, 'C H W']:
    """Scale bands to [0, 1]; pixels without data become 0.

    Args:
        values: (bands, height, width), of any numeric type.
        scale: Values that become 0 and 1.

    Returns:
        float32.
    """
    low = np.asarray(scale.low, dtype=np.float32)[:, None, None]
    high = np.asarray(scale.high, dtype=np.float32)[:, None, None]
    unit = (values.data.astype(np.float32) - low) / (high - low)
    mask = np.ma.getmaskarray(values)
    return torch.from_numpy(np.where(mask, np.float32(0), unit)).clamp_(0, 1)


def fit_square(image: Float[Tensor, 'C H W'], size: int) -> Float[Tensor, 'C S S']:
    """Bring the shorter side to ``size`` (bicubic, antialiased) and cut out the centre.

    Args:
        image: (C, H, W) in [0, 1].
        size: Side of the result in pixels; an image that has it already is not resampled.

    Returns:
        (C, size, size) in [0, 1].
    """
    height, width = image.shape[-2:]
    short = min(height, width)
    if short != size:
        height, width = size * height // short, size * width // short
        image = functional.interpolate(
            image[None], (height, width), mode='bicubic', align_corners=False, antialias=True
        )[0].clamp_(0, 1)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[:, top : top + size, left : left + size]


def percentile_scale(
    samples: Sequence[Pixels],
    percentiles: tuple[float, float],
) -> Scale:
    """Scale every band between two percentiles of its valid values.

    Args:
        samples: (bands, height, width) of some images.
        percentiles: Lower and upper, in per cent.

    Returns:
        The scale; a band that is constant keeps a width of 1.
    """
    low, high = [], []
    for band in range(samples[0].shape[0]):
        values = np.concatenate([sample[band].compressed() for sample in samples])
        bottom, top = (
            np.percentile(values.astype(np.float64), percentiles) if values.size else (0, 1)
        )
        low.append(float(bottom))
        high.append(float(top) if top > bottom else float(bottom) + 1)
    return Scale(tuple(low), tuple(high), 'percentiles')
