"""Every mistake a user can make ends in one sentence, status 2 and no file."""

import errno
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from tests.cli import program
from tests.cli.conftest import MODEL, adapt_arguments
from tests.processes import fork
from torchgeo_explora.cli import main
from torchgeo_explora.cli.parser import build_parser
from torchgeo_explora.models import create_backbone, save_backbone

OneLine = Callable[[], str]


def _refused(arguments: list[str], out: Path, one_line: OneLine) -> str:
    assert main(arguments) == 2
    assert not out.exists()
    text = one_line()
    assert text.startswith('torchgeo-explora: error: ')
    return text


@pytest.mark.parametrize(
    ('name', 'what'),
    [('missing', 'not there'), ('empty', 'no image'), ('text', 'None of 1 images')],
)
def test_folder_without_images(
    name: str, what: str, weights: Path, tmp_path: Path, one_line: OneLine
) -> None:
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text').mkdir()
    (tmp_path / 'text' / 'a.png').write_text('this is no image')
    out = tmp_path / 'run'
    assert what in _refused(adapt_arguments(tmp_path / name, out, weights), out, one_line)


def test_wrong_number_of_bands(weights: Path, tmp_path: Path, one_line: OneLine) -> None:
    """Pictures have three; rasters may have any number, unless mean and std are of another."""
    folder, out = tmp_path / 'images', tmp_path / 'run'
    folder.mkdir()
    for index in range(4):
        Image.new('L', (32, 32)).save(folder / f'{index}.png')
    text = _refused(adapt_arguments(folder, out, weights), out, one_line)
    assert '1 band, but 3 are needed' in text
    rasters = tmp_path / 'rasters'
    rasters.mkdir()
    for index in range(4):
        _raster(rasters / f'{index}.tif', bands=5)
    values = ['--mean', *['0.5'] * 4, '--std', *['0.2'] * 4]
    text = _refused(adapt_arguments(rasters, out, weights, *values), out, one_line)
    assert '5 bands of uint8, but 4 are needed' in text


