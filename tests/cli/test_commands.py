"""Description, probes, estimate, verdict and replay."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import MODEL, SMALL
from torchgeo_explora.cli import main
from torchgeo_explora.cli.console import duration, size
from torchgeo_explora.cli.estimate import on_line, unique_bytes
from torchgeo_explora.cli.plan import whole_patches
from torchgeo_explora.cli.replay import ReplaySize, replay
from torchgeo_explora.cli.run_folder import RunFolder
from torchgeo_explora.cli.scoring import Scores, judge
from torchgeo_explora.objectives.probing import knn, load_features, logistic_regression


def test_info_tells_of_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['info', str(finished)]) == 0
    text = capsys.readouterr().out
    assert json.loads((finished / 'report.json').read_text())['sentence'] in text
    assert '4 of 4' in text


def test_info_tells_of_a_file(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['info', str(weights), '--json']) == 0
    content = json.loads(capsys.readouterr().out)
    assert content['bands'] == 3
    assert content['metadata']['base'] == MODEL
    assert main(['info', str(weights)]) == 0
    assert content['sha256'] in capsys.readouterr().out


def test_scores_of_a_run_are_those_of_its_features(finished: Path) -> None:
    folder = RunFolder(finished)
    report = json.loads(folder.report.read_text())
    for side, key in (('base', 'before'), ('adapted', 'after')):
        reference, scored = (
            load_features(folder.features(part, side)) for part in ('reference', 'scored')
        )
        assert knn(reference, scored).accuracy[20] == report[key]['scores']['knn']['20']
        assert logistic_regression(reference, scored).accuracy == report[key]['scores']['linear']


def test_probe_agrees_with_the_run(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'probe'
    arguments = [
        'probe', str(scenes), '--model', MODEL, '--weights', str(finished / 'explora.safetensors'),
        '--out', str(out), '--iterations', '20', '--precision', '32', '--device', 'cpu',
    ]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads((out / 'probe.json').read_text())
    after = json.loads((finished / 'report.json').read_text())['after']['scores']
    assert found['knn'] == after['knn']
    assert found['logistic_regression'] == after['linear']
    assert len(found['linear_probe']['classifiers']) == 28
    assert 'kNN, k = 200' in capsys.readouterr().out


def test_probe_scores_another_folder(scenes: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / 'probe'
    arguments = [
        'probe', str(scenes), '--test', str(scenes), '--model', MODEL, '--weights', str(weights),
        '--eval-size', '32', '--out', str(out), '--iterations', '20',
    ]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads((out / 'probe.json').read_text())
    assert found['scored_images'] == 48


def test_estimate_counts_what_a_run_trains(
    finished: Path, scenes: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        'estimate', str(scenes), '--model', MODEL, '--weights', str(weights), '--rank', '4',
        '--epochs', '3', '--batch-size', '8', '--json', '--device', 'cpu', *SMALL,
    ]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    report = json.loads((finished / 'report.json').read_text())
    assert found['trainable'] == report['trainable_parameters']
    assert found['steps'] == 18
    assert found['gradient_bytes'] == 4 * (found['trainable'] + found['heads'])
    assert found['optimizer_bytes'] == 2 * found['gradient_bytes']
    assert found['hours'] == pytest.approx(18 * found['step_seconds'] / 3600)
    assert found['activation_bytes'] > 0


def test_estimate_without_a_folder(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ['estimate', '--model', MODEL, '--weights', str(weights), '--rank', '4', *SMALL]
    assert main([*common, '--images', '1000', '--batch-size', '10', '--epochs', '2']) == 0
    text = capsys.readouterr().out
    assert '200 of 10 images' in text
    assert main([*common, '--epochs', '2']) == 2
    assert '--images N' in capsys.readouterr().err


def test_shared_tensors_are_counted_once() -> None:
    layer = torch.nn.Linear(8, 4)
    twin = torch.nn.Linear(8, 4, bias=False)
    twin.weight = layer.weight
    assert unique_bytes(torch.nn.ModuleList([layer, twin])) == 4 * (32 + 4)


def test_line_through_two_batches() -> None:
    assert on_line(3.0, 9.0, 2) == 3.0
    assert on_line(3.0, 9.0, 8) == 9.0
    assert on_line(3.0, 9.0, 14) == pytest.approx(15.0)


@pytest.mark.parametrize(
    ('side', 'patch', 'expected'), [(98, 14, 98), (98, 16, 96), (42, 16, 48), (3, 14, 14)]
)
def test_crops_are_whole_patches(side: int, patch: int, expected: int) -> None:
    assert whole_patches(side, patch) == expected


def _scores(neighbours: float, linear: float, images: int = 1000) -> Scores:
    return Scores({20: neighbours}, linear, 100, images, 10, None)


@pytest.mark.parametrize(
    ('after', 'outcome'),
    [
        ((0.75, 0.86), 'helped'),
        ((0.75, 0.84), 'helped'),  # the linear probe moved within the noise
        ((0.65, 0.90), 'helped'),
        ((0.75, 0.70), 'mixed'),
        ((0.55, 0.90), 'mixed'),
        ((0.66, 0.84), 'within noise'),
        ((0.65, 0.70), 'did not help'),
        ((0.40, 0.40), 'did not help'),
    ],
)
def test_verdict(after: tuple[float, float], outcome: str) -> None:
    verdict = judge(_scores(0.65, 0.85), _scores(*after))
    assert verdict.outcome == outcome
    assert verdict.sentence.startswith(f'kNN 65.0 -> {100 * after[0]:.1f} %, linear 85.0 -> ')
    assert ('keep the original weights' in verdict.sentence) == (outcome != 'helped')


def test_the_same_change_of_fewer_images_is_noise() -> None:
    assert judge(_scores(0.65, 0.85, 4000), _scores(0.68, 0.85, 4000)).outcome == 'helped'
    assert judge(_scores(0.65, 0.85, 100), _scores(0.68, 0.85, 100)).outcome == 'within noise'


@pytest.mark.parametrize(
    ('seconds', 'text'), [(41.7, '42 s'), (300, '5 min'), (7500, '2 h 05 min')]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert [size(n) for n in (12, 3400, 5_600_000, 7_890_000_000)] == [
        '12 B', '3.4 kB', '5.6 MB', '7.89 GB',
    ]  # fmt: skip


@pytest.mark.slow
def test_replay_writes_its_picture_and_says_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'replay'
    small = ReplaySize(64, 16, 64, 32, 1, 3, 16)
    result = replay(RunFolder(out), 0, torch.device('cpu'), small)
    text = capsys.readouterr().out
    assert 'synthetic' in text and 'not how much it helps on real imagery' in text
    assert (out / 'replay.png').stat().st_size > 50_000
    assert result == json.loads((out / 'replay.json').read_text())
    assert len(list((out / 'scenes').rglob('*.tif'))) == 96
    report = json.loads((out / 'run' / 'report.json').read_text())
    assert report['images']['adapted_to'] == 64
    assert report['after']['scores']['scored_images'] == 32


def test_replay_of_own_images_is_an_adaptation(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def adapt(settings: object, folder: RunFolder) -> None:
        seen.update(settings=settings, folder=folder)

    monkeypatch.setattr('torchgeo_explora.cli.replay.adapt', adapt)
    out = str(tmp_path / 'out')
    assert main(['replay', '--images', str(scenes), '--weights', 'random', '--out', out]) == 0
    assert seen['settings'].folder == str(scenes.resolve())
    assert seen['settings'].weights == 'random'
    assert main(['replay', '--weights', 'random', '--out', out]) == 2
