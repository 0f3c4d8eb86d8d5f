"""Configurations of ``conf`` through the real command on fake data: fit, test and predict.

Each is copied with only its paths changed, and a file of ``tests/conf`` laid over it that makes
everything small.
"""

import csv
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torchgeo.main import main

from tests.data.fmow_rgb.data import write_raw, write_tables
from tests.data.fmow_sentinel.data import chip, write_sentinel
from tests.data.fmow_temporal.data import write_temporal
from tests.data.folder.data import write_raster
from tests.tasks.mae_runs import write_natural_mae
from tests.tasks.toy import CONF
from torchgeo_explora.models import GroupChannelViT, create_backbone, read_metadata

CONFIGS = CONF.parents[1] / 'conf'


def write_landsat(root: Path) -> Path:
    """Rasters of seven bands whose files do not name them."""
    for split, count in (('train', 10), ('test', 4)):
        for number in range(count):
            values = chip(number, bands=7, height=48, width=48)
            write_raster(root / split / f'{number}.tif', values)
    return root


def copy_config(name: str, folder: Path, root: Path, **paths: Path | None) -> list[str]:
    """Copy a configuration with other paths; arguments of the command that use it.

    Args:
        name: Of the file, without its suffix.
        folder: Where the copy goes, and where the command runs.
        root: Of the data.
        paths: Further paths, arguments of the model; unchanged where None.
    """
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f'{name}.yaml').read_text())
    config['data']['init_args']['root'] = str(root)
    given = {key: str(path) for key, path in paths.items() if path is not None}
    config['model']['init_args'] |= given
    copied = folder / 'mine.yaml'
    copied.write_text(yaml.safe_dump(config, sort_keys=False))
    return ['--config', str(copied), '--config', str(CONF / f'{name}.yaml')]


MAE: dict[str, Callable[[Path], Path]] = {
    'explora_fmow_sentinel': write_sentinel,
    'explora_mae_fmow_rgb': write_tables,
    'explora_fmow_temporal': write_temporal,
    'explora_mae_folder': write_landsat,
}
WRITTEN = {'explora.safetensors', 'adapter.safetensors', 'decoder.safetensors', 'curve.csv',
           'curve.png', 'config.yaml', 'metrics.csv'}  # fmt: skip


