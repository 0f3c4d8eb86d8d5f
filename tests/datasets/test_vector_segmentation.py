"""Masks from polygons in any raster's grid, and a split that no ground crosses."""

import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.transform
import shapely
import torch
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio import Affine

from tests.benchmarks.building_tiles import HALF_WORLD, Tile, tile_transform, write_geotiffs
from tests.data.polygons.data import (
    NORTH,
    UTM,
    WEST,
    grid,
    noise,
    square,
    write,
    write_fields,
    write_polygons,
)
from torchgeo_explora.datasets import VectorSegmentation
from torchgeo_explora.datasets._grids import moved
from torchgeo_explora.datasets._spatial_split import SPLITS, footprints
from torchgeo_explora.errors import ConfigError, ImageError, LabelError

ONE_SPLIT: dict[str, Any] = {'val_fraction': 0, 'test_fraction': 0, 'overlap': 0}


def assembled(dataset: VectorSegmentation, key: str) -> dict[str, NDArray[Any]]:
    """Each raster's masks or images, put together from windows that do not overlap."""
    found: dict[str, NDArray[Any]] = {}
    for sample in (dataset[index] for index in range(len(dataset))):
        row, column, height, width = sample['window'].tolist()
        values = sample[key].numpy()[..., :height, :width]
        with rasterio.open(sample['file']) as source:
            shape = (*values.shape[:-2], source.height, source.width)
        whole = found.setdefault(sample['file'], np.full(shape, -1, dtype=values.dtype))
        whole[..., row : row + height, column : column + width] = values
    return found


def inside(path: Path, labels: Path) -> NDArray[np.bool_]:
    """Reference: which pixel centres lie in a polygon, asked point by point."""
    with rasterio.open(path) as source:
        rows, columns = np.indices(source.shape)
        x, y = rasterio.transform.xy(
            source.transform, rows.ravel().tolist(), columns.ravel().tolist()
        )
        shapes = geopandas.read_file(labels).to_crs(source.crs).geometry.make_valid().to_numpy()
    area = shapely.union_all(shapes)
    return np.asarray(shapely.contains_xy(area, x, y)).reshape(rows.shape)


def rasters_in_four_grids(root: Path) -> Path:
    """The same ground in UTM, rotated, in degrees, in web mercator, and polygons over it."""
    write(root / 'images' / 'utm.tif', noise(3, 70, 90))
    write(root / 'images' / 'rotated.tif', noise(3, 64, 64), grid(20, 10, angle=27))
    degrees = Transformer.from_crs(UTM, 'EPSG:4326', always_xy=True)
    west, north = degrees.transform(WEST + 100, NORTH - 50)
    write(root / 'images' / 'degrees.tif', noise(3, 50, 60),
          Affine(1.3e-4, 0, west, 0, -0.9e-4, north), 'EPSG:4326')  # fmt: skip
    west, north = Transformer.from_crs(UTM, 'EPSG:3857', always_xy=True).transform(
        WEST + 200, NORTH - 100
    )
    write(root / 'images' / 'mercator.tif', noise(3, 40, 40),
          Affine(14.2, 0, west, 0, -14.2, north), 'EPSG:3857')  # fmt: skip
    rng = np.random.default_rng(3)
    shapes = []
    for _ in range(12):
        hull = shapely.MultiPoint(rng.random((6, 2)) * 18).convex_hull
        shapes.append(shapely.affinity.translate(
            shapely.affinity.scale(hull, 10, 10, origin=(0, 0)),
            WEST + rng.integers(0, 700), NORTH - rng.integers(100, 700),
        ))  # fmt: skip
    write_polygons(root / 'labels.gpkg', shapes, crs='EPSG:3035')
    return root


def test_masks_hold_the_pixels_whose_centres_polygons_hold(tmp_path: Path) -> None:
    root = rasters_in_four_grids(tmp_path)
    dataset = VectorSegmentation(root, 'labels.gpkg', image_size=32, **ONE_SPLIT)
    masks = assembled(dataset, 'mask')
    assert len(masks) == 4
    for path, mask in masks.items():
        expected = inside(Path(path), root / 'labels.gpkg')
        assert 0.05 < expected.mean() < 0.95
        assert np.array_equal(mask == 1, expected), path
        assert np.array_equal(mask == 0, ~expected), path


