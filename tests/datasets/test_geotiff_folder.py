"""Windows of rasters: where they lie, what they hold, and what is measured of them."""

import itertools
import json
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import Affine

from tests.data.polygons.data import NORTH, UTM, WEST, noise, write
from torchgeo_explora.datasets import GeoTIFFFolder, LabelledWindows
from torchgeo_explora.datasets._draws import Validity, WindowDraw, find_strata, share_out
from torchgeo_explora.datasets._statistics import BandStatistics, read_statistics
from torchgeo_explora.errors import ConfigError, ImageError, LabelError


def half_empty(height: int, width: int, bands: int = 3) -> NDArray[np.uint8]:
    """Noise from 1 on; the upper right triangle is 0."""
    values = noise(bands, height, width)
    rows, columns = np.indices((height, width))
    values[:, columns * height > rows * width] = 0
    return values


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), side=st.integers(1, 40),
    seed=st.integers(0, 5), least=st.sampled_from([0.2, 0.9, 1.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_draws_stay_inside_and_on_data(
    height: int, width: int, side: int, seed: int, least: float
) -> None:
    side = min(side, height, width)
    points = np.random.default_rng(seed).random((-(-height // 4), -(-width // 4))) < 0.8
    validity = Validity(points, height, width)
    strata = find_strata(0, (height, width), side, validity, least)
    if len(strata) == 0:
        return
    draw = WindowDraw([strata], [3], seed)
    for index, epoch in itertools.product(range(3), range(3)):
        window = draw.window(index, epoch)
        assert 0 <= window.row <= height - side and 0 <= window.column <= width - side
        assert (window.height, window.width) == (side, side)
        assert validity.share(window.row, window.column, side) >= least
        assert draw.window(index, epoch) == window  # nothing hangs on what was drawn before


def test_all_places_are_visited_equally_often() -> None:
    points = np.ones((20, 30), dtype=np.bool_)
    strata = find_strata(0, (200, 300), 40, Validity(points, 200, 300), 1.0)
    draw = WindowDraw([strata], [7], seed=1)
    passes = 2 * len(strata)  # the draws of 7 windows a pass end with a whole number of laps
    windows = [draw.window(index, epoch) for epoch in range(passes) for index in range(7)]
    seen = np.zeros((200, 300))
    for window in windows:
        seen[window.row : window.row + 40, window.column : window.column + 40] += 1
    inner = seen[40:-40, 40:-40]
    assert inner.min() > 0.6 * inner.mean() and inner.max() < 1.6 * inner.mean()
    assert seen.min() >= 0 and (seen > 0).mean() > 0.99
    near = Counter(
        int(np.hypot(strata.rows - window.row, strata.columns - window.column).argmin())
        for window in windows
    )
    assert set(near) == set(range(len(strata)))


@pytest.mark.parametrize('balance', [0.0, 0.5, 1.0])
def test_passes_are_shared_out(balance: float) -> None:
    areas = [1, 4, 100]
    counts = share_out(areas, 105, balance)
    assert sum(counts) == 105 and min(counts) >= 1
    weights = np.array(areas) ** balance
    np.testing.assert_allclose(counts, 1 + weights / weights.sum() * 102, atol=1)
    assert share_out(areas, 2, balance) == [1, 1, 1]


def test_windows_are_those_of_the_file(tmp_path: Path) -> None:
    values = noise(4, 90, 70)
    write(tmp_path / 'a.tif', values)
    data = GeoTIFFFolder(tmp_path, image_size=32, bands=[3, 1], seed=2)
    for index in range(len(data)):
        window = data.window(index, 5)
        part = values[[2, 0], window.row : window.row + 32, window.column : window.column + 32]
        image = data.draw(index, 5)['image']
        assert torch.equal(image, torch.from_numpy(part).float() / 255)
    assert data.bands == ('blue', 'red') and data.resolution == pytest.approx(10, rel=0.01)
    still = data.side_by_side()
    covered = np.zeros((90, 70), dtype=bool)
    for index in range(len(still)):
        window = still.window(index)
        covered[window.row : window.row + 32, window.column : window.column + 32] = True
    assert covered.all() and len(still) == 9


@pytest.mark.parametrize('kind', ['nodata', 'alpha', 'nan', 'mask'])
def test_windows_avoid_what_holds_no_data(tmp_path: Path, kind: str) -> None:
    values = half_empty(120, 160)
    valid = (values > 0).all(axis=0)
    path = tmp_path / 'a.tif'
    if kind == 'nodata':
        write(path, values, nodata=0)
    elif kind == 'alpha':
        write(path, np.concatenate([values, 255 * valid[None].astype(np.uint8)]), alpha=True)
    elif kind == 'nan':
        write(path, np.where(valid, values, np.nan).astype(np.float32))
    else:
        write(path, values)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as sink:
            sink.write_mask(valid)
    data = GeoTIFFFolder(path, image_size=24, min_valid=0.8)
    assert data.num_channels == 3
    shares = []
    for index, epoch in itertools.product(range(len(data)), range(3)):
        window = data.window(index, epoch)
        rows = slice(window.row, window.row + 24)
        columns = slice(window.column, window.column + 24)
        shares.append(valid[rows, columns].mean())
        image = data.draw(index, epoch)['image']
        assert (image[:, ~torch.from_numpy(valid[rows, columns].copy())] == 0).all()
    assert min(shares) >= 0.7  # the mask is looked at on a grid of points
    measured = data.statistics
    assert min(measured.minimum) >= 1 and min(measured.valid) >= 0.8


def test_statistics_are_those_of_valid_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal([[[500.0]], [[-3.0]]], [[[40.0]], [[1.0]]], (2, 128, 128))
    values = values.astype(np.float32)
    values[:, :, :30] = -9999
    write(tmp_path / 'a.tif', values, nodata=-9999)
    found = GeoTIFFFolder(tmp_path, image_size=16, min_valid=1.0).statistics
    inside = values[:, :, 30:].reshape(2, -1).astype(np.float64)
    low, high = np.percentile(inside, (1, 99), axis=1)
    width = high - low
    np.testing.assert_allclose((found.low - low) / width, 0, atol=0.03)
    np.testing.assert_allclose((found.high - high) / width, 0, atol=0.03)
    unit = ((inside - low[:, None]) / width[:, None]).clip(0, 1)
    np.testing.assert_allclose(found.mean, unit.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(found.std, unit.std(axis=1), atol=0.02)
    assert found.valid == (1.0, 1.0) and found.source == 'percentiles'
    assert BandStatistics.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_statistics_are_kept_and_belong_to_their_rasters(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', (noise(2, 64, 64).astype(np.uint16) + 1000))
    kept = tmp_path / 'out' / 'statistics.json'
    first = GeoTIFFFolder(tmp_path / 'a.tif', image_size=16, statistics=kept)
    assert read_statistics(kept) == first.statistics
    before = kept.stat().st_mtime_ns
    again = GeoTIFFFolder(tmp_path / 'a.tif', image_size=16, statistics=kept)
    assert again.statistics == first.statistics and kept.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match='measured on other images'):
        GeoTIFFFolder(tmp_path / 'a.tif', image_size=16, statistics=kept, seed=1)


def test_rasters_of_many_kinds_go_together(tmp_path: Path) -> None:
    """Sizes, places and coordinate reference systems differ; so does the order of named bands."""
    write(tmp_path / 'a.tif', noise(3, 90, 40))
    write(tmp_path / 'b.tif', noise(3, 33, 64), Affine(3e-5, 1e-5, 8, 1e-5, -3e-5, 47), 'EPSG:4326')
    write(tmp_path / 'c.tif', noise(3, 20, 20), crs=None)
    write(tmp_path / 'd.tif', noise(3, 40, 40), Affine(1, 0, 1e7, 0, -1, 1e7), 'EPSG:4326')
    for name, order in (('a', 'rgn'), ('b', 'ngr'), ('c', 'rgn'), ('d', 'rgn')):
        with rasterio.open(tmp_path / f'{name}.tif', 'r+') as sink:
            sink.descriptions = tuple(order)
    data = GeoTIFFFolder(tmp_path, image_size=32, balance=0.0, length=40)
    assert data.bands == ('r', 'g', 'n') and data.resolution is None
    assert [raster.indexes for raster in data.rasters] == [
        (1, 2, 3), (3, 2, 1), (1, 2, 3), (1, 2, 3),
    ]  # fmt: skip
    assert Counter(data.file_of(index)[-5] for index in range(40)) == dict.fromkeys('abcd', 10)
    assert {data[index]['image'].shape for index in range(40)} == {(3, 32, 32)}


def test_colour_tables_become_colours(tmp_path: Path) -> None:
    values = (noise(1, 40, 40) % 2).astype(np.uint8)
    path = write(tmp_path / 'a.tif', values)
    with rasterio.open(path, 'r+') as sink:
        sink.write_colormap(1, {0: (10, 20, 30, 255), 1: (200, 100, 0, 255)})
    data = GeoTIFFFolder(path, image_size=40)
    assert data.bands == ('red', 'green', 'blue')
    table = torch.tensor([[10, 20, 30], [200, 100, 0]]) / 255
    assert torch.equal(data[0]['image'], table[values[0].astype(int)].permute(2, 0, 1))


def test_pixels_are_resampled_to_one_size_on_the_ground(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8), (1, 128, 128))
    write(tmp_path / 'a.tif', np.ascontiguousarray(ramp))
    data = GeoTIFFFolder(tmp_path, image_size=16, resolution=20, min_size=8)
    assert data.resolution == 20 and data.rasters[0].strata.side == 32
    window = data.window(0)
    expected = (window.column + 2 * torch.arange(16) + 0.5) / 255
    torch.testing.assert_close(data[0]['image'][0, 5], expected, atol=0.51 / 255, rtol=0)


def test_unusable_rasters_are_named_and_left_out(tmp_path: Path) -> None:
    write(tmp_path / 'good.tif', noise(3, 64, 64))
    write(tmp_path / 'small.tif', noise(3, 4, 64))
    write(tmp_path / 'empty.tif', np.zeros((3, 64, 64), np.uint8), nodata=0)
    (tmp_path / 'text.tif').write_text('no raster')
    with pytest.warns(UserWarning, match='3 of 4 rasters are left out') as caught:
        data = GeoTIFFFolder(tmp_path, image_size=16, min_size=8)
    assert {path.name for path in data.skipped} == {'small.tif', 'empty.tif', 'text.tif'}
    assert 'holds data in 90 %' in str(caught[0].message)
    assert len({data.file_of(index) for index in range(len(data))}) == 1


def test_damaged_windows_are_replaced_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / 'a.tif', noise(3, 256, 64))
    write(tmp_path / 'b.tif', noise(3, 64, 64))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match='replaced by another one'):
        data = GeoTIFFFolder(tmp_path, image_size=16)
        images = [data[index]['image'] for index in range(len(data))]
    assert all(image.shape == (3, 16, 16) for image in images) and list(data.damaged) == [str(path)]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'bands': [9]}, 'has no band 9'),
        ({'num_channels': 4}, 'has 3 bands of uint8, but 4 are needed'),
        ({'resolution': -1}, 'resolution is -1'),
        ({'min_valid': 0}, 'min_valid is 0'),
        ({'balance': 2}, 'balance is 2'),
        ({'percentiles': (99, 1)}, 'percentiles are'),
        ({'image_size': 0}, 'image_size 0'),
        ({'mode': 'grey'}, "mode is 'grey'"),
        ({'scale': (1, 0)}, 'with low below high'),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    write(tmp_path / 'a.tif', noise(4, 64, 64))
    with pytest.raises((ConfigError, ImageError), match=message):
        GeoTIFFFolder(tmp_path, **arguments)


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(3, 64, 64))
    write(tmp_path / 'b.tif', noise(3, 64, 64).astype(np.uint16))
    with pytest.raises(ImageError, match=r'b\.tif .*uint16'):
        GeoTIFFFolder(tmp_path)
    with pytest.raises(ImageError, match='None of 1 rasters can be read'):
        GeoTIFFFolder(tmp_path / 'absent.tif')


