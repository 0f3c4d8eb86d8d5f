"""Checkpoints of pre-training start a model as the files that the same run publishes do."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.tasks.dinov2_runs import make_data, make_task, make_trainer
from tests.tasks.mae_runs import KINDS, make_root
from tests.tasks.mae_runs import make_data as make_mae_data
from tests.tasks.mae_runs import make_task as make_mae_task
from tests.tasks.toy import images
from torchgeo_explora.models import create_backbone


def compare(name: str, folder: Path) -> None:
    """Compare what the checkpoint gives with what the run wrote at its end."""
    merged, published = create_backbone(name, folder / 'explora.safetensors')
    found, report = create_backbone(name, folder / 'last.ckpt')
    expected = merged.state_dict()
    assert found.state_dict().keys() == expected.keys()
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-5)
    for key in ('mean', 'std', 'channel_groups'):
        assert report.metadata.get(key) == published.metadata.get(key)


@pytest.mark.parametrize(('publish', 'share'), [('student', 0.7), ('teacher', 1.0)])
def test_dinov2(publish: str, share: float, tmp_path: Path) -> None:
    task = make_task(publish=publish, blend=share, seed=1, weights=None)
    saver = ModelCheckpoint(tmp_path, save_last=True)
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(task, make_data(images(tmp_path / 'images')))
    compare('test_vit', tmp_path)


@pytest.mark.parametrize('kind', ['groups', 'plain'])
def test_mae(kind: str, tmp_path: Path) -> None:
    task = make_mae_task(kind)
    saver = ModelCheckpoint(tmp_path, save_last=True)
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(task, make_mae_data(kind, make_root(kind, tmp_path / 'data')))
    compare(KINDS[kind]['model'], tmp_path)
