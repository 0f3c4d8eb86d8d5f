"""Configurations of rasters and chips through the real command: fit, resume, score, predict."""

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import rasterio
import yaml
from safetensors.torch import load_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from torchgeo.main import main

from tests.data.chesapeake.data import write_chesapeake, write_naip
from tests.data.polygons.data import noise, write, write_fields
from tests.data.spacenet1.data import write_spacenet1
from tests.tasks.test_configs import CONFIGS
from tests.tasks.toy import CONF
from torchgeo_explora.models import load_model, read_input

DRIVEN_CONFIGS = {
    'explora_geotiff', 'explora_naip', 'explora_spacenet1', 'segment_folder', 'segment_naip_chesapeake',
    'segment_spacenet1',
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings('ignore:.*does not have many workers')


@register_model
def tiny_raster_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:  # noqa: ANN401
    """A stock model of 64 pixels, patches of 32 and four blocks."""
    options = {
        'img_size': 64, 'patch_size': 32, 'embed_dim': 32, 'depth': 4, 'num_heads': 2,
        'dynamic_img_size': True, **kwargs,
    }  # fmt: skip
    return _create_vision_transformer('vit_tiny_patch16_224', pretrained, **options)


def _arguments(name: str, folder: Path, paths: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """Arguments of the command for a copied configuration with other paths of its data."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f'{name}.yaml').read_text())
    for part, given in paths.items():
        config['data'][part] |= {key: str(path) for key, path in given.items()}
    config['trainer'] |= {'enable_progress_bar': False, 'enable_model_summary': False}
    copied = folder / 'mine.yaml'
    copied.write_text(yaml.safe_dump(config, sort_keys=False))
    return ['--config', str(copied), '--config', str(CONF / f'{name}.yaml')]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    'name', ['explora_naip', pytest.param('explora_spacenet1', marks=pytest.mark.slow)]
)
def test_pretraining(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / 'data'
    root = write_naip(data) / 'naip' if name == 'explora_naip' else write_spacenet1(data, 8, 4)
    arguments = _arguments(name, tmp_path, {'init_args': {'root': root}})
    out = tmp_path / 'output' / name
    last = ['--ckpt_path', str(out / 'checkpoints' / 'last.ckpt')]
    main(['fit', *arguments, '--trainer.max_steps', '1'])
    main(['fit', *arguments, *last])
    resumed = load_file(out / 'explora.safetensors')
    assert [int(row['step']) for row in _rows(out / 'curve.csv')] == [1, 2]
    main(['test', *arguments, *last])
    main(['predict', *arguments, *last])
    embedding = load_file(out / 'embeddings.safetensors')['embedding']
    assert embedding.isfinite().all() and len(embedding) == (18 if name == 'explora_naip' else 4)
    main(['fit', *arguments])  # in one go: the same images, the same weights
    unbroken = load_file(out / 'explora.safetensors')
    assert all(resumed[key].equal(value) for key, value in unbroken.items())


def test_windows_of_any_rasters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off and resumed, the run ends with the weights of one that never stopped."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'data' / 'a.tif', noise(3, 150, 240))
    write(tmp_path / 'data' / 'b.tif', noise(3, 100, 100), crs=None)
    name, out = 'explora_geotiff', tmp_path / 'output' / 'explora_geotiff'
    arguments = _arguments(name, tmp_path, {'init_args': {'sources': tmp_path / 'data'}})
    main(['fit', *arguments, '--trainer.max_steps', '1'])
    main(['fit', *arguments, '--ckpt_path', str(out / 'checkpoints' / 'last.ckpt')])
    resumed = load_file(out / 'explora.safetensors')
    told = read_input(out / 'explora.safetensors')
    assert (told.bands, told.scale) == (('red', 'green', 'blue'), ((0, 255),) * 3)
    measured = (out / 'statistics.json').read_bytes()
    main(['fit', *arguments])
    unbroken = load_file(out / 'explora.safetensors')
    assert all(resumed[key].equal(value) for key, value in unbroken.items())
    assert (out / 'statistics.json').read_bytes() == measured


def _drive(name: str, arguments: list[str], out: Path) -> list[dict[str, str]]:
    """Fit, resume and score; the rows of the metrics."""
    last = ['--ckpt_path', str(out / 'checkpoints' / 'last.ckpt')]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        main(['fit', *arguments])
        main(['fit', *arguments, '--trainer.max_epochs', '3', *last])
        model, spec = load_model(out / 'model.safetensors')
        assert spec.task == 'segmentation' and not model.training
        main(['validate', *arguments, *last])
        main(['test', *arguments, *last])
        assert {row['epoch'] for row in _rows(out / 'metrics.csv')} == {'0', '1', '2'}
        rows = _rows(out / 'test_metrics.csv')
        assert (out / 'test_report' / 'classes.csv').is_file()
        main(['predict', *arguments, *last])
    return rows


def test_a_folder_of_rasters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_fields(tmp_path / 'data')
    paths = {'root': root / 'images', 'labels': root / 'labels.gpkg'}
    arguments = _arguments('segment_folder', tmp_path, {'init_args': paths})
    out = tmp_path / 'output' / 'segment_folder'
    rows = _drive('segment_folder', arguments, out)
    assert any(row.get('test_loss') for row in rows)
    classes = [row['class'] for row in _rows(out / 'test_report' / 'classes.csv')]
    assert classes[:3] == ['background', 'crop', 'forest']
    written = sorted((out / 'predictions').rglob('*.tif'))
    assert written
    with rasterio.open(written[0]) as prediction, rasterio.open(root / 'images' / '0.tif') as image:
        assert prediction.crs == image.crs and prediction.transform.a == image.transform.a
        assert set(map(int, set(prediction.read(1).ravel()))) <= {0, 1, 2, 255}


@pytest.mark.slow
def test_chesapeake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_chesapeake(tmp_path / 'data')
    paths = {'naip_root': root / 'naip', 'chesapeake_root': root / 'chesapeake'}
    name = 'segment_naip_chesapeake'
    arguments = _arguments(name, tmp_path, {'init_args': paths})
    rows = _drive(name, arguments, tmp_path / 'output' / name)
    assert any(row.get('test_loss') for row in rows)


@pytest.mark.slow
def test_spacenet1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_spacenet1(tmp_path / 'data', 10, 2)
    name = 'segment_spacenet1'
    arguments = _arguments(name, tmp_path, {'dict_kwargs': {'root': root}})
    rows = _drive(name, arguments, tmp_path / 'output' / name)
    assert any(row.get('test_loss') for row in rows)
