"""Polygons of maps: the same pixels again, measured and simplified without gaps."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize

from tests.inference.conftest import NORTH_UP, ROTATED, Copy, plain, segmentation_spec, write_raster
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import PredictSettings, predict_rasters
from torchgeo_explora.inference.polygons import PolygonSettings


@pytest.fixture
def patches(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Three bands of which one is brightest in every patch, and a hole."""
    coarse = rng.integers(1, 255, (3, 8, 9), dtype=np.uint8)
    values = coarse.repeat(7, 1).repeat(6, 2)
    values[:, 10:20, 12:30] = 0
    return values


def _traced(folder: Path, values: Any, place: dict[str, Any], **more: Any) -> Any:  # noqa: ANN401
    source = write_raster(folder / 'scene.tif', values, nodata=0, **place)
    how = PredictSettings(vector=True, block=20, **more)
    summary = predict_rasters(
        [source], Copy(), segmentation_spec(), folder / 'out', how, to_planes=plain
    )
    assert summary.failed == {}
    path = folder / 'out' / 'scene_pred.gpkg'
    assert str(path) in summary.written[str(source)]
    return geopandas.read_file(path)


PLACES: dict[str, dict[str, Any]] = {
    'north up': {'transform': NORTH_UP},
    'rotated': {'transform': ROTATED},
    'no CRS': {'crs': None, 'transform': NORTH_UP},
}


@pytest.mark.parametrize('place', PLACES)
def test_polygons_are_the_map(place: str, patches: NDArray[np.uint8], tmp_path: Path) -> None:
    frame = _traced(tmp_path, patches, PLACES[place])
    with rasterio.open(tmp_path / 'out' / 'scene_pred.tif') as source:
        values, transform, crs = source.read(1), source.transform, source.crs
    pairs = list(zip(frame.geometry, frame['value'], strict=True))
    burnt = rasterize(pairs, values.shape, fill=255, transform=transform, dtype='uint8')
    np.testing.assert_array_equal(burnt, values)
    assert (frame.crs is None) == (crs is None)
    assert set(frame['class']) == {f'class {value}' for value in frame['value']}
    pixel = abs(transform.determinant)
    assert frame['area'].sum() == pytest.approx((values != 255).sum() * pixel, rel=1e-6)
    merged = frame.dissolve('value').geometry.explode().area
    assert len(merged) <= len(frame)  # no seam between blocks: each class is in as few parts
    touching = [
        a.intersection(b).length
        for value in set(frame['value'])
        for a, b in _pairs(frame.geometry[frame['value'] == value])
    ]
    assert max(touching) == pytest.approx(0, abs=1e-6)


def _pairs(outlines: Any) -> Any:  # noqa: ANN401
    found = list(outlines)
    return ((a, b) for i, a in enumerate(found) for b in found[:i])


def test_degrees_are_measured_on_the_ellipsoid(patches: NDArray[np.uint8], tmp_path: Path) -> None:
    place = {'crs': 'EPSG:4326', 'transform': Affine(1e-4, 0, 10, 0, -1e-4, 50)}
    frame = _traced(tmp_path, patches, place)
    plane = frame.to_crs('EPSG:3035').area  # equal areas
    np.testing.assert_allclose(frame['area'], plane, rtol=1e-4)


def test_small_polygons_are_left_out(patches: NDArray[np.uint8], tmp_path: Path) -> None:
    values = patches.copy()
    values[:, 40, 40] = np.roll(values[:, 40, 40], 1)  # a pixel of its own
    frame = _traced(tmp_path, values, {'transform': NORTH_UP}, min_area=150.0)
    assert frame['area'].min() > 150


def test_simplified_outlines_leave_no_gap(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:40, :50]
    sector = np.select([rows > columns, rows + columns > 45], [0, 1], 2)
    values = np.where(sector[None] == np.arange(3)[:, None, None], 200, 10).astype(np.uint8)
    frame = _traced(tmp_path, values, {'transform': NORTH_UP}, simplify=2.0)
    outlines = frame.geometry.to_numpy()
    assert shapely.coverage_is_valid(outlines, gap_width=5).all()
    union, parts = shapely.union_all(outlines).area, frame.area.sum()
    assert union == pytest.approx(parts, rel=1e-9)  # nothing overlaps
    assert union == pytest.approx(40 * 50 * 100, rel=1e-9)  # and nothing is missing
    (tmp_path / 'whole').mkdir()
    whole = _traced(tmp_path / 'whole', values, {'transform': NORTH_UP})
    assert sum(map(_corners, outlines)) < sum(map(_corners, whole.geometry)) / 2


def _corners(outline: Any) -> int:  # noqa: ANN401
    return int(shapely.get_num_coordinates(outline))


def test_the_same_work_gives_the_same_bytes(patches: NDArray[np.uint8], tmp_path: Path) -> None:
    source = write_raster(tmp_path / 'scene.tif', patches, nodata=0)
    for name in ('a', 'b'):
        how, spec = PredictSettings(vector=True), segmentation_spec()
        predict_rasters([source], Copy(), spec, tmp_path / name, how, to_planes=plain)
    first, second = ((tmp_path / name / 'scene_pred.gpkg').read_bytes() for name in ('a', 'b'))
    assert first == second


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_rasters_without_coordinates_are_refused(
    patches: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = write_raster(tmp_path / 's.tif', patches, crs=None, transform=Affine.identity())
    how, spec = PredictSettings(vector=True), segmentation_spec()
    summary = predict_rasters([source], Copy(), spec, tmp_path / 'out', how, to_planes=plain)
    assert 'no transform' in summary.failed[str(source)]


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match='min_area'):
        PolygonSettings(min_area=-1)
    with pytest.raises(ConfigError, match='--vector'):
        PredictSettings(simplify=1.0).polygons()
