"""`info` on the folders of runs: what `run.json` says, for people and as JSON."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from torchgeo_explora._environment import environment
from torchgeo_explora._run_record import RECORD, RunRecord, read_record, recording
from torchgeo_explora.cli.main import main
from torchgeo_explora.models import create_backbone, save_backbone


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vit, _ = create_backbone('test_vit', seed=0)
    return save_backbone(vit, tmp_path_factory.mktemp('start') / 'start.safetensors')


def test_the_record_of_a_run_is_printed(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recording(tmp_path, 'fit', {}, seed=7, weights={'start': weights}) as record:
        (tmp_path / 'model.safetensors').write_bytes(weights.read_bytes())
        record.add([tmp_path / 'model.safetensors'], metrics={'val_loss': 0.25})
    with recording(tmp_path, 'test', {}, seed=7) as record:
        record.add(metrics={'test_accuracy': 0.5})
    assert main(['info', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    content = read_record(tmp_path)
    assert content is not None
    assert 'Run of fit: finished' in out and ' test for ' in out
    assert 'test_accuracy 0.5' in out and 'seed        7' in out
    assert environment()['hardware'] in out
    git = content['parts'][0]['environment']['git']
    assert git is None or git['commit'][:12] in out
    assert 'merged backbone' in out  # the weights are described too
    assert main(['info', str(tmp_path), '--json']) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed['run'] == content
    assert printed['sha256'] == content['parts'][0]['files']['model.safetensors']


def test_a_run_that_failed_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match='full'), recording(tmp_path, 'predict', {}):
        raise OSError('the disk is full')
    assert main(['info', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert 'Run of predict: failed' in out and 'OSError: the disk is full' in out


def test_a_run_that_was_killed_is_not_called_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord.begin(tmp_path / RECORD, 'embed', {})
    assert main(['info', str(tmp_path)]) == 0
    assert 'Run of embed: running' in capsys.readouterr().out
    child = subprocess.run([sys.executable, '-c', 'import os; print(os.getpid())'],
                           capture_output=True, text=True, check=True)  # fmt: skip
    record.parts[0]['process'] = {'host': platform.node(), 'pid': int(child.stdout)}
    record.write()
    assert main(['info', str(tmp_path)]) == 0
    assert 'broken off' in capsys.readouterr().out
    record.parts[0]['process'] = {'host': 'another', 'pid': os.getpid()}
    record.write()
    assert main(['info', str(tmp_path)]) == 0
    assert 'on another: running' in capsys.readouterr().out


def test_a_record_that_is_damaged_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / RECORD).write_text('{"parts": [')
    assert main(['info', str(tmp_path)]) == 2
    assert RECORD in capsys.readouterr().err