def fields(folder: Path) -> Path:
    """A raster of 12 x 12 windows of 16 pixels, with polygons of two classes."""
    write(folder / 'images' / 'a.tif', noise(3, 192, 192))
    shapes, kinds = [], []
    for row, column in itertools.product(range(12), range(12)):
        if (row, column) == (0, 0):
            continue  # nobody knows what is here
        side = 160 if (row + column) % 3 else 100  # a quarter of some windows is covered
        x, y = WEST + 160 * column, NORTH - 160 * row
        shapes.append(shapely.box(x, y - side, x + side, y))
        kinds.append('wood' if (row + column) % 2 else 'field')
    frame = geopandas.GeoDataFrame({'kind': kinds}, geometry=shapes, crs=UTM)
    frame.to_crs('EPSG:4326').to_file(folder / 'labels.gpkg')
    return folder


def test_labels_are_the_classes_that_cover_windows(tmp_path: Path) -> None:
    root = fields(tmp_path)
    images = GeoTIFFFolder(root / 'images', image_size=16)
    reference = LabelledWindows(images, root / 'labels.gpkg', 'kind')
    scored = reference.with_split('scored')
    assert reference.classes == ['field', 'wood']
    places = set()
    for part in (reference, scored):
        assert len(part) > 0
        for index, window in enumerate(part.windows):
            row, column = window.row // 16, window.column // 16
            assert (row, column) not in places and (row, column) != (0, 0)
            assert (row + column) % 3 != 0  # 39 % of the others are covered
            assert part.classes[int(part[index]['label'])] == ('field', 'wood')[(row + column) % 2]
            assert torch.equal(part[index]['image'], images.finish(images.read(window)))
            places.add((row, column))
    assert 0.1 < len(scored) / (len(scored) + len(reference)) < 0.6


