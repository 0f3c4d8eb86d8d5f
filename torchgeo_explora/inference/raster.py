"""Rasters as they are: their header, their place on Earth, their pixels and which of them are data."""

import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.rpc import RPC
from rasterio.windows import Window

from torchgeo_explora.errors import ImageError
from torchgeo_explora.inference.windows import Block, Extent

READ_ERRORS = (OSError, ValueError, RasterioError)
"""What rasterio raises for a file that is damaged, unreachable or no raster."""

CACHE = 32 * 2**20
"""Bytes of GDAL's own cache, whose default is a share of all memory. It holds the tiles of several
rows of windows, so that few are decompressed twice."""

REMOTE = ('/vsicurl', '/vsis3', '/vsigs', '/vsiaz', '/vsiadls', '/vsioss', '/vsiswift', '/vsihdfs')
"""Beginnings of paths that GDAL opens over the network."""

SETTINGS: dict[str, Any] = {'GDAL_CACHEMAX': CACHE, 'GDAL_DISABLE_READDIR_ON_OPEN': 'FALSE'}
"""How rasters are opened: rasterio counts the cache in bytes; sidecar masks are found."""

type Pixels = np.ma.MaskedArray[tuple[int, ...], np.dtype[np.generic]]
type Palette = Mapping[int, tuple[int, int, int, int]]


@dataclass(frozen=True)
class Georeference:
    """Where a raster lies, exactly as its file says it.

    Args:
        crs: Coordinate reference system; None where there is none.
        transform: From pixels to coordinates, float64; the identity where there is none.
        gcps: Ground control points, of a raster that has these instead of a transform.
        gcps_crs: Their coordinate reference system.
        rpcs: Rational polynomial coefficients.
        tags: ``AREA_OR_POINT``, where the file has it.
    """

    crs: CRS | None
    transform: Affine
    gcps: tuple[GroundControlPoint, ...] = ()
    gcps_crs: CRS | None = None
    rpcs: RPC | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def placed(self) -> bool:
        """Whether pixels can be turned into coordinates by a transform."""
        return self.crs is not None and not self.transform.is_identity


@dataclass(frozen=True)
class RasterInfo:
    """What a raster says of itself.

    Args:
        path: Its file, or what GDAL opens instead (a URL, a ``/vsi`` path).
        extent: Size in pixels.
        dtype: NumPy's name of the data type.
        names: Description of every band; its colour where it has none; empty otherwise.
        indexes: 1-based indexes of the bands that are no alpha channel.
        masked: Whether some pixels may be without data, NaN apart.
        palette: Colours of the values of a single band, where it has a colour table.
        place: Where it lies.
    """

    path: str
    extent: Extent
    dtype: str
    names: tuple[str, ...]
    indexes: tuple[int, ...]
    masked: bool
    palette: Palette | None
    place: Georeference

    @property
    def bands(self) -> int:
        """Number of bands that are no alpha channel."""
        return len(self.indexes)


def read_info(path: str | os.PathLike[str]) -> RasterInfo:
    """Read the header of a raster.

    Args:
        path: Of anything that GDAL opens.

    Returns:
        The header.

    Raises:
        ImageError: If it cannot be opened, holds no image, or holds complex numbers.
    """
    name = os.fspath(path)
    with opened(name) as source:
        if source.count == 0:
            raise ImageError(f'{name} holds no image of its own: name one of its sub-datasets.')
        if source.dtypes[0].startswith('complex'):
            raise ImageError(f'{name} has complex values: write amplitudes or powers instead.')
        return _info(name, source)


@contextmanager
def opened(path: str) -> Iterator[DatasetReader]:
    """Open a raster.

    Args:
        path: Of anything that GDAL opens.

    Yields:
        The open raster, closed at the end.

    Raises:
        ImageError: If it cannot be opened.
    """
    source = open_raster(path)
    try:
        yield source
    finally:
        source.close()


