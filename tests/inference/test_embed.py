"""Embeddings of rasters, with models whose right answer is known."""

import json
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate
from sklearn.decomposition import PCA
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.inference.conftest import ROTATED, write_raster
from tests.inference.test_predict import PLACES, REAL
from tests.token_vits import make_groups, make_temporal
from tests.vits import make_vit
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import EmbedSettings, Shard, Summary, embed_rasters
from torchgeo_explora.inference.codecs import ByteCodec, Codec, ColorCodec, FloatCodec
from torchgeo_explora.inference.embedder import ImageEmbedder, PatchEmbedder
from torchgeo_explora.models import InputSpec
from torchgeo_explora.objectives.pca import PCABasis

pytestmark = pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')


def known_vit(bands: int, patch: int, bias: float | None = None) -> VisionTransformer:
    """A transformer whose patch tokens are the means of each band in the patch, or a constant."""
    vit = VisionTransformer(
        img_size=4 * patch, patch_size=patch, in_chans=bands, embed_dim=bands, depth=1, num_heads=1,
        class_token=False, global_pool='avg', num_classes=0, pos_embed='none',
        dynamic_img_size=True,
    )  # fmt: skip
    vit.blocks, vit.norm = nn.Sequential(nn.Identity()), nn.Identity()
    eye = torch.eye(bands)[:, :, None, None] / patch**2
    with torch.no_grad():
        vit.patch_embed.proj.weight.copy_(eye.expand(-1, -1, patch, patch) * (bias is None))
        vit.patch_embed.proj.bias.fill_(0 if bias is None else bias)
    return vit


def input_spec(bands: int = 2, size: int = 16, top: float = 256.0) -> InputSpec:
    """Values over 256, and so means of 4 x 4 of them, are exact in float32."""
    names = tuple(f'b{index}' for index in range(bands))
    return InputSpec(names, (0.0,) * bands, (1.0,) * bands, ((0.0, top),) * bands, size)


def _read(path: Path) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            values: NDArray[Any] = source.read()
    return values


def _continued(values: NDArray[Any], axis: int, patch: int, window: int) -> NDArray[Any]:
    """Fill the last patch with the mirror image of what the last window sees."""
    short = -values.shape[axis] % patch
    first = max(values.shape[axis] + short - window, 0)
    before, seen = np.split(values, [first], axis)
    mode: Any = 'reflect' if seen.shape[axis] > 1 else 'edge'
    width = [(0, short if number == axis else 0) for number in range(3)]
    return np.concatenate([before, np.pad(seen, width, mode=mode)], axis)


def _cells(values: NDArray[Any], patch: int, window: int) -> NDArray[Any]:
    """(bands, height, width) -> (bands, rows, columns, pixels of a patch)."""
    padded = _continued(_continued(values, 2, patch, window), 1, patch, window)
    bands, height, width = padded.shape
    split = padded.reshape(bands, height // patch, patch, width // patch, patch)
    return split.transpose(0, 1, 3, 2, 4).reshape(bands, height // patch, width // patch, -1)


def _any(mask: NDArray[np.bool_], patch: int) -> NDArray[np.bool_]:
    """Which patches have a pixel in a mask, one by one."""
    rows, columns = (range(0, length, patch) for length in mask.shape)
    found = [[mask[y : y + patch, x : x + patch].any() for x in columns] for y in rows]
    return np.array(found)


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.uint8], EmbedSettings]:
    cells = draw(st.sampled_from([1, 2, 4, 8]))
    shape = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.integers(1, 256, (2, *shape), dtype=np.uint8)
    for _ in range(draw(st.integers(0, 4))):  # rectangles without data
        top, left = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        values[:, top : top + draw(st.integers(1, 70)), left : left + draw(st.integers(1, 70))] = 0
    return values, EmbedSettings(
        window=4 * cells,
        overlap=4 * draw(st.integers(0, cells - 1)),
        batch=draw(st.integers(1, 9)),
        block=draw(st.sampled_from([7, 20, 8192])),
        dtype='float32',
    )


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_means_of_patches_come_back_to_the_last_bit(
    case: tuple[NDArray[np.uint8], EmbedSettings],
) -> None:
    values, how = case
    with tempfile.TemporaryDirectory() as folder:
        path = write_raster(Path(folder, 'scene.tif'), values, nodata=0)
        embed_rasters([path], known_vit(2, 4), input_spec(), Path(folder, 'out'), how)
        written = _read(Path(folder, 'out', 'scene_embedding.tif'))
    valid = _any((values != 0).any(0), 4)
    assert how.window is not None
    expected = _cells(values.astype(np.float64) / 256, 4, how.window).mean(-1)
    np.testing.assert_array_equal(written, np.where(valid, expected, np.nan).astype(np.float32))


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_a_constant_comes_back_to_the_last_bit(
    case: tuple[NDArray[np.uint8], EmbedSettings],
) -> None:
    values, how = case
    with tempfile.TemporaryDirectory() as folder:
        path = write_raster(Path(folder, 'scene.tif'), values, nodata=0)
        vit = known_vit(2, 4, bias=0.1)
        embed_rasters([path], vit, input_spec(), Path(folder, 'out'), how)
        written = _read(Path(folder, 'out', 'scene_embedding.tif'))
    valid = ~np.isnan(written)
    assert set(written[valid].tolist()) <= {float(np.float32(0.1))}
    assert bool(valid.any()) == bool((values != 0).any())