@pytest.mark.parametrize('name', MAE)
def test_masked_autoencoders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root, weights = MAE[name](tmp_path / 'data'), write_natural_mae(tmp_path / 'mae.pth')
    arguments = copy_config(name, tmp_path, root, weights=weights)
    main(['fit', *arguments])
    out = tmp_path / 'output' / name
    assert {path.name for path in out.iterdir()} >= WRITTEN
    with (out / 'curve.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row['train_loss']) > 0 for row in rows] == [True] * len(rows)
    assert [int(row['step']) for row in rows] == list(range(1, len(rows) + 1))
    assert any(row['val_loss'] for row in rows)
    pictures = {path.name for path in (out / 'reconstructions').iterdir()}
    assert pictures == {'step_00000000.png', f'step_{len(rows):08d}.png'}
    metadata = read_metadata(out / 'explora.safetensors')
    assert metadata['method'] == 'M-ExPLoRA'
    assert metadata['start'].endswith('mae.pth')
    checkpoint = ['--ckpt_path', str(out / 'checkpoints' / 'last.ckpt')]
    main(['test', *arguments, *checkpoint])
    assert (out / 'reconstructions' / 'test.png').is_file()
    main(['predict', *arguments, *checkpoint])
    embedding = load_file(out / 'embeddings.safetensors')['embedding']
    assert len(embedding) > 3 and embedding.isfinite().all()
    assert embedding.std(dim=0).mean() > 1e-4


def test_groups_of_another_sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands are taken from the files by name, and groups are groups of those."""
    monkeypatch.chdir(tmp_path)
    root, weights = write_landsat(tmp_path / 'data'), write_natural_mae(tmp_path / 'mae.pth')
    main(['fit', *copy_config('explora_mae_folder', tmp_path, root, weights=weights)])
    merged = tmp_path / 'output' / 'explora_mae_folder' / 'explora.safetensors'
    bands = json.loads(read_metadata(merged)['bands'])
    assert bands == ['blue', 'green', 'red', 'nir', 'swir1', 'swir2']
    model, _ = create_backbone('tiny_mae_group_vit', merged)
    assert isinstance(model, GroupChannelViT)
    assert model.channel_groups == ((0, 1, 2), (3, 4, 5))


@pytest.mark.parametrize('write', [write_tables, write_raw])
def test_dinov2_on_fmow(
    write: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = copy_config('explora_fmow_rgb', tmp_path, write(tmp_path / 'data'))
    main(['fit', *arguments])
    out = tmp_path / 'output' / 'explora_fmow_rgb'
    assert {path.name for path in out.iterdir()} >= WRITTEN - {'decoder.safetensors'}
    assert len((out / 'curve.csv').read_text().splitlines()) == 1 + 2  # four micro-batches
    checkpoint = ['--ckpt_path', str(out / 'checkpoints' / 'last.ckpt')]
    main(['test', *arguments, *checkpoint])
    main(['predict', *arguments, *checkpoint])
    embedding = load_file(out / 'embeddings.safetensors')['embedding']
    assert embedding.isfinite().all() and len(embedding) > 3


@pytest.mark.parametrize(
    ('name', 'pretrain', 'write'),
    [
        ('probe_fmow_sentinel', 'explora_fmow_sentinel', write_sentinel),
        ('probe_fmow_rgb', 'explora_fmow_rgb', write_tables),
    ],
)
def test_probes(
    name: str,
    pretrain: str,
    write: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights that a run writes are probed, with linear classifiers and neighbours."""
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / 'data')
    start = write_natural_mae(tmp_path / 'mae.pth') if 'sentinel' in name else None
    main(['fit', *copy_config(pretrain, tmp_path, root, weights=start)])
    merged = tmp_path / 'output' / pretrain / 'explora.safetensors'
    arguments = copy_config(name, tmp_path, root, weights=merged)
    main(['validate', *arguments])
    found = json.loads((tmp_path / 'output' / name / 'linear_probe_val.json').read_text())
    assert found['weights'] == str(merged)
    assert torch.tensor(found['mean']).isfinite().all()
    config = yaml.safe_load((tmp_path / 'mine.yaml').read_text())
    config['model']['class_path'] = 'torchgeo_explora.tasks.KNN'
    overlay = yaml.safe_load((CONF / f'{name}.yaml').read_text())
    options = {**config['model']['init_args'], **overlay['model']['init_args']}
    for key in ('iterations', 'batch_size', 'blocks'):
        options.pop(key, None)
    config['model']['init_args'] = options
    config['data'] = {**config['data'], 'init_args': {**config['data']['init_args'],
                                                      **overlay['data']['init_args']}}  # fmt: skip
    config['trainer'] |= overlay['trainer']
    (tmp_path / 'knn.yaml').write_text(yaml.safe_dump(config))
    main(['test', '--config', str(tmp_path / 'knn.yaml')])
    assert (tmp_path / 'output' / name / 'knn_test.json').is_file()


DRIVEN_CONFIGS = {
    *MAE, 'explora_fmow_rgb', 'probe_fmow_sentinel', 'probe_fmow_rgb',
    # the tasks of these are tested by other files of this folder
    'explora_eurosat', 'explora_folder', 'knn_eurosat', 'probe_eurosat', 'probe_folder',
}  # fmt: skip


def test_every_configuration_is_driven() -> None:
    """Each is named by the ``DRIVEN_CONFIGS`` of a module that runs it."""
    tests = CONF.parent
    modules = [
        import_module('.'.join(path.relative_to(tests.parent).with_suffix('').parts))
        for path in sorted(tests.rglob('test_*.py'))
        if 'DRIVEN_CONFIGS = ' in path.read_text()
    ]
    driven = {name for module in modules for name in module.DRIVEN_CONFIGS}
    assert driven == {path.stem for path in CONFIGS.glob('*.yaml')}
    assert {path.stem for path in CONF.glob('*.yaml')} - driven <= {'probe_linear', 'probe_knn'}
