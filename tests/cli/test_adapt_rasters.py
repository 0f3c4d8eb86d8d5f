"""``adapt`` on rasters: what is found, what is measured, and what the report says."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from safetensors.torch import load_file

from tests.cli.conftest import MODEL, SMALL
from tests.data.polygons.data import noise, write
from tests.datasets.test_geotiff_folder import fields
from torchgeo_explora.cli import main
from torchgeo_explora.cli.settings import AdaptSettings
from torchgeo_explora.cli.sources import settle_sources
from torchgeo_explora.cli.training import LastCheckpoint
from torchgeo_explora.cli.values import choose_values, is_rgb, recipe_for
from torchgeo_explora.datasets._statistics import read_statistics
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.models import read_input
from torchgeo_explora.models.feature_reference import FeatureReference


def arguments(sources: list[Path], out: Path, weights: Path, *more: str) -> list[str]:
    """Arguments of a run of a few seconds on windows of 32 pixels."""
    return [
        'adapt', *map(str, sources), '--out', str(out), '--model', MODEL, '--weights', str(weights),
        '--steps', '4', '--batch-size', '24', '--rank', '4', '--precision', '32', '--device', 'cpu',
        '--image-size', '32', '--report', 'short', *SMALL, *more,
    ]  # fmt: skip


@pytest.fixture(scope='module')
def scenes5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rasters of five bands of 16 bits in different projections, one with nodata."""
    folder = tmp_path_factory.mktemp('rasters')
    values = (noise(5, 96, 160).astype(np.uint16) + 1000) * np.arange(1, 6)[:, None, None]
    values = values.astype(np.uint16)
    values[:, :, :40] = 0
    write(folder / 'a.tif', values, nodata=0)
    other = (noise(5, 70, 70, seed=3).astype(np.uint16) + 1000).astype(np.uint16)
    write(folder / 'sub' / 'a.tif', other, Affine(1e-4, 0, 8, 0, -1e-4, 47), 'EPSG:4326')
    for path in folder.rglob('*.tif'):
        with rasterio.open(path, 'r+') as sink:
            sink.descriptions = ('blue', 'green', 'red', 'nir', 'swir')
    return folder


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory, scenes5: Path, weights: Path) -> Path:
    """A finished run on five bands; not to be changed."""
    out = tmp_path_factory.mktemp('runs') / 'run'
    files = sorted(scenes5.rglob('*.tif'))
    assert main(arguments(files, out, weights, '--checkpoint-every', '2', '--seed', '3')) == 0
    return out


def test_statistics_go_with_the_model(finished: Path) -> None:
    found, told = (
        read_statistics(finished / 'statistics.json'),
        read_input(finished / 'explora.safetensors'),
    )
    assert told.bands == found.bands == ('blue', 'green', 'red', 'nir', 'swir')
    assert told.mean == pytest.approx(found.mean) and told.std == pytest.approx(found.std)
    assert told.scale == tuple(zip(found.low, found.high, strict=True))
    assert found.source == 'percentiles' and min(found.minimum) > 1000  # nodata is no value
    delta = read_input(finished / 'adapter.safetensors')
    assert (delta.scale, delta.bands) == (told.scale, told.bands)
    tensors = load_file(finished / 'explora.safetensors')
    assert tensors['patch_embed.proj.weight'].shape[1] == 5
    assert FeatureReference.load(finished / 'features.safetensors').count > 20


def test_run_is_recorded_and_reported(finished: Path) -> None:
    report = json.loads((finished / 'report.json').read_text())
    assert report['outcome'] == 'unknown' and len(report['images']['rasters']) == 2
    assert report['images']['normalisation'] == 'measured' and report['energy']['seconds'] > 0
    record = json.loads((finished / 'run.json').read_text())
    assert record['command'] == 'adapt' and record['parts'][-1]['state'] == 'finished'
    assert record['parts'][-1]['files']['explora.safetensors']
    page = (finished / 'report.html').read_text()
    for text in ('What it saw', 'windows of 32 pixels from 2 rasters', 'nir', 'Unknown', 'SHA-256'):
        assert text in page
    assert page.count('<img src="data:image/png') >= 5  # windows, histograms, curves
    assert page.rindex('Did it help?') > page.rindex('<h2>Files')  # the last word
    assert not re.search(r'(src|href)="https?:', page)


def test_stopped_run_goes_on_to_the_same_weights(
    finished: Path, scenes5: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint = LastCheckpoint.write

    def interrupted(self: LastCheckpoint, trainer: object) -> None:
        write_checkpoint(self, trainer)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    out = tmp_path / 'stopped'
    monkeypatch.setattr(LastCheckpoint, 'write', interrupted)
    files = sorted(scenes5.rglob('*.tif'))
    given = arguments(files, out, weights, '--checkpoint-every', '2', '--seed', '3')
    assert main(given) == 130
    monkeypatch.setattr(LastCheckpoint, 'write', write_checkpoint)
    measured = (out / 'statistics.json').read_bytes()
    assert main(['adapt', '--out', str(out), '--resume']) == 0
    assert (out / 'statistics.json').read_bytes() == measured
    one, two = (load_file(folder / 'explora.safetensors') for folder in (finished, out))
    assert one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one)
    states = [part['state'] for part in json.loads((out / 'run.json').read_text())['parts']]
    assert states == ['interrupted', 'finished']