def _same_corner(result: Path, source: Path, cell: int) -> None:
    with rasterio.open(result) as got, rasterio.open(source) as origin:
        assert got.shape == (-(-origin.height // cell), -(-origin.width // cell))
        assert got.crs == origin.crs
        if not origin.transform.is_identity:
            factors = np.array([cell, cell, 1, cell, cell, 1, 1, 1, 1])
            expected = np.array(origin.transform) * factors  # one rounding each
            assert tuple(got.transform) == tuple(expected)
        points, crs = got.gcps
        assert crs == origin.gcps[1]
        for point, before in zip(points, origin.gcps[0], strict=True):
            assert (point.x, point.y, point.z) == (before.x, before.y, before.z)
            assert (point.row, point.col) == (before.row / cell, before.col / cell)


@pytest.mark.parametrize('name', REAL)
def test_real_rasters_keep_their_place_and_their_nodata(
    name: str, data_dir: Path, tmp_path: Path
) -> None:
    source = data_dir / 'geotiff' / name
    with rasterio.open(source) as raster:
        bands = min(raster.count, 8 if 'vegas' in name else 3)
        mask = raster.dataset_mask() > 0
        top = 255.0 if raster.dtypes[0] == 'uint8' else 20000.0
    spec, vit = input_spec(bands, 112, top), known_vit(bands, 14, bias=0.25)
    summary = embed_rasters([source], vit, spec, tmp_path, EmbedSettings(dtype='int8'))
    assert summary.failed == {}
    result = tmp_path / f'{source.stem}_embedding.tif'
    _same_corner(result, source, 14)
    assert cog_validate(result, strict=True)[0]
    np.testing.assert_array_equal(_read(result)[0] != -128, _any(mask, 14))


@pytest.mark.parametrize('place', PLACES)
def test_places_are_scaled_to_the_last_bit(
    place: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    values = rng.integers(1, 255, (3, 22, 31), dtype=np.uint8)
    source = write_raster(tmp_path / 'scene.tif', values, **PLACES[place])
    how = EmbedSettings(rgb=place == 'rotated')
    embed_rasters([source], known_vit(3, 4), input_spec(3), tmp_path / 'out', how)
    for kind in ('embedding', 'rgb') if how.rgb else ('embedding',):
        _same_corner(tmp_path / 'out' / f'scene_{kind}.tif', source, 4)


@pytest.fixture
def scenes(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    """Rasters of several sizes, some of them small, with corners without data."""
    folder = tmp_path / 'scenes'
    folder.mkdir()
    result = []
    for number, size in enumerate([(90, 60), (16, 16), (60, 40), (1, 40)]):
        noise = rng.integers(0, 40, (3, *size))
        values = (noise + np.linspace(10, 200, size[1])[None, None]).astype(np.uint8)
        values[:, : size[0] // 3, : size[1] // 2] = 0
        result.append(write_raster(folder / f'{number}.tif', values, nodata=0))
    return result


VIT: dict[str, Any] = {'img_size': 32, 'patch_size': 8, 'embed_dim': 12, 'depth': 2}


def _embed(
    sources: list[Path],
    out: Path,
    how: EmbedSettings,
    **more: Any,  # noqa: ANN401
) -> Summary:
    return embed_rasters(sources, make_vit(**VIT), input_spec(3, 32, 255.0), out, how, **more)


def _bytes(folder: Path) -> dict[str, bytes]:
    files = sorted((*folder.glob('*_*'), *folder.glob('pca*')))
    return {path.name: path.read_bytes() for path in files}


EXACT = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 15)
"""Whether torch gives the same bits wherever in memory its inputs lie: 2.6 does not."""


def _check_equal(first: Path, second: Path, names: set[str]) -> None:
    """Compare results: the same bytes, or with old versions of torch the same but for rounding."""
    for name in names:
        one, two = first / name, second / name
        if EXACT:
            assert one.read_bytes() == two.read_bytes()
        elif name.endswith('.tif'):
            step = 1 if name.endswith('_rgb.tif') else 2**-8
            np.testing.assert_allclose(_read(one).astype(float), _read(two), rtol=0, atol=step)


def test_one_window_is_the_model(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(1, 255, (3, 32, 40), dtype=np.uint8)
    path = write_raster(tmp_path / 'a.tif', values)
    vit = make_vit('registers', img_size=40, patch_size=8)
    spec = InputSpec(('r', 'g', 'b'), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), ((0.0, 255.0),) * 3, 40)
    how = EmbedSettings(blocks=(0, -1), dtype='float32')
    embed_rasters([path], vit, spec, tmp_path / 'out', how)
    written = _read(tmp_path / 'out' / 'a_embedding.tif')
    mirrored = np.pad(values, [(0, 0), (0, 8), (0, 0)], mode='reflect') / np.float32(255)
    mean, std = (torch.tensor(x)[:, None, None] for x in (spec.mean, spec.std))
    images = (torch.from_numpy(mirrored).float() - mean) / std
    with torch.inference_mode():
        blocks: Any = vit.forward_intermediates(
            images[None], indices=[0, 2], norm=True, intermediates_only=True
        )
    expected = torch.cat(blocks, dim=1)[0, :, :4].numpy()
    np.testing.assert_allclose(written, expected, rtol=1e-4, atol=1e-5)
    with rasterio.open(tmp_path / 'out' / 'a_embedding.tif') as source:
        assert source.descriptions[0] == 'block 0 dimension 0'
        assert source.descriptions[-1] == 'block 2 dimension 23'
        assert json.loads(source.tags()['EMBEDDING_BLOCKS']) == [0, 2]
        assert source.profile['interleave'] == 'pixel'


def test_groups_of_bands_are_averaged_and_dates_refused(tmp_path: Path) -> None:
    vit = make_groups()
    images = torch.rand(2, 6, 32, 24)
    embedder = PatchEmbedder(vit, (0.0,) * 6, (1.0,) * 6)
    with torch.inference_mode():
        found, tokens = embedder(images), vit.forward_features(images)
    own = tokens[:, 1:].unflatten(1, (3, 4, 3)).mean(1).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, own)
    with pytest.raises(ConfigError, match='several dates'):
        embed_rasters([tmp_path], make_temporal(), input_spec(), tmp_path / 'out')


@pytest.mark.parametrize('name', ['registers', 'no_class_token'])
def test_images_are_told_by_class_token_and_mean(name: str) -> None:
    vit, images = make_vit(name), torch.rand(2, 3, 64, 64)
    tokens = ('mean',) if name == 'no_class_token' else ('mean', 'class')
    embedder = ImageEmbedder(vit, (0.0,) * 3, (1.0,) * 3, tokens)
    with torch.inference_mode():
        found, all_tokens = embedder(images), vit.forward_features(images)
    mean = all_tokens[:, vit.num_prefix_tokens :].mean(1)
    parts = [mean] if name == 'no_class_token' else [mean, all_tokens[:, 0]]
    torch.testing.assert_close(found, torch.cat(parts, 1))
    if name == 'no_class_token':
        with pytest.raises(ConfigError, match='no class token'):
            ImageEmbedder(vit, (0.0,) * 3, (1.0,) * 3)


def test_bytes_err_by_half_a_step_at_most_and_halves_by_their_rounding(
    scenes: list[Path], tmp_path: Path
) -> None:
    for dtype in ('float32', 'float16', 'int8'):
        _embed(scenes[:1], tmp_path / dtype, EmbedSettings(dtype=dtype))
    exact = _read(tmp_path / 'float32' / '0_embedding.tif')
    half = _read(tmp_path / 'float16' / '0_embedding.tif').astype(np.float32)
    np.testing.assert_allclose(half, exact, rtol=2**-11)
    with rasterio.open(tmp_path / 'int8' / '0_embedding.tif') as source:
        stored, scales, offsets = source.read(), source.scales, source.offsets
        assert source.nodata == -128
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(stored == -128, np.isnan(exact))
    for band, scale, offset, before in zip(stored, scales, offsets, exact, strict=True):
        valid = band != -128
        error = np.abs(band[valid] * scale + offset - before[valid])
        assert error.max() <= scale / 2 * (1 + 1e-4)
        assert scale == pytest.approx(np.ptp(before[valid]) / 254)


CODECS: list[Codec] = [
    FloatCodec(3, half=False), FloatCodec(3, half=True), ColorCodec(),
    ByteCodec(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 1.0])),
]  # fmt: skip


@pytest.mark.parametrize('codec', CODECS, ids=lambda codec: type(codec).__name__)
def test_what_was_stored_is_stored_the_same_again(codec: Codec, rng: np.random.Generator) -> None:
    values = rng.random((3, 5, 6), dtype=np.float32)
    values[1:] = np.where(isinstance(codec, ByteCodec), [[[0.5]], [[1.0]]], values[1:])
    values[:, 2] = np.nan
    stored = codec.encode(values)
    assert stored.dtype == codec.dtype
    assert len(stored) == codec.bands
    back = codec.decode(stored)
    np.testing.assert_allclose(back, values, atol=1 / 254)
    np.testing.assert_array_equal(codec.encode(back), stored)


def test_overviews_are_means_of_what_has_data(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 256, (2, 270, 600), dtype=np.uint8)
    values[:, :90, :333] = 0
    path = write_raster(tmp_path / 'a.tif', values, nodata=0)
    how = EmbedSettings(window=32, dtype='float32', overlap=0)
    vit, spec = known_vit(2, 2), input_spec(2, 32)
    embed_rasters([path], vit, spec, tmp_path / 'out', how)
    result = tmp_path / 'out' / 'a_embedding.tif'
    assert cog_validate(result, strict=True) == (True, [], [])
    fine = _read(result)
    with rasterio.open(result) as source:
        assert source.overviews(1) == [2, 4]
        coarse = source.read(out_shape=(2, 68, 150))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)
        whole = np.pad(fine, [(0, 0), (0, 1), (0, 0)], constant_values=np.nan)
        expected = np.nanmean(whole.reshape(2, 68, 2, 150, 2), axis=(2, 4))
    np.testing.assert_allclose(coarse, expected, rtol=1e-6)


