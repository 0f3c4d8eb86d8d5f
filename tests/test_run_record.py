"""What `run.json` says of a run, however it ends."""

import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from torchgeo_explora._environment import environment, git_state
from torchgeo_explora._run_record import (
    RECORD,
    RunRecord,
    file_hash,
    read_record,
    recording,
    runs_here,
)
from torchgeo_explora.errors import CollapseError, ConfigError, ImageError, OutputError

SETTINGS = {'settings': {'rank': 8}}


def test_a_run_is_on_disk_while_it_runs_and_whole_when_it_ended(tmp_path: Path) -> None:
    start = tmp_path / 'start.bin'
    start.write_bytes(b'weights')
    folder = tmp_path / 'run'
    device = torch.device('cpu')
    with recording(
        folder, 'adapt', SETTINGS, seed=3, device=device, weights={'start': start, 'head': None}
    ) as record:
        during = read_record(folder)
        assert during is not None and during['parts'][0]['state'] == 'running'
        assert runs_here(folder)
        result = folder / 'result.bin'
        result.write_bytes(b'done')
        record.add([result], steps=7)
    assert not runs_here(folder)
    content = read_record(folder)
    assert content is not None
    (part,) = content['parts']
    assert (content['command'], content['settings']) == ('adapt', {'rank': 8})
    assert (part['state'], part['seed'], part['steps']) == ('finished', 3, 7)
    assert part['seconds'] >= 0 and part['ended'] >= part['started']
    assert part['weights']['start']['sha256'] == hashlib.sha256(b'weights').hexdigest()
    assert part['weights']['head'] == {'source': 'random'}
    assert part['files'] == {'result.bin': hashlib.sha256(b'done').hexdigest()}
    assert part['environment']['packages']['torch'] == torch.__version__
    assert [path.name for path in folder.iterdir() if path.suffix == '.part'] == []


@pytest.mark.parametrize(
    ('error', 'state', 'said'),
    [
        (ImageError('No image.'), 'failed', 'No image.'),
        (CollapseError('It collapsed.'), 'collapsed', 'It collapsed.'),
        (KeyboardInterrupt(), 'interrupted', 'stopped by the user'),
        (ZeroDivisionError('by zero'), 'failed', 'ZeroDivisionError: by zero'),
    ],
)
def test_the_way_that_a_run_ended_is_recorded(
    tmp_path: Path, error: BaseException, state: str, said: str
) -> None:
    with pytest.raises(type(error)), recording(tmp_path, 'adapt', SETTINGS):
        raise error
    content = read_record(tmp_path)
    assert content is not None
    assert (content['parts'][0]['state'], content['parts'][0]['error']) == (state, said)


def test_a_part_is_added_and_what_was_killed_is_called_so(tmp_path: Path) -> None:
    RunRecord.begin(tmp_path / RECORD, 'adapt', SETTINGS)  # and never ended: as after SIGKILL
    with recording(tmp_path, 'adapt', {'settings': {'rank': 99}}):
        pass
    content = read_record(tmp_path)
    assert content is not None
    assert [part['state'] for part in content['parts']] == ['broken off', 'finished']
    assert content['settings'] == {'rank': 8}  # the run is what it was begun as


def test_parts_of_other_processes_are_put_in_their_order(tmp_path: Path) -> None:
    shards = [RunRecord.begin(tmp_path / f'{n}.json', 'predict', {}) for n in range(2)]
    for shard in reversed(shards):
        shard.end()
    record = RunRecord.begin(tmp_path / RECORD, 'predict', {})
    record.adopt(part for shard in reversed(shards) for part in shard.parts)
    record.end()
    starts = [part['started'] for part in record.parts]
    assert len(starts) == 3 and starts == sorted(starts)


def test_an_error_is_not_hidden_by_a_record_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: RunRecord) -> None:
        raise OutputError('The disk is full.')

    with pytest.raises(ImageError, match='No image'), recording(tmp_path, 'adapt', {}):
        monkeypatch.setattr(RunRecord, 'write', refuse)
        raise ImageError('No image.')


@pytest.mark.parametrize('text', ['', '[]', '{"parts": 1}', '{"parts"'])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ConfigError, match=r'run\.json'), recording(tmp_path, 'adapt', {}):
        raise AssertionError('nothing runs')
    assert (tmp_path / RECORD).read_text() == text


def test_no_record_of_another_process_is_ours(tmp_path: Path) -> None:
    record = RunRecord.begin(tmp_path / RECORD, 'adapt', {})
    record.parts[0]['process'] = {'host': platform.node(), 'pid': os.getpid() + 1}
    record.write()
    assert not runs_here(tmp_path)
    assert not runs_here(tmp_path / 'elsewhere')


def _git(folder: Path, *arguments: str) -> str:
    identity = ['-c', 'user.name=N', '-c', 'user.email=n@example.org']
    done = subprocess.run(
        ['git', *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_commit_of_the_package_and_what_differs_from_it(tmp_path: Path) -> None:
    package = tmp_path / 'package'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (tmp_path / 'notes.txt').write_text('mine')
    _git(tmp_path, 'init', '-q')
    _git(tmp_path, 'add', 'package')
    _git(tmp_path, 'commit', '-q', '-m', 'Begin')
    head = _git(tmp_path, 'rev-parse', 'HEAD')
    assert git_state(package) == {'commit': head, 'changed': []}
    (package / '__init__.py').write_text('x = 1')
    (package / 'new.py').write_text('')
    assert git_state(package) == {
        'commit': head,
        'changed': ['package/__init__.py', 'package/new.py'],
    }


def test_a_package_installed_inside_of_a_users_checkout_is_not_theirs(tmp_path: Path) -> None:
    _git(tmp_path, 'init', '-q')
    (tmp_path / 'own.py').write_text('')
    _git(tmp_path, 'add', 'own.py')
    _git(tmp_path, 'commit', '-q', '-m', 'Begin')
    package = tmp_path / 'venv' / 'package'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text('')
    state = git_state(package)
    assert state is None or state['commit'] != _git(tmp_path, 'rev-parse', 'HEAD')


def test_the_environment_is_json_and_names_the_machine() -> None:
    content = json.loads(json.dumps(environment()))
    assert content['hardware'] and content['cpus'] >= 1
    assert content['packages']['numpy'] is not None


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / 'file').write_bytes(b'abc')
    assert file_hash(tmp_path / 'file') == hashlib.sha256(b'abc').hexdigest()
