"""Configurations of the paper's data sets through the real command: fit, resume, score, predict.

Each is copied with only its paths changed, and a file of ``tests/conf`` laid over it that makes
everything small. One of each kind runs always; the others are slow together.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from torchgeo.main import main

from tests.data.camelyon17.data import write_camelyon17
from tests.data.eurosat.data import write_eurosat
from tests.data.fmow_rgb.data import write_tables
from tests.data.fmow_sentinel.data import write_sentinel
from tests.data.fmow_temporal.data import write_temporal
from tests.data.iwildcam.data import write_iwildcam
from tests.data.naip_landcover.data import write_sustainbench
from tests.data.resisc45.data import write_resisc45
from tests.tasks.mae_runs import tiny_mae_group_vit, tiny_mae_temporal_vit
from tests.tasks.test_configs import copy_config

pytestmark = pytest.mark.filterwarnings('ignore:.*were published', 'ignore:.*the published data')

DATA: dict[str, Callable[[Path], Path]] = {
    'camelyon17': write_camelyon17,
    'eurosat_ms': write_eurosat,
    'fmow_rgb': write_tables,
    'fmow_sentinel': write_sentinel,
    'fmow_temporal': write_temporal,
    'iwildcam': write_iwildcam,
    'naip_landcover': write_sustainbench,
    'resisc45': write_resisc45,
}
PRETRAINING = ('camelyon17', 'iwildcam', 'naip_landcover', 'resisc45')
PROBES = (*PRETRAINING, 'eurosat_ms', 'fmow_temporal')
FINETUNING = (*PRETRAINING, 'fmow_rgb', 'fmow_sentinel', 'fmow_temporal')

DRIVEN_CONFIGS = {
    *(f'explora_{name}' for name in PRETRAINING),
    *(f'probe_{name}' for name in PROBES),
    *(f'finetune_{name}' for name in FINETUNING),
}


@register_model
def tiny_chip_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:  # noqa: ANN401
    """A stock model of 32 pixels and three blocks."""
    options = {
        'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 3, 'num_heads': 2,
        'dynamic_img_size': True, **kwargs,
    }  # fmt: skip
    return _create_vision_transformer('vit_tiny_patch16_224', pretrained, **options)


REGISTERED = (tiny_chip_vit, tiny_mae_group_vit, tiny_mae_temporal_vit)
"""What the files of ``tests/conf`` name."""


def _each(names: tuple[str, ...], always: str) -> list[Any]:
    """All of a kind, of which one is quick enough to run always."""
    return [
        name if name == always else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


def _run(kind: str, name: str, folder: Path) -> tuple[list[str], Path]:
    """Arguments of the command for a configuration on fake data, and the folder that it fills."""
    config = f'{kind}_{name}'
    root = DATA[name](folder / 'data')
    arguments = copy_config(config, folder, root)
    copied = folder / 'mine.yaml'
    content = yaml.safe_load(copied.read_text())
    content['trainer']['enable_progress_bar'] = False
    content['trainer']['enable_model_summary'] = False
    copied.write_text(yaml.safe_dump(content, sort_keys=False))
    return arguments, folder / 'output' / config


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize('name', _each(PRETRAINING, 'camelyon17'))
def test_pretraining(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, out = _run('explora', name, tmp_path)
    last = ['--ckpt_path', str(out / 'checkpoints' / 'last.ckpt')]
    main(['fit', *arguments, '--trainer.max_steps', '1'])
    assert not (out / 'explora.safetensors').is_file() or len(_rows(out / 'curve.csv')) == 1
    main(['fit', *arguments, *last])
    assert [int(row['step']) for row in _rows(out / 'curve.csv')] == [1, 2]
    assert (out / 'explora.safetensors').is_file() and (out / 'adapter.safetensors').is_file()
    main(['test', *arguments, *last])  # of resisc45 and iwildcam the last batch is a single image
    main(['predict', *arguments, *last])
    embedding = load_file(out / 'embeddings.safetensors')['embedding']
    assert embedding.isfinite().all() and len(embedding) > 3


@pytest.mark.parametrize('name', _each(PROBES, 'iwildcam'))
def test_probes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, out = _run('probe', name, tmp_path)
    main(['validate', *arguments])
    found = json.loads((out / 'linear_probe_val.json').read_text())
    assert 0 <= found['best']['accuracy'] <= 1 and found['evaluated_images'] > 1
    if name in {'camelyon17', 'iwildcam'}:
        assert found['official_accuracy'] == pytest.approx(found['best']['accuracy'])
    assert ('official_macro_f1' in found) == (name == 'iwildcam')
    main(['fit', *arguments])
    (first,) = (out / 'checkpoints').glob('*.ckpt')
    main(['fit', *arguments, '--trainer.max_epochs', '2', '--ckpt_path', str(first)])
    saved = sorted((out / 'checkpoints').glob('*.ckpt'), key=lambda path: path.stat().st_mtime)
    last = ['--ckpt_path', str(saved[-1])]
    main(['test', *arguments, *last])
    assert json.loads((out / 'linear_probe_test.json').read_text())['chosen_on'] == 'val'
    main(['predict', *arguments, *last])
    rows = _rows(out / 'predictions' / 'predictions.csv')
    assert len(rows) > 1 and all(0 <= float(row['probability']) <= 1 for row in rows)


@pytest.mark.parametrize('name', _each(FINETUNING, 'iwildcam'))
def test_finetuning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, out = _run('finetune', name, tmp_path)
    last = ['--ckpt_path', str(out / 'checkpoints' / 'last.ckpt')]
    main(['fit', *arguments])
    assert (out / 'checkpoints' / 'best.ckpt').is_file()
    main(['fit', *arguments, '--trainer.max_epochs', '3', *last])
    epochs = {int(row['epoch']) for row in _rows(out / 'metrics.csv') if row.get('val_loss')}
    assert epochs == set(range(3))  # those before the checkpoint as well
    assert (out / 'model.safetensors').is_file()
    main(['validate', *arguments, *last])
    main(['test', *arguments, *last])
    assert (out / 'test_report' / 'classes.csv').is_file()
    header = _rows(out / 'test_metrics.csv')[0]
    assert ('test_official_macro_f1' in header) == (name == 'iwildcam')
    assert ('test_official_accuracy' in header) == (name in {'iwildcam', 'camelyon17'})
    main(['predict', *arguments, *last])
    rows = _rows(out / 'predictions' / 'predictions.csv')
    assert len(rows) > 1 and all(Path(row['file']).is_file() for row in rows)