def test_all_files_share_one_basis_and_its_colours(scenes: list[Path], tmp_path: Path) -> None:
    out = tmp_path / 'out'
    _embed(scenes, tmp_path / 'raw', EmbedSettings(dtype='float32'))
    _embed(scenes, out, EmbedSettings(dtype='float32', pca=4, rgb=True))
    rows = []
    for path in scenes:
        raw = np.moveaxis(_read(tmp_path / 'raw' / f'{path.stem}_embedding.tif'), 0, -1)
        rows.append(raw[~np.isnan(raw[..., 0])])
    together = np.concatenate(rows).astype(np.float64)
    basis, reference = PCABasis.load(out / 'pca.safetensors'), PCA(4).fit(together)
    assert basis.count == len(together)
    np.testing.assert_allclose(basis.variances, reference.explained_variance_, rtol=1e-6)
    for path, row in zip(scenes, rows, strict=True):
        found = np.moveaxis(_read(out / f'{path.stem}_embedding.tif'), 0, -1)
        valid = ~np.isnan(found[..., 0])
        np.testing.assert_allclose(found[valid], basis.project(torch.from_numpy(row)), atol=1e-5)
        colors = np.moveaxis(_read(out / f'{path.stem}_rgb.tif'), 0, -1)
        assert (colors[..., 3] == 255 * valid).all()
        expected = basis.to_rgb(torch.from_numpy(found[valid])).numpy()
        np.testing.assert_allclose(colors[valid][:, :3] / 255, expected, atol=0.5 / 255 + 1e-5)
        assert cog_validate(out / f'{path.stem}_rgb.tif', strict=True)[0]


