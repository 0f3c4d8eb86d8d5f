"""The whole job: what it writes, what it says, and that it goes on exactly where it stopped."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from tests.cli.conftest import MODEL, adapt_arguments
from tests.processes import fork
from torchgeo_explora import cli
from torchgeo_explora.adapters import load_adapter, merge_lora
from torchgeo_explora.cli import main
from torchgeo_explora.cli.adapt import adapt
from torchgeo_explora.cli.run_folder import RunFolder
from torchgeo_explora.cli.training import LastCheckpoint
from torchgeo_explora.errors import CollapseError
from torchgeo_explora.layers.tokens import encode
from torchgeo_explora.models import create_backbone
from torchgeo_explora.tasks.callbacks import CollapseGuard
from torchgeo_explora.tasks.logger import read_metrics

PNG = b'\x89PNG\r\n\x1a\n'


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f'{name}:{key}': tensor
        for name in ('explora', 'adapter')
        for key, tensor in load_file(folder / f'{name}.safetensors').items()
    }


def _same(first: Path, second: Path) -> bool:
    one, two = _weights(first), _weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_leaves_everything_that_is_promised(finished: Path) -> None:
    report = json.loads((finished / 'report.json').read_text())
    assert report['steps'] == report['steps_planned'] == 4
    assert set(report['after']['scores']['knn']) == {'10', '20', '100', '200'}
    assert report['images']['adapted_to'] + report['after']['scores']['scored_images'] == 48
    assert report['outcome'] in {'helped', 'mixed', 'within noise', 'did not help'}
    assert len(report['weights_sha256']) == 64
    assert report['environment']['packages']['torch'] == torch.__version__
    assert (finished / 'report.png').read_bytes().startswith(PNG)
    assert [path.name for path in finished.rglob('.*')] == []
    for file in report['files']:
        assert Path(file).is_file()


def test_trainable_weights_are_counted_exactly(finished: Path) -> None:
    report = json.loads((finished / 'report.json').read_text())
    trained = load_file(finished / 'adapter.safetensors')
    assert report['trainable_parameters'] == sum(t.numel() for t in trained.values())


def test_adapter_on_the_base_is_the_merged_file(
    finished: Path, weights: Path, backbone: VisionTransformer
) -> None:
    adapted, _ = create_backbone(MODEL, weights)
    load_adapter(adapted, finished / 'adapter.safetensors')
    merged, _ = create_backbone(MODEL, finished / 'explora.safetensors')
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encode(merge_lora(adapted), images), encode(merged, images))
        assert not torch.allclose(encode(backbone, images), encode(merged, images), atol=1e-4)


def test_metrics_have_a_row_a_step_and_the_base_first(finished: Path) -> None:
    rows = read_metrics(finished / 'metrics.csv')
    assert list(rows) == [0, 1, 2, 3, 4]
    assert rows[0]['student/drift'] == pytest.approx(0, abs=1e-6)
    assert rows[4]['student/drift'] > 0
    assert all('train_loss' in rows[step] for step in (1, 2, 3, 4))


def test_finished_run_says_its_result_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / 'report.json').stat().st_mtime_ns
    assert main(['adapt', '--out', str(finished), '--resume']) == 0
    sentence = json.loads((finished / 'report.json').read_text())['sentence']
    assert sentence in capsys.readouterr().out
    assert (finished / 'report.json').stat().st_mtime_ns == before


def test_same_seed_same_weights(
    finished: Path, scenes: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'again'
    assert main(adapt_arguments(scenes, out, weights)) == 0
    assert _same(finished, out)


def test_a_stopped_run_goes_on_to_the_same_weights(
    finished: Path,
    scenes: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = LastCheckpoint.write

    def interrupted(self: LastCheckpoint, trainer: object) -> None:
        write(self, trainer)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    out = tmp_path / 'stopped'
    monkeypatch.setattr(LastCheckpoint, 'write', interrupted)
    handler = signal.getsignal(signal.SIGINT)
    assert main(adapt_arguments(scenes, out, weights, '--checkpoint-every', '2')) == 130
    assert f'adapt --out {out} --resume' in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (out / 'explora.safetensors').exists()
    monkeypatch.setattr(LastCheckpoint, 'write', write)
    assert main(['adapt', '--out', str(out), '--resume']) == 0
    assert 'Going on from step 2 of 4' in capsys.readouterr().out
    assert _same(finished, out)
    assert list(read_metrics(out / 'metrics.csv')) == [0, 1, 2, 3, 4]
    assert _accuracies(out) == _accuracies(finished)


def _accuracies(folder: Path) -> object:
    report = json.loads((folder / 'report.json').read_text())
    return report['before']['scores'], report['after']['scores'], report['after']['health']


def test_lost_exports_are_written_again_from_the_last_step(
    finished: Path, scenes: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'lost'
    assert main(adapt_arguments(scenes, out, weights)) == 0
    for name in ('adapter.safetensors', 'report.json'):
        (out / name).unlink()
    assert main(['adapt', '--out', str(out), '--resume']) == 0
    assert _same(finished, out)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_weights(
    finished: Path, scenes: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'killed'
    arguments = adapt_arguments(scenes, out, weights, '--checkpoint-every', '1')
    checkpoint = out / 'checkpoints' / 'last.ckpt'
    with fork(cli, *arguments, output=tmp_path / 'printed') as process:
        while not checkpoint.is_file() and process.status is None:
            time.sleep(0.01)
    assert process.status in (-signal.SIGKILL, 0)
    assert main(['adapt', '--out', str(out), '--resume']) == 0
    assert _same(finished, out)


@pytest.mark.slow
def test_config_gives_the_same_weights_with_torchgeo_fit(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchgeo.main import main as torchgeo

    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((finished / 'config.yaml').read_text())
    assert list(config) == ['seed_everything', 'trainer', 'model', 'data']
    torchgeo(
        ['fit', '--config', str(finished / 'config.yaml'), '--trainer.logger', 'false',
         '--trainer.default_root_dir', str(tmp_path)]
    )  # fmt: skip
    assert _same(finished, tmp_path)


def test_unlabelled_images_are_not_judged(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / 'flat'
    _pictures(flat, 12)
    out = tmp_path / 'run'
    assert main(adapt_arguments(flat, out, weights)) == 0
    report = json.loads((out / 'report.json').read_text())
    assert report['outcome'] == 'unknown'
    assert report['before']['scores'] is None
    assert report['after']['health']['drift'] > 0
    assert 'cannot be told whether it helped' in capsys.readouterr().out


def test_labels_of_another_folder_serve_the_probes(
    scenes: Path, weights: Path, tmp_path: Path
) -> None:
    flat = tmp_path / 'flat'
    _pictures(flat, 12)
    out = tmp_path / 'run'
    assert main(adapt_arguments(flat, out, weights, '--labels', str(scenes))) == 0
    report = json.loads((out / 'report.json').read_text())
    assert report['images']['adapted_to'] == 12
    assert report['after']['scores']['classes'] == 8


@pytest.mark.parametrize(('train', 'held_out'), [('train', 'test'), ('train/river', 'val')])
def test_labels_beside_unlabelled_training_images_serve_the_probes(
    train: str, held_out: str, scenes: Path, weights: Path, tmp_path: Path
) -> None:
    """Images to adapt to lie in one folder, or in one of a single name, which is no class."""
    _pictures(tmp_path / 'images' / train, 12)
    shutil.copytree(scenes, tmp_path / 'images' / held_out)
    out = tmp_path / 'run'
    assert main(adapt_arguments(tmp_path / 'images', out, weights)) == 0
    report = json.loads((out / 'report.json').read_text())
    assert report['images']['adapted_to'] == 12
    scores = report['after']['scores']
    assert scores['classes'] == 8
    assert scores['reference_images'] + scores['scored_images'] == 48


def test_held_out_images_are_adapted_to_only_when_asked(
    scenes: Path, weights: Path, tmp_path: Path, finished: Path
) -> None:
    out = tmp_path / 'run'
    assert main(adapt_arguments(scenes, out, weights, '--all-images')) == 0
    report = json.loads((out / 'report.json').read_text())
    other = json.loads((finished / 'report.json').read_text())
    assert report['images']['adapted_to'] == 48
    scores, others = report['before']['scores'], other['before']['scores']
    assert scores == others  # the probe never sees more


def test_one_corrupt_image_is_left_out_counted_and_named(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'images'
    _pictures(folder, 9)
    (folder / 'broken.png').write_bytes(PNG + b'nothing more')
    half = (folder / '0.png').read_bytes()
    (folder / 'half.png').write_bytes(half[: len(half) // 2])
    out = tmp_path / 'run'
    assert main(adapt_arguments(folder, out, weights)) == 0
    text = capsys.readouterr().out
    report = json.loads((out / 'report.json').read_text())
    names = {Path(path).name for path in report['images']['left_out']}
    assert names == {'broken.png', 'half.png'}
    assert report['images']['adapted_to'] == 9
    assert 'Left out 2 unreadable images' in text
    assert 'broken.png' in text and 'half.png' in text


def test_collapse_ends_with_status_3_and_no_weights(
    scenes: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def collapsed(self: CollapseGuard, trainer: object, task: object) -> None:
        self._react(trainer, task, 'The student collapsed. At step 1 its features are one.')  # type: ignore[arg-type]

    monkeypatch.setattr(CollapseGuard, '_judge', collapsed)
    out = tmp_path / 'run'
    assert main(adapt_arguments(scenes, out, weights)) == 3
    assert 'its features are one' in capsys.readouterr().err
    assert not (out / 'explora.safetensors').exists()
    assert json.loads((out / 'report.json').read_text())['outcome'] == 'collapsed'
    with pytest.raises(CollapseError):
        adapt(RunFolder(out).read_settings(), RunFolder(out))


def test_output_is_free_of_the_libraries_chatter(
    scenes: Path, weights: Path, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, '-m', 'torchgeo_explora',
         *adapt_arguments(scenes, tmp_path / 'run', weights)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stderr == ''
    assert 'Step 4/4' in run.stdout and 'images/s' in run.stdout
    assert 'litlogger' not in run.stdout.lower()


def _pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f'{index}.png')


def test_table_is_csv(finished: Path) -> None:
    with (finished / 'metrics.csv').open(newline='') as file:
        assert next(csv.reader(file))[0] == 'step'