def test_images_are_the_rasters_pixels(tmp_path: Path) -> None:
    root = rasters_in_four_grids(tmp_path)
    dataset = VectorSegmentation(root, 'labels.gpkg', image_size=32, bands=[3, 1], **ONE_SPLIT)
    assert dataset.bands == ('3', '1')
    for path, image in assembled(dataset, 'image').items():
        with rasterio.open(path) as source:
            expected = source.read([3, 1]).astype(np.float32) / np.float32(255)
        assert np.array_equal(image, expected)


def shifted_files(root: Path) -> Path:
    """Rasters that overlap each other at odd offsets, sizes and resolutions."""
    rng = np.random.default_rng(1)
    for number in range(14):
        column, row = rng.integers(0, 150, 2)
        height, width = rng.integers(20, 90, 2)
        pixel = (10, 5, 20)[number % 3]
        transform = grid(column * 10 / pixel, row * 10 / pixel, pixel, (0, 0, 33)[number % 3])
        write(root / f'{number}.tif', noise(3, height, width, number), transform)
    write_polygons(root / 'labels.geojson', [square(0, 0, 300)])
    return root


def date_line(root: Path) -> Path:
    """Rasters on both sides of the date line and across it, the latter beyond 180 degrees."""
    for number, west in enumerate((179.98, 179.99, 179.995, -180.0, -179.995, -180.004)):
        transform = Affine(2e-4, 0, west, 0, -2e-4, 60.05)
        write(root / f'{number}.tif', noise(3, 50, 60, number), transform, 'EPSG:4326')
    area = [shapely.box(179.5, 59, 180, 61), shapely.box(-180, 59, -179.5, 61)]
    geopandas.GeoDataFrame(geometry=area, crs='EPSG:4326').to_file(root / 'labels.geojson')
    return root


def two_zones(root: Path) -> Path:
    """The same ground in two UTM zones and in degrees."""
    write(root / 'a.tif', noise(3, 128, 128), Affine(10, 0, 740_000, 0, -10, 5_000_000), UTM)
    to = Transformer.from_crs(UTM, 'EPSG:32633', always_xy=True)
    west, north = to.transform(740_100, 4_999_900)
    write(root / 'b.tif', noise(3, 128, 128), Affine(10, 0, west, 0, -10, north), 'EPSG:32633')
    west, north = Transformer.from_crs(UTM, 'EPSG:4326', always_xy=True).transform(
        740_200, 4999_990
    )
    write(root / 'c.tif', noise(3, 90, 90), Affine(1e-4, 0, west, 0, -1e-4, north), 'EPSG:4326')
    area = shapely.box(739_000, 4_990_000, 750_000, 5_001_000)
    write_polygons(root / 'labels.geojson', [area])
    return root


def row_of_fields(root: Path) -> Path:
    return write_fields(root, labels='labels.geojson')


LAYOUTS = [shifted_files, date_line, two_zones, row_of_fields]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('options', [
    {}, {'overlap': 0.0}, {'gap': 0.0, 'seed': 4}, {'gap': 120.0, 'seed': 1}, {'resolution': 14.0},
])  # fmt: skip
def test_no_ground_is_in_two_splits(layout: Any, options: Any, tmp_path: Path) -> None:  # noqa: ANN401
    root = layout(tmp_path)
    train = VectorSegmentation(
        root, 'labels.geojson', image_size=16, val_fraction=0.2, test_fraction=0.2, **options
    )
    parts = {split: train.with_split(split) for split in SPLITS}
    covered = {split: part.ground_covered() for split, part in parts.items()}
    for one, other in combinations(SPLITS, 2):
        assert covered[one].area > 0 and covered[other].area > 0
        assert covered[one].intersection(covered[other]).area == 0
    # training windows keep their distance wherever they are moved to
    places, ground = train._rasters.places, train._survey.ground
    rng = np.random.default_rng(0)
    drawn = [moved(window, places[window.file], rng) for window in train.windows for _ in range(6)]
    assert layout is not row_of_fields or any(window.slack > 0 for window in drawn)
    others = shapely.union_all([covered['val'], covered['test']])
    distances = shapely.distance(footprints(drawn, places, ground), others)
    assert distances.min() > 0
    if 'gap' in options:
        assert distances.min() >= options['gap']
    if options == {}:  # half a window of the raster's own pixels
        sides = [ground.pixel(places[window.file])[0] * window.height for window in drawn]
        large = [places[window.file].height > 16 for window in drawn]
        assert (distances >= np.array(sides) * 0.45 * large).all()


