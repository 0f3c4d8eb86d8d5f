"""Writes values of hundreds of bands as a cloud-optimised GeoTIFF, some tiles at a time.

The bands of a pixel lie side by side, so that one request reads a whole embedding. Overviews are
means of 2 x 2 pixels with data, made here: GDAL's own take several times as long for as many bands.
"""

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.io import DatasetWriter
from rasterio.rpc import RPC
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

from torchgeo_explora.inference.codecs import ByteCodec, Codec, Values
from torchgeo_explora.inference.maps import place_arguments
from torchgeo_explora.inference.raster import CACHE, Georeference
from torchgeo_explora.inference.windows import Block, Extent, Interval

TILE = 128
"""Side of a tile in pixels; the least that GDAL's writer of cloud-optimised GeoTIFFs takes."""

BYTES_AT_ONCE = 8 * 2**20
"""Of float32 values that are turned into what a file holds: a tile of 1,024 bands has 64 MB, and
several copies of it are made on the way."""


@dataclass(frozen=True)
class Picture:
    """What a GeoTIFF holds.

    Args:
        extent: Its size.
        place: Where it lies.
        names: Description of every channel.
        codec: How numbers are stored.
        tags: Texts that tell of it.
        colors: Colour of every band, where they are colours.
    """

    extent: Extent
    place: Georeference
    names: tuple[str, ...]
    codec: Codec
    tags: Mapping[str, str] = field(default_factory=dict)
    colors: tuple[ColorInterp, ...] = ()


def enlarged(place: Georeference, cell: int) -> Georeference:
    """Return the place of a raster whose pixels are cells of another.

    Args:
        place: Of the other.
        cell: Side of a cell in its pixels.
    """
    a, b, c, d, e, f = place.transform[:6]
    transform = Affine(a * cell, b * cell, c, d * cell, e * cell, f)
    if place.transform.is_identity:  # the raster has no place
        transform = place.transform
    points = tuple(
        GroundControlPoint(p.row / cell, p.col / cell, p.x, p.y, p.z, p.id, p.info)
        for p in place.gcps
    )
    rpcs = None if place.rpcs is None else _enlarged_rpcs(place.rpcs, cell)
    return replace(place, transform=transform, gcps=points, rpcs=rpcs)


def _enlarged_rpcs(rpcs: RPC, cell: int) -> RPC:
    """Lines and samples count from the centre of the first pixel."""
    content = rpcs.to_dict()
    for name in ('line', 'samp'):
        content[f'{name}_off'] = (content[f'{name}_off'] + 0.5) / cell - 0.5
        content[f'{name}_scale'] = content[f'{name}_scale'] / cell
    return RPC(**content)


def write_cog(
    path: Path, picture: Picture, parts: Sequence[Block], read: Callable[[Block], Values]
) -> None:
    """Write a cloud-optimised GeoTIFF.

    Args:
        path: The file; further files beside it are made and removed again.
        picture: What it holds.
        parts: Tiles of 128 pixels that cover it.
        read: Returns the values (channels, height, width) of a tile, NaN where there is no data.

    Raises:
        OSError: If it cannot be written.
        rasterio.errors.RasterioError: If GDAL cannot write it.
    """
    tile = TILE**2 * picture.codec.bands * np.dtype(picture.codec.dtype).itemsize
    stem = path.with_suffix('')
    with rasterio.Env(GDAL_CACHEMAX=max(CACHE, 2 * tile)):
        levels = [Path(f'{stem}.0.tif')]
        for left in path.parent.glob(f'{path.stem}.*.tif'):
            left.unlink()
        try:
            with _create(levels[0], picture) as target:
                for part in _strips(parts, picture.codec.bands):
                    target.write(picture.codec.encode(read(part)), window=_window(part))
            while max(picture.extent.height, picture.extent.width) > TILE << (len(levels) - 1):
                levels.append(Path(f'{stem}.{len(levels)}.tif'))
                _halve(levels[-2], levels[-1], picture)
            _join(levels, path, picture)
        finally:
            for level in levels:
                level.unlink(missing_ok=True)
    with path.open('rb+') as file:
        os.fsync(file.fileno())


