"""What is found where: folders, globs, lists, archives, STAC, and the reasons where nothing is."""

import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inference.conftest import Copy, plain, segmentation_spec, write_raster
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import predict_rasters
from torchgeo_explora.inference.sources import Source, find_rasters, list_sources


def _item(name: str, **assets: Any) -> dict[str, Any]:  # noqa: ANN401
    """A STAC item; assets are hrefs, or whole."""
    whole = {
        key: {'href': asset, 'type': 'image/tiff; application=geotiff'}
        if isinstance(asset, str)
        else asset
        for key, asset in assets.items()
    }
    return {'type': 'Feature', 'stac_version': '1.1.0', 'id': name, 'assets': whole, 'links': []}


def _json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def _found(*items: Path | str, asset: str | None = None) -> list[Source]:
    return find_rasters(items, Path('results'), asset)


def _pairs(*items: Path | str, asset: str | None = None) -> list[tuple[str, str]]:
    return [(source.path, source.target) for source in _found(*items, asset=asset)]


def _reason(*items: Path | str, asset: str | None = None) -> str:
    (source,) = _found(*items, asset=asset)
    assert source.reason is not None
    return source.reason


def test_an_item_names_its_raster_relative_to_itself(tmp_path: Path) -> None:
    item = _json(tmp_path / 'catalogue' / 'item.json', _item('S2/A', visual='../data/scene.tif'))
    expected = str(tmp_path / 'catalogue' / '..' / 'data' / 'scene.tif')
    assert _pairs(item) == [(expected, 'S2_A')]


@pytest.mark.parametrize(
    'href', ['https://example.com/a.tif', 's3://bucket/a.tif', '/vsizip/a.zip/a.tif', '/data/a.tif']
)
def test_absolute_references_stay_as_they_are(href: str, tmp_path: Path) -> None:
    assert _pairs(_json(tmp_path / 'item.json', _item('a', image=href))) == [(href, 'a')]


def test_collections_of_items_give_a_raster_each(tmp_path: Path) -> None:
    items = [_item(name, image=f'{name}.tif') for name in ('b', 'a')]
    path = _json(tmp_path / 'items.geojson', {'type': 'FeatureCollection', 'features': items})
    assert [target for _, target in _pairs(path)] == ['b', 'a']


def test_catalogues_are_followed_once_each(tmp_path: Path) -> None:
    links = [{'rel': 'child', 'href': 'one/collection.json'}, {'rel': 'root', 'href': 'cat.json'}]
    catalogue = _json(tmp_path / 'cat.json', {'type': 'Catalog', 'links': links})
    below = [{'rel': 'item', 'href': './a.json'}, {'rel': 'child', 'href': '../cat.json'}]
    _json(tmp_path / 'one' / 'collection.json', {'type': 'Collection', 'links': below})
    _json(tmp_path / 'one' / 'a.json', _item('a', image='a.tif'))
    assert _pairs(catalogue) == [(str(tmp_path / 'one' / 'a.tif'), 'a')]


def test_the_asset_is_chosen_by_kind_role_and_name(tmp_path: Path) -> None:
    several = _item(
        'a',
        thumbnail={'href': 'small.tif', 'type': 'image/tiff', 'roles': ['thumbnail']},
        picture={'href': 'p.png', 'type': 'image/png'},
        info={'href': 'info.xml', 'type': 'text/xml'},
        pan={'href': 'pan.tif', 'roles': ['visual']},
        analytic={'href': 'ms.tif', 'roles': ['data']},
    )
    path = _json(tmp_path / 'item.json', several)
    assert _pairs(path) == [(str(tmp_path / 'ms.tif'), 'a')]
    assert _pairs(path, asset='pan') == [(str(tmp_path / 'pan.tif'), 'a')]
    assert 'no asset' in _reason(path, asset='nir')
    assert 'pan, analytic' in _reason(path, asset='nir')


def test_several_rasters_are_not_guessed_among(tmp_path: Path) -> None:
    path = _json(tmp_path / 'item.json', _item('a', B04='B04.tif', B03='B03.tif'))
    assert 'the rasters B04, B03' in _reason(path)
    assert '--asset' in _reason(path)


