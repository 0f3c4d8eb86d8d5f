"""What real rasters and disks do to ``predict``: a map, or one sentence and nothing half-written."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.control import GroundControlPoint

from tests.inference.conftest import segmentation_spec, write_raster
from torchgeo_explora.cli import main
from torchgeo_explora.models import build_classifier, create_backbone, save_model

OneLine = Callable[[], str]
RGB = ('red', 'green', 'blue')
CORNERS = [GroundControlPoint(r, c, 1 + c / 90, 50 - r / 80) for r in (0, 80) for c in (0, 90)]


def _numbers(dtype: str, high: float, *shape: int) -> NDArray[Any]:
    return (np.random.default_rng(0).random(shape) * high).astype(dtype)


def _alpha() -> NDArray[np.uint8]:
    values = _numbers('uint8', 255, 4, 80, 90)
    values[3] = 255
    values[3, :20] = 0
    return values


def _holes() -> NDArray[np.float32]:
    values = _numbers('float32', 255, 3, 80, 90)
    values[:, :20] = np.nan
    return values


# name: (values, arguments of the writer, share of pixels without data), of a model of bytes
MAPPED: dict[str, tuple[NDArray[Any], dict[str, Any], float]] = {
    'uint8': (_numbers('uint8', 255, 3, 80, 90), {}, 0),
    'uint16': (_numbers('uint16', 255, 3, 80, 90), {}, 0),
    'int16': (_numbers('int16', 255, 3, 80, 90), {'nodata': -9999}, 0),
    'float32': (_numbers('float32', 255, 3, 80, 90), {}, 0),
    'NaN': (_holes(), {}, 0.25),
    'alpha': (_alpha(), {'colorinterp': [*RGB, 'alpha']}, 0.25),
    'ground control points': (
        _numbers('uint8', 255, 3, 80, 90), {'gcps': CORNERS, 'crs': 'EPSG:4326'}, 0,
    ),
    'date line': (
        _numbers('uint8', 255, 3, 80, 90),
        {'crs': 'EPSG:4326', 'transform': Affine(0.01, 0, 179.6, 0, -0.01, -16)}, 0,
    ),
    'no coordinates': (
        _numbers('uint8', 255, 3, 80, 90), {'crs': None, 'transform': Affine.identity()}, 0,
    ),
    'palette': (
        _numbers('uint8', 3, 1, 80, 90),
        {'colormap': {0: (9, 9, 9, 255), 1: (200, 0, 0, 255), 2: (0, 200, 0, 255)}}, 0,
    ),
    '8 bands with names': (
        _numbers('uint8', 255, 8, 80, 90), {'descriptions': ['a', 'b', 'c', *RGB, 'd', 'e']}, 0,
    ),
    'one pixel': (_numbers('uint8', 255, 3, 1, 1), {}, 0),
    'one row': (_numbers('uint8', 255, 3, 1, 90), {}, 0),
    'one column': (_numbers('uint8', 255, 3, 90, 1), {}, 0),
    'no data at all': (np.zeros((3, 80, 90), dtype=np.uint8), {'nodata': 0}, 1),
}  # fmt: skip

# name: (values, arguments of the writer, what is said)
REFUSED: dict[str, tuple[NDArray[Any], dict[str, Any], str]] = {
    '16 bits': (_numbers('uint16', 10_000, 3, 80, 90), {}, 'expects them from 0 to 255'),
    'reflectance': (_numbers('float32', 1, 3, 80, 90), {}, 'expects them from 0 to 255'),
    'mostly negative': (_numbers('int16', -255, 3, 80, 90), {}, 'expects them from 0 to 255'),
    'one band': (_numbers('uint8', 255, 1, 80, 90), {}, 'has 1 band'),
    '8 bands': (_numbers('uint8', 255, 8, 80, 90), {}, 'choose them with --bands'),
    'complex': (_numbers('complex64', 1, 3, 80, 90), {}, 'complex values'),
}


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted model with random weights, of bytes, for windows of 32 pixels."""
    network = build_classifier(create_backbone('test_vit', seed=0, img_size=32)[0], 3)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(1))
    spec = segmentation_spec(classes=3, image_size=32, task='classification')
    named = type(spec)(**{**vars(spec), 'bands': RGB})
    return save_model(network, named, tmp_path_factory.mktemp('model') / 'model.safetensors')


