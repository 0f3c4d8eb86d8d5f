"""The table of metrics: whole after a resumed run, untouched by a test, and begun anew by a fit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from tests.tasks.dinov2_runs import make_trainer
from tests.tasks.test_classification import make_data, make_task
from tests.tasks.toy import images
from torchgeo_explora.errors import OutputError
from torchgeo_explora.tasks import ResumableCSVLogger
from torchgeo_explora.tasks.logger import read_metrics

BATCHES = 6
"""Of an epoch: 36 images, six at once."""


class Killed(Exception):
    """Stands for a process that ends in the middle of an epoch."""


class KillAt(Callback):
    """Ends the process before a batch."""

    def __init__(self, batch: int | None) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step == self.batch:
            raise Killed


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp('images'))


def fit(folder: Path, root: Path, killed_at: int | None = None, **options: Any) -> None:  # noqa: ANN401
    """Fit for three epochs with a checkpoint every four steps and a row every step."""
    resume = options.pop('resume', None)
    saver = ModelCheckpoint(folder / 'ckpt', every_n_train_steps=4, save_last=True)
    arguments: dict[str, Any] = {
        'max_epochs': 3, 'logger': ResumableCSVLogger(folder), 'enable_checkpointing': True,
        'callbacks': [saver, KillAt(killed_at)], 'log_every_n_steps': 1,
    }  # fmt: skip
    trainer = make_trainer(folder, **{**arguments, **options})
    try:
        trainer.fit(make_task(), make_data(root), ckpt_path=resume)
    except Killed:
        assert killed_at is not None


@pytest.fixture(scope='module')
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unbroken run."""
    folder = tmp_path_factory.mktemp('whole')
    fit(folder, root)
    return folder


def test_a_row_for_every_step_and_a_column_for_every_metric(whole: Path) -> None:
    rows = read_metrics(whole / 'metrics.csv')
    assert list(rows) == list(range(3 * BATCHES))
    assert [step for step, row in rows.items() if 'val_loss' in row] == [5, 11, 17]
    assert all(row['epoch'] == step // BATCHES for step, row in rows.items())


# in the second epoch, and at the end of one; the checkpoint is of step 4, 8, 12 or 16
@pytest.mark.parametrize('killed_at', [5, 9, 12, 17])
def test_the_table_of_a_resumed_run_is_that_of_an_unbroken_one(
    killed_at: int, whole: Path, root: Path, tmp_path: Path
) -> None:
    fit(tmp_path, root, killed_at)
    before = read_metrics(tmp_path / 'metrics.csv')
    assert list(before) == list(range(killed_at))
    last = tmp_path / 'ckpt' / 'last.ckpt'
    fit(tmp_path, root, resume=last)
    rows, expected = (read_metrics(f / 'metrics.csv') for f in (tmp_path, whole))
    assert list(rows) == list(expected)
    for step, row in expected.items():
        assert rows[step].keys() == row.keys()
        single = [name for name in row if name.endswith('_step') or name.startswith('lr')]
        assert {n: rows[step][n] for n in single} == {n: row[n] for n in single}
        assert {n: v for n, v in rows[step].items() if n.startswith('val')} == {
            n: v for n, v in row.items() if n.startswith('val')
        }


def test_rows_after_the_checkpoint_are_dropped(whole: Path, root: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / 'run')
    fit(tmp_path / 'run', root, resume=tmp_path / 'run' / 'ckpt' / 'last.ckpt', max_epochs=3)
    table = tmp_path / 'run' / 'metrics.csv'
    table.write_text(table.read_text() + '99,3,0.5\n')
    fit(tmp_path / 'run', root, resume=tmp_path / 'run' / 'ckpt' / 'last.ckpt', max_epochs=4)
    assert list(read_metrics(table)) == list(range(4 * BATCHES))


def test_a_test_leaves_the_table_of_the_fit_alone(whole: Path, root: Path) -> None:
    before = (whole / 'metrics.csv').read_bytes()
    for method, name in (('test', 'test_loss'), ('validate', 'val_loss')):
        trainer = make_trainer(whole, logger=ResumableCSVLogger(whole))
        getattr(trainer, method)(make_task(), make_data(root), verbose=False)
        assert (whole / 'metrics.csv').read_bytes() == before
        (row,) = read_metrics(whole / f'{method}_metrics.csv').values()
        assert row[name] == pytest.approx(float(trainer.callback_metrics[name]))


def test_a_fit_from_the_start_begins_a_new_table(whole: Path, root: Path, tmp_path: Path) -> None:
    shutil.copy(whole / 'metrics.csv', tmp_path)
    fit(tmp_path, root, max_epochs=1)
    assert list(read_metrics(tmp_path / 'metrics.csv')) == list(range(BATCHES))


def test_a_fit_and_a_test_by_one_trainer(root: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=1, logger=ResumableCSVLogger(tmp_path),
                           log_every_n_steps=1)  # fmt: skip
    task, data = make_task(), make_data(root)
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    rows = read_metrics(tmp_path / 'metrics.csv')
    assert list(rows) == list(range(BATCHES))
    assert not any(name.startswith('test') for row in rows.values() for name in row)
    assert len(read_metrics(tmp_path / 'test_metrics.csv')) == 1


def test_the_table_of_lightnings_logger_goes_on(root: Path, tmp_path: Path) -> None:
    plain = CSVLogger(tmp_path, name=None, version='')
    fit(tmp_path, root, max_epochs=1, logger=plain)
    fit(tmp_path, root, resume=tmp_path / 'ckpt' / 'last.ckpt', max_epochs=2)
    assert list(read_metrics(tmp_path / 'metrics.csv')) == list(range(2 * BATCHES))


@pytest.mark.parametrize('text', ['a,b\n1,2\n', 'step,loss\nx,1\n', 'step,loss\n1,high\n'])
def test_a_table_that_is_none_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / 'metrics.csv').write_text(text)
    logger = ResumableCSVLogger(tmp_path)
    with pytest.raises(OutputError, match='move it away'):
        logger.log_metrics({'loss': 1.0}, step=0)
    logger.finalize('failed')
    assert (tmp_path / 'metrics.csv').read_text() == text


def test_without_one_of_our_tasks_rows_are_only_added(tmp_path: Path) -> None:
    for step in (3, 1):
        logger = ResumableCSVLogger(tmp_path)
        logger.log_metrics({'loss': step / 4}, step=step)
        logger.log_metrics({'accuracy': 0.5})
        logger.finalize('success')
    assert read_metrics(tmp_path / 'metrics.csv') == {
        1: {'loss': 0.25}, 3: {'loss': 0.75}, 4: {'accuracy': 0.5}, 5: {'accuracy': 0.5},
    }  # fmt: skip
