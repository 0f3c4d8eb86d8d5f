"""``analyse``: numbers, pictures and a page, which an interruption does not change."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.cli.conftest import MODEL
from torchgeo_explora.analysis import measure_model, patch_eigenvalues
from torchgeo_explora.analysis.features import block_patches
from torchgeo_explora.cli import analyse, main
from torchgeo_explora.cli.analyse_images import composites, draw_images
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.models import create_backbone, save_backbone
from torchgeo_explora.transforms import Normalize

FAST = [
    '--image-size', '32', '--tokens', '96', '--probe-steps', '10', '--leading', '2', '--show', '2',
    '--picture-size', '32', '--device', 'cpu',
]  # fmt: skip


@pytest.fixture(scope='module')
def other(tmp_path_factory: pytest.TempPathFactory, backbone: VisionTransformer) -> Path:
    """The base, moved a little."""
    model, _ = create_backbone(MODEL, seed=1)
    first, last = backbone.state_dict(), model.state_dict()
    model.load_state_dict({k: torch.lerp(v, last[k], 0.3) for k, v in first.items()})
    path = tmp_path_factory.mktemp('other') / 'explora.safetensors'
    return save_backbone(model, path, {'base': MODEL})


@pytest.fixture(scope='module')
def analysed(
    tmp_path_factory: pytest.TempPathFactory, scenes: Path, weights: Path, other: Path
) -> Path:
    """Folder of a finished analysis."""
    out = tmp_path_factory.mktemp('analysis') / 'out'
    assert main(command(scenes, out, weights, other)) == 0
    return out


def command(scenes: Path, out: Path, *weights: Path) -> list[str]:
    models = [f'--model={name}={path}' for name, path in zip('ab', weights, strict=False)]
    return ['analyse', *models, '--images', str(scenes), '--out', str(out), *FAST]


def test_everything_is_written_and_nothing_else(analysed: Path) -> None:
    names = {path.name for path in analysed.iterdir()}
    assert names == {
        'analysis.json', 'attention.png', 'attention_heads.png', 'blocks.csv', 'cka.png',
        'cka_blocks.png', 'classes.png', 'eigenvalues.png', 'pca.png', 'position.png', 'ranks.png',
        'report.html', 'run.json',
    }  # fmt: skip
    page = (analysed / 'report.html').read_text(encoding='utf-8')
    assert page.count('src="data:image/png;base64,') == 9
    assert 'src="http' not in page


def test_numbers_are_those_of_the_models(analysed: Path, scenes: Path, weights: Path) -> None:
    folder = ImageFolder(scenes, image_size=32)
    content = json.loads((analysed / 'analysis.json').read_text())
    model, _ = create_backbone(MODEL, weights)
    images = torch.stack([folder[i]['image'] for i in range(len(folder))])
    with torch.no_grad():
        last = list(block_patches(model, Normalize((0.5,) * 3, (0.5,) * 3)(images)))[-1]
    expected = patch_eigenvalues(last)[:, :2].mean().item()
    assert content['models']['a']['eigenvalue_mean'][-1] == pytest.approx(expected, rel=1e-4)
    assert content['models']['a']['images'] == 48
    similar = np.array(content['similarity']['a and b'])
    assert similar.shape == (6, 6)
    assert similar[0, 0] > similar[0, 5]


def test_the_table_has_a_row_a_model_and_block(analysed: Path) -> None:
    with (analysed / 'blocks.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['model'], row['block']) for row in rows] == [
        (name, str(block)) for name in 'ab' for block in range(6)
    ]
    content = json.loads((analysed / 'analysis.json').read_text())
    found = content['models']['b']['classes'][3]['accuracy']
    assert float(rows[9]['class_accuracy']) == found


def test_an_interrupted_analysis_goes_on_and_ends_with_the_same_bytes(
    analysed: Path, scenes: Path, weights: Path, other: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / 'out'
    measure, calls = measure_model, []

    def stop(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(analyse, 'measure_model', stop)
    assert main(command(scenes, out, weights, other)) == 130
    assert '--resume goes on' in capsys.readouterr().err
    assert not (out / 'report.html').exists()
    monkeypatch.undo()
    assert main([*command(scenes, out, weights, other), '--resume', '--show', '1']) == 2
    assert 'other values of show' in capsys.readouterr().err
    assert main([*command(scenes, out, weights, other), '--resume']) == 0
    assert not (out / 'work').exists()
    for path in analysed.iterdir():
        if path.suffix in {'.json', '.csv', '.png'} and path.name != 'run.json':
            assert (out / path.name).read_bytes() == path.read_bytes()
    states = [part['state'] for part in json.loads((out / 'run.json').read_text())['parts']]
    assert states == ['interrupted', 'finished']
    assert main([*command(scenes, out, weights, other), '--resume']) == 0
    assert 'the analysis is done' in capsys.readouterr().out


def test_train_and_test_folders_are_kept_apart(
    scenes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'data'
    shutil.copytree(scenes, folder / 'train')
    shutil.copytree(scenes, folder / 'test')
    for path in list((folder / 'test').rglob('*.tif'))[::2]:
        path.unlink()
    chosen = ['--blocks', '-1', '--pictures', 'lake/lake_00002.tif']
    assert main([*command(folder, tmp_path / 'out', weights), *chosen]) == 0
    text = capsys.readouterr().out
    assert '72 of 72 images' in text
    assert 'scored on test; 8 classes' in text
    content = json.loads((tmp_path / 'out' / 'analysis.json').read_text())
    assert content['models']['a']['held_out'] == 24
    assert content['models']['a']['blocks'] == [5]
    assert content['pictures'] == ['lake_00002.tif']


def test_draws_are_those_of_the_seed() -> None:
    chosen, held_out = draw_images([10, 5], 6, 0)
    assert chosen == draw_images([10, 5], 6, 0)[0] != draw_images([10, 5], 6, 1)[0]
    assert held_out == tuple(i for i, number in enumerate(chosen) if number >= 10)
    assert draw_images([4], None, 0) == ((0, 1, 2, 3), None)


def test_bands_are_shown_in_their_colours() -> None:
    image = torch.arange(4.0)[None, :, None, None].expand(1, 4, 2, 2) / 4
    shown = composites(image, ('blue', 'green', 'red', 'nir'), bytes_=True)[0]
    assert shown[0, 0].tolist() == [0.5, 0.25, 0.0]
    assert composites(image[:, :1], ('1',), bytes_=True)[0].shape == (2, 2, 3)
    assert composites(image, ('a', 'b', 'c', 'd'), bytes_=False)[0].max() == 1


@pytest.mark.parametrize(
    ('more', 'sentence'),
    [
        (['--model', 'c=missing.safetensors'], 'missing.safetensors is no file'),
        (['--model', 'a={weights}'], 'The models are called a, a'),
        (['--blocks', '6'], 'the model has 6'),
        (['--images', 'nowhere'], 'nowhere'),
        (['--pictures', 'nothing.tif'], 'no such image'),
        (['--bands', '1'], '3 are needed'),
    ],
)
def test_bad_input_is_one_sentence(
    more: list[str], sentence: str, scenes: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = [text.format(weights=weights) for text in more]
    assert main([*command(scenes, tmp_path / 'out', weights), *given]) == 2
    text = capsys.readouterr().err
    assert text.count('\n') == 1
    assert sentence in text
    assert not (tmp_path / 'out' / 'report.html').exists()
    assert not list(tmp_path.rglob('part-*')), 'refused before anything is measured'


def test_a_folder_with_something_in_it_is_refused(
    scenes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'notes.txt').write_text('mine')
    assert main(command(scenes, tmp_path, weights)) == 2
    assert 'has something in it' in capsys.readouterr().err
    assert main([*command(scenes, tmp_path, weights), '--resume']) == 2
    assert 'no analysis to go on with' in capsys.readouterr().err