def test_blocks_and_shares(tmp_path: Path) -> None:
    root = tmp_path
    write(root / 'one.tif', noise(3, 512, 512))
    write_polygons(root / 'labels.gpkg', [square(10, 10, 400)])
    sizes = []
    for seed in range(4):
        train = VectorSegmentation(root, 'labels.gpkg', image_size=16, overlap=0, seed=seed)
        counts = [len(train.with_split(split)) for split in SPLITS]
        assert train.block_size == pytest.approx(8 * 160, rel=0.01) and train.gap == 0
        assert sum(counts) == 32 * 32 and abs(counts[1] - 154) < 32 and abs(counts[2] - 154) < 32
        sizes.append(train.ground_covered().symmetric_difference(
            VectorSegmentation(root, 'labels.gpkg', image_size=16, overlap=0).ground_covered()
        ).area)  # fmt: skip
    assert sizes[0] == 0 and min(sizes[1:]) > 0  # the seed alone decides


def test_every_pixel_of_test_counts_once(tmp_path: Path) -> None:
    """Where the last window is moved back, what its neighbour has is ignored."""
    write(tmp_path / 'one.tif', noise(3, 77, 101))
    write_polygons(tmp_path / 'labels.gpkg', [square(10, 10, 40)])
    train = VectorSegmentation(tmp_path, 'labels.gpkg', image_size=32, overlap=0, block_size=200)
    times = np.zeros((77, 101), dtype=int)
    for split in ('val', 'test'):
        part = train.with_split(split)
        for sample in (part[index] for index in range(len(part))):
            row, column, height, width = sample['window'].tolist()
            times[row : row + height, column : column + width] += sample['mask'].numpy() != 255
    assert times.max() == 1 and times.sum() > 32 * 32


def test_pixels_without_data_are_ignored(tmp_path: Path) -> None:
    values = noise(3, 48, 48)
    values[:, :20, :] = 0
    values[0, 30:, :] = 0  # one band without data is data still
    write(tmp_path / 'nodata.tif', values, nodata=0)
    write(tmp_path / 'small.tif', noise(3, 20, 12), grid(48, 0))
    write_polygons(tmp_path / 'labels.gpkg', [square(0, 0, 60)])
    dataset = VectorSegmentation(tmp_path, 'labels.gpkg', image_size=16, **ONE_SPLIT)
    assert dataset.counts['windows without data'] == 3
    assert len(dataset) == 6 + 2
    mask = assembled(dataset, 'mask')[str(tmp_path / 'nodata.tif')]
    assert (mask[16:20] == 255).all() and (mask[20:] == 1).all()
    small = [dataset[index] for index in range(6, 8)]
    assert [sample['window'].tolist() for sample in small] == [[0, 0, 16, 12], [4, 0, 16, 12]]
    assert (small[0]['mask'][:, 12:] == 255).all() and (small[0]['image'][..., 12:] == 0).all()
    assert (small[0]['mask'][:, :12] == 1).all() and (small[0]['image'][..., :12] > 0).all()


def test_not_a_number_and_alpha_are_no_data(tmp_path: Path) -> None:
    values = noise(2, 32, 32).astype(np.float32)
    values[:, :16] = np.nan
    write(tmp_path / 'float' / 'a.tif', values)
    alpha = noise(4, 32, 32)
    alpha[3] = 255
    alpha[3, :, 8:] = 0
    write(tmp_path / 'alpha' / 'a.tif', alpha, alpha=True)
    for kind, share in (('float', 1.0), ('alpha', 0.5)):
        write_polygons(tmp_path / kind / 'l.gpkg', [square(0, 0, 32)])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            dataset = VectorSegmentation(tmp_path / kind, 'l.gpkg', image_size=16, **ONE_SPLIT)
        assert [True for w in said if 'The alpha channel of 1' in str(w.message)] == [True] * (
            kind == 'alpha'
        )
        assert dataset.counts['windows without data'] == 2
        for index in range(2):
            assert (dataset[index]['mask'] == 1).float().mean() == share
            assert dataset[index]['image'].isfinite().all()


