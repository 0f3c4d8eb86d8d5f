"""How numbers are written in the bands of a GeoTIFF: as floats, as bytes with a scale, as colours."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import final

import numpy as np
from numpy.typing import NDArray

from torchgeo_explora.errors import ConfigError

type Values = NDArray[np.float32]

LARGEST_BYTE, NO_BYTE = 127, -128
"""Bytes hold -127 to 127; -128 is no data."""


class Codec(ABC):
    """Turns values into what a file holds and back. Values are NaN where there is no data.

    Args:
        dtype: NumPy's name of the type in the file.
        bands: Number of bands in the file.
        nodata: Value of pixels without data; None where an alpha band tells them.
        options: Further creation options of the file.
    """

    def __init__(
        self, dtype: str, bands: int, nodata: float | None, options: dict[str, int] | None = None
    ) -> None:
        self.dtype, self.bands, self.nodata = dtype, bands, nodata
        self.options = {} if options is None else options

    @abstractmethod
    def encode(self, values: Values) -> NDArray[np.generic]:
        """Return (bands, height, width) of the file's type.

        Args:
            values: (channels, height, width).
        """

    @abstractmethod
    def decode(self, stored: NDArray[np.generic]) -> Values:
        """Return (channels, height, width); NaN where there is no data.

        Args:
            stored: (bands, height, width) of the file's type.
        """


@final
class FloatCodec(Codec):
    """Single or half precision.

    Args:
        bands: Number of bands.
        half: Whether numbers are rounded to 11 bits (float16): a relative error of at most 2^-11
            from 6e-5 to 65,504 in absolute value.
    """

    def __init__(self, bands: int, half: bool) -> None:
        # GDAL before 3.11 has no type of 16 bits and reads such a file as float32
        super().__init__('float32', bands, math.nan, {'NBITS': 16} if half else None)
        self.half = half

    def encode(self, values: Values) -> NDArray[np.generic]:
        """Round to the nearest number of the precision."""
        if not self.half:
            return values
        with np.errstate(over='ignore'):
            rounded = values.astype(np.float16)
        if np.isinf(rounded).any():
            raise ConfigError(
                f'Embeddings reach {np.nanmax(np.abs(values)):g}, and float16 ends at 65504: choose '
                '--dtype float32, or take blocks after the final norm.'
            )
        return rounded.astype(np.float32)

    def decode(self, stored: NDArray[np.generic]) -> Values:
        """Return the numbers."""
        return stored.astype(np.float32)


@final
class ByteCodec(Codec):
    """Bytes with a scale and an offset for every band: value = stored * scale + offset.

    The error is at most half a scale, which is 1/508 of the band's range.

    Args:
        low: (bands,) smallest values.
        high: (bands,) largest values.
    """

    def __init__(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        super().__init__('int8', len(low), NO_BYTE)
        span = (high - low) / (2 * LARGEST_BYTE)
        self.scales = np.where(span > 0, span, 1.0)
        self.offsets = (low + high) / 2

    @staticmethod
    def fit(parts: Iterable[Values], bands: int) -> 'ByteCodec':
        """Choose scales and offsets for values.

        Args:
            parts: All of them, (bands, height, width) each.
            bands: Number of bands.
        """
        low, high = np.full(bands, np.inf), np.full(bands, -np.inf)
        for part in parts:
            flat = part.reshape(bands, -1)
            low = np.fmin(low, np.fmin.reduce(flat, axis=1))
            high = np.fmax(high, np.fmax.reduce(flat, axis=1))
        empty = ~np.isfinite(low)
        return ByteCodec(np.where(empty, 0.0, low), np.where(empty, 0.0, high))

    def encode(self, values: Values) -> NDArray[np.generic]:
        """Round to the nearest byte."""
        centred = values - self.offsets[:, None, None]
        steps = np.rint(centred / self.scales[:, None, None])
        bounded = np.clip(steps, -LARGEST_BYTE, LARGEST_BYTE)
        return np.where(np.isnan(values), NO_BYTE, bounded).astype(np.int8)

    def decode(self, stored: NDArray[np.generic]) -> Values:
        """Return the values."""
        steps = stored.astype(np.float64)
        values = steps * self.scales[:, None, None] + self.offsets[:, None, None]
        decoded: Values = np.where(stored == NO_BYTE, np.nan, values).astype(np.float32)
        return decoded


@final
class ColorCodec(Codec):
    """Red, green and blue in [0, 1] as bytes, and a fourth band: 255 where there is data, else 0."""

    def __init__(self) -> None:
        super().__init__('uint8', 4, None)

    def encode(self, values: Values) -> NDArray[np.generic]:
        """Round to the nearest byte."""
        opaque = ~np.isnan(values).any(axis=0)
        colors = np.where(opaque, np.rint(255 * np.clip(values, 0, 1)), 0)
        return np.concatenate([colors, 255 * opaque[None]]).astype(np.uint8)

    def decode(self, stored: NDArray[np.generic]) -> Values:
        """Return the colours."""
        opaque = stored[3] == 255
        colors: Values = np.where(opaque, stored[:3].astype(np.float32) / 255, np.nan)
        return colors.astype(np.float32)
