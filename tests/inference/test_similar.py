"""Places like others: against plain cosines, wherever the rasters lie and however they are stored."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rio_cogeo.cogeo import cog_validate

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import Found, SimilarSettings, find_similar

NORTH_UP = Affine(140, 0, 500_000, 0, -140, 4_200_000)
TURNED = Affine(100, 30, 500_000, 30, -100, 4_200_000)
WIDTH = 12
TAGS = {'EMBEDDING_PATCH': '14', 'MODEL_WEIGHTS_SHA256': 'abc', 'EMBEDDING_BLOCKS': '[11]'}


def values(seed: int = 0, height: int = 60, width: int = 150) -> NDArray[np.float32]:
    """Random embeddings, a patch of one direction, two that resemble it, and a corner without."""
    embeddings = np.random.default_rng(seed).normal(size=(WIDTH, height, width))
    direction = np.arange(1, WIDTH + 1)[:, None, None] / 4.0
    embeddings[:, 10:15, 20:25] = 3 * direction
    for row, noise in ((40, 0.1), (50, 0.3)):
        place = embeddings[:, row : row + 3, 130:133]
        embeddings[:, row : row + 3, 130:133] = direction + noise * place
    embeddings[:, :4, :5] = np.nan
    return embeddings.astype(np.float32)


def write(
    path: Path,
    embeddings: NDArray[Any],
    tags: dict[str, str] | None = None,
    **more: Any,  # noqa: ANN401
) -> Path:
    """Write a raster as ``embed`` does."""
    profile = {'crs': 'EPSG:32631', 'transform': NORTH_UP, 'nodata': np.nan, 'dtype': 'float32'}
    bands, height, width = embeddings.shape
    with rasterio.open(
        path, 'w', driver='GTiff', count=bands, height=height, width=width, tiled=True,
        blockxsize=128, blockysize=128, interleave='pixel', **{**profile, **more},
    ) as target:  # fmt: skip
        target.write(embeddings)
        target.update_tags(**(TAGS if tags is None else tags))
    return path


def cosines(embeddings: NDArray[np.float32], chosen: list[tuple[int, int]]) -> NDArray[np.float64]:
    """What heat maps hold, written plainly."""
    unit = embeddings / np.linalg.norm(embeddings.astype(np.float64), axis=0)
    query = np.mean([unit[:, row, column] for row, column in chosen], axis=0)
    found: NDArray[np.float64] = np.einsum('dhw,d->hw', unit, query / np.linalg.norm(query))
    return found


def at(row: float, column: float, grid: Affine = NORTH_UP, crs: str = 'EPSG:32631') -> str:
    """The middle of a patch as a user writes it."""
    return (
        f'{grid.a * column + grid.b * row + grid.c},{grid.d * column + grid.e * row + grid.f},{crs}'
    )


def heat(folder: Path, name: str = 'a') -> NDArray[np.float32]:
    with rasterio.open(folder / f'{name}_similarity.tif') as source:
        found: NDArray[np.float32] = source.read(1)
    return found


def search(source: Path, out: Path, *like: str, **more: Any) -> Found:  # noqa: ANN401
    return find_similar([source], out, SimilarSettings(tuple(like), **more))


@pytest.mark.parametrize('grid', [NORTH_UP, TURNED])
def test_heat_is_the_cosine_to_the_patch_under_the_point(grid: Affine, tmp_path: Path) -> None:
    embeddings = values()
    source = write(tmp_path / 'a_embedding.tif', embeddings, transform=grid)
    found = search(source, tmp_path / 'out', at(12.5, 22.5, grid))
    assert (found.chosen, found.failed) == (1, {})
    path = tmp_path / 'out' / 'a_similarity.tif'
    assert cog_validate(path, strict=True)[0]
    with rasterio.open(path) as written:
        assert (written.transform, written.crs.to_epsg()) == (grid, 32631)
        assert written.descriptions == ('similarity',)
    np.testing.assert_allclose(heat(tmp_path / 'out'), cosines(embeddings, [(12, 22)]), atol=2e-6)


def test_polygons_of_any_system_choose_the_patches_whose_middle_they_cover(tmp_path: Path) -> None:
    embeddings = values()
    source = write(tmp_path / 'a_embedding.tif', embeddings)
    corners = [(20.2, 10.6), (23.1, 10.6), (23.1, 12.4), (20.2, 12.4)]
    ring = [(NORTH_UP.c + 140 * x, NORTH_UP.f - 140 * y) for x, y in corners]
    speck = shapely.Point(NORTH_UP.c + 140 * 50.9, NORTH_UP.f - 140 * 30.9).buffer(5)
    shapes = geopandas.GeoSeries([shapely.Polygon(ring), speck], crs='EPSG:32631').to_crs(4326)
    shapes.to_file(tmp_path / 'like.geojson')
    found = search(source, tmp_path / 'out', str(tmp_path / 'like.geojson'))
    chosen = [(row, column) for row in (11,) for column in (20, 21, 22)] + [(30, 50)]
    assert found.chosen == len(chosen)
    np.testing.assert_allclose(heat(tmp_path / 'out'), cosines(embeddings, chosen), atol=2e-6)


def test_what_is_unlike_is_taken_away(tmp_path: Path) -> None:
    embeddings = values()
    source = write(tmp_path / 'a_embedding.tif', embeddings)
    found = search(source, tmp_path / 'out', at(12.5, 22.5), unlike=(at(30.5, 60.5),))
    unit = embeddings / np.linalg.norm(embeddings, axis=0)
    query = unit[:, 12, 22] - unit[:, 30, 60]
    expected = np.einsum('dhw,d->hw', unit, query / np.linalg.norm(query))
    np.testing.assert_allclose(heat(tmp_path / 'out'), expected, atol=2e-6)
    assert (found.chosen, found.avoided) == (1, 1)
    assert heat(tmp_path / 'out')[30, 60] < -0.5


def test_bytes_err_by_half_a_step(tmp_path: Path) -> None:
    embeddings = values()
    source = write(tmp_path / 'a_embedding.tif', embeddings)
    search(source, tmp_path / 'out', at(12.5, 22.5), dtype='int8')
    with rasterio.open(tmp_path / 'out' / 'a_similarity.tif') as written:
        stored = written.read(1, masked=True)
        restored = stored * written.scales[0] + written.offsets[0]
    expected = cosines(embeddings, [(12, 22)])
    assert np.abs(restored - expected).max() <= 1 / 254 + 1e-6
    np.testing.assert_array_equal(np.ma.getmaskarray(stored), np.isnan(expected))


def test_embeddings_of_bytes_are_unscaled(tmp_path: Path) -> None:
    embeddings = np.nan_to_num(values(), nan=0.0)
    scale, offset = np.linspace(0.05, 0.1, WIDTH), np.linspace(-1, 1, WIDTH)
    stored = np.clip(np.rint((embeddings.T - offset) / scale), -127, 127).T.astype(np.int8)
    stored[:, :4, :5] = -128
    path = write(tmp_path / 'a_embedding.tif', stored, dtype='int8', nodata=-128)
    with rasterio.open(path, 'r+') as target:
        target.scales, target.offsets = tuple(scale), tuple(offset)
    search(path, tmp_path / 'out', at(12.5, 22.5))
    decoded = (stored.T * scale + offset).T
    decoded[:, :4, :5] = np.nan
    expected = cosines(decoded.astype(np.float32), [(12, 22)])
    np.testing.assert_allclose(heat(tmp_path / 'out'), expected, atol=1e-5)


@pytest.mark.parametrize('side', [1, 2, 3, 4])
def test_the_best_places_are_those_of_a_plain_search(side: int, tmp_path: Path) -> None:
    embeddings = values()
    source = write(tmp_path / 'a_embedding.tif', embeddings)
    search(source, tmp_path / 'out', at(12.5, 22.5), top=30, side=side)
    score = heat(tmp_path / 'out').astype(np.float64)
    before, after = (side - 1) // 2, side - 1 - (side - 1) // 2
    expected: list[tuple[int, int]] = []
    order = sorted(
        zip(*np.nonzero(np.isfinite(score)), strict=True), key=lambda cell: (-score[cell], *cell)
    )
    for row, column in order:
        takes = row - before <= 12 <= row + after and column - before <= 22 <= column + after
        near_chosen = takes or (abs(row - 12) <= side // 2 and abs(column - 22) <= side // 2)
        apart = all(abs(row - r) >= side or abs(column - c) >= side for r, c in expected)
        if not near_chosen and apart and len(expected) < 30:
            expected.append((row, column))
    places = geopandas.read_file(tmp_path / 'out' / 'places.gpkg')
    assert list(zip(places['row'], places['column'], strict=True)) == expected
    assert list(places['rank']) == list(range(1, 31))
    assert (np.diff(places['similarity']) <= 1e-7).all()
    joined = places.geometry.union_all()
    assert joined.area == pytest.approx(places.geometry.area.sum(), rel=1e-9)
    assert places.crs == 'EPSG:32631'


def test_rasters_of_several_systems_are_searched_together(tmp_path: Path) -> None:
    """The same ground, once in metres and once in degrees, is listed once."""
    embeddings = values()
    folder = tmp_path / 'embeddings'
    folder.mkdir()
    write(folder / 'a_embedding.tif', embeddings)
    ends = geopandas.GeoSeries(
        [shapely.Point(500_000, 4_200_000), shapely.Point(521_000, 4_191_600)], crs='EPSG:32631'
    ).to_crs(4326)
    step = (ends.x[1] - ends.x[0]) / 150, (ends.y[0] - ends.y[1]) / 60
    degrees = Affine(step[0], 0, ends.x[0], 0, -step[1], ends.y[0])
    write(folder / 'b_embedding.tif', embeddings, crs='EPSG:4326', transform=degrees)
    write(folder / 'c_embedding.tif', values(1), crs=None, transform=Affine.identity())
    (folder / 'd_embedding.tif').write_bytes((folder / 'a_embedding.tif').read_bytes()[:9000])
    settings = SimilarSettings((at(12.5, 22.5),), top=6)
    found = find_similar([folder], tmp_path / 'out', settings)
    # the point lies in two of the rasters
    assert found.chosen == 2
    assert list(found.failed) == [str(folder / 'd_embedding.tif')]
    for name, content in (('a', embeddings), ('b', embeddings), ('c', values(1))):
        expected = cosines(np.concatenate([content, embeddings], 1), [(72, 22)])[:60]
        np.testing.assert_allclose(heat(tmp_path / 'out', name), expected, atol=2e-6)
    places = geopandas.read_file(tmp_path / 'out' / 'places.gpkg')
    assert places.crs == 'EPSG:4326'
    for first in range(len(places)):
        for second in range(first):
            shared = places.geometry[first].intersection(places.geometry[second]).area
            assert shared < 0.02 * places.geometry[first].area
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert list(report['written']) == [str(folder / f'{name}_embedding.tif') for name in 'abc']


def test_the_same_search_gives_the_same_bytes_and_no_other_goes_on(tmp_path: Path) -> None:
    source, out = write(tmp_path / 'a_embedding.tif', values()), tmp_path / 'out'
    settings = SimilarSettings((at(12.5, 22.5),))
    find_similar([source], out, settings)
    first = {path.name: path.read_bytes() for path in out.glob('*') if path.suffix != '.json'}
    assert set(first) == {'a_similarity.tif', 'a_similarity.qml', 'places.gpkg'}
    (out / 'places.gpkg').unlink()
    find_similar([source], out, settings, resume=True)
    assert {
        path.name: path.read_bytes() for path in out.glob('*') if path.suffix != '.json'
    } == first
    with pytest.raises(ConfigError, match='exists already'):
        find_similar([source], out, settings)
    with pytest.raises(ConfigError, match='started with other'):
        find_similar([source], out, SimilarSettings((at(30.5, 22.5),)), resume=True)


def test_mistakes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    source, out = write(tmp_path / 'a_embedding.tif', values()), tmp_path / 'out'
    picture = write(tmp_path / 'p.tif', values(), {'AREA_OR_POINT': 'Area'})
    geopandas.GeoDataFrame(geometry=[shapely.Point(1, 1)]).to_file(tmp_path / 'no_crs.shp')
    geopandas.GeoDataFrame({'a': [1]}, geometry=[shapely.Point()], crs=4326).to_file(
        tmp_path / 'none.gpkg'
    )
    cases: list[tuple[Path, tuple[str, ...], str]] = [
        (source, ('9.0,37.9',), 'on no patch with data'),
        (source, (at(1, 1),), 'on no patch with data'),
        (source, ('500000,4200000',), 'is no longitude and latitude'),
        (source, ('1,2,EPSG:nonsense',), 'which is not known'),
        (source, ('nowhere.gpkg',), 'is not there and is no position'),
        (source, (str(source),), 'give a vector file'),
        (source, (str(tmp_path / 'no_crs.shp'),), 'no coordinate reference system'),
        (source, (str(tmp_path / 'none.gpkg'),), 'no geometry'),
        (picture, (at(12.5, 22.5),), 'is no raster of embeddings'),
        (source, (), 'Nothing is looked for'),
    ]
    for path, like, reason in cases:
        with pytest.raises(ConfigError, match=reason):
            search(path, out, *like)
        assert not out.exists()
    with pytest.raises(ConfigError, match='of 1 to 1001 patches a side'):
        search(source, out, at(12.5, 22.5), side=100_000)
    with pytest.raises(ConfigError, match='no direction in common'):
        search(source, out, at(12.5, 22.5), unlike=(at(12.5, 22.5),))
    other = {**TAGS, 'MODEL_WEIGHTS_SHA256': 'other'}
    stranger = write(tmp_path / 'b_embedding.tif', values(), other)
    found = find_similar([source, stranger], out, SimilarSettings((at(12.5, 22.5),)))
    assert 'of another model' in found.failed[str(stranger)]