def test_classes_of_a_column(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(3, 32, 32))
    shapes = [square(8 * n, 0, 8) for n in range(4)] + [square(500, 500, 8)]
    kinds = ['10', '9', None, ' 10 ', 'far']
    numbers = [10.0, 9.0, float('nan'), 10.0, 11.0]
    write_polygons(tmp_path / 'l.gpkg', shapes, {'kind': kinds, 'number': numbers})
    with pytest.warns(UserWarning, match='1 polygons have no class.*1 polygons lie on no raster'):
        dataset = VectorSegmentation(tmp_path, 'l.gpkg', class_column='kind', image_size=32,
                                     **ONE_SPLIT)  # fmt: skip
    assert dataset.classes == ['background', '9', '10']
    assert dataset[0]['mask'][4, ::8].tolist() == [2, 1, 255, 2]
    assert dataset[0]['mask'][9].tolist() == [0] * 32
    with pytest.warns(UserWarning):
        numeric = VectorSegmentation(tmp_path, 'l.gpkg', class_column='number', image_size=32,
                                     classes=['10', '9'], background=False, **ONE_SPLIT)  # fmt: skip
    assert numeric.classes == ['10', '9']
    assert numeric[0]['mask'][4, ::8].tolist() == [0, 1, 255, 0]
    assert numeric[0]['mask'][9].tolist() == [255] * 32


def test_windows_without_labels_are_left_out_where_background_is_no_class(tmp_path: Path) -> None:
    root = write_fields(tmp_path, count=2)
    with_background = VectorSegmentation(root, 'labels.gpkg', class_column='kind', image_size=32,
                                         **ONE_SPLIT)  # fmt: skip
    without = VectorSegmentation(root, 'labels.gpkg', class_column='kind', image_size=12,
                                 background=False, **ONE_SPLIT)  # fmt: skip
    assert len(with_background) == 18 and with_background.counts['windows without labels'] == 0
    assert without.counts['windows without labels'] > 0
    for index in range(len(without)):
        assert set(without[index]['mask'].unique().tolist()) <= {0, 1, 255}


def test_one_resolution(tmp_path: Path) -> None:
    """Rasters of 10 and 5 m are both seen at 10 m, and polygons keep their size in metres."""
    coarse, fine = noise(1, 32, 32), noise(1, 64, 64)
    write(tmp_path / 'a.tif', coarse, grid())
    write(tmp_path / 'b.tif', fine, grid(0, 128, pixel=5))
    write_polygons(tmp_path / 'l.gpkg', [square(4, 4, 8), square(4, 68, 8)])
    dataset = VectorSegmentation(tmp_path, 'l.gpkg', image_size=32, resolution=10.0, **ONE_SPLIT)
    assert dataset.resolution == 10.0
    first, second = dataset[0], dataset[1]
    assert 'window' not in second and second['image'].shape == (1, 32, 32)
    means = fine.reshape(32, 2, 32, 2).mean(axis=(1, 3)) / 255
    assert np.abs(second['image'][0].numpy() - means).max() < 0.01
    assert (first['mask'] == 1).sum() == (second['mask'] == 1).sum() == 64
    assert VectorSegmentation(tmp_path, 'l.gpkg', **ONE_SPLIT, image_size=32).resolution is None


def test_scale_comes_from_training_windows_alone(tmp_path: Path) -> None:
    values = np.full((1, 64, 256), 500, dtype=np.uint16)
    values += np.arange(256, dtype=np.uint16)
    write(tmp_path / 'a.tif', values)
    write_polygons(tmp_path / 'l.gpkg', [square(0, 0, 256)])
    plain = VectorSegmentation(tmp_path, 'l.gpkg', image_size=16, gap=0)
    seen = np.concatenate([
        values[0, w.row : w.row + 16, w.column : w.column + 16].ravel() for w in plain.windows
    ])  # fmt: skip
    assert (plain.scale.low, plain.scale.high) == tuple(
        (float(np.percentile(seen, q)),) for q in (1, 99)
    )
    assert plain.with_split('test').scale == plain.scale
    given = VectorSegmentation(tmp_path, 'l.gpkg', image_size=16, scale=(0, 1000))
    assert given[0]['image'].max() <= 0.756 and given.scale.source == 'given'


def test_moves_depend_on_seed_pass_and_position_alone(tmp_path: Path) -> None:
    root = write_fields(tmp_path)
    first = VectorSegmentation(root, 'labels.gpkg', image_size=32, seed=3)
    again = VectorSegmentation(root, 'labels.gpkg', image_size=32, seed=3)
    where = [first.draw(index, 1)['window'].tolist() for index in range(len(first))]
    assert where == [again.draw(index, 1)['window'].tolist() for index in range(len(again))]
    assert where != [first.draw(index, 2)['window'].tolist() for index in range(len(first))]
    test = first.with_split('test')
    assert torch.equal(test.draw(0, 1)['image'], test.draw(0, 2)['image'])


