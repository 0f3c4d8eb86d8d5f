"""The linear probe as a task: alone, through the command line, and by the paper's own loop."""

import csv
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchgeo.main import main

from tests.tasks.toy import CLASSES, CONF, HALVES, TINY, ColourDataModule, images, trainer
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import create_backbone, save_backbone
from torchgeo_explora.objectives.probing import (
    LinearProbeConfig,
    extract_features,
    linear_probe,
    logistic_regression,
)
from torchgeo_explora.tasks import LinearProbe
from torchgeo_explora.tasks._frozen import RandomViews
from torchgeo_explora.transforms import EvalTransform

SHORT: dict[str, Any] = {**TINY, 'iterations': 40, 'batch_size': 16}


def expected(task: LinearProbe, data: ColourDataModule, split: str, **config: Any) -> Any:  # noqa: ANN401
    """The same probe by the functions alone."""
    for stage in ('fit', 'test'):
        data.setup(stage)
    features = {}
    for name in ('train', 'val', split):
        dataset = getattr(data, f'{name}_dataset')
        batch = torch.utils.data.default_collate([dataset[i] for i in range(len(dataset))])
        features[name] = extract_features(task.model, [batch], HALVES)
    test = features['test'] if split == 'test' else None
    settings = LinearProbeConfig(batch_size=16, iterations=40, **config)
    logistic = logistic_regression(features['train'], features[split])
    return linear_probe(features['train'], features['val'], test, settings), logistic


@pytest.mark.parametrize('stage', ['val', 'test'])
def test_the_task_gives_what_the_functions_give(tmp_path: Path, stage: str) -> None:
    task, data = LinearProbe(**SHORT, seed=2), ColourDataModule()
    run = trainer(tmp_path)
    verb = run.validate if stage == 'val' else run.test
    (metrics,) = verb(task, datamodule=data, verbose=False)
    result, logistic = expected(task, ColourDataModule(), stage, seed=2)
    scored = [s.accuracy if stage == 'val' else s.test_accuracy for s in result.scores]
    logged = [metrics[f'{stage}/linear_acc/{s.name}'] for s in result.scores]
    assert logged == pytest.approx(scored, abs=1e-6)
    assert len(logged) == 28
    best = result.best.accuracy if stage == 'val' else result.best.test_accuracy
    assert metrics[f'{stage}/linear_acc_best'] == pytest.approx(best, abs=1e-6)
    assert metrics[f'{stage}/logistic_acc'] == pytest.approx(logistic.accuracy, abs=1e-6)
    written = json.loads((tmp_path / f'linear_probe_{stage}.json').read_text(encoding='utf-8'))
    assert written['best']['name'] == result.best.name
    assert written['config']['iterations'] == 40
    assert written['train_features'] == 48
    rows = list(csv.DictReader((tmp_path / f'linear_probe_{stage}.csv').open(encoding='utf-8')))
    assert [float(row['accuracy']) for row in rows] == pytest.approx(
        [score.accuracy for score in result.scores]
    )
    tables = tmp_path / 'linear_probe_test_report'
    assert tables.is_dir() == (stage == 'test')
    if stage == 'test':
        report = json.loads((tables / 'report.json').read_text(encoding='utf-8'))
        assert report['overall']['accuracy'] == pytest.approx(best, abs=1e-6)
        assert report['images'] == 24
        assert [row['class'] for row in report['classes']] == CLASSES
        assert {'classes.csv', 'confusion.csv', 'confusion.png'} <= {
            f.name for f in tables.iterdir()
        }


def test_a_kept_folder_of_features_changes_nothing_and_follows_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / 'cache'
    results = []
    for _ in range(2):
        task = LinearProbe(**SHORT, cache_dir=str(cache), logistic=False)
        results.append(
            trainer(tmp_path).validate(task, datamodule=ColourDataModule(), verbose=False)
        )
        files = sorted(cache.iterdir())
        assert len(files) == 1
        monkeypatch.setattr(LinearProbe, '_extract', lambda *_: pytest.fail('extracted again'))
    assert results[0] == results[1]
    monkeypatch.undo()
    others: list[dict[str, Any]] = [{'eval_size': 32}, {'views': 2}, {'mean': (0.4, 0.4, 0.4)}]
    for count, change in enumerate(others, start=2):
        arguments = {**SHORT, 'logistic': False, **change}
        task = LinearProbe(**arguments, cache_dir=str(cache))
        trainer(tmp_path).validate(task, datamodule=ColourDataModule(), verbose=False)
        assert len(list(cache.iterdir())) == count


def test_views_multiply_the_training_features(tmp_path: Path) -> None:
    task = LinearProbe(**SHORT, views=3, logistic=False)
    trainer(tmp_path).validate(task, datamodule=ColourDataModule(), verbose=False)
    features = task.split_features('train')
    assert len(features) == 3 * 48
    assert not torch.equal(features.cls[:48], features.cls[48:96])
    labels = features.require_labels()
    assert torch.equal(labels[:48], labels[48:96])


