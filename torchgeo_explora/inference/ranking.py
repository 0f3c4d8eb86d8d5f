"""The best places of all rasters: squares of cells that do not overlap, the most similar first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import shapely
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pyproj import Transformer
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from torchgeo_explora.inference.polygons import dated
from torchgeo_explora.inference.raster import RasterInfo
from torchgeo_explora.inference.windows import Block

SPARE = 4
"""Candidates kept beyond what one raster needs, for rasters that show the same ground."""


@dataclass(frozen=True)
class Place:
    """A square of cells.

    Args:
        similarity: Of the cell in its middle.
        raster: Number of the raster.
        row: Of the cell in its middle.
        column: Of the same.
    """

    similarity: float
    raster: int
    row: int
    column: int


class Ranking:
    """Keeps the most similar cells, in constant memory.

    A chosen square rules out the (2 side - 1)^2 cells whose squares would overlap it. The best
    ``count`` squares of a raster are therefore among its best ``count (2 side - 1)^2`` cells.

    Args:
        count: Squares that are wanted.
        side: Of a square in cells.
    """

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side
        self._limit = SPARE * count * (2 * side - 1) ** 2
        self._scores = np.zeros(0, dtype=np.float32)
        self._cells = np.zeros((0, 3), dtype=np.int64)

    def add(
        self,
        raster: int,
        block: Block,
        similarity: NDArray[np.float32],
        excluded: NDArray[np.bool_],
    ) -> None:
        """Look at a part of a raster.

        Args:
            raster: Its number.
            block: The part.
            similarity: (height, width), NaN where there is no data.
            excluded: (height, width) cells that are no candidates.
        """
        rows, columns = np.nonzero(np.isfinite(similarity) & ~excluded)
        cells = np.stack(
            [np.full(len(rows), raster), rows + block.rows.first, columns + block.columns.first], 1
        )
        self._scores = np.concatenate([self._scores, similarity[rows, columns]])
        self._cells = np.concatenate([self._cells, cells])
        if len(self._scores) > 2 * self._limit:
            self._keep(self._limit)

    def _keep(self, limit: int) -> None:
        order = self._order()[:limit]
        self._scores, self._cells = self._scores[order], self._cells[order]

    def _order(self) -> NDArray[np.intp]:
        """The most similar first; of equal ones, by raster, row and column."""
        raster, row, column = self._cells.T
        return np.lexsort((column, row, raster, -self._scores))

    def forget(self, raster: int) -> None:
        """Drop the cells of a raster that turned out to be damaged.

        Args:
            raster: Its number.
        """
        kept = self._cells[:, 0] != raster
        self._scores, self._cells = self._scores[kept], self._cells[kept]

    def places(self, rasters: Mapping[int, RasterInfo]) -> geopandas.GeoDataFrame:
        """Choose squares.

        Args:
            rasters: Headers by number; rasters that are not placed on Earth have no places.

        Returns:
            ``rank``, ``similarity``, ``raster`` (its number), ``row`` and ``column`` (of the patch
            in the middle), ``longitude`` and ``latitude`` (of the middle), and the square, in the
            coordinate reference system of the rasters; in EPSG:4326 where they differ.
        """
        placed = {number: info for number, info in rasters.items() if info.place.placed}
        systems = {number: info.place.crs.to_wkt() for number, info in placed.items()}  # type: ignore[union-attr]  # placed rasters have one
        common = next(iter(systems.values()), None)
        if any(system != common for system in systems.values()):
            common = 'EPSG:4326'
        squares = {n: _Squares(info, self.side, common) for n, info in placed.items()}
        chosen: list[Place] = []
        outlines: list[BaseGeometry] = []
        for index in self._order():
            if len(chosen) == self.count:
                break
            raster, row, column = map(int, self._cells[index])
            place = Place(float(self._scores[index]), raster, row, column)
            if raster in squares and not self._overlaps(place, chosen):
                outline = squares[raster].outline(row, column)
                if not any(
                    other.raster != raster and _share(outline, there)
                    for other, there in zip(chosen, outlines, strict=True)
                ):
                    chosen.append(place)
                    outlines.append(outline)
        return _frame(chosen, outlines, common)

    def _overlaps(self, place: Place, chosen: Sequence[Place]) -> bool:
        return any(
            place.raster == other.raster
            and abs(place.row - other.row) < self.side
            and abs(place.column - other.column) < self.side
            for other in chosen
        )


class _Squares:
    """Outlines of squares of cells of a raster."""

    def __init__(self, info: RasterInfo, side: int, crs: str | None) -> None:
        self.info, self.side = info, side
        assert info.place.crs is not None, 'placed rasters have one'
        own = info.place.crs.to_wkt()
        self._move = None if own == crs else Transformer.from_crs(own, crs, always_xy=True)

    def outline(self, row: int, column: int) -> BaseGeometry:
        extent, before = self.info.extent, (self.side - 1) // 2
        top, left = max(row - before, 0), max(column - before, 0)
        bottom = min(row - before + self.side, extent.height)
        right = min(column - before + self.side, extent.width)
        grid = self.info.place.transform
        matrix = [grid.a, grid.b, grid.d, grid.e, grid.c, grid.f]
        square = affine_transform(shapely.box(left, top, right, bottom), matrix)
        move = self._move
        if move is None:
            return square
        return shapely.transform(square, lambda p: np.stack(move.transform(p[:, 0], p[:, 1]), 1))


def _share(first: BaseGeometry, second: BaseGeometry) -> bool:
    """Whether two outlines have ground in common."""
    return bool(first.intersects(second) and not first.touches(second))


def _frame(
    places: Sequence[Place], outlines: Sequence[BaseGeometry], crs: str | None
) -> geopandas.GeoDataFrame:
    content = {
        'rank': np.arange(1, len(places) + 1),
        'similarity': np.array([place.similarity for place in places], dtype=np.float64),
        'raster': np.array([place.raster for place in places], dtype=np.int64),
        'row': np.array([place.row for place in places], dtype=np.int64),
        'column': np.array([place.column for place in places], dtype=np.int64),
    }
    frame = geopandas.GeoDataFrame(content, geometry=list(outlines), crs=crs)
    if crs is not None:
        centres = shapely.centroid(np.asarray(outlines, dtype=object))  # near enough in degrees
        middles = geopandas.GeoSeries(centres, crs=crs).to_crs('EPSG:4326')
        frame['longitude'], frame['latitude'] = middles.x, middles.y
    return frame


def write_places(frame: geopandas.GeoDataFrame, path: Path, modified: float) -> None:
    """Write places as a GeoPackage.

    Args:
        frame: The places.
        path: The file.
        modified: Seconds since 1970 that the file states as the time of its last change.

    Raises:
        OSError: Or another of pyogrio's errors, if it cannot be written.
    """
    with dated(modified):
        pyogrio.write_dataframe(frame, path, layer='places', driver='GPKG', geometry_type='Polygon')


def grown(mask: NDArray[np.bool_], cells: int) -> NDArray[np.bool_]:
    """Return which cells lie within a distance of some.

    Args:
        mask: (height, width).
        cells: Distance along both axes.

    Returns:
        (height, width).
    """
    if cells == 0 or not mask.any():
        return mask
    values = torch.from_numpy(mask.astype(np.float32))[None, None]
    for along in ((1, 0), (0, 1)):  # one axis after the other takes less work than a square
        window, padding = [2 * cells * axis + 1 for axis in along], [cells * axis for axis in along]
        values = F.max_pool2d(values, window, stride=1, padding=padding)
    return values[0, 0].numpy() > 0