@pytest.mark.parametrize('suffix', ['gpkg', 'geojson', 'shp'])
def test_formats(suffix: str, tmp_path: Path) -> None:
    root = write_fields(tmp_path, labels=f'labels.{suffix}')
    dataset = VectorSegmentation(root, f'labels.{suffix}', class_column='kind', image_size=96,
                                 **ONE_SPLIT)  # fmt: skip
    reference = VectorSegmentation(write_fields(tmp_path / 'r'), 'labels.gpkg', class_column='kind',
                                   image_size=96, **ONE_SPLIT)  # fmt: skip
    for index in range(4):
        assert torch.equal(dataset[index]['mask'], reference[index]['mask'])


def test_faulty_geometries_are_mended_or_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path / 'a.tif', noise(3, 32, 32))
    west, north = WEST, NORTH
    bow = shapely.Polygon([(west, north), (west + 160, north - 160), (west + 160, north),
                           (west, north - 160)])  # fmt: skip
    flat = shapely.LineString([(west, north), (west + 50, north - 50)])
    high = shapely.Polygon([(west + 200, north - 200, 5), (west + 300, north - 200, 5),
                            (west + 300, north - 300, 5)])  # fmt: skip
    write_polygons(tmp_path / 'l.gpkg', [bow, flat, high, None], crs=UTM)
    with pytest.warns(UserWarning, match='1 invalid geometries were mended; 1 features without'):
        dataset = VectorSegmentation(tmp_path, 'l.gpkg', image_size=32, **ONE_SPLIT)
    assert dataset.counts['no area'] == 1
    mask = dataset[0]['mask']
    assert mask[8, 2] == 1 and mask[8, 13] == 1 and mask[2, 8] == 0  # both wings of the bow tie
    assert mask[21, 26] == 1


def test_masks_that_are_rasters(tmp_path: Path) -> None:
    image, mask = noise(3, 40, 40), np.random.default_rng(0).integers(0, 3, (1, 40, 40))
    mask[0, 0, 0], mask[0, 0, 1] = 255, 9
    write(tmp_path / 'images' / 'x' / 'a.tif', image)
    write(tmp_path / 'images' / 'masks' / 'x' / 'a.tif', mask.astype(np.uint8), nodata=9)
    dataset = VectorSegmentation(tmp_path / 'images', 'masks', image_size=16,
                                 classes=['a', 'b', 'c'], **ONE_SPLIT)  # fmt: skip
    assert dataset.classes == ['a', 'b', 'c'] and len(dataset._rasters.places) == 1
    found = assembled(dataset, 'mask')[str(tmp_path / 'images' / 'x' / 'a.tif')]
    assert (found[0, :2] == 255).all() and np.array_equal(found[1:], mask[0, 1:])


def _masks(root: Path, values: Any, **options: Any) -> VectorSegmentation:  # noqa: ANN401
    write(root / 'images' / 'a.tif', noise(3, 16, 16))
    write(root / 'masks' / 'a.tif', values)
    return VectorSegmentation(root / 'images', root / 'masks', image_size=16,
                              **(ONE_SPLIT | options))  # fmt: skip