def _strips(parts: Iterable[Block], bands: int) -> Iterator[Block]:
    """Cut tiles into strips of as many rows as are held at once: an even number of them."""
    for part in parts:
        of_two_rows = 2 * 4 * bands * part.columns.length
        height = 2 * max(BYTES_AT_ONCE // of_two_rows, 1)
        for top in range(part.rows.first, part.rows.stop, height):
            yield Block(Interval(top, min(top + height, part.rows.stop)), part.columns)


def _tiles(extent: Extent) -> Iterator[Block]:
    for top in range(0, extent.height, TILE):
        for left in range(0, extent.width, TILE):
            rows = Interval(top, min(top + TILE, extent.height))
            yield Block(rows, Interval(left, min(left + TILE, extent.width)))


def _window(part: Block) -> Window:
    rows, columns = part.rows, part.columns
    return Window(columns.first, rows.first, columns.length, rows.length)


def _create(path: Path, picture: Picture, extent: Extent | None = None) -> DatasetWriter:
    size = picture.extent if extent is None else extent
    target: DatasetWriter = rasterio.open(
        path,
        'w',
        driver='GTiff',
        height=size.height,
        width=size.width,
        count=picture.codec.bands,
        dtype=picture.codec.dtype,
        nodata=picture.codec.nodata,
        tiled=True,
        blockxsize=TILE,
        blockysize=TILE,
        interleave='band',
        BIGTIFF='YES',
        SPARSE_OK=True,
        **({} if extent is not None else place_arguments(picture.place)),
    )
    if extent is None:
        _describe(target, picture)
    return target


def _describe(target: DatasetWriter, picture: Picture) -> None:
    tags: dict[str, Any] = {**picture.tags, **picture.place.tags}
    target.update_tags(**tags)
    if picture.place.rpcs is not None:
        target.rpcs = picture.place.rpcs
    for index, name in enumerate(picture.names, start=1):
        target.set_band_description(index, name)
    if isinstance(picture.codec, ByteCodec):
        target.scales = tuple(picture.codec.scales.tolist())
        target.offsets = tuple(picture.codec.offsets.tolist())
    if picture.colors:
        target.colorinterp = picture.colors


def _halve(source: Path, path: Path, picture: Picture) -> None:
    """Write a raster of half the size."""
    codec = picture.codec
    with rasterio.open(source) as fine:
        extent = Extent(-(-fine.height // 2), -(-fine.width // 2))
        with _create(path, picture, extent) as coarse:
            for part in _strips(_tiles(Extent(fine.height, fine.width)), codec.bands):
                mean = codec.encode(_mean_of_four(codec.decode(fine.read(window=_window(part)))))
                coarse.write(mean, window=_window(part.in_cells(2)))


def _mean_of_four(values: Values) -> Values:
    """Means of 2 x 2 pixels, of those with data; an odd last row or column stands alone."""
    bands, height, width = values.shape
    total = np.zeros((bands, -(-height // 2), -(-width // 2)), dtype=np.float32)
    count = np.zeros(total.shape[1:], dtype=np.float32)
    for down in (0, 1):
        for across in (0, 1):
            corner = values[:, down::2, across::2]
            place = np.s_[: corner.shape[1], : corner.shape[2]]
            valid: NDArray[np.bool_] = ~np.isnan(corner[0])
            total[:, *place] += np.where(valid, corner, 0)
            count[place] += valid
    with np.errstate(invalid='ignore'):
        return np.divide(total, count, dtype=np.float32)  # NaN where there is none


def _join(levels: Sequence[Path], path: Path, picture: Picture) -> None:
    """Write one file of a raster and its overviews."""
    virtual = path.with_suffix('.vrt')
    for left in (virtual, path):  # by a run that was killed: GDAL opens before it overwrites
        left.unlink(missing_ok=True)
    try:
        copy_raster(levels[0], virtual, driver='VRT')
        tree = ET.parse(virtual)
        for number, band in enumerate(tree.findall('VRTRasterBand'), start=1):
            for level in levels[1:]:
                overview = ET.SubElement(band, 'Overview')
                file = ET.SubElement(overview, 'SourceFilename', relativeToVRT='1')
                file.text = level.name
                ET.SubElement(overview, 'SourceBand').text = str(number)
        for element, point in zip(tree.iter('GCP'), picture.place.gcps, strict=True):
            # GDAL writes twelve digits
            exact = {'Pixel': point.col, 'Line': point.row, 'X': point.x, 'Y': point.y}
            element.attrib |= {name: repr(float(value)) for name, value in exact.items()}
            element.set('Z', repr(0.0 if point.z is None else float(point.z)))
        tree.write(virtual)
        with rasterio.Env(GDAL_CACHEMAX=CACHE):
            copy_raster(virtual, path, driver='COG', **_options(picture, len(levels) > 1))
    finally:
        virtual.unlink(missing_ok=True)


def _options(picture: Picture, overviews: bool) -> dict[str, Any]:
    return {
        'COMPRESS': 'DEFLATE',
        'PREDICTOR': 'YES',
        'BLOCKSIZE': TILE,
        'OVERVIEWS': 'FORCE_USE_EXISTING' if overviews else 'NONE',
        'BIGTIFF': 'IF_SAFER',
        **picture.codec.options,
    }