def test_views_depend_on_their_seed_alone() -> None:
    batch = torch.rand(4, 3, 20, 20)
    state = torch.get_rng_state()
    first, second, other = (RandomViews(EvalTransform(16), seed)(batch) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (4, 3, 16, 16)
    assert torch.equal(torch.get_rng_state(), state)


def test_fit_learns_resumes_and_is_scored_from_its_checkpoint(tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    task = LinearProbe(**TINY)
    backbone = {name: value.clone() for name, value in task.model.state_dict().items()}
    saver = ModelCheckpoint(tmp_path, filename='{epoch}', save_top_k=-1)
    run = trainer(tmp_path, max_epochs=4, callbacks=[saver], enable_checkpointing=True)
    run.fit(task, datamodule=ColourDataModule())
    assert task.bank is not None
    assert task.bank.config.iterations == 4 * 6
    assert run.optimizers[0].param_groups[0]['lr'] == pytest.approx(0, abs=1e-9)
    assert run.callback_metrics['val/linear_acc_best'] > 0.5
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, backbone[name]), name
    again = LinearProbe(**TINY)
    (scores,) = trainer(tmp_path).validate(
        again, datamodule=ColourDataModule(), ckpt_path=tmp_path / 'epoch=3.ckpt', verbose=False
    )
    assert scores['val/linear_acc_best'] == run.callback_metrics['val/linear_acc_best']
    assert 'val/logistic_acc' not in scores
    (tested,) = trainer(tmp_path).test(
        LinearProbe(**TINY), datamodule=ColourDataModule(), ckpt_path=tmp_path / 'epoch=3.ckpt',
        verbose=False,
    )  # fmt: skip
    assert tested['test/linear_acc_best'] > 0.5


def test_a_fit_draws_new_crops_in_every_epoch(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watched(LinearProbe):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            seen.append(loss.detach())
            return loss

    data = ColourDataModule(batch_size=48)
    task = Watched(**TINY, learning_rates=(1e-30,))
    trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(task, datamodule=data)
    assert len({loss.item() for loss in seen}) == 3  # nothing was learnt, only crops differ


def test_a_merged_file_brings_its_own_normalisation(tmp_path: Path) -> None:
    model, _ = create_backbone('vit_tiny_patch16_224', seed=3)
    path = tmp_path / 'merged.safetensors'
    save_backbone(model, path, {'mean': [0.1, 0.2, 0.3], 'std': [1.0, 2.0, 3.0]})
    task = LinearProbe(**TINY, weights=str(path))
    assert task.eval_transform.normalize.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert task.eval_transform.normalize.std.tolist() == [1, 2, 3]
    given = LinearProbe(**TINY, weights=str(path), mean=(0, 0, 0))
    assert given.eval_transform.normalize.mean.tolist() == [0, 0, 0]
    for name, value in model.state_dict().items():
        assert torch.equal(task.model.state_dict()[name], value), name


def test_timm_statistics_are_used_where_the_weights_name_none() -> None:
    task = LinearProbe('vit_tiny_patch16_224.augreg_in21k', eval_size=16)
    assert task.eval_transform.normalize.mean.tolist() == [0.5, 0.5, 0.5]


def test_impossible_probes_are_refused_in_a_sentence(tmp_path: Path) -> None:
    def validate(data: ColourDataModule, **arguments: Any) -> None:  # noqa: ANN401
        task = LinearProbe(**{**SHORT, **arguments})
        trainer(tmp_path).validate(task, datamodule=data, verbose=False)

    with pytest.raises(ConfigError, match='training images as well'):
        validate(ColourDataModule(leak=True))
    with pytest.raises(ConfigError, match='no val images with labels'):
        validate(ColourDataModule(labelled=False))
    with pytest.raises(ConfigError, match='views is 0'):
        LinearProbe(**TINY, views=0)
    with pytest.raises(ConfigError, match='mean has 2 values'):
        LinearProbe(**TINY, mean=(0.5, 0.5))
    with pytest.raises(ConfigError, match='not known'):
        LinearProbe(**TINY, in_channels=5)
    with pytest.raises(ConfigError, match='set num_classes'):
        trainer(tmp_path).fit(LinearProbe(**TINY), datamodule=ColourDataModule(named=False))
    with pytest.raises(ConfigError, match='needs a TorchGeo'):
        loader = torch.utils.data.DataLoader([{'image': torch.rand(3, 16, 16)}])  # type: ignore[arg-type,var-annotated]
        trainer(tmp_path).validate(LinearProbe(**SHORT), loader, verbose=False)
    assert not list(tmp_path.glob('linear_probe*'))


@pytest.mark.slow
def test_the_torchgeo_command_validates_tests_and_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = images(tmp_path / 'images')
    common = [
        '--config', str(CONF / 'probe_linear.yaml'), '--data.init_args.root', str(root),
        '--trainer.default_root_dir', str(tmp_path / 'run'),
    ]  # fmt: skip
    with caplog.at_level('INFO'):
        main(['validate', *common])
    result = json.loads((tmp_path / 'run' / 'linear_probe_val.json').read_text(encoding='utf-8'))
    assert result['best']['accuracy'] > 0.9
    assert result['evaluated_images'] == 36
    assert 'Best on the validation images' in caplog.text
    main(['fit', *common])
    (checkpoint,) = (tmp_path / 'run').rglob('*.ckpt')
    main(['test', *common, '--ckpt_path', str(checkpoint)])
    assert (tmp_path / 'run' / 'linear_probe_test.csv').is_file()
