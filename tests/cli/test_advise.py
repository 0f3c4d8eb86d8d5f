"""``advise``: from a folder to options of ``adapt``."""

import json
from pathlib import Path

import pytest
import torch

from torchgeo_explora.analysis.advice import Trial, advise
from torchgeo_explora.analysis.pilot import Candidate
from torchgeo_explora.cli import main
from torchgeo_explora.cli.advise import sentences

FAST = [
    '--steps', '2', '--seeds', '1', '--ranks', '2', '--image-size', '32', '--device', 'cpu',
    '--precision', '32', '--set', 'prototypes=16', '--set', 'hidden_dim=16', '--set', 'n_local=1',
    '--set', 'global_size=32', '--set', 'local_size=16',
]  # fmt: skip


@pytest.fixture
def many(scenes: Path, tmp_path: Path) -> Path:
    """The scenes without their classes, and twice of them."""
    folder = tmp_path / 'flat'
    folder.mkdir()
    for path in scenes.rglob('*.tif'):
        for copy in 'ab':
            (folder / f'{copy}_{path.name}').write_bytes(path.read_bytes())
    return folder


def test_advice_without_labels_says_so(
    many: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['advise', '--images', str(many), '--weights', str(weights), *FAST]) == 0
    text = capsys.readouterr().out
    assert 'There are no labels' in text
    assert '[5]-r2' in text
    assert '[4, 5]-r2' in text
    assert '--unfreeze' in text


def test_advice_with_labels_is_written(
    scenes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'data'
    for part in ('train', 'test'):
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).symlink_to(scenes, target_is_directory=True)
    out = tmp_path / 'advice'
    arguments = ['--images', str(folder), '--weights', str(weights), '--out', str(out)]
    assert main(['advise', *arguments, *FAST]) == 0
    content = json.loads((out / 'advice.json').read_text())
    assert content['measure'] == 'neighbours'
    assert content['suggested']['options'] in capsys.readouterr().out
    assert content['candidates'][0]['gain'] == 0
    assert (out / 'report.html').read_text(encoding='utf-8').count('data:image/png') == 2
    record = json.loads((out / 'run.json').read_text())
    assert record['parts'][-1]['state'] == 'finished'


@pytest.mark.parametrize('better', [True, False])
def test_a_suggestion_of_another_choice_is_said_to_be_of_the_beginning(better: bool) -> None:
    last, two = Candidate((11,), 64), Candidate((10, 11), 64)
    answers = {last: torch.arange(1000) < 500, two: torch.arange(1000) < (700 if better else 400)}
    trials = [Trial(who, 0, right, torch.zeros(2, 2), 1.0, 10) for who, right in answers.items()]
    text = ' '.join(sentences(advise(trials, 0.4, last)))
    assert ('adapt with both and compare' in text) == better
    assert ('no reason to choose another' in text) != better


def test_too_few_images_are_refused(
    scenes: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ['--images', str(scenes), '--weights', str(weights), '--sample', '10', *FAST]
    assert main(['advise', *given]) == 2
    assert 'give at least 5 to adapt to and 5 to score' in capsys.readouterr().err
    assert main(['advise', *given, '--set', 'bands=3']) == 2
    assert 'bands=3' in capsys.readouterr().err
    assert main(['advise', *given, '--ranks', '8', '5000']) == 2
    assert '--ranks 5000: the model is' in capsys.readouterr().err
