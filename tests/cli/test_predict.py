"""``predict``, from fitted model files to maps."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as XML

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from rasterio.features import rasterize
from rio_cogeo.cogeo import cog_validate

from tests.inference.conftest import NORTH_UP, segmentation_spec, write_raster
from torchgeo_explora.cli import main
from torchgeo_explora.cli.parser import build_parser
from torchgeo_explora.models import build_classifier, create_backbone, load_model, save_model
from torchgeo_explora.models.segmentation import build_segmenter

OneLine = Callable[[], str]

CLASSES = ('grass', 'street', 'roof', 'water')
COLORS = ((10, 200, 10), (99, 98, 97), (250, 0, 1), (0, 0, 255))


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted segmentation model with random weights, for windows of 32 pixels."""
    torch.manual_seed(0)
    backbone = create_backbone('test_vit', seed=0, img_size=32)[0]
    network = build_segmenter(backbone, 'fpn', 4, seed=0)
    spec = segmentation_spec(classes=4, image_size=32, resolution=10.0, options={'decoder': 'fpn'})
    named = {**vars(spec), 'classes': CLASSES, 'colors': COLORS, 'bands': ('red', 'green', 'blue')}
    return save_model(
        network, type(spec)(**named), tmp_path_factory.mktemp('models') / 's.safetensors'
    )


@pytest.fixture(scope='module')
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted classification model with random weights, for windows of 32 pixels."""
    backbone = create_backbone('test_vit', seed=0, img_size=32)[0]
    network = build_classifier(backbone, 3)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(1))
    spec = segmentation_spec(classes=3, image_size=32, task='classification')
    return save_model(network, spec, tmp_path_factory.mktemp('models') / 'c.safetensors')


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A raster with a corner without data."""
    values = np.random.default_rng(0).integers(1, 255, (3, 600, 90), dtype=np.uint8)
    values[:, :200, :30] = 0
    return write_raster(tmp_path / 'scene.tif', values, nodata=0)


def _arguments(source: Path, model: Path, out: Path, *more: str) -> list[str]:
    return [
        'predict', str(source), '--model', str(model), '--out', str(out), '--device', 'cpu',
        '--precision', '32', *more,
    ]  # fmt: skip


