"""Rasters of any kind that GDAL opens: what they are, and parts of them at any size."""

import glob
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from torchgeo_explora.errors import ImageError

from ._grids import RasterWindow
from ._ground import Ground, Place
from ._headers import READ_ERRORS, ImageHeader, describe_raster, find_images
from ._pixels import Pixels, is_masked

EXTENSIONS = ('.tif', '.tiff', '.vrt', '.jp2', '.img')
"""Files that are taken from folders; a file that is named may have any."""

SETTINGS: dict[str, Any] = {
    'GDAL_CACHEMAX': 32 * 2**20,
    'GDAL_DISABLE_READDIR_ON_OPEN': 'FALSE',
}
"""GDAL's own cache in bytes (its default is a share of all memory), and sidecar masks are found."""

MOST_SAMPLES = 4096
"""Rows and columns of a decimated mask."""

COLOURS = ('red', 'green', 'blue')


@dataclass(frozen=True, eq=False)
class RasterSource:
    """A raster to take windows from.

    Args:
        path: What GDAL opens.
        header: Its size, bands and type; a colour table makes three bands of bytes of one.
        palette: (values, 3) colours of a raster with a colour table.
        place: Where it lies; None where it has no place.
    """

    path: str
    header: ImageHeader
    palette: NDArray[np.uint8] | None
    place: Place | None

    def pixel(self) -> float | None:
        """Side of a pixel in metres; None without a place."""
        if self.place is None:
            return None
        try:
            with np.errstate(invalid='ignore'):
                sides = Ground([self.place]).pixel(self.place)
        except ImageError:  # its CRS does not place it on the Earth
            return None
        side = float(np.sqrt(np.prod(sides)))
        return side if np.isfinite(side) and side > 0 else None


def list_rasters(items: Iterable[str | Path]) -> list[str]:
    """List rasters.

    Args:
        items: Files, folders with all that is below, and globs; what is none of these is listed as
            it is, for GDAL to open.

    Returns:
        What to open, those of a folder by name, each once.

    Raises:
        ImageError: If a folder holds no raster.
    """
    found: dict[str, None] = {}
    for item in items:
        path = Path(item).expanduser()
        if path.is_dir():
            names = [str(file) for file in find_images(path, EXTENSIONS)]
        elif not path.exists() and glob.has_magic(str(item)):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  # any pattern
            names = [name for name in matches if Path(name).suffix.lower() in EXTENSIONS]
        else:
            names = [str(item) if '://' in str(item) else str(path)]
        found |= dict.fromkeys(names)
    return list(found)