def open_raster(path: str) -> DatasetReader:
    """Open a raster; the caller closes it.

    Args:
        path: Of anything that GDAL opens.

    Raises:
        ImageError: If it cannot be opened.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            return rasterio.open(path)
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: BaseException) -> ImageError:
    """Return an error for a raster that cannot be read.

    Args:
        path: Of the raster.
        error: What went wrong; where it says that of another error, what that one says.
    """
    cause = error if error.__cause__ is None else error.__cause__
    reason = ' '.join(str(cause).split()) or type(cause).__name__
    return ImageError(f'{path} cannot be read ({reason}): {_remedy(path)}.')


def _remedy(path: str) -> str:
    if '://' in path or path.startswith(REMOTE):
        return 'check the address, the connection and, where it asks for them, the credentials'
    if not path.startswith('/vsi') and not Path(path).exists():
        return 'check the path'
    return 'give an undamaged raster'


def _info(path: str, source: DatasetReader) -> RasterInfo:
    names = tuple(name or '' for name in source.descriptions)
    # GDAL takes a fourth band of bytes for alpha; one with a name of its own is none
    indexes = tuple(
        index
        for index, name, kind in zip(source.indexes, names, source.colorinterp, strict=True)
        if kind != ColorInterp.alpha or name.lower() not in {'', 'alpha'}
    )
    colours = tuple(_colour(kind) for kind in source.colorinterp)
    return RasterInfo(
        path=path,
        extent=Extent(source.height, source.width),
        dtype=source.dtypes[0],
        names=tuple(name or colour for name, colour in zip(names, colours, strict=True)),
        indexes=indexes,
        masked=_is_masked(source, indexes),
        palette=_palette(source),
        place=_place(source),
    )


def _colour(kind: ColorInterp) -> str:
    return kind.name if kind in {ColorInterp.red, ColorInterp.green, ColorInterp.blue} else ''


def _is_masked(source: DatasetReader, indexes: Sequence[int]) -> bool:
    # a fourth band that is no alpha channel after all masks nothing
    harmless = MaskFlags.alpha if len(indexes) == source.count else MaskFlags.all_valid
    flags = [source.mask_flag_enums[index - 1] for index in indexes]
    return not all({harmless, MaskFlags.all_valid} & set(band) for band in flags)


def _palette(source: DatasetReader) -> Palette | None:
    if source.count != 1 or source.colorinterp[0] != ColorInterp.palette:
        return None
    colours: dict[int, Any] = source.colormap(1)
    return colours


def _place(source: DatasetReader) -> Georeference:
    gcps, gcps_crs = source.gcps
    kept = ('AREA_OR_POINT',)
    return Georeference(
        crs=source.crs,
        transform=source.transform,
        gcps=tuple(gcps),
        gcps_crs=gcps_crs,
        rpcs=source.rpcs,
        tags={key: value for key, value in source.tags().items() if key in kept},
    )


class Handles:
    """Open rasters that threads share: none is used by two of them at once.

    Args:
        limit: Open files that are kept for later.
    """

    def __init__(self, limit: int = 16) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._idle: list[tuple[str, DatasetReader]] = []

    @contextmanager
    def borrow(self, path: str) -> Iterator[DatasetReader]:
        """Lend an open raster.

        Args:
            path: Of the raster.

        Raises:
            ImageError: If it cannot be opened.
        """
        source = self._take(path)
        try:
            yield source
        except BaseException:
            source.close()
            raise
        self._give(path, source)

    def _take(self, path: str) -> DatasetReader:
        with self._lock:
            for position in reversed(range(len(self._idle))):
                if self._idle[position][0] == path:
                    return self._idle.pop(position)[1]
        return open_raster(path)

    def _give(self, path: str, source: DatasetReader) -> None:
        with self._lock:
            self._idle.append((path, source))
            surplus = self._idle[: -self.limit]
            del self._idle[: -self.limit]
        for _, old in surplus:
            old.close()

    def close(self) -> None:
        """Close all rasters that are not lent."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, source in idle:
            source.close()


@dataclass(frozen=True)
class Selection:
    """What is read of a raster.

    Args:
        indexes: 1-based bands, in the order of the model.
        palette: Colours that the values of the single band stand for; None to take values as
            they are.
    """

    indexes: tuple[int, ...]
    palette: Palette | None = None


def read_block(
    source: DatasetReader, info: RasterInfo, selection: Selection, block: Block
) -> Pixels:
    """Read a part of a raster.

    Args:
        source: The open raster.
        info: Its header.
        selection: What to read.
        block: Which part.

    Returns:
        (bands, height, width) of the raster's data type (bytes, of a palette); pixels without data
        are masked: those of the nodata value, the alpha channel, internal or sidecar masks, NaN
        and infinity.

    Raises:
        ImageError: If it cannot be read.
    """
    rows, columns = block.rows, block.columns
    window = Window(columns.first, rows.first, columns.length, rows.length)
    masked = info.masked and set(selection.indexes) <= set(info.indexes)
    try:
        values = source.read(list(selection.indexes), window=window, masked=masked)
    except READ_ERRORS as error:
        raise unreadable(info.path, error) from error
    pixels = np.ma.asarray(values)
    if selection.palette is not None:
        return _coloured(pixels, selection.palette)
    return np.ma.masked_invalid(pixels, copy=False) if pixels.dtype.kind == 'f' else pixels


def _coloured(pixels: Pixels, palette: Palette) -> Pixels:
    """(3, height, width) of bytes; values that are transparent or have no colour are masked."""
    table = np.zeros((max(palette) + 2, 4), dtype=np.uint8)  # the last: of values without colour
    for value, colour in palette.items():
        table[value] = colour
    colours = table[np.minimum(pixels.data[0].astype(np.intp), len(table) - 1)].transpose(2, 0, 1)
    absent = (colours[3] == 0) | np.ma.getmaskarray(pixels)[0]
    return np.ma.masked_array(colours[:3], np.broadcast_to(absent, colours[:3].shape))


def valid_pixels(pixels: Pixels) -> NDArray[np.bool_]:
    """Where a part of a raster has data: in at least one of the bands, as GDAL's dataset mask.

    Args:
        pixels: (bands, height, width).

    Returns:
        (height, width).
    """
    mask: Any = pixels.mask
    if mask is np.ma.nomask:
        return np.ones(pixels.shape[1:], dtype=np.bool_)
    valid: NDArray[np.bool_] = ~np.ma.getmaskarray(pixels).all(axis=0)
    return valid


def scale_to_unit(
    pixels: Pixels,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Scale bands to [0, 1] as in training; pixels without data become 0.

    Args:
        pixels: (bands, height, width), of any numeric type.
        low: (bands,) values that become 0; smaller ones do too.
        high: (bands,) values that become 1; larger ones do too.
        out: (bands, height, width) for the result.
    """
    start, span = low[:, None, None], (high - low)[:, None, None]
    with np.errstate(over='ignore', invalid='ignore'):  # nodata values beyond float32
        np.subtract(pixels.data, start, out=out, dtype=np.float32, casting='unsafe')
    np.divide(out, span, out=out)
    mask: Any = pixels.mask
    if mask is not np.ma.nomask:
        np.copyto(out, 0, where=np.ma.getmaskarray(pixels))
    np.clip(out, 0, 1, out=out)
