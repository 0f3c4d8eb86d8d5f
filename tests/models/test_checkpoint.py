"""Reading weights files: what is read, and that nothing in a file is ever run."""

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from torchgeo_explora.errors import WeightsError
from torchgeo_explora.models import read_checkpoint, read_metadata

TENSORS = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.bias': torch.ones(2).half()}


class Creates:
    """Creates a file when it is unpickled, as a malicious checkpoint would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('name', ['w.safetensors', 'w.pth', 'w.ckpt'])
def test_safetensors_are_recognised_by_content(tmp_path: Path, name: str) -> None:
    save_file(TENSORS, tmp_path / name, metadata={'base': 'x'})
    found = read_checkpoint(tmp_path / name)
    torch.testing.assert_close(found.tensors, TENSORS, rtol=0, atol=0)
    assert found.metadata == read_metadata(tmp_path / name) == {'base': 'x'}


@pytest.mark.parametrize('zipped', [True, False])
def test_torch_files_are_flattened(tmp_path: Path, zipped: bool) -> None:
    content = {
        'state_dict': collections.OrderedDict(TENSORS),
        'epoch': 3,
        'callbacks': {'best': {'score': torch.tensor(0.5), 'path': 'x'}},
        'optimizer_states': [{'state': {0: {'step': torch.tensor(7)}}}],
        'pytorch-lightning_version': '2.6.0',
    }
    path = tmp_path / 'last.ckpt'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path)
    assert set(found.tensors) == {
        'state_dict.a.weight', 'state_dict.a.bias', 'callbacks.best.score',
        'optimizer_states.0.state.0.step',
    }  # fmt: skip
    torch.testing.assert_close(found.tensors['state_dict.a.weight'], TENSORS['a.weight'])
    assert found.metadata == {'epoch': '3', 'pytorch-lightning_version': '2.6.0'}
    assert read_metadata(path) == {}


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pickle 2', 'pickle 5', 'safetensors name'])
def test_malicious_files_are_never_run(tmp_path: Path, form: str) -> None:
    made, path = tmp_path / 'made', tmp_path / 'weights.pth'
    content = {'model': TENSORS, 'extra': Creates(made)}
    match form:
        case 'zip' | 'legacy':
            torch.save(content, path, _use_new_zipfile_serialization=form == 'zip')
        case 'pickle 2' | 'pickle 5':
            path.write_bytes(pickle.dumps({'extra': Creates(made)}, protocol=int(form[-1])))
        case _:
            path = path.with_suffix('.safetensors')
            torch.save(content, path)
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    assert not made.exists()
    assert 'weights_only' not in str(error.value), "PyTorch's advice to switch protection off"
    if form in ('zip', 'legacy'):
        assert 'posix.mkdir' in str(error.value) or 'nt.mkdir' in str(error.value)
    pickle.loads(pickle.dumps(Creates(made)))
    assert made.exists(), 'the file would have been made by an unsafe reader'


def _torch_bytes(tmp_path: Path, zipped: bool) -> bytes:
    torch.save(TENSORS, tmp_path / 'whole', _use_new_zipfile_serialization=zipped)
    return (tmp_path / 'whole').read_bytes()


@pytest.mark.parametrize('form', ['zip', 'legacy', 'safetensors'])
@pytest.mark.parametrize('part', [0.01, 0.2, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, form: str, part: float) -> None:
    if form == 'safetensors':
        save_file(TENSORS, tmp_path / 'whole')
        content = (tmp_path / 'whole').read_bytes()
    else:
        content = _torch_bytes(tmp_path, form == 'zip')
    path = tmp_path / 'cut.safetensors' if form == 'safetensors' else tmp_path / 'cut.pth'
    path.write_bytes(content[: max(1, int(part * len(content)))])
    with pytest.raises(WeightsError, match=r'cut\.\w+ cannot be read as weights'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (b'', 'is empty'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n', 'git lfs pull'),
        (b'\n<!DOCTYPE html><html></html>', 'a web page'),
        (b'<HTML><body>404</body></HTML>', 'a web page'),
        (b'<?xml version="1.0"?><Error/>', 'an XML document'),
        (b'weights, honestly', 'cannot be read as weights'),
        (b'\x89PNG\r\n\x1a\n' + bytes(100), 'cannot be read as weights'),
        (b'PK\x03\x04' + bytes(100), 'cannot be read as weights'),
    ],
)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_other_files(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    path = tmp_path / f'weights{suffix}'
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=said) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


def test_folders_and_absent_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match='is a folder'):
        read_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match='no weights file'):
        read_checkpoint(tmp_path / 'absent.pth')


def test_files_without_tensors(tmp_path: Path) -> None:
    torch.save({'epoch': 3}, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match='holds no tensor'):
        read_checkpoint(tmp_path / 'w.pth')
