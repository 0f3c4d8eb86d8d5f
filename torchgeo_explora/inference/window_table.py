"""Embeddings of windows as GeoParquet: a row a window, with its outline.

Source: GeoParquet specification 1.0.0 (metadata under the key ``geo``, outlines as WKB).
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from shapely.affinity import affine_transform

from torchgeo_explora.inference.jobs import Job
from torchgeo_explora.inference.mosaic import Mosaic
from torchgeo_explora.inference.windows import Block, Interval

ROWS_AT_ONCE = 4096
"""Windows of a row group; they are in memory together."""


def write_table(path: Path, mosaic: Mosaic, job: Job, tags: Mapping[str, str]) -> None:
    """Write the embeddings of a raster's windows.

    Columns are ``geometry`` (outline of what the window sees of the raster, in its coordinate
    reference system, or in its pixels where it has no transform), ``file``, ``row`` and ``column``
    (first pixel of the window), ``valid`` (share of its pixels with data, in the area of interest)
    and ``embedding`` (a list of float32).

    Args:
        path: The file.
        mosaic: (rows, columns, dim + 1) of cells: embeddings, and the share of valid pixels.
        job: The raster.
        tags: Texts that tell of the embeddings.

    Raises:
        OSError: If it cannot be written.
    """
    schema = _schema(job, tags)
    with pq.ParquetWriter(path, schema, compression='zstd') as writer:
        for part in _parts(mosaic):
            values = mosaic.read(part)
            rows, columns = np.nonzero(~np.isnan(values[..., 0]))
            if len(rows) > 0:
                cells = rows + part.rows.first, columns + part.columns.first
                table = _table(schema, job, *cells, values[rows, columns])
                writer.write_table(table, row_group_size=ROWS_AT_ONCE)
    with path.open('rb+') as file:
        os.fsync(file.fileno())


def _parts(mosaic: Mosaic) -> Iterator[Block]:
    """Rows of cells, as many together as there may be; parts of them, where they are long."""
    width = min(mosaic.extent.width, ROWS_AT_ONCE)
    height = max(ROWS_AT_ONCE // width, 1)
    for top in range(0, mosaic.extent.height, height):
        for left in range(0, mosaic.extent.width, width):
            yield Block(
                Interval(top, min(top + height, mosaic.extent.height)),
                Interval(left, min(left + width, mosaic.extent.width)),
            )


def _table(
    schema: pa.Schema,
    job: Job,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    values: NDArray[np.float32],
) -> pa.Table:
    grid, count, dim = job.grid, len(rows), values.shape[1] - 1
    tops = np.array([span.start for span in grid.rows.spans])[rows]
    lefts = np.array([span.start for span in grid.columns.spans])[columns]
    bottoms = np.minimum(tops + grid.rows.size, grid.rows.length)
    rights = np.minimum(lefts + grid.columns.size, grid.columns.length)
    outlines = _placed(shapely.box(lefts, tops, rights, bottoms), job)
    flat = pa.array(np.ascontiguousarray(values[:, :dim]).reshape(-1))
    ends = pa.array(np.arange(count + 1, dtype=np.int32) * dim)
    return pa.table(
        {
            'geometry': pa.array(shapely.to_wkb(outlines).tolist(), pa.binary()),
            'file': pa.array([job.info.path] * count, pa.string()),
            'row': pa.array(tops, pa.int64()),
            'column': pa.array(lefts, pa.int64()),
            'valid': pa.array(values[:, dim], pa.float32()),
            'embedding': pa.ListArray.from_arrays(ends, flat),
        },
        schema=schema,
    )


def _placed(boxes: NDArray[Any], job: Job) -> NDArray[Any]:
    grid = job.info.place.transform
    if grid.is_identity:
        return boxes
    matrix = [grid.a, grid.b, grid.d, grid.e, grid.c, grid.f]
    return np.array([affine_transform(box, matrix) for box in boxes], dtype=object)


def _schema(job: Job, tags: Mapping[str, str]) -> pa.Schema:
    place = job.info.place
    known = place.crs is not None and not place.transform.is_identity
    crs = CRS.from_user_input(place.crs).to_json_dict() if known else None
    column = {'encoding': 'WKB', 'geometry_types': ['Polygon'], 'crs': crs}
    geo = {'version': '1.0.0', 'primary_column': 'geometry', 'columns': {'geometry': column}}
    fields = [
        ('geometry', pa.binary()),
        ('file', pa.string()),
        ('row', pa.int64()),
        ('column', pa.int64()),
        ('valid', pa.float32()),
        ('embedding', pa.list_(pa.float32())),
    ]
    return pa.schema(fields, metadata={'geo': json.dumps(geo), **tags})