def read_sources(paths: Sequence[str]) -> tuple[list[RasterSource], dict[Path, str]]:
    """Read the headers of rasters, leaving out those that cannot be read.

    Args:
        paths: What GDAL opens.

    Returns:
        The rasters in the order of ``paths``, and why others were left out.

    Raises:
        ImageError: If none can be read.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=8) as pool:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        results = list(pool.map(_try, paths))
    sources = [result for result in results if isinstance(result, RasterSource)]
    skipped = {
        Path(path): result
        for path, result in zip(paths, results, strict=True)
        if isinstance(result, str)
    }
    if not sources:
        path, reason = next(iter(skipped.items()), (Path('nothing'), 'no raster was named'))
        raise ImageError(
            f'None of {len(paths)} rasters can be read; the first is {path} ({reason}). Give '
            'undamaged rasters.'
        )
    return sources, skipped


def _try(path: str) -> RasterSource | str:
    try:
        with rasterio.Env(**SETTINGS), rasterio.open(path) as source:
            return _describe(path, source)
    except READ_ERRORS as error:
        return ' '.join(str(error).split()) or type(error).__name__


def _describe(path: str, source: rasterio.DatasetReader) -> RasterSource | str:
    if source.count == 0:
        return 'it holds no image of its own: name one of its sub-datasets'
    if source.dtypes[0].startswith('complex'):
        return 'its values are complex: write amplitudes or powers instead'
    header = describe_raster(source, Path(path))
    names = [
        name if name or kind.name not in COLOURS else kind.name
        for name, kind in zip(header.names, source.colorinterp, strict=True)
    ]
    header, palette = replace(header, names=tuple(names)), _palette(source)
    if palette is not None:
        header = replace(header, names=COLOURS, indexes=(1, 2, 3), dtype='uint8')
    return RasterSource(path, header, palette, _place(source, header))


def _palette(source: rasterio.DatasetReader) -> NDArray[np.uint8] | None:
    if source.count != 1 or source.colorinterp[0] != ColorInterp.palette:
        return None
    table: Mapping[int, Sequence[int]] = source.colormap(1)
    colours = np.zeros((max(table) + 1, 3), dtype=np.uint8)
    for value, colour in table.items():
        colours[value] = colour[:3]
    return colours


def _place(source: rasterio.DatasetReader, header: ImageHeader) -> Place | None:
    crs: CRS | None = source.crs
    grid = source.transform
    if crs is None or grid.is_identity or grid.determinant == 0:
        return None
    return Place(header.path, crs.to_wkt(), grid, header.height, header.width)


def read_part(
    source: RasterSource, window: RasterWindow, side: int, indexes: Sequence[int]
) -> Pixels:
    """Read a part of a raster as a square of a given side.

    Args:
        source: The raster.
        window: The part.
        side: Pixels of a side of the result; averages where that is less than the part has, and
            cubic interpolation where it is more.
        indexes: 1-based bands, of the colours where there is a colour table.

    Returns:
        (bands, side, side) of the raster's type; pixels without data and NaN are masked.

    Raises:
        ImageError: If it cannot be read.
    """
    part = Window(window.column, window.row, window.width, window.height)
    if source.palette is not None:
        how, bands = Resampling.nearest, [1]
    else:
        smaller = side < max(window.height, window.width)
        how, bands = (Resampling.average if smaller else Resampling.cubic), list(indexes)
    try:
        with warnings.catch_warnings(), rasterio.Env(**SETTINGS):
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(source.path) as opened:
                values = opened.read(
                    bands, window=part, out_shape=(len(bands), side, side), resampling=how,
                    masked=is_masked(source.header, indexes),
                )  # fmt: skip
    except READ_ERRORS as error:
        raise ImageError(
            f'{source.path} cannot be read ({" ".join(str(error).split())}): give an undamaged '
            'raster, or take it out.'
        ) from error
    values = np.ma.asarray(values)
    if source.palette is not None:
        values = _coloured(values, source.palette, indexes)
    return np.ma.masked_invalid(values, copy=False) if values.dtype.kind == 'f' else values


def _coloured(values: Pixels, palette: NDArray[np.uint8], indexes: Sequence[int]) -> Pixels:
    known = np.clip(values.data[0], 0, len(palette) - 1)
    colours = palette[known].transpose(2, 0, 1)[[index - 1 for index in indexes]]
    unknown = np.ma.getmaskarray(values)[0] | (values.data[0] != known)
    return np.ma.masked_array(colours, np.broadcast_to(unknown, colours.shape))


def read_valid(source: RasterSource, spacing: int, indexes: Sequence[int]) -> NDArray[np.bool_]:
    """Look which pixels of a raster hold data, at points on a grid.

    Args:
        source: The raster.
        spacing: Pixels from one point to the next; more where there would be over 4,096 points
            along a side.
        indexes: 1-based bands; a pixel has data where all of them do.

    Returns:
        (rows, columns) of points, each standing for an equal part of the raster.

    Raises:
        ImageError: If it cannot be read.
    """
    header = source.header
    shape = tuple(
        min(max(-(-length // spacing), 1), MOST_SAMPLES, length)
        for length in (header.height, header.width)
    )
    floats = np.dtype(header.dtype).kind == 'f'
    if not floats and not is_masked(header, indexes):
        return np.ones(shape, dtype=np.bool_)
    bands = [1] if source.palette is not None else list(indexes)
    try:
        with warnings.catch_warnings(), rasterio.Env(**SETTINGS):
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(source.path) as opened:
                return _valid_points(opened, shape, bands, floats)
    except READ_ERRORS as error:
        raise ImageError(
            f'{source.path} cannot be read ({" ".join(str(error).split())}): give an undamaged '
            'raster, or take it out.'
        ) from error


def _valid_points(
    source: rasterio.DatasetReader, shape: tuple[int, ...], bands: Sequence[int], floats: bool
) -> NDArray[np.bool_]:
    valid = np.ones(shape, dtype=np.bool_)
    for band in bands:  # one by one, so that memory does not grow with their number
        valid &= source.read_masks(band, out_shape=shape) > 0
        if floats:  # NaN is in no mask of GDAL's
            valid &= np.isfinite(source.read(band, out_shape=shape))
    return valid
