"""``similar``: from rasters or embeddings to places, and what it says on the way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

import tests.tasks.dinov2_runs  # noqa: F401  # registers the model
from tests.inference.conftest import write_raster
from tests.inference.test_similar import TAGS, at, values, write
from torchgeo_explora.cli import main
from torchgeo_explora.models import create_backbone, save_backbone

OneLine = Callable[[], str]


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small backbone."""
    backbone = create_backbone('test_vit', seed=0, img_size=32)[0]
    path = tmp_path_factory.mktemp('weights') / 'explora.safetensors'
    return save_backbone(backbone, path, {'base': 'test_vit', 'bands': ['red', 'green', 'blue']})


def test_embeddings_are_searched_and_pictures_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'embeddings'
    folder.mkdir()
    write(folder / 'a_embedding.tif', values())
    picture = write_raster(folder / 'a_rgb.tif', np.ones((3, 60, 150), dtype=np.uint8))
    arguments = ['similar', str(folder), '--like', at(12.5, 22.5), '--top', '3']
    assert main([*arguments, '--out', str(tmp_path / 'out')]) == 0
    said = capsys.readouterr().out
    assert f'Left out 1 rasters that hold no embeddings: {picture}' in said
    assert 'Like 1 patch at the places given' in said
    for name in ('a_similarity.tif', 'a_similarity.qml', 'places.gpkg'):
        assert f'Wrote {tmp_path / "out" / name}' in said
    assert '3. a_embedding' in said


def test_rasters_are_embedded_once_and_searched_again(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 96, 128), dtype=np.uint8)
    (tmp_path / 'scenes' / 'north').mkdir(parents=True)
    source = write_raster(tmp_path / 'scenes' / 'north' / 'a.tif', noise)
    with rasterio.open(source) as scene:
        place = ','.join(map(str, scene.xy(40, 70))) + ',EPSG:32631'
    common = ['similar', str(tmp_path / 'scenes'), '--weights', str(weights), '--like', place]
    common += ['--device', 'cpu', '--precision', '32', '--embeddings', str(tmp_path / 'kept')]
    assert main([*common, '--out', str(tmp_path / 'first')]) == 0
    embedding = tmp_path / 'kept' / 'north' / 'a_embedding.tif'
    written = embedding.stat().st_mtime_ns
    assert main([*common, '--out', str(tmp_path / 'second')]) == 0
    assert embedding.stat().st_mtime_ns == written
    maps = [tmp_path / name / 'north' / 'a_similarity.tif' for name in ('first', 'second')]
    assert maps[0].read_bytes() == maps[1].read_bytes()
    patch = int(rasterio.open(embedding).tags()['EMBEDDING_PATCH'])
    with rasterio.open(maps[0]) as heat:
        assert heat.read(1)[40 // patch, 70 // patch] == pytest.approx(1, abs=1e-6)
    capsys.readouterr()


def test_mistakes_end_in_one_sentence(weights: Path, tmp_path: Path, one_line: OneLine) -> None:
    scene = write_raster(tmp_path / 'scene.tif', np.ones((3, 60, 60), dtype=np.uint8))
    good = write(tmp_path / 'a_embedding.tif', values())
    out = tmp_path / 'out'
    cases = [
        ([str(scene), '--like', '3,4'], 'give --weights to have them made'),
        ([str(good), '--like', 'nowhere.gpkg'], 'is no position'),
        ([str(good), '--like', '9,37.9'], 'on no patch with data'),
        ([str(tmp_path / 'absent.tif'), '--like', '3,4'], 'check the path'),
        ([str(scene), '--like', at(0, 0), '--weights', str(scene)], 'as weights'),
        ([str(scene), '--like', '9,37.9', '--weights', str(weights)], 'outside of all rasters'),
        ([str(good), '--like', at(12.5, 22.5), '--top', '-1'], 'top is -1'),
    ]
    for arguments, reason in cases:
        assert main(['similar', *arguments, '--out', str(out)]) == 2
        assert reason in one_line()
        assert not out.exists()


def test_failed_rasters_have_a_status_of_their_own(tmp_path: Path, one_line: OneLine) -> None:
    good = write(tmp_path / 'a_embedding.tif', values())
    other = write(tmp_path / 'b_embedding.tif', values(), {**TAGS, 'EMBEDDING_BLOCKS': '[3]'})
    arguments = ['similar', str(good), str(other), '--like', at(12.5, 22.5)]
    assert main([*arguments, '--out', str(tmp_path / 'out')]) == 4
    assert 'other blocks' in one_line()
    assert (tmp_path / 'out' / 'a_similarity.tif').is_file()