def test_run_killed_before_its_report_says_what_it_saw(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    shutil.copytree(finished, out)
    for name in ('report.json', 'report.html'):
        (out / name).unlink()
    assert main(['adapt', '--out', str(out), '--resume']) == 0
    assert json.loads((out / 'report.json').read_text())['steps'] == 4
    assert '96 windows of 32 pixels from 2 rasters' in (out / 'report.html').read_text()


def test_polygons_score_it(weights: Path, tmp_path: Path) -> None:
    root = fields(tmp_path)
    labels = ['--labels', str(root / 'labels.gpkg'), '--class-column', 'kind', '--image-size', '16']
    out = tmp_path / 'run'
    assert main(arguments([root / 'images'], out, weights, *labels, '--report', 'full')) == 0
    report = json.loads((out / 'report.json').read_text())
    assert report['outcome'] in {'helped', 'mixed', 'within noise', 'did not help'}
    assert report['images']['classes'] == ['field', 'wood']
    page = (out / 'report.html').read_text()
    for text in ('With labels', 'standard error', 'Block by block', 'principal components'):
        assert text in page
    assert page.count('<img src="data:image/png') >= 8


def test_what_was_given_is_found_out(scenes5: Path, scenes: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted(scenes5.rglob('*.tif'))]
    whole = {'folder': '', 'sources': files, 'read_as': 'rasters'}
    assert settle_sources(files) == whole
    assert settle_sources([str(scenes5)]) == whole
    assert settle_sources([f'{scenes5}/**/*.tif']) == whole
    listed = tmp_path / 'list.txt'
    listed.write_text('\n'.join(files))
    assert settle_sources([str(listed)]) == whole
    assert settle_sources([str(scenes)])['read_as'] == 'images'
    assert settle_sources([str(scenes5)], 'images')['folder'] == str(scenes5)
    for name in ('wood', 'field'):  # chips in class folders are images
        write(tmp_path / 'chips' / name / 'a.tif', noise(3, 64, 64))
    assert settle_sources([str(tmp_path / 'chips')])['read_as'] == 'images'
    with pytest.raises(ConfigError, match='one folder'):
        settle_sources([str(scenes), str(scenes5)], 'images')


def test_bands_that_are_no_colours_keep_their_hue() -> None:
    jitter = (0.4, 0.4, 0.2, 0.1)
    assert (
        is_rgb(['red', 'green', 'blue']) and is_rgb(['1', '2', '3']) and is_rgb(['B4', 'B3', 'B2'])
    )
    assert not is_rgb(['nir', 'red', 'green']) and not is_rgb(['red', 'green'])
    assert recipe_for(['nir', 'red', 'green'], jitter)['color_jitter'] == (0.4, 0.4, 0.0, 0.0)
    assert recipe_for(['red', 'green', 'blue'], jitter) == {}


def test_values_of_another_sensor_are_refused(scenes5: Path, finished: Path) -> None:
    found = read_statistics(finished / 'statistics.json')
    dark = found.from_dict(json.loads(json.dumps(found.to_dict() | {'mean': [0.001] * 5})))
    settings = AdaptSettings('', model=MODEL, weights='random')
    assert choose_values(settings, found, 5).mean == list(found.mean)
    with pytest.raises(ImageError, match='--scale LOW HIGH'):
        choose_values(settings, dark, 5)
    with pytest.raises(ConfigError, match='5 bands, and mean and std are of 2'):
        choose_values(AdaptSettings('', mean=[0.1, 0.2], std=[1.0, 1.0]), found, 5)


@pytest.mark.parametrize(
    ('more', 'what'),
    [
        (['--class-column', 'kind'], 'without --labels'),
        (['--labels', 'absent.gpkg'], 'is not there'),
        (['--all-images'], 'leave it out'),
        (['--bands', '9'], 'has no band 9'),
        (['--balance', '3'], 'balance is 3'),
        (['--read-as', 'images', '--class-column', 'kind'], 'one folder'),
    ],
)
def test_mistakes_are_one_sentence(
    more: list[str], what: str, scenes5: Path, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    files = sorted(scenes5.rglob('*.tif'))
    assert main(arguments(files, tmp_path / 'run', weights, *more)) == 2
    assert what in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_cost_is_estimated(scenes5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ['estimate', str(scenes5), '--model', MODEL, '--weights', 'random', '--device', 'cpu']
    assert main([*given, '--rank', '4', '--batch-size', '4', '--steps', '3', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['images'] >= 2 and found['steps'] == 3 and found['step_seconds'] > 0