@pytest.mark.parametrize(
    ('content', 'match'),
    [
        ([], 'no JSON object'),
        ({'a': 1}, 'no STAC file'),
        ({'type': 'FeatureCollection', 'features': [{'type': 'Feature'}]}, 'no STAC file'),
        ({'type': 'Collection', 'links': []}, 'links to no item'),
        (
            {'type': 'FeatureCollection', 'features': [], 'links': [{'rel': 'next', 'href': 'x'}]},
            'one page',
        ),
    ],
)
def test_other_json_is_named_with_the_reason(content: object, match: str, tmp_path: Path) -> None:
    assert match in _reason(_json(tmp_path / 'x.json', content))


def test_unreadable_and_absent_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / 'broken.json'
    broken.write_text('{"type": "Feat')
    assert 'cannot be read' in _reason(broken)
    assert 'cannot be read' in _reason(tmp_path / 'absent.json')
    assert 'cannot be read' in _reason('http://127.0.0.1:9/item.json')
    archive = tmp_path / 'broken.zip'
    archive.write_bytes(b'PK no')
    assert 'zip' in _reason(archive)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address under which the folder is served."""
    handler = partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_items_are_read_from_the_web(served: str, tmp_path: Path) -> None:
    _json(tmp_path / 'a' / 'item.json', _item('a', image='../b/scene.tif'))
    assert _pairs(f'{served}/a/item.json?key=1') == [(f'{served}/b/scene.tif', 'a')]


def test_rasters_of_an_archive(tmp_path: Path, rng: np.random.Generator) -> None:
    scene = write_raster(tmp_path / 's.tif', rng.integers(1, 255, (3, 9, 8), dtype=np.uint8))
    archive = tmp_path / 'scenes.zip'
    with zipfile.ZipFile(archive, 'w') as packed:
        packed.write(scene, 'north/s.tif')
        packed.writestr('north/readme.txt', 'no raster')
        packed.writestr('../evil.tif', 'outside')
    first, second = _found(archive)
    assert first.reason is not None
    assert (second.path, second.target) == (f'/vsizip/{archive}/north/s.tif', 'north/s')
    out = tmp_path / 'out'
    summary = predict_rasters([archive], Copy(), segmentation_spec(), out, to_planes=plain)
    assert (out / 'north' / 's_pred.tif').is_file()
    assert list(summary.failed) == [first.path]


def test_a_raster_of_an_item_is_mapped_and_the_others_are_named(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    write_raster(tmp_path / 's.tif', rng.integers(1, 255, (3, 9, 8), dtype=np.uint8))
    items = [_item('good', image='s.tif'), _item('none'), _item('lost', image='absent.tif')]
    path = _json(tmp_path / 'items.json', {'type': 'FeatureCollection', 'features': items})
    summary = predict_rasters(
        [path], Copy(), segmentation_spec(), tmp_path / 'out', to_planes=plain
    )
    assert (tmp_path / 'out' / 'good_pred.tif').is_file()
    assert len(summary.failed) == 2
    assert any("item 'none'" in reason for reason in summary.failed.values())


def test_lists_and_globs_hold_all_of_these(tmp_path: Path) -> None:
    _json(tmp_path / 'items' / 'a.json', _item('a', image='a.tif'))
    _json(tmp_path / 'items' / 'b.json', _item('b', image='b.tif'))
    (tmp_path / 'x.vrt').touch()
    (tmp_path / 'list.txt').write_text('# comment\nitems/*.json\nx.vrt\n')
    targets = [source.target for source in _found(tmp_path / 'items' / '*.json')]
    assert targets == ['a', 'b']
    assert [source.target for source in _found(tmp_path / 'list.txt')] == ['a', 'b', 'x']


def test_a_glob_that_spells_out_an_ending_finds_it(tmp_path: Path) -> None:
    for name in ('a.png', 'b.PNG', 'c.jpg', 'd.tif', 'README'):
        (tmp_path / name).touch()
    (tmp_path / 'folder').mkdir()
    assert [Path(s.path).name for s in _found(f'{tmp_path}/*.png')] == ['a.png']
    assert [Path(s.path).name for s in _found(f'{tmp_path}/*')] == ['d.tif']
    with pytest.raises(ConfigError, match=r"quoted patterns of others, as in 'photos/\*.png'"):
        _found(tmp_path / 'folder')


def test_results_of_two_must_not_have_one_name(tmp_path: Path) -> None:
    items = [_item('a', image='1.tif'), _item('a', image='2.tif')]
    path = _json(tmp_path / 'items.json', {'type': 'FeatureCollection', 'features': items})
    with pytest.raises(ConfigError, match='both give a_pred'):
        _found(path)
    assert len(list_sources([path], Path('results'))) == 2
