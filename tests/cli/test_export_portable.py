"""``export --to onnx|pt2|stac``: files for other programs from every kind of model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import MODEL
from tests.inference.conftest import write_raster
from torchgeo_explora.cli import main
from torchgeo_explora.export import validate_item
from torchgeo_explora.models import ModelSpec, create_backbone, load_model, save_model
from torchgeo_explora.models.classifier import build_classifier

BANDS = ('red', 'green', 'nir')
SCALE = (0.0, 4000.0)


@pytest.fixture(scope='module')
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of 12-bit images, in one file."""
    backbone, _ = create_backbone(MODEL, img_size=32, seed=0)
    model = build_classifier(backbone, 2, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    spec = ModelSpec(
        'classification', MODEL, ('field', 'lake'), BANDS, (0.3,) * 3, (0.2,) * 3, (SCALE,) * 3,
        32, 10.0, options={'pooling': 'avg'},
    )  # fmt: skip
    return save_model(model, spec, tmp_path_factory.mktemp('fitted') / 'model.safetensors')


@pytest.fixture
def chip(tmp_path: Path) -> Path:
    """A raster smaller than a tile in one direction, its bands named, in another order."""
    values = np.random.default_rng(0).integers(0, 4500, (3, 20, 50)).astype(np.uint16)
    return write_raster(tmp_path / 'chip.tif', values, descriptions=('nir', 'red', 'green'))


def _export(source: Path, to: str, out: Path, *more: str) -> int:
    return main(['export', str(source), '--to', to, '--out', str(out), *more])


def test_a_program_gives_the_probabilities_of_the_model(
    fitted: Path, chip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'new' / 'm.pt2'
    assert _export(fitted, 'pt2', out, '--chip', str(chip)) == 0
    assert 'differs from PyTorch by at most' in capsys.readouterr().out
    model, spec = load_model(fitted)
    unit = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(unit).softmax(1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    found = torch.export.load(out).module()((unit - mean) / std)
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_a_folder_for_catalogues_holds_all_it_names(
    fitted: Path, chip: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'shared'
    assert _export(fitted, 'stac', out, '--chip', str(chip), '--resolution', '20') == 0
    names = ['item.json', 'model.onnx', 'model.pt2', 'model.safetensors']
    assert sorted(path.name for path in out.iterdir()) == names
    item = json.loads((out / 'item.json').read_text())
    validate_item(item)
    assert item['properties']['gsd'] == 20
    assert {asset['href'] for asset in item['assets'].values()} == {f'./{n}' for n in names[1:]}
    assert load_model(out / 'model.safetensors')[1].classes == ('field', 'lake')


@pytest.mark.slow
def test_a_run_and_its_delta_give_the_same_embeddings(
    finished: Path, weights: Path, tmp_path: Path
) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found: list[torch.Tensor] = []
    for name, more in (('.', []), ('adapter.safetensors', ['--weights', str(weights)])):
        out = tmp_path / f'{len(found)}.pt2'
        assert (
            _export(finished / name, 'pt2', out, *more, '--pooling', 'both', '--image-size', '32')
            == 0
        )
        found.append(torch.export.load(out).module()(images))
    assert found[0].shape == (2, 128)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('to', 'name', 'more', 'match'),
    [
        ('onnx', 'm.pt2', [], 'does not end in .onnx'),
        ('pt2', 'm.onnx', [], 'does not end in .pt2'),
        ('stac', 'item.json', [], 'folder'),
        ('pt2', 'm.pt2', ['--image-size', '33'], 'multiple'),
        ('pt2', 'm.pt2', ['--resolution', '10'], 'for onnx and stac'),
        ('onnx', 'm.onnx', ['--resolution', '-1'], 'above 0'),
        ('pt2', 'm.pt2', ['--bands', '1', '2', '3'], '--chip'),
        ('pt2', 'm.pt2', ['--pooling', 'avg'], 'fitted model'),
        ('pt2', 'm.pt2', ['--chip', 'absent.tif'], 'absent.tif'),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    to: str,
    name: str,
    more: list[str],
    match: str,
    fitted: Path,
    tmp_path: Path,
    one_line: Callable[[], str],
) -> None:
    assert _export(fitted, to, tmp_path / name, *more) == 2
    assert match in one_line()
    assert list(tmp_path.iterdir()) == []


def test_a_chip_of_other_bands_is_refused(
    fitted: Path, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    chip = write_raster(tmp_path / 'c.tif', np.ones((2, 40, 40), dtype=np.uint16))
    assert _export(fitted, 'pt2', tmp_path / 'm.pt2', '--chip', str(chip)) == 2
    assert '2 bands' in one_line()
    assert not (tmp_path / 'm.pt2').exists()


def test_a_chip_of_other_values_is_compared_all_the_same(
    fitted: Path, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    values = np.full((3, 40, 40), 9000, dtype=np.uint16)
    chip = write_raster(tmp_path / 'c.tif', values, descriptions=BANDS)
    assert _export(fitted, 'pt2', tmp_path / 'm.pt2', '--chip', str(chip)) == 0
    assert 'does not fit the model' in one_line()
