"""Areas of interest on the other side of the date line, and in systems that go round the Earth."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import CRS, Transformer
from rasterio import Affine
from shapely.geometry.base import BaseGeometry

from tests.inference.conftest import write_raster
from torchgeo_explora.errors import ImageError
from torchgeo_explora.inference.area import AreaOfInterest
from torchgeo_explora.inference.meridian import turn
from torchgeo_explora.inference.raster import read_info
from torchgeo_explora.inference.windows import Block, Interval

SIDE = 40
"""Pixels of 0.1 degrees."""

ALL = Block(Interval(0, SIDE), Interval(0, SIDE))
FIJI = (179.0, -16.0, 182.0, -15.0)
"""Across the date line, in degrees."""


def _inside(tmp_path: Path, area: BaseGeometry, crs: str, transform: Affine, place: str) -> int:
    """Pixels of a raster that are in an area."""
    values = np.ones((1, SIDE, SIDE), dtype=np.uint8)
    raster = write_raster(tmp_path / 'a.tif', values, crs=place, transform=transform)
    file = tmp_path / 'area.gpkg'
    geopandas.GeoDataFrame(geometry=[area], crs=crs).to_file(file)
    return int(AreaOfInterest(file).over(read_info(raster)).mask(ALL).sum())


def _fiji() -> dict[str, BaseGeometry]:
    west, south, east, north = FIJI
    halves = [shapely.box(west, south, 180, north), shapely.box(-180, south, east - 360, north)]
    return {
        'beyond 180': shapely.box(*FIJI),
        'below -180': shapely.box(west - 360, south, east - 360, north),
        'two halves': shapely.MultiPolygon(halves),
    }


@pytest.mark.parametrize('drawn', ['beyond 180', 'below -180', 'two halves'])
@pytest.mark.parametrize('origin', [178.5, 178.5 - 360, 178.5 + 360])
def test_areas_across_the_date_line_meet_rasters_however_degrees_are_counted(
    drawn: str, origin: float, tmp_path: Path
) -> None:
    transform = Affine(0.1, 0, origin, 0, -0.1, -14.0)  # 178.5 to 182.5 degrees
    for place in ('EPSG:4326', 'EPSG:4269'):  # brought to the second one
        count = _inside(tmp_path, _fiji()[drawn], 'EPSG:4326', transform, place)
        assert count == 30 * 10


@pytest.mark.parametrize(
    ('crs', 'place'), [('EPSG:32701', 'EPSG:4326'), ('EPSG:3832', 'EPSG:4326')]
)
def test_an_area_in_metres_across_the_date_line_stays_in_one_piece(
    crs: str, place: str, tmp_path: Path
) -> None:
    there = Transformer.from_crs('EPSG:4326', crs, always_xy=True)
    outline = shapely.segmentize(shapely.box(*FIJI), 0.05)
    area = shapely.transform(outline, lambda p: np.stack(there.transform(p[:, 0], p[:, 1]), 1))
    whole = _inside(tmp_path, area, crs, Affine(0.1, 0, 178.5, 0, -0.1, -14.0), place)
    assert whole == 30 * 10
    far = Affine(0.1, 0, 0.0, 0, -0.1, -14.0)  # a ring torn apart would cover all longitudes
    with pytest.raises(ImageError, match='lies outside'):
        _inside(tmp_path, area, crs, far, place)


def test_a_raster_of_the_whole_world_has_both_sides(tmp_path: Path) -> None:
    transform = Affine(9.0, 0, -180.0, 0, -4.5, 90.0)
    box = shapely.box(171, -81, 189, 81)  # two columns of pixels, one on each side
    assert _inside(tmp_path, box, 'EPSG:4326', transform, 'EPSG:4326') == 2 * 36


def test_degrees_from_0_to_360_meet_those_from_minus_180(tmp_path: Path) -> None:
    transform = Affine(9.0, 0, 0.0, 0, -4.5, 90.0)
    box = shapely.box(-90, 0, -81, 45)
    assert _inside(tmp_path, box, 'EPSG:4326', transform, 'EPSG:4326') == 10


def test_web_mercator_goes_round(tmp_path: Path) -> None:
    half = 20037508.342789244
    transform = Affine(1e4, 0, half - 20 * 1e4, 0, -1e4, 20 * 1e4)  # 20 columns beyond 180
    box = shapely.box(-180, -0.5, -179.2, 0.5)
    assert _inside(tmp_path, box, 'EPSG:4326', transform, 'EPSG:3857') > 0


def test_an_area_round_the_pole_covers_it(tmp_path: Path) -> None:
    transform = Affine(9.0, 0, -180.0, 0, -4.5, 90.0)
    circle = shapely.Point(0, 0).buffer(2_000_000)  # to about 72 degrees south
    assert _inside(tmp_path, circle, 'EPSG:3031', transform, 'EPSG:4326') == 4 * SIDE


def test_edges_are_straight_where_they_were_drawn(tmp_path: Path) -> None:
    # a parallel of latitude: a curve in UTM, off the chord by 600 m at this size
    box = shapely.box(6.0, 0.0, 12.0, 60.0)
    to_utm = Transformer.from_crs('EPSG:4326', 'EPSG:32632', always_xy=True)
    east, north = to_utm.transform(9.0, 60.0)
    transform = Affine(10, 0, east - 200, 0, -10, north + 200)
    # in the middle, the parallel crosses the middle of the raster
    assert _inside(tmp_path, box, 'EPSG:4326', transform, 'EPSG:32632') == SIDE * SIDE // 2


@pytest.mark.parametrize(
    ('crs', 'length'),
    [
        ('EPSG:4326', 360.0), ('EPSG:4807', 400.0), ('EPSG:3857', 2 * 20037508.342789244),
        ('EPSG:32631', None), ('EPSG:3031', None),
    ],
)  # fmt: skip
def test_a_turn_is_measured_in_units_of_the_system(crs: str, length: float | None) -> None:
    assert turn(CRS(crs)) == (None if length is None else pytest.approx(length, rel=1e-9))