def test_a_map_is_a_valid_cog_that_names_and_colours_its_classes(
    scene: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'maps'
    arguments = _arguments(scene, segmenter, out, '--probabilities', '--uncertainty', 'entropy')
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for kind in ('pred', 'probabilities', 'uncertainty'):
        path = out / f'scene_{kind}.tif'
        assert f'Wrote {path}' in said
        valid, errors, warned = cog_validate(path, strict=True)
        assert (valid, errors, warned) == (True, [], [])
    spec = load_model(segmenter)[1]
    with rasterio.open(out / 'scene_pred.tif') as source:
        table, values, tags = source.colormap(1), source.read(1), source.tags()
        assert source.nodata == 255
        assert [table[value][:3] for value in range(4)] == list(COLORS)
        assert source.overviews(1) != []
    assert tags['MODEL_WEIGHTS_SHA256'] == spec.weights_hash
    assert json.loads(tags['CLASSES']) == list(CLASSES)
    assert set(np.unique(values[values != 255])) <= set(range(4))
    entries = XML.parse(out / 'scene_pred.qml').iter('paletteEntry')
    shown = [(e.get('value'), e.get('label'), e.get('color')) for e in entries]
    assert shown == [
        (str(value), name, '#{:02x}{:02x}{:02x}'.format(*COLORS[value]))
        for value, name in enumerate(CLASSES)
    ]
    names = XML.parse(out / 'scene_pred.tif.aux.xml').iter('Category')
    assert [element.text for element in names] == list(CLASSES)
    with rasterio.open(out / 'scene_probabilities.tif') as source:
        assert source.descriptions == CLASSES
        total = source.read().sum(0)
    np.testing.assert_allclose(total[values != 255], 1, rtol=1e-5)


def test_a_window_alone_is_the_model(segmenter: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8)
    source = write_raster(tmp_path / 'tile.tif', values)
    assert main(_arguments(source, segmenter, tmp_path / 'maps', '--probabilities')) == 0
    model, _ = load_model(segmenter)
    with torch.inference_mode():
        expected = model(torch.from_numpy(values)[None].float() / 255).softmax(1)[0]
    with rasterio.open(tmp_path / 'maps' / 'tile_probabilities.tif') as written:
        np.testing.assert_allclose(written.read(), expected, atol=1e-5)


def test_a_classifier_gives_cells(scene: Path, classifier: Path, tmp_path: Path) -> None:
    assert main(_arguments(scene, classifier, tmp_path / 'maps', '--stride', '10')) == 0
    with rasterio.open(tmp_path / 'maps' / 'scene_pred.tif') as source:
        values = source.read(1)
    for top in range(0, 600, 10):
        for left in range(0, 90, 10):
            cell = values[top : top + 10, left : left + 10]
            assert len(np.unique(cell)) == 1
    assert (values == 255).sum() == 200 * 30
    assert len(np.unique(values)) > 2  # more than one class and nodata


def test_outside_the_area_of_interest_nothing_is_predicted(
    scene: Path, segmenter: Path, tmp_path: Path
) -> None:
    corner = np.array([NORTH_UP.c, NORTH_UP.f])
    shape = shapely.Polygon(corner + np.array([[300, -2500], [800, -3500], [200, -5000.0]]))
    frame = geopandas.GeoDataFrame(geometry=[shape], crs='EPSG:32631').to_crs('EPSG:4326')
    frame.to_file(tmp_path / 'area.gpkg')
    aoi = ['--aoi', str(tmp_path / 'area.gpkg')]
    assert main(_arguments(scene, segmenter, tmp_path / 'maps', *aoi)) == 0
    assert main(_arguments(scene, segmenter, tmp_path / 'whole')) == 0
    with rasterio.open(tmp_path / 'maps' / 'scene_pred.tif') as source:
        values = source.read(1)
    with rasterio.open(tmp_path / 'whole' / 'scene_pred.tif') as source:
        whole = source.read(1)
    inside = rasterize([shape], values.shape, transform=NORTH_UP).astype(bool)
    differs = (values != 255) != (inside & (whole != 255))
    assert differs.sum() <= 2  # pixels whose centre the way there and back moves across the edge
    both = (values != 255) & (whole != 255)
    np.testing.assert_array_equal(values[both], whole[both])


def _bad(tmp_path: Path, scene: Path) -> dict[str, tuple[list[str], str]]:
    no_crs = tmp_path / 'no_crs.geojson'
    far = tmp_path / 'far.gpkg'
    square = shapely.box(20, 20, 21, 21)
    geopandas.GeoDataFrame(geometry=[square], crs='EPSG:4326').to_file(far)
    geopandas.GeoDataFrame(geometry=[square]).to_file(tmp_path / 'no_crs.shp')
    no_crs = tmp_path / 'no_crs.shp'
    values = np.zeros((2, 50, 50), dtype=np.uint8)
    two = write_raster(tmp_path / 'two.tif', values)
    fine = {**{'transform': rasterio.Affine(1, 0, 0, 0, -1, 0)}}
    fine_raster = write_raster(tmp_path / 'fine.tif', np.ones((3, 50, 50), dtype=np.uint8), **fine)
    deep = write_raster(tmp_path / 'deep.tif', np.full((3, 50, 50), 9000, dtype=np.uint16))
    (tmp_path / 'file').write_text('')
    return {
        'no such file': ([str(tmp_path / 'absent.tif')], 'cannot be read'),
        'two bands': ([str(two)], 'needs 3 (red, green, blue)'),
        'resolution': ([str(fine_raster)], 'more than 2 times apart'),
        'values': ([str(deep)], 'override with --force'),
        'area elsewhere': ([str(scene), '--aoi', str(far)], 'lies outside'),
        'area without CRS': ([str(scene), '--aoi', str(no_crs)], 'no coordinate reference system'),
        'no area': ([str(scene), '--aoi', str(tmp_path / 'none.gpkg')], 'is not there'),
        'band': ([str(scene), '--bands', '1', '2', '9'], 'no band 9'),
        'bands': ([str(scene), '--bands', '1', '2'], '2 bands were chosen'),
        'overlap': ([str(scene), '--overlap', '32'], 'choose 0 to 31'),
        'stride': ([str(scene), '--stride', '8'], 'give --overlap'),
        'memory': ([str(scene), '--max-memory', '8'], '--max-memory'),
        'shard': ([str(scene), '--shard', '3/2'], 'no shard 3/2'),
        'empty folder': ([str(tmp_path / 'nothing')], 'holds no raster'),
        'url': (['https://localhost:9/scene.tif'], 'cannot be read'),
    }


CASES = (
    'no such file', 'two bands', 'resolution', 'values', 'area elsewhere', 'area without CRS',
    'no area', 'band', 'bands', 'overlap', 'stride', 'memory', 'shard', 'empty folder', 'url',
)  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_mistakes_end_in_one_sentence(
    case: str, scene: Path, segmenter: Path, tmp_path: Path, one_line: OneLine
) -> None:
    (tmp_path / 'nothing').mkdir()
    arguments, what = _bad(tmp_path, scene)[case]
    out = tmp_path / 'maps'
    rest = ['--model', str(segmenter), '--out', str(out), '--device', 'cpu', '--precision', '32']
    assert main(['predict', *arguments, *rest]) == 2
    text = one_line()
    assert text.startswith('torchgeo-explora: error: ')
    assert what in text
    assert not out.exists()


def test_wrong_models_and_folders(
    scene: Path, segmenter: Path, tmp_path: Path, weights: Path, one_line: OneLine
) -> None:
    out = tmp_path / 'maps'
    assert main(_arguments(scene, weights, out)) == 2
    assert 'is no fitted model' in one_line()
    assert main(_arguments(scene, tmp_path / 'none.safetensors', out)) == 2
    assert 'is no file' in one_line()
    (tmp_path / 'file').write_text('')
    assert main(_arguments(scene, segmenter, tmp_path / 'file')) == 2
    assert 'is a file' in one_line()
    assert main(_arguments(scene, segmenter, out)) == 0
    assert main(_arguments(scene, segmenter, out)) == 2
    assert '--resume' in one_line()


def test_what_is_forced_is_said(segmenter: Path, tmp_path: Path, one_line: OneLine) -> None:
    fine = rasterio.Affine(1, 0, 0, 0, -1, 0)
    source = write_raster(tmp_path / 'a.tif', np.ones((3, 40, 40), dtype=np.uint8), transform=fine)
    assert main(_arguments(source, segmenter, tmp_path / 'maps', '--force')) == 0
    text = one_line()
    assert text.startswith('torchgeo-explora: warning: ')
    assert 'overridden by --force' in text


def test_failed_rasters_have_a_status_of_their_own(
    scene: Path, segmenter: Path, tmp_path: Path, one_line: OneLine
) -> None:
    (tmp_path / 'list.txt').write_text(f'# rasters\nscene.tif\n{tmp_path}/absent.tif\n')
    assert main(_arguments(tmp_path / 'list.txt', segmenter, tmp_path / 'maps')) == 4
    assert 'absent.tif cannot be read' in one_line()
    report = json.loads((tmp_path / 'maps' / 'report.json').read_text())
    assert list(report['written']) == [str(scene)]
    assert list(report['failed']) == [f'{tmp_path}/absent.tif']


def test_folders_keep_their_structure(scene: Path, segmenter: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'all'
    for name in ('a/x.tif', 'b/x.tif'):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(scene.read_bytes())
    assert main(_arguments(folder, segmenter, folder)) == 0  # results are no sources
    assert (folder / 'a' / 'x_pred.tif').is_file()
    assert (folder / 'b' / 'x_pred.tif').is_file()
    assert main(_arguments(folder, segmenter, folder, '--resume')) == 0


def test_shards_are_parsed() -> None:
    arguments = ['predict', 'a', '--model', 'm', '--out', 'o', '--shard', '2/4']
    assert build_parser().parse_args(arguments).shard == (2, 4)


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_half_done_and_resumes_to_the_same_bytes(
    segmenter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / 'scenes'
    folder.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 255, (3, 420, 420), dtype=np.uint8)
        write_raster(folder / f'{number}.tif', values)
    more = ('--block', '120', '--batch', '4')
    assert main(_arguments(folder, segmenter, tmp_path / 'whole', *more)) == 0
    out = tmp_path / 'killed'
    program = [sys.executable, '-m', 'torchgeo_explora']
    run = subprocess.Popen(
        [*program, *_arguments(folder, segmenter, out, *more)],
        stdout=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    while not list(out.glob('.*/*/block-000004')) and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    for path in out.glob('*_pred.tif'):  # complete, or not there
        assert path.read_bytes() == (tmp_path / 'whole' / path.name).read_bytes()
    assert main(_arguments(folder, segmenter, out, *more, '--resume')) == 0
    maps = sorted(path.name for path in out.glob('*_pred.tif'))
    assert maps == ['0_pred.tif', '1_pred.tif', '2_pred.tif']
    for name in maps:
        assert (out / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