def test_a_basis_serves_other_files_and_no_other_model(scenes: list[Path], tmp_path: Path) -> None:
    first, kept = tmp_path / 'first', tmp_path / 'first' / 'pca.safetensors'
    _embed(scenes, first, EmbedSettings(pca=5, rgb=True))
    again = tmp_path / 'again'
    _embed(scenes[:1], again, EmbedSettings(pca=5, rgb=True, basis=str(kept)))
    assert _bytes(again).keys() <= _bytes(first).keys()
    _check_equal(first, again, set(_bytes(again)))
    _embed(scenes[:1], tmp_path / 'whole', EmbedSettings(rgb=True, basis=str(kept)))
    assert _read(tmp_path / 'whole' / '0_embedding.tif').shape[0] == 12
    _check_equal(first, tmp_path / 'whole', {'0_rgb.tif'})
    other = make_vit(**VIT, seed=3)
    for vit, how, words in (
        (other, EmbedSettings(basis=str(kept)), 'other embeddings'),
        (make_vit(**VIT), EmbedSettings(basis=str(kept), norm=False), 'other embeddings'),
        (make_vit(**VIT), EmbedSettings(basis=str(kept), pca=6), 'has 5'),
        (make_vit(**VIT), EmbedSettings(pca=13), 'ask for 12 or fewer'),
    ):
        with pytest.raises(ConfigError, match=words):
            embed_rasters(scenes, vit, input_spec(3, 32), tmp_path / 'refused', how)
    assert not (tmp_path / 'refused').exists()


