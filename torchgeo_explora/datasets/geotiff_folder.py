"""Windows of any rasters: drawn evenly over files and area, where there is data."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from torchgeo_explora.errors import ConfigError, ImageError

from ._drawn import DrawnImages
from ._draws import WindowDraw, share_out
from ._grids import RasterWindow
from ._pixels import Pixels, Scale, given_scale, to_unit
from ._raster_set import Raster, WindowOptions, survey
from ._rasters import list_rasters, read_part
from ._statistics import BandStatistics, measure, read_statistics, write_statistics

STATISTICS_WINDOWS = 128
"""Windows that the values of the bands are measured on."""

MOST_LAPS = 4
"""Passes that these windows come from where a pass has fewer."""

REPLACEMENTS = 100
"""Windows in a row that may turn out to be damaged before a sample is given up."""


class GeoTIFFFolder(DrawnImages):
    """Square windows of rasters of any size, number of bands, type and coordinate reference system.

    In every pass windows are drawn anew, in a way that hangs on the seed, the pass and the position
    alone. Places lie on a grid of half a window in every raster; those whose window holds too little
    data are left out, and the others are visited equally often, each time moved by up to a quarter
    of a window. How many windows of a pass come from a raster hangs on its area with data. Memory
    does not grow with the size of a raster: only windows and decimated masks are read.

    Pixels without data (nodata value, NaN, alpha channel, masks) become 0. Alpha channels are masks
    and no bands, unless ``bands`` names them; colour tables become red, green and blue. Rasters that
    cannot be read, are too small or hold too little data are left out, counted in ``skipped`` and
    named in a warning. Where rasters name the same bands in different orders, that of the first
    counts.

    8-bit values are divided by 255. Others are scaled with ``scale``, or, where that is None, between
    two percentiles of each band, measured once over windows of all rasters.

    Args:
        sources: A file, a folder (with all below), a glob, anything that GDAL opens, or a list.
        image_size: Side of the images that come out, and of the windows in the rasters' own pixels;
            None for the usual short side of the rasters, at most 256. A raster that is smaller gives
            windows of its short side, enlarged.
        bands: 1-based indexes or names of the bands to read, in this order; None for all but alpha.
        mode: ``keep`` the bands, or ``rgb``: a single band is repeated three times.
        length: Windows of a pass; None for as many as fit side by side, and at least ``min_length``.
        balance: How a pass is shared out over rasters: 1 by their area with data, 0 for as many of
            each, between by a power of the area.
        min_valid: Least share of pixels with data in a window.
        scale: ``(low, high)`` values that become 0 and 1, each a number or one number per band.
        percentiles: Percentiles that become 0 and 1 where ``scale`` is None and values are not 8-bit.
        resolution: Metres that pixels are resampled to; None to leave them as they are.
        num_channels: Number of bands that a model needs; None for any.
        min_size: Smallest side of a raster in pixels, for example one patch.
        statistics: File that keeps what was measured; read where it is there, else written.
        seed: Seed of all draws.
        min_length: Least windows of a pass where ``length`` is None, for instance those of a batch.

    Raises:
        ImageError: If there is no readable raster with data, or rasters are of different kinds or of
            the wrong number of bands.
        ConfigError: If an argument is not possible, or ``statistics`` were measured on others.

    Attributes:
        rasters: The rasters, with the places of their windows.
        image_size: Side of the images.
        bands: Name of every band, or its index where it has none.
        num_channels: Bands of every image.
        statistics: What was measured of the bands.
        measured_on: What that hangs on.
        scale: Values that become 0 and 1, and where they come from.
        resolution: Metres of a pixel of the images; None where that is not known or varies.
        skipped: Why rasters were left out.
        damaged: Why windows could not be read, by raster; they are replaced by others.
    """

    def __init__(
        self,
        sources: str | Path | Sequence[str | Path],
        image_size: int | None = None,
        bands: Sequence[int | str] | None = None,
        mode: Literal['keep', 'rgb'] = 'keep',
        length: int | None = None,
        balance: float = 0.5,
        min_valid: float = 0.9,
        scale: Sequence[float | Sequence[float]] | None = None,
        percentiles: tuple[float, float] = (1.0, 99.0),
        resolution: float | None = None,
        num_channels: int | None = None,
        min_size: int = 1,
        statistics: str | Path | None = None,
        seed: int = 0,
        min_length: int = 1,
    ) -> None:
        _check(image_size, mode, length, min_valid, percentiles, resolution, seed)
        items = [sources] if isinstance(sources, str | Path) else list(sources)
        found = survey(
            list_rasters(items),
            WindowOptions(
                image_size, bands, mode == 'rgb', min_valid, resolution, num_channels, min_size
            ),
        )
        self.classes, self.seed, self.damaged = [], seed, dict[str, str]()
        self.rasters, self.skipped, self.bands = found.rasters, found.skipped, found.bands
        self.image_size, self.resolution = found.image_size, found.resolution
        self.num_channels = len(self.bands)
        areas = [raster.strata.windows for raster in self.rasters]
        total = max(sum(areas), min_length) if length is None else length
        counts = share_out(areas, total, balance)
        self._draw = WindowDraw([raster.strata for raster in self.rasters], counts, seed)
        self._fixed: list[RasterWindow] | None = None
        given = self._known_scale(scale)
        about: dict[str, Any] = {'length': len(self), 'balance': balance, 'min_valid': min_valid}
        about |= {'percentiles': percentiles, 'scale': scale}
        self.measured_on = self._about(about)
        self.statistics = self._statistics(given, percentiles, statistics)
        self.scale = self.statistics.scale

    def __len__(self) -> int:
        """Number of windows of a pass."""
        return len(self._draw) if self._fixed is None else len(self._fixed)

    def side_by_side(self) -> 'GeoTIFFFolder':
        """The same rasters in windows that stand side by side, wherever there is enough data."""
        other = copy(self)
        laid = [raster.strata.side_by_side() for raster in self.rasters]
        other._fixed = [strata.window(number) for strata in laid for number in range(len(strata))]
        return other

    def window(self, index: int, epoch: int = 0) -> RasterWindow:
        """Where a sample of a pass lies; its ``file`` counts ``rasters``.

        Args:
            index: Position from 0.
            epoch: Number of the pass, from 0.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} windows')
        index %= len(self)
        return self._draw.window(index, epoch) if self._fixed is None else self._fixed[index]

    def file_of(self, index: int) -> str:
        """Return the path of a sample's raster; of several samples.

        Args:
            index: Position from 0.
        """
        return self._raster(self.window(index)).source.path

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """One window of a pass.

        Args:
            index: Position from 0.
            epoch: Number of the pass, from 0.

        Returns:
            ``image``, float32 (C, S, S) in [0, 1].

        Raises:
            ImageError: If this window and the next 100 cannot be read.
        """
        return {'image': self.finish(self._readable(index, epoch))}

    def read(self, window: RasterWindow, side: int | None = None) -> Pixels:
        """Read a part of a raster as a square.

        Args:
            window: The part; its ``file`` counts ``rasters``.
            side: Pixels of a side S of the result; None for the size of the images.

        Returns:
            (bands, S, S) of the rasters' type; pixels without data are masked.

        Raises:
            ImageError: If it cannot be read.
        """
        raster = self._raster(window)
        wanted = self.image_size if side is None else side
        return read_part(raster.source, window, wanted, raster.indexes)

    def finish(self, values: Pixels) -> Tensor:
        """Scale raw values to [0, 1]; pixels without data become 0.

        Args:
            values: (bands, S, S) that :meth:`read` gave.

        Returns:
            float32 (C, S, S).
        """
        return to_unit(values, self.scale).expand(self.num_channels, -1, -1).contiguous()

    def _raster(self, window: RasterWindow) -> Raster:
        return self.rasters[window.file]

    def _readable(self, index: int, epoch: int) -> Pixels:
        """The window, or the next one that can be read."""
        for step in range(min(REPLACEMENTS + 1, len(self))):
            window = self.window((index + step) % len(self), epoch)
            try:
                return self.read(window)
            except ImageError as error:
                self._note_damage(self._raster(window).source.path, str(error))
        raise ImageError(
            f'{self.file_of(index)} and the windows after it cannot be read: give undamaged rasters.'
        )

    def _note_damage(self, path: str, reason: str) -> None:
        if path not in self.damaged:
            self.damaged[path] = reason
            warnings.warn(f'A window is replaced by another one: {reason}', stacklevel=2)

    def _known_scale(self, scale: Sequence[float | Sequence[float]] | None) -> Scale | None:
        """Scale that needs no measuring."""
        bands = len(self.rasters[0].indexes)
        if scale is not None:
            return given_scale(scale, bands)
        if self.rasters[0].source.header.dtype == 'uint8':
            return Scale((0.0,) * bands, (255.0,) * bands, 'dtype')
        return None

    def _statistics(
        self,
        scale: Scale | None,
        percentiles: tuple[float, float],
        kept: str | Path | None,
    ) -> BandStatistics:
        """Measure the bands, or read what was measured before on the same windows."""
        path = None if kept is None else Path(kept).expanduser()
        if path is not None and path.is_file():
            return read_statistics(path, self.measured_on)
        names = self.bands[: len(self.rasters[0].indexes)]
        found = measure(self._samples(), names, scale, percentiles, STATISTICS_WINDOWS, self.seed)
        if path is not None:
            write_statistics(path, found, self.measured_on)
        return found

    def _about(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the statistics hang on, as JSON gives it back."""
        paths = [raster.source.path for raster in self.rasters]
        sides = [raster.strata.side for raster in self.rasters]
        indexes = [raster.indexes for raster in self.rasters]
        about = {**options, 'rasters': paths, 'sides': sides, 'bands': indexes, 'seed': self.seed}
        settled: dict[str, Any] = json.loads(json.dumps(about))
        return settled

    def _samples(self) -> Iterator[Pixels]:
        """Windows of the first passes, spread over them."""
        total = min(STATISTICS_WINDOWS, MOST_LAPS * len(self))
        laps = -(-total // len(self))
        positions = np.linspace(0, laps * len(self), total, endpoint=False).astype(np.int64)
        for epoch, index in (divmod(int(position), len(self)) for position in positions):
            yield self._readable(index, epoch)


def _check(
    image_size: int | None,
    mode: str,
    length: int | None,
    min_valid: float,
    percentiles: tuple[float, float],
    resolution: float | None,
    seed: int,
) -> None:
    """Refuse arguments that are not possible."""
    if mode not in {'keep', 'rgb'}:
        raise ConfigError(f"mode is {mode!r}: give 'keep' or 'rgb'.")
    if not all(value is None or value >= 1 for value in (image_size, length)) or seed < 0:
        raise ConfigError(
            f'image_size {image_size}, length {length}, seed {seed}: give at least 1 pixel, 1 window '
            'and a seed of at least 0.'
        )
    if not 0 < min_valid <= 1:
        raise ConfigError(f'min_valid is {min_valid}: give a share above 0, at most 1.')
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ConfigError(
            f'percentiles are {percentiles}: give two from 0 to 100, the lower first.'
        )
    if resolution is not None and not resolution > 0:
        raise ConfigError(f'resolution is {resolution}: give metres above 0, or none.')