def test_labels_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    root = fields(tmp_path)
    images = GeoTIFFFolder(root / 'images', image_size=16)
    with pytest.raises(LabelError, match='species'):
        LabelledWindows(images, root / 'labels.gpkg', 'species')
    with pytest.raises(LabelError, match='covers 90 %'):
        LabelledWindows(
            GeoTIFFFolder(root / 'images', image_size=96), root / 'labels.gpkg', 'kind',
            min_cover=0.9,
        )  # fmt: skip
    frame = geopandas.read_file(root / 'labels.gpkg')
    frame.assign(kind='one').to_file(root / 'one.gpkg')
    with pytest.raises(LabelError, match='at least 2 are needed'):
        LabelledWindows(images, root / 'one.gpkg', 'kind')
    write(root / 'nowhere.tif', noise(3, 64, 64), crs=None)
    with pytest.raises(LabelError, match='no place on the Earth'):
        LabelledWindows(GeoTIFFFolder(root / 'nowhere.tif'), root / 'labels.gpkg', 'kind')


def test_real_rasters(data_dir: Path, tmp_path: Path) -> None:
    """Every raster of the shared data gives windows, wherever it holds data."""
    for path in sorted((data_dir / 'geotiff').glob('*.tif')):
        shutil.copy(path, tmp_path / path.name)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            data = GeoTIFFFolder(tmp_path / path.name)
        image = data[0]['image']
        assert image.shape[1:] == (data.image_size,) * 2 and 0.02 < image.mean() < 0.98
        assert image.std() > 0.01