def test_bands_can_be_chosen_or_described(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'images'
    folder.mkdir()
    for index in range(8):
        _raster(folder / f'{index}.tif', bands=5)
    chosen = adapt_arguments(folder, tmp_path / 'three', weights, '--bands', '4', '3', '2')
    assert main(chosen) == 0
    values = ['--mean', *['0.5'] * 5, '--std', *['0.2'] * 5]
    assert main(adapt_arguments(folder, tmp_path / 'five', weights, *values)) == 0
    tensors, _ = create_backbone(MODEL, tmp_path / 'five' / 'explora.safetensors', in_chans=5)
    assert tensors.patch_embed.proj.weight.shape[1] == 5


def test_image_smaller_than_a_patch(weights: Path, tmp_path: Path, one_line: OneLine) -> None:
    folder, out = tmp_path / 'images', tmp_path / 'run'
    folder.mkdir()
    for index in range(4):
        Image.new('RGB', (8, 8)).save(folder / f'{index}.png')
    text = _refused(adapt_arguments(folder, out, weights), out, one_line)
    assert 'smaller than 16 pixels' in text


def test_single_image(weights: Path, tmp_path: Path, one_line: OneLine) -> None:
    folder, out = tmp_path / 'images', tmp_path / 'run'
    folder.mkdir()
    Image.new('RGB', (32, 32)).save(folder / 'only.png')
    assert 'at least 2' in _refused(adapt_arguments(folder, out, weights), out, one_line)


def test_weights_of_another_architecture(scenes: Path, tmp_path: Path, one_line: OneLine) -> None:
    other = save_backbone(create_backbone('test_vit2', seed=0)[0], tmp_path / 'other.safetensors')
    out = tmp_path / 'run'
    text = _refused(adapt_arguments(scenes, out, other), out, one_line)
    assert 'the model asked for is width 64, depth 6' in text


def test_truncated_weights(scenes: Path, weights: Path, tmp_path: Path, one_line: OneLine) -> None:
    cut, out = tmp_path / 'cut.safetensors', tmp_path / 'run'
    cut.write_bytes(weights.read_bytes()[:5000])
    assert 'truncated' in _refused(adapt_arguments(scenes, out, cut), out, one_line)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize('command', ['adapt', 'info', 'probe', 'export'])
def test_malicious_checkpoint_is_never_executed(
    command: str, scenes: Path, tmp_path: Path, one_line: OneLine
) -> None:
    trap, bomb, out = tmp_path / 'trap', tmp_path / 'bomb.pth', tmp_path / 'out'
    torch.save({'state_dict': _Bomb(trap)}, bomb)
    arguments = {
        'adapt': adapt_arguments(scenes, out, bomb),
        'info': ['info', str(bomb)],
        'probe': ['probe', str(scenes), '--model', MODEL, '--weights', str(bomb)],
        'export': ['export', str(bomb), '--to', 'merged', '--out', str(out)],
    }
    _refused(arguments[command], out, one_line)
    assert not trap.exists()
    with bomb.open('rb') as file, pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


def test_weights_that_are_not_there(scenes: Path, tmp_path: Path, one_line: OneLine) -> None:
    out = tmp_path / 'run'
    text = _refused(adapt_arguments(scenes, out, tmp_path / 'none.pth'), out, one_line)
    assert 'no weights file' in text


@pytest.mark.parametrize(
    ('options', 'what'),
    [
        (['--rank', '65'], 'exceeds the model width 64'),
        (['--unfreeze', '6'], 'the model has 6 blocks'),
        (['--set', 'nonsense=1'], 'give KEY=VALUE with KEY one of'),
        (['--set', 'warmup=2'], 'shares of the run'),
        (['--mean', '0.5'], 'give both'),
        (['--eval-size', '40'], '40'),
        (['--labels', 'nowhere'], 'is not there'),
    ],
)
def test_impossible_option(
    options: list[str], what: str, scenes: Path, weights: Path, tmp_path: Path, one_line: OneLine
) -> None:
    out = tmp_path / 'run'
    assert what in _refused(adapt_arguments(scenes, out, weights, *options), out, one_line)


def test_unknown_model(scenes: Path, tmp_path: Path, one_line: OneLine) -> None:
    out = tmp_path / 'run'
    arguments = ['adapt', str(scenes), '--out', str(out), '--model', 'vit_smal_patch14_dinov2']
    assert 'vit_small_patch14_dinov2' in _refused(arguments, out, one_line)


def test_existing_folder_is_left_alone(
    scenes: Path, weights: Path, tmp_path: Path, one_line: OneLine
) -> None:
    out = tmp_path / 'run'
    out.mkdir()
    (out / 'thesis.txt').write_text('mine')
    assert main(adapt_arguments(scenes, out, weights)) == 2
    assert 'has something in it' in one_line()
    assert [path.name for path in out.iterdir()] == ['thesis.txt']


def test_resume_needs_a_run(tmp_path: Path, one_line: OneLine) -> None:
    assert main(['adapt', '--out', str(tmp_path), '--resume']) == 2
    assert 'no run to resume' in one_line()


def test_resume_with_other_settings(finished: Path, one_line: OneLine) -> None:
    assert main(['adapt', '--out', str(finished), '--resume', '--rank', '8']) == 2
    assert 'rank was 4 and is 8' in one_line()


def test_truncated_checkpoint(
    scenes: Path, weights: Path, tmp_path: Path, one_line: OneLine, finished: Path
) -> None:
    out = tmp_path / 'run'
    (out / 'checkpoints').mkdir(parents=True)
    (out / 'run.json').write_text((finished / 'run.json').read_text())
    whole = (finished / 'checkpoints' / 'last.ckpt').read_bytes()
    (out / 'checkpoints' / 'last.ckpt').write_bytes(whole[: len(whole) // 2])
    assert main(['adapt', '--out', str(out), '--resume']) == 2
    assert 'last.ckpt cannot be read' in one_line()


def test_full_disk(
    scenes: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_line: OneLine,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    out = tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr('lightning.pytorch.Trainer.save_checkpoint', full)
        assert main(adapt_arguments(scenes, out, weights, '--checkpoint-every', '2')) == 2
    text = one_line()
    assert 'last.ckpt could not be written (No space left on device)' in text
    left = {path.name for path in out.rglob('*') if path.is_file()}
    assert not any(name.endswith('.part') for name in left)
    assert 'explora.safetensors' not in left and 'last.ckpt' not in left
    assert main(['adapt', '--out', str(out), '--resume']) == 0  # there is room again
    assert (out / 'explora.safetensors').is_file()


@pytest.mark.parametrize(
    'arguments', [[], ['adapt'], ['frob'], ['adapt', 'x', '--out', 'y', '--steps', '0']]
)
def test_wrong_command_line_is_one_line(arguments: list[str], one_line: OneLine) -> None:
    assert main(arguments) == 2
    assert '--help' in one_line()


def test_adapt_without_a_folder(tmp_path: Path, one_line: OneLine) -> None:
    out = tmp_path / 'run'
    assert 'No folder of images' in _refused(['adapt', '--out', str(out)], out, one_line)


def test_probe_needs_classes(tmp_path: Path, weights: Path, one_line: OneLine) -> None:
    Image.new('RGB', (32, 32)).save(tmp_path / 'a.png')
    arguments = ['probe', str(tmp_path), '--model', MODEL, '--weights', str(weights)]
    assert 'class folders' in _refused(arguments, tmp_path / 'out', one_line)


def test_info_on_a_folder_that_is_no_run(tmp_path: Path, one_line: OneLine) -> None:
    assert main(['info', str(tmp_path)]) == 2
    assert 'no folder of a run' in one_line()


def test_program_ends_with_the_status_of_main(tmp_path: Path) -> None:
    with fork(program, 'info', tmp_path / 'none.pth', output=tmp_path / 'printed') as process:
        assert process.wait() == 2
    assert process.printed.startswith('torchgeo-explora: error: There is no weights file')
    assert process.printed.count('\n') == 1


def test_program_says_what_is_wrong_with_its_arguments() -> None:
    run = subprocess.run(
        [sys.executable, '-m', 'torchgeo_explora', 'adapt', 'x', '--out', 'y', '--steps', '0'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr.count('\n')) == (2, '', 1)


@pytest.mark.parametrize(
    'command', [[], ['adapt'], ['probe'], ['info'], ['export'], ['estimate'], ['replay']]
)
def test_help_has_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args([*command, '--help'])
    assert end.value.code == 0
    assert 'examples:\n  torchgeo-explora' in capsys.readouterr().out


def _raster(path: Path, bands: int) -> None:
    values = np.random.default_rng(0).integers(0, 255, (bands, 32, 32), dtype=np.uint8)
    with rasterio.open(
        path, 'w', driver='GTiff', width=32, height=32, count=bands, dtype='uint8'
    ) as sink:
        sink.write(values)
