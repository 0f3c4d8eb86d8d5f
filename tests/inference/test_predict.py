"""The whole way from rasters to maps, with models whose right answer is known."""

import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning

from tests.inference.conftest import (
    NORTH_UP,
    ROTATED,
    Constant,
    Copy,
    Mixing,
    plain,
    segmentation_spec,
    write_raster,
)
from tests.token_vits import make_temporal
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import PredictSettings, Shard, Summary, predict_rasters
from torchgeo_explora.models import ModelSpec


def _read(path: Path) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            values: NDArray[Any] = source.read()
    return values


def _all(**more: Any) -> PredictSettings:  # noqa: ANN401
    return PredictSettings(probabilities=True, uncertainty=('entropy', 'margin'), **more)


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.uint8], PredictSettings]:
    window = draw(st.sampled_from([1, 5, 16, 32]))
    sides = st.integers(1, 8 * window if window < 16 else 70)
    shape = draw(sides), draw(sides)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.integers(1, 256, (2, *shape), dtype=np.uint8)
    for _ in range(draw(st.integers(0, 4))):  # rectangles without data
        top, left = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        values[:, top : top + draw(st.integers(1, 70)), left : left + draw(st.integers(1, 70))] = 0
    single = draw(st.booleans())
    if single:
        values[0, draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))] = 0
    return values, _all(
        window=window,
        overlap=draw(st.integers(0, window * 3 // 4)),
        batch=draw(st.integers(1, 9)),
        block=draw(st.sampled_from([7, 20, 8192])),
    )


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_a_copied_band_comes_back_to_the_last_bit(
    case: tuple[NDArray[np.uint8], PredictSettings],
) -> None:
    values, how = case
    with tempfile.TemporaryDirectory() as folder:
        path = write_raster(Path(folder, 'scene.tif'), values, nodata=0)
        spec = segmentation_spec(bands=2, classes=2)
        predict_rasters([path], Copy(), spec, Path(folder, 'out'), how, to_planes=plain)
        copied = _read(Path(folder, 'out', 'scene_probabilities.tif'))
        classes = _read(Path(folder, 'out', 'scene_pred.tif'))[0]
    valid = (values != 0).any(axis=0)
    expected = values.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(copied, np.where(valid, expected, np.float32(np.nan)))
    np.testing.assert_array_equal(classes, np.where(valid, values.argmax(axis=0), 255))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_a_constant_comes_back_to_the_last_bit(
    case: tuple[NDArray[np.uint8], PredictSettings],
) -> None:
    values, how = case
    constant = np.array([0.1, 0.7, 0.2], dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = write_raster(Path(folder, 'scene.tif'), values, nodata=0)
        model, spec = Constant(constant.tolist()), segmentation_spec(bands=2)
        predict_rasters([path], model, spec, Path(folder, 'out'), how, to_planes=plain)
        written = _read(Path(folder, 'out', 'scene_probabilities.tif'))
        doubt = _read(Path(folder, 'out', 'scene_uncertainty.tif'))
    valid = (values != 0).any(axis=0)
    for band, number in zip(written, constant, strict=True):
        np.testing.assert_array_equal(band[valid], number)
        assert np.isnan(band[~valid]).all()
    entropy = -sum(p * math.log(p) for p in constant.tolist()) / math.log(3)
    np.testing.assert_allclose(doubt[0][valid], entropy, rtol=1e-6)
    np.testing.assert_allclose(doubt[1][valid], 0.5, rtol=1e-6)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(3, 16), st.integers(1, 9),
    st.sampled_from([20, 8192]),
)  # fmt: skip
def test_a_classifier_gives_every_cell_one_class(
    height: int, width: int, stride: int, batch: int, block: int
) -> None:
    class Mean(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    values = np.random.default_rng(height).integers(1, 255, (2, height, width), dtype=np.uint8)
    how = PredictSettings(stride=stride, batch=batch, block=block, probabilities=True)
    spec = segmentation_spec(bands=2, classes=2, task='classification')
    with tempfile.TemporaryDirectory() as folder:
        path = write_raster(Path(folder, 'scene.tif'), values)
        predict_rasters([path], Mean(), spec, Path(folder, 'out'), how, to_planes=plain)
        written = _read(Path(folder, 'out', 'scene_probabilities.tif'))
    for top in range(0, height, stride):
        for left in range(0, width, stride):
            cell = written[:, top : top + stride, left : left + stride]
            assert (cell == cell[:, :1, :1]).all()
            if height >= 16 and width >= 16:
                down = min(max(top + stride // 2 - 8, 0), height - 16)
                across = min(max(left + stride // 2 - 8, 0), width - 16)
                seen = values[:, down : down + 16, across : across + 16]
                np.testing.assert_allclose(cell[:, 0, 0], seen.mean((1, 2)) / 255, rtol=1e-5)


def _same_place(result: Path, source: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(result) as got, rasterio.open(source) as expected:
            assert got.shape == expected.shape
            assert got.crs == expected.crs
            assert tuple(got.transform) == tuple(expected.transform)  # to the last bit
            points, crs = got.gcps
            expected_points, expected_crs = expected.gcps
            assert crs == expected_crs
            assert [_numbers(p) for p in points] == [_numbers(p) for p in expected_points]
            assert got.rpcs == expected.rpcs
            area = 'AREA_OR_POINT'
            if area in expected.tags():
                assert got.tags()[area] == expected.tags()[area]


def _numbers(point: GroundControlPoint) -> tuple[float | None, ...]:
    return point.row, point.col, point.x, point.y, point.z


REAL = (
    'RGB.byte.tif', 'buildings_pan_uint16.tif', 'drone_rgba_2cm.tif', 'landsat_uint16_nodata.tif',
    'rmnp-rgb.tif', 'vegas_8band_uint8.tif',
)  # fmt: skip


@pytest.mark.parametrize('name', REAL)
def test_real_rasters_keep_their_place_and_their_nodata(
    name: str, data_dir: Path, tmp_path: Path
) -> None:
    source = data_dir / 'geotiff' / name
    with rasterio.open(source) as raster:
        bands = min(raster.count, 8 if 'vegas' in name else 3)
        valid = raster.dataset_mask() > 0
        top = 255.0 if raster.dtypes[0] == 'uint8' else 20000.0
    spec = segmentation_spec(bands=bands, classes=2, scale=((0.0, top),) * bands, image_size=128)
    summary = predict_rasters([source], Constant([0.25, 0.75]), spec, tmp_path, to_planes=plain)
    assert summary.failed == {}
    result = tmp_path / f'{source.stem}_pred.tif'
    _same_place(result, source)
    np.testing.assert_array_equal(_read(result)[0], np.where(valid, 1, 255))


PLACES: dict[str, dict[str, Any]] = {
    'north up': {'transform': NORTH_UP},
    'rotated': {'transform': ROTATED},
    'south up': {'transform': Affine(0.1, 0, 1 / 3, 0, 0.1, 2 / 3)},
    'geographic': {'crs': 'EPSG:4326', 'transform': Affine(1 / 3e4, 0, -1 / 7, 0, -1 / 3e4, 1 / 9)},
    'date line': {'crs': 'EPSG:4326', 'transform': Affine(0.1, 0, 179.1, 0, -0.1, -16.3)},
    'no CRS': {'crs': None, 'transform': NORTH_UP},
    'nowhere': {'crs': None, 'transform': Affine.identity()},
    'points': {'transform': Affine(0.3, 0, 1 / 3, 0, -0.3, 2 / 3), 'tags': {'AREA_OR_POINT': 'Point'}},
    'control points': {
        'crs': 'EPSG:4326',
        'gcps': [
            GroundControlPoint(row, column, 10.1 + column / 300, 50.7 - row / 300, 0.5)
            for row, column in ((0, 0), (0, 30), (20, 0), (20, 30))
        ],
    },
    'own CRS': {'crs': '+proj=laea +lat_0=12.3 +lon_0=4.5 +ellps=WGS84 +units=us-ft'},
}  # fmt: skip


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
@pytest.mark.parametrize('place', PLACES)
def test_places_are_kept_to_the_last_bit(
    place: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    values = rng.integers(1, 255, (3, 20, 30), dtype=np.uint8)
    source = write_raster(tmp_path / 'scene.tif', values, **PLACES[place])
    predict_rasters([source], Copy(), segmentation_spec(), tmp_path / 'out', to_planes=plain)
    _same_place(tmp_path / 'out' / 'scene_pred.tif', source)


def _masked(kind: str, values: NDArray[Any], hole: NDArray[np.bool_]) -> dict[str, Any]:
    """Cut a hole into values, in one of the ways that rasters have for it."""
    if kind == 'NaN':
        values[:, hole] = np.nan
        return {}
    if kind == 'nodata NaN':
        values[:, hole] = np.nan
        return {'nodata': math.nan}
    if kind == 'nodata':
        values[:, hole] = 77
        return {'nodata': 77}
    return {'mask': np.where(hole, 0, 255).astype(np.uint8)}


@pytest.mark.parametrize(
    ('kind', 'dtype'),
    [
        ('NaN', 'float32'), ('nodata NaN', 'float64'), ('nodata', 'float32'), ('nodata', 'uint8'),
        ('nodata', 'uint16'), ('nodata', 'int16'), ('mask', 'uint8'), ('sidecar', 'uint8'),
    ],
)  # fmt: skip
def test_nodata_in_is_nodata_out(
    kind: str, dtype: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    values = rng.integers(100, 255, (3, 40, 50)).astype(dtype)
    hole = np.zeros((40, 50), dtype=bool)
    hole[5:25, 10:40] = True
    hole[30, 3] = True
    profile = _masked(kind, values, hole)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind != 'sidecar'):
        source = write_raster(tmp_path / 'scene.tif', values, **profile)
    assert (tmp_path / 'scene.tif.msk').exists() == (kind == 'sidecar')
    how = _all(window=16)
    predict_rasters([source], Copy(), segmentation_spec(), tmp_path / 'out', how, to_planes=plain)
    np.testing.assert_array_equal(_read(tmp_path / 'out' / 'scene_pred.tif')[0] == 255, hole)
    for kind in ('probabilities', 'uncertainty'):
        written = _read(tmp_path / 'out' / f'scene_{kind}.tif')
        np.testing.assert_array_equal(np.isnan(written), np.broadcast_to(hole, written.shape))


def test_one_band_without_data_is_filled_as_in_training(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    values = rng.integers(100, 255, (3, 20, 20)).astype(np.float32)
    values[1, 4:9, 4:9] = np.nan
    source = write_raster(tmp_path / 'scene.tif', values)
    spec, out = segmentation_spec(), tmp_path / 'out'
    predict_rasters([source], Copy(), spec, out, _all(), to_planes=plain)
    expected = np.nan_to_num(values / np.float32(255), nan=0.0)
    np.testing.assert_array_equal(_read(out / 'scene_probabilities.tif'), expected)


def test_alpha_masks_and_is_no_band(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(100, 255, (4, 40, 40), dtype=np.uint8)
    values[3] = 255
    values[3, :, 30:] = 0
    kinds = ('red', 'green', 'blue', 'alpha')
    source = write_raster(tmp_path / 'scene.tif', values, colorinterp=kinds)
    predict_rasters([source], Copy(), segmentation_spec(), tmp_path / 'out', to_planes=plain)
    classes = _read(tmp_path / 'out' / 'scene_pred.tif')[0]
    assert (classes[:, 30:] == 255).all()
    np.testing.assert_array_equal(classes[:, :30], values[:3, :, :30].argmax(0))


def test_colour_tables_become_colours(tmp_path: Path, rng: np.random.Generator) -> None:
    index = rng.integers(0, 4, (1, 20, 20), dtype=np.uint8)
    table = {0: (9, 80, 7, 255), 1: (200, 3, 4, 255), 2: (1, 2, 250, 255), 3: (0, 0, 0, 0)}
    source = write_raster(tmp_path / 'scene.tif', index, colormap=table, nodata=3)
    how = PredictSettings(probabilities=True)
    predict_rasters([source], Copy(), segmentation_spec(), tmp_path / 'out', how, to_planes=plain)
    written = _read(tmp_path / 'out' / 'scene_probabilities.tif')
    colours = np.array([table[value] for value in range(4)])[index[0]].transpose(2, 0, 1)
    expected = np.where(colours[3] > 0, colours[:3].astype(np.float32) / np.float32(255), np.nan)
    np.testing.assert_array_equal(written, expected.astype(np.float32))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob('*_*'))}


@pytest.fixture
def scenes(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    """Rasters of several sizes, some of them small."""
    sizes = [(50, 40), (8, 8), (90, 30), (1, 40), (33, 17)]
    folder = tmp_path / 'scenes'
    folder.mkdir()
    result = []
    for number, size in enumerate(sizes):
        values = rng.integers(0, 255, (3, *size), dtype=np.uint8)
        values[:, : size[0] // 3, : size[1] // 2] = 0
        result.append(write_raster(folder / f'{number}.tif', values, nodata=0))
    return result


def _mixing(
    sources: list[Path],
    out: Path,
    how: PredictSettings,
    **more: Any,  # noqa: ANN401
) -> Summary:
    return predict_rasters(sources, Mixing(3, 4), segmentation_spec(classes=4), out, how, **more)


def test_blocks_and_threads_leave_no_trace(scenes: list[Path], tmp_path: Path) -> None:
    reference = tmp_path / 'reference'
    _mixing(scenes, reference, _all(batch=1), threads=1)
    for block, threads in ((20, 3), (40, 1)):
        out = tmp_path / f'{block}'
        _mixing(scenes, out, _all(batch=1, block=block), threads=threads)
        assert _bytes(out) == _bytes(reference)


class _Stopped(Exception):
    pass


@pytest.mark.parametrize('after', [1, 4000])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    after: int, scenes: list[Path], tmp_path: Path
) -> None:
    how = PredictSettings(batch=3, block=40, probabilities=True)
    _mixing(scenes, tmp_path / 'whole', how)

    def stop(tally: Any) -> None:  # noqa: ANN401
        if tally.pixels >= after:
            raise _Stopped

    out = tmp_path / 'broken'
    with pytest.raises(_Stopped):
        _mixing(scenes, out, how, progress=stop)
    with pytest.raises(ConfigError, match='--resume'):
        _mixing(scenes, out, how)
    _mixing(scenes, out, how, resume=True)
    assert _bytes(out) == _bytes(tmp_path / 'whole')
    assert not (out / '.torchgeo-explora-predict').exists()
    again = _mixing(scenes, out, how, resume=True)
    assert again.skipped == list(map(str, scenes))
    assert again.tally.windows == 0


def test_a_resumed_run_has_the_same_settings(scenes: list[Path], tmp_path: Path) -> None:
    _mixing(scenes, tmp_path / 'out', PredictSettings())
    with pytest.raises(ConfigError, match='other settings'):
        _mixing(scenes, tmp_path / 'out', PredictSettings(batch=5), resume=True)
    with pytest.raises(ConfigError, match='other sources'):
        _mixing(scenes[1:], tmp_path / 'out', PredictSettings(), resume=True)


@pytest.mark.parametrize('count', [1, 3])
def test_shards_give_the_bytes_of_one_run(count: int, scenes: list[Path], tmp_path: Path) -> None:
    how = PredictSettings(batch=3, block=40, probabilities=True)
    _mixing(scenes, tmp_path / 'whole', how)
    out = tmp_path / 'shards'
    for number in reversed(range(1, count + 1)):
        summary = _mixing(scenes, out, how, shard=Shard(number, count))
        assert not list(out.glob('*_pred.tif'))
        assert summary.written == {}
    joined = _mixing(scenes, out, how, resume=True)
    assert joined.tally.windows == 0
    assert _bytes(out) == _bytes(tmp_path / 'whole')


def test_impossible_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match='no shard 3/2'):
        Shard(3, 2)


def test_damaged_rasters_are_named_and_the_others_go_on(
    scenes: list[Path], tmp_path: Path, rng: np.random.Generator
) -> None:
    values = rng.integers(1, 255, (3, 300, 300), dtype=np.uint8)
    whole = write_raster(tmp_path / 'cut.tif', values, compress='deflate', tiled=True, blockxsize=64, blockysize=64)  # fmt: skip
    cut = tmp_path / 'scenes' / 'cut.tif'
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    text = tmp_path / 'scenes' / 'text.tif'
    text.write_text('this is no raster')
    how = PredictSettings(batch=4)
    damaged = [text, scenes[0], cut, *scenes[1:], tmp_path / 'scenes' / 'absent.tif']
    summary = _mixing(damaged, tmp_path / 'out', how)
    assert set(summary.failed) == {str(text), str(cut), str(damaged[-1])}
    assert all('cannot be read' in reason for reason in summary.failed.values())
    assert set(summary.written) == set(map(str, scenes))
    assert not list(tmp_path.glob('out/cut*'))
    _mixing(scenes, tmp_path / 'alone', PredictSettings(batch=4))
    for path in scenes:
        name = f'{path.stem}_pred.tif'
        np.testing.assert_array_equal(
            _read(tmp_path / 'out' / name), _read(tmp_path / 'alone' / name)
        )


def test_models_that_do_not_fit_are_refused_before_anything_is_written(
    scenes: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(Exception, match='must give 7 classes'):
        predict_rasters(scenes, Copy(), segmentation_spec(classes=7), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    dates = make_temporal()
    with pytest.raises(ConfigError, match='several dates'):
        predict_rasters(scenes, dates, segmentation_spec(), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    with pytest.raises(ConfigError, match='--max-memory'):
        _mixing(scenes, tmp_path / 'out', PredictSettings(max_memory=1))


def test_memory_limits_the_width_of_blocks() -> None:
    spec: ModelSpec = segmentation_spec(classes=30, image_size=224)
    limit = PredictSettings().tiling(spec).block_limit(30, 3)
    more = PredictSettings(max_memory=1024).tiling(spec).block_limit(30, 3)
    assert 224 <= limit.width < more.width <= 8192


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