def test_masks_with_unknown_values_are_refused(tmp_path: Path) -> None:
    values = np.zeros((1, 16, 16), dtype=np.uint8)
    values[0, 3, 3], values[0, 4, 4] = 7, 1
    with pytest.raises(
        LabelError, match=r'a\.tif has pixels of 7, but there are 2 classes, 0 to 1'
    ):
        _masks(tmp_path, values, classes=['a', 'b'])
    assert len(_masks(tmp_path, np.where(values == 7, 255, values).astype(np.uint8)).classes) == 2
    with pytest.raises(LabelError, match='whole numbers on the same grid'):
        _masks(tmp_path, values.astype(np.float32))
    with pytest.raises(LabelError, match='whole numbers on the same grid'):
        _masks(tmp_path, values[:, 1:])
    (tmp_path / 'masks' / 'a.tif').rename(tmp_path / 'masks' / 'b.tif')
    with pytest.raises(LabelError, match='1 of 1 images have no mask of their name'):
        VectorSegmentation(tmp_path / 'images', tmp_path / 'masks', image_size=16)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({'labels': 'none.gpkg'}, LabelError, 'none.gpkg is not there'),
    ({'labels': 'broken.gpkg'}, LabelError, 'cannot be read as a vector file'),
    ({'labels': 'nowhere.gpkg'}, LabelError, 'has no CRS.*labels_crs'),
    ({'labels_crs': 'EPSG:3857'}, LabelError, r"is in EPSG:4326, but labels_crs is 'EPSG:3857'"),
    ({'labels': 'nowhere.gpkg', 'labels_crs': 'metres'}, LabelError, 'which is no CRS'),
    ({'class_column': 'name'}, LabelError, "no column 'name'; it has kind, bare"),
    ({'class_column': 'bare'}, LabelError, "Column 'bare'.*is empty in all"),
    ({'class_column': 'kind', 'classes': ['crop']}, LabelError, 'of the classes forest, which'),
    ({'class_column': 'kind', 'classes': ['crop', 'forest', 'sea']}, LabelError,
     r'1 classes are in no training window: sea \(nowhere\)'),
    ({'class_column': 'kind', 'classes': ['crop', 'crop', 'forest']}, ConfigError, 'more than once'),
    ({'classes': ['a', 'b']}, ConfigError, 'give class_column, or one name'),
    ({'background': False}, LabelError, 'There are 1 classes'),
    ({'labels': 'far.gpkg'}, LabelError, 'None of the 1 polygons .* lies on a raster'),
    ({'labels': 'points.gpkg'}, LabelError, r'none of them is an area \(1 no area\)'),
    ({'layer': 'roads'}, LabelError, "has no layer 'roads'; it has labels"),
    ({'val_fraction': 0.6, 'test_fraction': 0.4}, ConfigError, 'with a sum below 1'),
    ({'block_size': 0.0}, ConfigError, 'give metres above 0'),
    ({'block_size': 1e6, 'test_fraction': 0.2}, ImageError, 'in 1 blocks of 1e.06 m only'),
    ({'gap': 1e6, 'test_fraction': 0.2}, ImageError, 'No window is left for train'),
    ({'gap': -1.0}, ConfigError, 'gap is -1'),
    ({'overlap': 1.0}, ConfigError, 'overlap is 1.0'),
    ({'ignore_index': 1}, ConfigError, 'a number from 2 to 255'),
    ({'resolution': 0.0}, ConfigError, 'resolution is 0.0'),
    ({'image_size': 0}, ConfigError, 'at least 1 pixel'),
    ({'bands': [4]}, ImageError, 'has no band 4'),
]  # fmt: skip


@pytest.mark.parametrize(('options', 'error', 'message'), REFUSED)
def test_refused(options: Any, error: type[Exception], message: str, tmp_path: Path) -> None:  # noqa: ANN401
    for number in range(2):
        write(tmp_path / f'{number}.tif', noise(3, 48, 48), grid(48 * number))
    shapes = [square(0, 0, 60), square(60, 0, 40)]
    write_polygons(tmp_path / 'labels.gpkg', shapes,
                   {'kind': ['crop', 'forest'], 'bare': [None, '']})  # fmt: skip
    write_polygons(tmp_path / 'nowhere.gpkg', shapes, crs=None)
    write_polygons(tmp_path / 'far.gpkg', [square(5000, 5000, 3)])
    write_polygons(tmp_path / 'points.gpkg', [shapely.Point(WEST, NORTH)])
    (tmp_path / 'broken.gpkg').write_bytes(b'nothing')
    given = {'labels': 'labels.gpkg', 'image_size': 16} | ONE_SPLIT | options
    with pytest.raises(error, match=message):
        VectorSegmentation(tmp_path, **given)


def test_rasters_that_cannot_be_used_are_left_out_and_named(tmp_path: Path) -> None:
    root = write_fields(tmp_path)
    write(root / 'images' / 'lost.tif', noise(3, 16, 16), crs=None)
    (root / 'images' / 'torn.tif').write_bytes(b'II*\0')
    with pytest.warns(
        UserWarning, match=r'2 of 6 rasters are left out: .*torn.*lost.tif \(no CRS\)'
    ):
        dataset = VectorSegmentation(root, 'labels.gpkg', image_size=32)
    assert dataset.counts['rasters left out'] == 2
    for path in (root / 'images').glob('[0-9].tif'):
        path.unlink()
    with pytest.raises(ImageError, match='None of 2 rasters has a place on the Earth'):
        VectorSegmentation(root, 'labels.gpkg')
    write(root / 'images' / 'two.tif', noise(2, 16, 16))
    write(root / 'images' / 'three.tif', noise(3, 16, 16))
    with pytest.warns(UserWarning), pytest.raises(ImageError, match='bands of uint8'):
        VectorSegmentation(root, 'labels.gpkg')