class _Stopped(Exception):
    pass


HOWS = {
    'patches': EmbedSettings(batch=3, block=40, pca=4, rgb=True, dtype='int8'),
    'windows': EmbedSettings(batch=3, block=40, windows=True, stride=10),
}


@pytest.mark.parametrize('kind', HOWS)
@pytest.mark.parametrize('after', [1, 5000])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    kind: str, after: int, scenes: list[Path], tmp_path: Path
) -> None:
    _embed(scenes, tmp_path / 'whole', HOWS[kind])

    def stop(tally: Any) -> None:  # noqa: ANN401
        if tally.pixels >= after:
            raise _Stopped

    out = tmp_path / 'broken'
    with pytest.raises(_Stopped):
        _embed(scenes, out, HOWS[kind], progress=stop)
    with pytest.raises(ConfigError, match='--resume'):
        _embed(scenes, out, HOWS[kind])
    _embed(scenes, out, HOWS[kind], resume=True)
    assert _bytes(out) == _bytes(tmp_path / 'whole')
    assert not list(out.glob('.torchgeo*'))
    again = _embed(scenes, out, HOWS[kind], resume=True)
    assert again.skipped == list(map(str, scenes))


@pytest.mark.parametrize('kind', HOWS)
def test_shards_give_the_bytes_of_one_run(kind: str, scenes: list[Path], tmp_path: Path) -> None:
    _embed(scenes, tmp_path / 'whole', HOWS[kind])
    out = tmp_path / 'shards'
    for number in (2, 1):
        summary = _embed(scenes, out, HOWS[kind], shard=Shard(number, 2))
        assert summary.written == {}
    joined = _embed(scenes, out, HOWS[kind], resume=True)
    assert joined.tally.windows == 0
    assert _bytes(out) == _bytes(tmp_path / 'whole')


def _at(x: float, y: float) -> tuple[float, float]:
    a, b, c, d, e, f = ROTATED[:6]
    return a * x + b * y + c, d * x + e * y + f


