"""`run.json` of trainings and tests: what ran, from what, to what, and how it ended."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torchgeo.main import main

from tests.tasks.toy import CONF, TINY, ColourDataModule, images
from tests.tasks.toy import trainer as make_trainer
from torchgeo_explora._run_record import file_hash, read_record, recording
from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.models import create_backbone, save_backbone
from torchgeo_explora.tasks import KNN, LinearProbe, LoRAClassification, RunRecorder


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp('images'), count=3)


@pytest.fixture(scope='module')
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vit, _ = create_backbone('test_vit', seed=4)
    return save_backbone(vit, tmp_path_factory.mktemp('base') / 'base.safetensors')


def _task(**arguments: Any) -> LoRAClassification:  # noqa: ANN401
    return LoRAClassification('test_vit', image_size=32, rank=2, drop_path=0.0, **arguments)


def _parts(folder: Path) -> list[dict[str, Any]]:
    content = read_record(folder)
    assert content is not None
    parts: list[dict[str, Any]] = content['parts']
    return parts


def test_a_training_and_its_test_are_parts_of_one_record(
    root: Path, base: Path, tmp_path: Path
) -> None:
    task = _task(weights=str(base), seed=5)
    trainer = make_trainer(tmp_path, max_epochs=1)
    data = FolderDataModule(root, image_size=32, batch_size=3)
    trainer.fit(task, data)
    scores = trainer.test(task, data, verbose=False)[0]
    fit, test = _parts(tmp_path)
    assert (fit['command'], fit['state'], fit['seed'], fit['steps']) == ('fit', 'finished', 5, 3)
    assert fit['weights']['weights']['sha256'] == file_hash(base)
    assert fit['files'] == {'model.safetensors': file_hash(tmp_path / 'model.safetensors')}
    config = fit['config']
    assert config['model']['init_args']['rank'] == 2
    assert config['data']['class_path'].endswith('FolderDataModule')
    assert config['trainer']['max_epochs'] == 1
    assert (test['command'], test['state']) == ('test', 'finished')
    assert test['metrics'] == pytest.approx({k: float(v) for k, v in scores.items()})
    assert 'files' not in test  # a test writes no weights


class _Break(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ('error', 'ends', 'state'),
    [
        (ZeroDivisionError('by zero'), ZeroDivisionError, 'failed'),
        (KeyboardInterrupt(), SystemExit, 'interrupted'),
    ],
)
def test_how_a_training_broke_off(
    root: Path, tmp_path: Path, error: BaseException, ends: type[BaseException], state: str
) -> None:
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[_Break(error)])
    with pytest.raises(ends):
        trainer.fit(_task(), FolderDataModule(root, image_size=32, batch_size=3))
    (part,) = _parts(tmp_path)
    assert part['state'] == state and part['ended'] is not None
    assert part['weights']['weights'] == {'source': 'random'}


def test_a_collapse_is_recorded_with_its_reason(root: Path, tmp_path: Path) -> None:
    class Collapse(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.collapse_reason = 'The features are all one.'  # type: ignore[assignment]

    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[Collapse()])
    trainer.fit(_task(), FolderDataModule(root, image_size=32, batch_size=9))
    (part,) = _parts(tmp_path)
    assert (part['state'], part['error']) == ('collapsed', 'The features are all one.')


@pytest.mark.parametrize('task', [KNN, LinearProbe])
def test_probes_are_recorded(task: type[KNN] | type[LinearProbe], tmp_path: Path) -> None:
    arguments: dict[str, Any] = {'k': (3,)} if task is KNN else {'iterations': 2, 'blocks': (1,)}
    trainer = make_trainer(tmp_path)
    trainer.validate(task(**TINY, **arguments), datamodule=ColourDataModule(), verbose=False)
    (part,) = _parts(tmp_path)
    assert (part['command'], part['state']) == ('validate', 'finished')
    assert part['metrics'] and all(0 <= value <= 1 for value in part['metrics'].values())


@pytest.mark.parametrize('how', ['disabled', 'led by a command', 'tried out'])
def test_where_another_keeps_the_record_or_nothing_is_written(
    how: str, root: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {'max_epochs': 1}
    if how == 'disabled':
        options['callbacks'] = [RunRecorder(enabled=False)]
    if how == 'tried out':
        options['fast_dev_run'] = True
    data = FolderDataModule(root, image_size=32, batch_size=9)
    if how == 'led by a command':
        with recording(tmp_path, 'adapt', {}):
            make_trainer(tmp_path, **options).fit(_task(), data)
        assert [part['command'] for part in _parts(tmp_path)] == ['adapt']
        return
    make_trainer(tmp_path, **options).fit(_task(), data)
    assert read_record(tmp_path) is None


def test_the_configuration_is_that_of_the_command(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('PL_GLOBAL_SEED', raising=False)
    arguments = ['--data.init_args.root', str(root), '--seed_everything', '11']
    arguments += ['--trainer.default_root_dir', str(tmp_path)]
    main(['validate', '--config', str(CONF / 'probe_knn.yaml'), *arguments])
    (part,) = _parts(tmp_path)
    assert part['global_seed'] == 11
    assert part['config']['data']['init_args']['root'] == str(root)
    assert part['config']['model']['init_args']['k'] == [3, 1000]
    assert part['environment']['torchgeo_explora']
    assert torch.device(part['environment']['device']).type == 'cpu'
