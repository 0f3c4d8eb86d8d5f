"""An area of interest: pixels outside it are not predicted."""

from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio import Affine
from rasterio.features import rasterize
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.inference.meridian import bring, over
from torchgeo_explora.inference.raster import RasterInfo
from torchgeo_explora.inference.windows import Block


@dataclass(frozen=True)
class PixelArea:
    """An area in the pixels of one raster.

    Args:
        geometry: x is the column and y the row; (0, 0) is the outer corner of the first pixel.
    """

    geometry: BaseGeometry

    def meets(self, block: Block) -> bool:
        """Whether some of the area lies in a block.

        Args:
            block: Part of the raster, or beyond it.
        """
        rows, columns = block.rows, block.columns
        box = shapely.box(columns.first, rows.first, columns.stop, rows.stop)
        return bool(self.geometry.intersects(box))

    def mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which pixels of a block have their centre in the area.

        Args:
            block: Part of the raster.

        Returns:
            (height, width).
        """
        rows, columns = block.rows, block.columns
        shape = (rows.length, columns.length)
        if 0 in shape or not self.meets(block):
            return np.zeros(shape, dtype=np.bool_)
        origin = Affine.translation(columns.first, rows.first)
        burnt = rasterize([(self.geometry, 1)], shape, transform=origin, dtype='uint8')
        inside: NDArray[np.bool_] = burnt.astype(np.bool_)
        return inside


class AreaOfInterest:
    """Polygons of a vector file.

    Args:
        path: Anything that GDAL reads, in any coordinate reference system.

    Raises:
        ConfigError: If it cannot be read, has no coordinate reference system or no polygon.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise ConfigError(f'{self.path} is not there: give a vector file of polygons.')
        try:
            frame = geopandas.read_file(self.path)
        except Exception as error:  # drivers raise what they like
            raise ConfigError(
                f'{self.path} cannot be read ({" ".join(str(error).split())}): give a vector file.'
            ) from error
        if not isinstance(frame, geopandas.GeoDataFrame):
            raise ConfigError(f'{self.path} has no geometries: give a vector file of polygons.')
        if frame.crs is None:
            raise ConfigError(
                f'{self.path} has no coordinate reference system: write it with one, or name it in '
                'a .prj file beside it.'
            )
        kinds = frame.geometry.geom_type
        chosen = frame.geometry[kinds.isin(['Polygon', 'MultiPolygon'])]
        drawn = np.asarray(chosen.array, dtype=object)
        mended = shapely.make_valid(drawn, method='structure', keep_collapsed=False)
        self.polygons = geopandas.GeoSeries(mended, crs=frame.crs)
        if self.polygons.empty:
            raise ConfigError(f'{self.path} has no polygon: draw at least one.')

    def over(self, info: RasterInfo) -> PixelArea:
        """Bring the area into the pixels of a raster.

        Args:
            info: Header of the raster.

        Returns:
            The area there.

        Raises:
            ImageError: If the raster is not placed on Earth, or lies outside the area.
        """
        crs = info.place.crs
        if crs is None or not info.place.placed:
            raise ImageError(
                f'{info.path} has no coordinate reference system or no transform, and so cannot be '
                'cut to an area: leave --aoi out, or warp the raster first.'
            )
        system = CRS.from_wkt(crs.to_wkt())
        try:
            area = bring(self.polygons, system)
        except (ConfigError, ProjError) as error:
            raise ImageError(f'{self.path} cannot be brought to {info.path} ({error}).') from error
        place = info.place.transform
        box = shapely.box(0, 0, info.extent.width, info.extent.height)
        area = over(area, affine_transform(box, _matrix(place)), system)
        if area.is_empty:
            raise ImageError(
                f'{info.path} lies outside of {self.path}: give an area that meets the raster.'
            )
        return PixelArea(affine_transform(area, _matrix(~place)))


def _matrix(place: Affine) -> list[float]:
    """What shapely wants of a transform."""
    return [place.a, place.b, place.d, place.e, place.c, place.f]