def _arguments(source: Path | str, model: Path, out: Path, *more: str) -> list[str]:
    fixed = ['--device', 'cpu', '--precision', '32', '--stride', '8']
    return ['predict', str(source), '--model', str(model), '--out', str(out), *fixed, *more]


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
@pytest.mark.parametrize('kind', MAPPED)
def test_every_kind_of_raster_is_mapped(kind: str, model: Path, tmp_path: Path) -> None:
    values, profile, absent = MAPPED[kind]
    source = write_raster(tmp_path / 'scene.tif', values, **profile)
    assert main(_arguments(source, model, tmp_path / 'maps')) == 0
    with rasterio.open(source) as before, rasterio.open(tmp_path / 'maps/scene_pred.tif') as after:
        assert after.shape == before.shape
        assert (after.crs, after.transform) == (before.crs, before.transform)
        assert len(after.gcps[0]) == len(before.gcps[0])
        assert np.mean(after.read(1) == 255) == absent


@pytest.mark.parametrize('kind', REFUSED)
def test_rasters_that_do_not_fit_are_refused(
    kind: str, model: Path, tmp_path: Path, one_line: OneLine
) -> None:
    values, profile, what = REFUSED[kind]
    source = write_raster(tmp_path / 'scene.tif', values, **profile)
    assert main(_arguments(source, model, tmp_path / 'maps')) == 2
    assert what in one_line()
    assert not (tmp_path / 'maps').exists()


def test_damage_is_told_as_gdal_tells_it(model: Path, tmp_path: Path, one_line: OneLine) -> None:
    whole = write_raster(tmp_path / 'whole.tif', _numbers('uint8', 255, 3, 80, 90)).read_bytes()
    cases = {
        'cut': (whole[: len(whole) // 2], 'undamaged'),
        'header': (whole[:60], 'undamaged'),
        'text': (b'no raster', 'not recognized'),
        'empty': (b'', 'not recognized'),
    }
    for name, (content, what) in cases.items():
        path = tmp_path / f'{name}.tif'
        path.write_bytes(content)
        assert main(_arguments(path, model, tmp_path / f'maps {name}')) == 2
        text = one_line()
        assert what in text and f'{name}.tif' in text
        assert 'previous exception' not in text
        assert list(tmp_path.glob(f'maps {name}/*.tif')) == []


def test_remedies_fit_the_place(model: Path, tmp_path: Path, one_line: OneLine) -> None:
    remedies = {
        'https://127.0.0.1:9/scene.tif': 'check the address, the connection',
        str(tmp_path / 'absent.tif'): 'check the path',
    }
    for source, remedy in remedies.items():
        assert main(_arguments(source, model, tmp_path / 'maps')) == 2
        assert remedy in one_line()


def test_models_of_another_kind(tmp_path: Path, one_line: OneLine) -> None:
    source = write_raster(tmp_path / 'scene.tif', _numbers('uint8', 255, 3, 80, 90))
    (tmp_path / 'junk.ckpt').write_bytes(b'junk')
    for path in (source, tmp_path / 'junk.ckpt'):
        assert main(_arguments(source, path, tmp_path / 'maps')) == 2
        assert 'cannot be read as weights' in one_line()


@pytest.mark.parametrize('scale', [('5', '5'), ('nan', '1'), ('0', 'inf')])
def test_a_scale_without_a_length(
    scale: tuple[str, str], model: Path, tmp_path: Path, one_line: OneLine
) -> None:
    source = write_raster(tmp_path / 'scene.tif', _numbers('uint8', 255, 3, 80, 90))
    assert main(_arguments(source, model, tmp_path / 'maps', '--scale', *scale)) == 2
    assert 'two different finite raw values' in one_line()


def test_folders_that_cannot_be_written(model: Path, tmp_path: Path, one_line: OneLine) -> None:
    source = write_raster(tmp_path / 'scene.tif', _numbers('uint8', 255, 3, 80, 90))
    for out in (Path('/proc/maps'), source / 'maps'):
        assert main(_arguments(source, model, out)) == 2
        assert 'could not be written' in one_line()


def test_a_full_disk(model: Path, tmp_path: Path, one_line: OneLine) -> None:
    """Files may not grow beyond a limit: the system refuses as a full disk does."""
    source = write_raster(tmp_path / 'scene.tif', _numbers('uint8', 255, 3, 700, 700))
    out = tmp_path / 'maps'
    arguments = _arguments(source, model, out, '--probabilities', '--stride', '32')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        assert main(arguments) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    text = one_line()
    assert 'could not be written' in text and '--resume' in text
    assert [path for path in out.rglob('*') if path.suffix in {'.tif', '.qml', '.part'}] == []
    # with room, the same command goes on
    assert main([*arguments, '--resume']) == 0
    assert (out / 'scene_pred.tif').is_file()
