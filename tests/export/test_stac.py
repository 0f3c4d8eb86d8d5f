"""STAC items are valid by the schemas, and what is not valid is not written."""

import copy
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pystac
import pytest

from tests.export.conftest import BUILDERS
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.export import PortableModel, export_stac, stac_item, validate_item


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files of a model; an item looks at their bytes alone."""
    files = {name: tmp_path / 'model' / f'model.{name}' for name in ('onnx', 'pt2', 'safetensors')}
    (tmp_path / 'model').mkdir()
    for name, file in files.items():
        file.write_bytes(name.encode())
    return files


@pytest.mark.parametrize('task', BUILDERS)
def test_items_are_valid_and_pystac_reads_them(
    task: str, models: dict[str, PortableModel], files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / 'model' / 'item.json'
    export_stac(models[task].spec, path, files)
    item = pystac.Item.from_file(str(path))
    spec, told = models[task].spec, item.properties
    assert told['mlm:input'][0]['bands'] == list(spec.images.bands)
    assert told['mlm:input'][0]['input']['shape'] == [-1, *spec.input_shape]
    assert told['mlm:output'][0]['result']['shape'] == [-1, *spec.output_shape]
    mean, std = spec.raw_statistics()
    scaling = told['mlm:input'][0]['value_scaling']
    assert [(one['mean'], one['stddev']) for one in scaling] == list(zip(mean, std, strict=True))
    for key, asset in item.assets.items():
        assert asset.href == f'./model.{key}'
        digest = hashlib.sha256(files[key].read_bytes()).hexdigest()
        assert asset.extra_fields['file:checksum'] == f'1220{digest}'


def test_classes_keep_their_names_and_colours(
    models: dict[str, PortableModel], files: dict[str, Path]
) -> None:
    item = stac_item(models['segmentation'].spec, Path(), files)
    classes = item['properties']['mlm:output'][0]['classification:classes']
    assert [one['title'] for one in classes] == ['bare ground', 'Gebäude', '水']
    assert [one['name'] for one in classes] == ['bare_ground', 'Geb_ude', 'class_2']
    assert [one['color_hint'] for one in classes] == ['010203', 'FF0010', '0000FF']
    assert item['properties']['gsd'] == 0.3


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        ('properties mlm:name', '-'),
        ('properties mlm:input', None),
        ('properties mlm:input 0 value_scaling 0 type', 'guess'),
        ('properties mlm:input 0 input data_type', 'float33'),
        ('properties mlm:output 0 classification:classes 0 name', 'bare ground'),
        ('properties mlm:tasks', ['magic']),
        ('properties bands', None),
        ('properties datetime', 5),
        ('assets onnx mlm:artifact_type', None),
        ('assets onnx file:checksum', 'none'),
        ('assets onnx roles', ['data']),
        ('id', ''),
        ('stac_version', '0.9.0'),
    ],
)
def test_schemas_see_what_is_wrong(
    place: str, value: object, models: dict[str, PortableModel], files: dict[str, Path]
) -> None:
    only = {'onnx': files['onnx']}
    item = copy.deepcopy(stac_item(models['segmentation'].spec, Path(), only))
    validate_item(item)
    part: Any = item
    *way, last = (int(step) if step.isdecimal() else step for step in place.split())
    for step in way:
        part = part[step]
    if value is None:
        del part[last]
    else:
        part[last] = value
    with pytest.raises(ConfigError, match='not be valid'):
        validate_item(item)


def test_an_extension_without_a_schema_here_is_refused(
    models: dict[str, PortableModel], files: dict[str, Path]
) -> None:
    item = stac_item(models['embedding'].spec, Path(), files)
    item['stac_extensions'].append('https://stac-extensions.github.io/eo/v1.1.0/schema.json')
    with pytest.raises(ConfigError, match='no schema'):
        validate_item(item)


def test_only_files_of_models_become_assets(
    models: dict[str, PortableModel], tmp_path: Path
) -> None:
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(ConfigError, match='no file of a model'):
        stac_item(models['embedding'].spec, tmp_path, {'notes': tmp_path / 'notes.txt'})


@pytest.mark.parametrize('name', ['pystac', 'jsonschema'])
def test_missing_packages_are_named(
    name: str,
    models: dict[str, PortableModel],
    files: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf'{name} is missing'):
        export_stac(models['embedding'].spec, tmp_path / 'item.json', files)
    assert not (tmp_path / 'item.json').exists()


def test_bytes_of_an_item_do_not_change(
    models: dict[str, PortableModel], files: dict[str, Path], tmp_path: Path
) -> None:
    spec = models['segmentation'].spec
    items = [json.dumps(stac_item(spec, tmp_path / 'model', files)) for _ in range(2)]
    assert items[0] == items[1]