def test_windows_are_rows_of_a_table(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(1, 255, (3, 70, 50), dtype=np.uint8)
    values[:, :16, :16] = 0
    path = write_raster(tmp_path / 'a.tif', values, nodata=0, transform=ROTATED)
    how = EmbedSettings(windows=True, stride=16, tokens=('class', 'mean'))
    _embed([path], tmp_path / 'out', how)
    table = geopandas.read_parquet(tmp_path / 'out' / 'a_windows.parquet')
    assert list(table.columns) == ['geometry', 'file', 'row', 'column', 'valid', 'embedding']
    assert table.crs == 'EPSG:32631'
    assert set(table['file']) == {str(path)}
    assert len(table) == 5 * 4 - 1  # one cell has no data
    vit = make_vit(**VIT)
    embedder = ImageEmbedder(vit, (0.0,) * 3, (1.0,) * 3, ('class', 'mean'))
    rows: list[Any] = list(table.itertuples())
    for row in rows:
        part = np.s_[row.row : row.row + 32, row.column : row.column + 32]
        seen = values[:, *part]
        assert row.valid == np.float32((seen != 0).any(0).mean())
        with torch.inference_mode():
            expected = embedder(torch.from_numpy(seen)[None].float() / 255)[0]
        assert row.embedding.dtype == np.float32
        np.testing.assert_allclose(row.embedding, expected, rtol=1e-4, atol=1e-4)
        corners = [_at(row.column + x, row.row + y)
                   for x, y in ((0, 0), (32, 0), (32, 32), (0, 32))]  # fmt: skip
        found = {tuple(point) for point in row.geometry.exterior.coords}
        for corner in corners:
            assert min(math.dist(corner, point) for point in found) < 1e-6


def test_windows_of_a_small_raster_without_a_place(tmp_path: Path) -> None:
    values = np.full((3, 9, 20), 7, dtype=np.uint8)
    path = write_raster(tmp_path / 'a.tif', values, crs=None, transform=rasterio.Affine.identity())
    _embed([path], tmp_path / 'out', EmbedSettings(windows=True))
    table = geopandas.read_parquet(tmp_path / 'out' / 'a_windows.parquet')
    assert table.crs is None
    assert table.geometry[0].bounds == (0, 0, 20, 9)
    assert table['valid'].tolist() == [1.0]


@pytest.mark.parametrize(
    ('how', 'words'),
    [
        ({'window': 30}, 'for instance 32'),
        ({'overlap': 12}, 'give a multiple'),
        ({'overlap': 32}, 'choose 0 to'),
        ({'blocks': (2,)}, 'model with 2'),
        ({'blocks': (1, -1)}, 'name one twice'),
        ({'pca': 13}, 'ask for 12 or fewer'),
        ({'basis': 'absent.safetensors', 'pca': 3}, 'holds no basis'),
        ({'max_memory': 1}, '--max-memory'),
        ({'dtype': 'int16'}, 'choose from'),
        ({'pca': 0}, 'give 1 or more'),
        ({'windows': True, 'rgb': True}, 'of patches'),
        ({'stride': 8}, 'of windows'),
        ({'windows': True, 'tokens': ('cls',)}, 'class and mean'),
        ({'windows': True, 'stride': 64}, 'choose 1 to 32'),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    how: dict[str, Any], words: str, scenes: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=words):
        _embed(scenes, tmp_path / 'out', EmbedSettings(**how))
    assert not list(tmp_path.glob('out/*_*'))


def test_halves_that_overflow_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / 'a.tif', np.ones((2, 8, 8), dtype=np.uint8))
    vit = known_vit(2, 4, bias=1e6)
    with pytest.raises(ConfigError, match='--dtype float32'):
        embed_rasters([path], vit, input_spec(), tmp_path / 'out')
    assert not list(tmp_path.glob('out/*_embedding.tif'))


def test_damaged_rasters_are_named_and_stay_out_of_the_basis(
    scenes: list[Path], tmp_path: Path
) -> None:
    text = tmp_path / 'scenes' / 'text.tif'
    text.write_text('this is no raster')
    summary = _embed([text, *scenes], tmp_path / 'out', EmbedSettings(pca=3))
    assert set(summary.failed) == {str(text)}
    _embed(scenes, tmp_path / 'alone', EmbedSettings(pca=3))
    assert _bytes(tmp_path / 'out').keys() == _bytes(tmp_path / 'alone').keys()
    _check_equal(tmp_path / 'out', tmp_path / 'alone', set(_bytes(tmp_path / 'out')))
    empty = write_raster(tmp_path / 'empty.tif', np.zeros((3, 20, 20), np.uint8), nodata=0)
    with pytest.raises(Exception, match='No patch of any raster'):
        _embed([empty], tmp_path / 'none', EmbedSettings(pca=3))
    _embed([empty], tmp_path / 'raw', EmbedSettings())
    assert np.isnan(_read(tmp_path / 'raw' / 'empty_embedding.tif')).all()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
