"""Writes the blocks of a raster as one map: a cloud-optimised GeoTIFF in the raster's own grid."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio
from pyogrio.errors import DataSourceError
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetWriter
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

from torchgeo_explora.errors import ExploraError, OutputError
from torchgeo_explora.inference.jobs import Job, Unit
from torchgeo_explora.inference.layers import Layer
from torchgeo_explora.inference.pages import release
from torchgeo_explora.inference.polygons import PolygonSettings, write_polygons
from torchgeo_explora.inference.raster import READ_ERRORS, Georeference
from torchgeo_explora.inference.style import Color, write_names, write_qml
from torchgeo_explora.inference.windows import Block, Interval
from torchgeo_explora.inference.work import WorkFolder, blocks_in_rows, refused

TILE = 512
"""Side of the tiles of a map in pixels."""

PALETTE_LIMIT = 256
"""Values that a colour table has entries for; GDAL takes larger ones for the whole 16 bits."""

TRANSPARENT = (0, 0, 0, 0)


@dataclass(frozen=True)
class Legend:
    """What a map tells of itself.

    Args:
        classes: Names, by value.
        colors: Of the classes.
        tags: Further texts: the model, its weights' hash, the software.
        polygons: Which polygons of classes are written beside it; None for none.
    """

    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    tags: Mapping[str, str]
    polygons: PolygonSettings | None = None


def map_paths(out: Path, job: Job, layers: Sequence[Layer]) -> dict[str, Path]:
    """Return where the layers of a raster are written, by kind.

    Args:
        out: Folder of the results.
        job: The raster.
        layers: What is written.
    """
    return {layer.kind: out / f'{job.target}_{layer.kind}.tif' for layer in layers}


def write_maps(folder: WorkFolder, job: Job, legend: Legend) -> list[Path]:
    """Write all layers of a raster whose blocks are done; the classes appear last.

    Args:
        folder: With the blocks.
        job: The raster.
        legend: What they tell of themselves.

    Returns:
        The files written.

    Raises:
        OutputError: If one cannot be written.
    """
    paths = map_paths(folder.out, job, folder.layers)
    written: list[Path] = []
    for layer in sorted(folder.layers, key=lambda layer: layer.kind == 'pred'):
        path = paths[layer.kind]
        with refusing(path):
            cog = _build(folder, job, layer, legend)
            path.parent.mkdir(parents=True, exist_ok=True)
            if layer.kind == 'pred':
                written += _write_beside(cog, path, job, legend)
            cog.replace(path)
        written.append(path)
    return written


def _write_beside(cog: Path, path: Path, job: Job, legend: Legend) -> list[Path]:
    write_qml(path.with_suffix('.qml'), legend.classes, legend.colors)
    write_names(path.with_name(f'{path.name}.aux.xml'), legend.classes)
    if legend.polygons is None:
        return []
    traced, final, source = cog.with_suffix('.gpkg'), path.with_suffix('.gpkg'), Path(job.info.path)
    traced.unlink(missing_ok=True)
    modified = source.stat().st_mtime if source.is_file() else None
    write_polygons(cog, traced, path.stem, legend.classes, legend.polygons, modified)
    traced.replace(final)
    return [final]


def _build(folder: WorkFolder, job: Job, layer: Layer, legend: Legend) -> Path:
    # in the folder of work, because GDAL puts files of its own beside what it writes
    stem = f'{layer.kind}.{os.getpid()}'
    scratch, cog = (folder.job_folder(job) / f'{stem}.{end}.tif' for end in ('scratch', 'cog'))
    _write_scratch(folder, job, layer, legend, scratch)
    release(job.info.extent.area)
    copy_raster(scratch, cog, driver='COG', **_cog_options(layer))
    scratch.unlink()
    with cog.open('rb+') as file:
        os.fsync(file.fileno())
    return cog


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into an error that says so.

    Args:
        path: The file that is written.

    Raises:
        OutputError: If something does.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            yield
    except ExploraError:  # says itself what is wrong
        raise
    except OSError as error:
        raise refused(path, error) from error
    except (*READ_ERRORS, DataSourceError) as error:
        raise OutputError(
            f'{path} could not be written ({" ".join(str(error).split())}): make room, and go on '
            'with --resume.'
        ) from error


def _cog_options(layer: Layer) -> dict[str, Any]:
    classes = layer.kind == 'pred'
    return {
        'COMPRESS': 'DEFLATE',
        'PREDICTOR': 'NO' if classes else 'YES',
        'BLOCKSIZE': TILE,
        'OVERVIEWS': 'AUTO',
        'OVERVIEW_RESAMPLING': 'MODE' if classes else 'AVERAGE',
        'BIGTIFF': 'IF_SAFER',
    }


def _write_scratch(folder: WorkFolder, job: Job, layer: Layer, legend: Legend, path: Path) -> None:
    extent = job.info.extent
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        height=extent.height,
        width=extent.width,
        count=len(layer.bands),
        dtype=layer.dtype,
        nodata=layer.nodata,
        tiled=True,
        blockxsize=TILE,
        blockysize=TILE,
        interleave='band',
        BIGTIFF='YES',
        SPARSE_OK=True,
        **place_arguments(job.info.place),
    ) as target:
        _describe(target, job, layer, legend)
        for band in range(len(layer.bands)):
            _copy_band(folder, job, layer, band, target)


def place_arguments(place: Georeference) -> dict[str, Any]:
    """Return the place of a raster as rasterio takes it when a file is created.

    Args:
        place: Where it lies.
    """
    if place.gcps:
        return {'gcps': list(place.gcps), 'crs': place.gcps_crs}
    if place.transform.is_identity:
        return {'crs': place.crs}
    return {'crs': place.crs, 'transform': place.transform}


def _describe(target: DatasetWriter, job: Job, layer: Layer, legend: Legend) -> None:
    tags: dict[str, Any] = {**legend.tags, **job.info.place.tags}
    target.update_tags(**tags)
    if job.info.place.rpcs is not None:
        target.rpcs = job.info.place.rpcs
    for index, name in enumerate(layer.bands, start=1):
        target.set_band_description(index, name)
    if layer.kind == 'pred' and layer.nodata < PALETTE_LIMIT:
        colors: dict[int, Any] = dict.fromkeys(range(PALETTE_LIMIT), TRANSPARENT)
        colors |= {value: (*color, 255) for value, color in enumerate(legend.colors)}
        target.write_colormap(1, colors)


def _copy_band(
    folder: WorkFolder, job: Job, layer: Layer, band: int, target: DatasetWriter
) -> None:
    extent = job.info.extent
    everything = Interval(0, extent.width)
    for first in range(0, extent.height, TILE):
        row = Block(Interval(first, min(first + TILE, extent.height)), everything)
        for number in blocks_in_rows(job, row):
            unit = Unit(job, number)
            rows, columns = unit.block.rows.clip(row.rows), unit.block.columns
            values = folder.open_block(unit, layer, band)[rows.within(unit.block.rows.first)]
            window = Window(columns.first, rows.first, columns.length, rows.length)
            target.write(values, band + 1, window=window)
