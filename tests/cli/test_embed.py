"""``embed``, from files of weights to rasters and tables of embeddings."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.inference.conftest import segmentation_spec, write_raster
from tests.processes import fork
from torchgeo_explora import cli
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora, merge_lora, save_adapter
from torchgeo_explora.cli import main
from torchgeo_explora.models import (
    build_classifier,
    create_backbone,
    save_backbone,
    save_model,
)
from torchgeo_explora.models.fitted import tensors_hash

TOLD = {
    'base': 'test_vit', 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'size': 32,
    'bands': ('red', 'green', 'blue'), 'scale': ((0.0, 255.0),) * 3, 'resolution': 10.0,
}  # fmt: skip


def _arguments(source: Path, weights: Path, out: Path, *more: str) -> list[str]:
    return [
        'embed', str(source), '--weights', str(weights), '--out', str(out), '--device', 'cpu',
        '--precision', '32', *more,
    ]  # fmt: skip


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A raster of 64 x 80 pixels of 10 m."""
    values = np.random.default_rng(0).integers(1, 255, (3, 64, 80), dtype=np.uint8)
    return write_raster(tmp_path / 'scene.tif', values, colorinterp=('red', 'green', 'blue'))


@pytest.fixture
def merged(tmp_path: Path, backbone: VisionTransformer) -> Path:
    """Weights that tell everything of themselves."""
    return save_backbone(backbone, tmp_path / 'merged.safetensors', TOLD)


def test_a_raster_and_its_picture_tell_what_they_are(
    scene: Path, merged: Path, backbone: VisionTransformer, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / 'out'
    assert main(_arguments(scene, merged, out, '--rgb', '--blocks', '-2', '-1')) == 0
    said = capsys.readouterr()
    assert 'Windows of 32 pixels, overlap 16' in said.out
    assert f'Wrote {out / "scene_embedding.tif"}' in said.out
    assert said.err == ''
    with rasterio.open(out / 'scene_embedding.tif') as source:
        assert (source.height, source.width, source.count) == (4, 5, 128)
        tags = source.tags()
    assert tags['MODEL'] == 'test_vit'
    assert tags['MODEL_WEIGHTS_SHA256'] == tensors_hash(backbone.state_dict())
    assert (tags['EMBEDDING_PATCH'], json.loads(tags['EMBEDDING_BLOCKS'])) == ('16', [4, 5])
    with rasterio.open(out / 'scene_rgb.tif') as source:
        assert [color.name for color in source.colorinterp] == ['red', 'green', 'blue', 'alpha']
    record = json.loads((out / 'run.json').read_text())
    assert record['settings']['blocks'] == [-2, -1]
    assert json.loads((out / 'report.json').read_text())['windows'] == 12


def test_every_kind_of_weights_gives_its_network(
    scene: Path, weights: Path, backbone: VisionTransformer, tmp_path: Path
) -> None:
    adapted = create_backbone('test_vit', weights)[0]
    config = ExPLoRAConfig(rank=2, unfreeze_blocks=(-1,))
    apply_explora(adapted, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if 'lora_B' in name:
                parameter.fill_(0.02)
    told = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in TOLD.items()
    }
    save_adapter(adapted, config, tmp_path / 'delta.safetensors', told)
    save_backbone(merge_lora(adapted), tmp_path / 'after.safetensors', TOLD)
    network = build_classifier(merge_lora(adapted), 3)
    spec = dataclasses.replace(
        segmentation_spec(classes=3, task='classification', image_size=32, resolution=10.0),
        model='test_vit', bands=('red', 'green', 'blue'), mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    save_model(network, spec, tmp_path / 'fitted.safetensors')
    results = {}
    for name, more in (
        ('after', ()), ('delta', ('--base', str(weights))), ('fitted', ()),
    ):  # fmt: skip
        arguments = _arguments(scene, tmp_path / f'{name}.safetensors', tmp_path / name, *more)
        assert main([*arguments, '--dtype', 'float32']) == 0
        with rasterio.open(tmp_path / name / 'scene_embedding.tif') as source:
            results[name] = source.read()
    np.testing.assert_allclose(results['delta'], results['after'], atol=1e-5)
    np.testing.assert_allclose(results['fitted'], results['after'], atol=1e-5)
    base = save_backbone(backbone, tmp_path / 'base.safetensors', TOLD)
    assert main([*_arguments(scene, base, tmp_path / 'plain'), '--dtype', 'float32']) == 0
    with rasterio.open(tmp_path / 'plain' / 'scene_embedding.tif') as source:
        assert np.abs(source.read() - results['after']).max() > 1e-3


def test_windows_become_a_table(scene: Path, merged: Path, tmp_path: Path) -> None:
    more = ('--window-embeddings', '--stride', '16', '--tokens', 'mean')
    assert main(_arguments(scene, merged, tmp_path / 'out', *more)) == 0
    table = geopandas.read_parquet(tmp_path / 'out' / 'scene_windows.parquet')
    assert len(table) == 4 * 5
    assert {len(values) for values in table['embedding']} == {64}


def test_what_does_not_fit_is_one_line(
    scene: Path, merged: Path, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    out = tmp_path / 'out'
    for more, words in (
        (('--window', '40'), 'for instance 32'),
        (('--stride', '8'), '--window-embeddings'),
        (('--aoi', 'absent.gpkg'), 'is not there'),
        (('--basis', 'absent', '--rgb'), 'holds no basis'),
    ):
        assert main(_arguments(scene, merged, out, *more)) == 2
        assert words in one_line()
    assert main(_arguments(scene, tmp_path / 'absent', out)) == 2
    assert 'is no file' in one_line()
    coarse = write_raster(
        tmp_path / 'coarse.tif', np.ones((3, 40, 40), np.uint8),
        transform=rasterio.Affine(60, 0, 0, 0, -60, 0),
    )  # fmt: skip
    assert main(_arguments(coarse, merged, out)) == 2
    assert 'times apart' in one_line()
    assert not list(out.glob('*.tif'))


MORE = ('--block', '120', '--batch', '4', '--pca', '8', '--rgb', '--dtype', 'int8', '--force')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory: pytest.TempPathFactory, backbone: VisionTransformer) -> Path:
    """Rasters, weights, and what a run wrote that nothing interrupted."""
    folder = tmp_path_factory.mktemp('unbroken')
    weights = save_backbone(backbone, folder / 'merged.safetensors', TOLD)
    (folder / 'scenes').mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 255, (3, 240, 240), dtype=np.uint8)
        write_raster(folder / 'scenes' / f'{number}.tif', values)
    assert main(_arguments(folder / 'scenes', weights, folder / 'whole', *MORE)) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('wait', [0.1, 0.6, 1.2])
def test_a_killed_run_leaves_nothing_half_done_and_resumes_to_the_same_bytes(
    wait: float, unbroken: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / 'killed', unbroken / 'whole'
    arguments = _arguments(unbroken / 'scenes', unbroken / 'merged.safetensors', out, *MORE)
    with fork(cli, *arguments, output=tmp_path / 'printed') as process:
        while not list(out.glob('.*/*/block-000001')) and process.status is None:
            time.sleep(0.01)
        time.sleep(wait)
    names = sorted([path.name for path in whole.glob('*_*.tif')])
    for path in (*out.glob('*_*.tif'), *out.glob('pca.safetensors')):  # complete, or not there
        assert path.read_bytes() == (whole / path.name).read_bytes()
    assert main([*arguments, '--resume']) == 0
    for name in (*names, 'pca.safetensors'):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