def test_several_layers_need_a_name(tmp_path: Path) -> None:
    root = write_fields(tmp_path)
    frame = geopandas.read_file(root / 'labels.gpkg')
    frame.iloc[:2].to_file(root / 'labels.gpkg', layer='few')
    with pytest.raises(LabelError, match='has the layers labels, few: choose one'):
        VectorSegmentation(root, 'labels.gpkg')
    dataset = VectorSegmentation(root, 'labels.gpkg', layer='few', image_size=96, **ONE_SPLIT)
    assert sum(int((dataset[index]['mask'] == 1).sum()) for index in range(4)) == 2 * 24 * 24


def test_tiles_lie_where_their_names_say() -> None:
    def corner(tile: Tile, pixels: int) -> tuple[float, float]:
        x, y = rasterio.transform.xy(tile_transform(tile, 256), [pixels], [pixels], offset='ul')
        return float(np.ravel(x)[0]), float(np.ravel(y)[0])

    assert corner(Tile(0, 0, 0), 0) == (-HALF_WORLD, HALF_WORLD)
    assert corner(Tile(0, 0, 0), 256) == pytest.approx((HALF_WORLD, -HALF_WORLD))
    tile = Tile(1_238_424, 1_046_544, 21)
    assert corner(tile, 256) == pytest.approx(corner(Tile(1_238_425, 1_046_545, 21), 0), abs=1e-6)
    to_degrees = Transformer.from_crs('EPSG:3857', 'EPSG:4326', always_xy=True)
    longitude, latitude = to_degrees.transform(*corner(tile, 0))
    assert longitude == pytest.approx(1_238_424 / 2**21 * 360 - 180)
    assert latitude == pytest.approx(np.degrees(np.arctan(np.sinh(
        np.pi * (1 - 2 * 1_046_544 / 2**21)))))  # fmt: skip


def test_drone_tiles(data_dir: Path, tmp_path: Path) -> None:
    """Tiles of three zooms over the same ground: masks agree, and splits stay apart."""
    root = write_geotiffs(data_dir / 'buildings_tiles.zip', tmp_path)
    with pytest.warns(UserWarning, match='1 invalid geometries were mended'):
        train = VectorSegmentation(root, 'labels.geojson', classes=['building'])
    assert train.classes == ['background', 'building']
    parts = [train.with_split(split) for split in SPLITS]
    assert len(parts[0]) > 40 and min(map(len, parts)) > 5
    covered = [part.ground_covered() for part in parts]
    for one, other in combinations(covered, 2):
        assert one.intersection(other).area == 0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        whole = VectorSegmentation(root, 'labels.geojson', **ONE_SPLIT)
    for sample in (whole[index] for index in range(0, len(whole), 9)):
        expected = torch.from_numpy(inside(Path(sample['file']), root / 'labels.geojson'))
        valid = sample['mask'] != 255
        assert torch.equal((sample['mask'] == 1)[valid], expected[valid])


def test_satellite_footprints(data_dir: Path, tmp_path: Path) -> None:
    """A 16-bit band with building footprints: brightness spreads, splits are there."""
    (tmp_path / 'pan.tif').symlink_to(data_dir / 'geotiff' / 'buildings_pan_uint16.tif')
    labels = data_dir / 'geotiff' / 'buildings_pan_uint16.geojson'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        train = VectorSegmentation(tmp_path, labels, image_size=64)
    assert train.resolution == pytest.approx(0.5, rel=0.05)
    image = torch.stack([train[index]['image'] for index in range(0, len(train), 20)])
    assert image.std() > 0.02 and 0 <= image.min() < image.max() <= 1
    with rasterio.open(data_dir / 'geotiff' / 'buildings_pan_uint16.tif') as source:
        valid = source.read(1) > 0
    share = inside(tmp_path / 'pan.tif', labels)[valid].mean()
    masks = torch.stack([train[index]['mask'] for index in range(len(train))])
    assert (masks == 1).sum() / (masks != 255).sum() == pytest.approx(share, rel=0.35)
