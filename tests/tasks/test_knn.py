"""Nearest neighbours as a task."""

import json
from pathlib import Path

import pytest
import torch
from torchgeo.main import main

from tests.tasks.toy import CONF, HALVES, TINY, ColourDataModule, images, trainer
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.probing import extract_features, knn
from torchgeo_explora.tasks import KNN


@pytest.mark.parametrize('stage', ['val', 'test'])
def test_the_task_gives_what_the_function_gives(tmp_path: Path, stage: str) -> None:
    task, data = KNN(**TINY, k=(1, 5, 500)), ColourDataModule()
    run = trainer(tmp_path)
    verb = run.validate if stage == 'val' else run.test
    (metrics,) = verb(task, datamodule=data, verbose=False)
    parts = {}
    for part in ('fit', 'test'):
        data.setup(part)
    for split in ('train', stage):
        dataset = getattr(data, f'{split}_dataset')
        batch = torch.utils.data.default_collate([dataset[i] for i in range(len(dataset))])
        parts[split] = extract_features(task.model, [batch], HALVES, 1)
    result = knn(parts['train'], parts[stage], k=(1, 5, 500))
    for count, accuracy in result.accuracy.items():
        assert metrics[f'{stage}/knn_{count}'] == pytest.approx(accuracy, abs=1e-6)
    assert metrics[f'{stage}/knn_best'] == pytest.approx(result.best, abs=1e-6)
    written = json.loads((tmp_path / f'knn_{stage}.json').read_text(encoding='utf-8'))
    assert written['accuracy'][2] == {'k': 500, 'used': 48, 'accuracy': result.accuracy[500]}
    assert written['note'] == result.note


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, fast_dev_run=True).validate(KNN(**TINY), datamodule=ColourDataModule())
    assert not list(tmp_path.iterdir())


def test_the_output_folder_can_be_chosen(tmp_path: Path) -> None:
    task = KNN(**TINY, output_dir=str(tmp_path / 'results' / 'here'))
    trainer(tmp_path / 'run').validate(task, datamodule=ColourDataModule(), verbose=False)
    assert sorted(p.name for p in (tmp_path / 'results' / 'here').iterdir()) == [
        'knn_val.csv',
        'knn_val.json',
    ]


def test_neighbours_among_the_images_themselves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='training images as well'):
        trainer(tmp_path).validate(KNN(**TINY), datamodule=ColourDataModule(leak=True))


@pytest.mark.slow
def test_the_torchgeo_command_scores_a_folder(tmp_path: Path) -> None:
    root = images(tmp_path / 'images')
    arguments = ['--data.init_args.root', str(root)]
    arguments += ['--trainer.default_root_dir', str(tmp_path / 'run')]
    main(['validate', '--config', str(CONF / 'probe_knn.yaml'), *arguments])
    result = json.loads((tmp_path / 'run' / 'knn_val.json').read_text(encoding='utf-8'))
    assert result['accuracy'][0]['accuracy'] > 0.9
    assert 'k = 1000' in result['note']
