"""STAC items with the Machine Learning Model (MLM) extension: what a model is, for catalogues."""

import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from torchgeo_explora import __version__
from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.export.deepness import metres_of
from torchgeo_explora.export.portable import INPUT, PortableSpec

STAC_VERSION = '1.1.0'
EXTENSIONS = {'mlm': '1.4.0', 'file': '2.1.0'}
"""Extensions of an item, and their versions."""

_CARRIED = {**EXTENSIONS, 'raster': '1.1.0', 'processing': '1.1.0', 'classification': '2.0.0'}
# MLM 1.4.0 refers to version 1.1.0, which asks for a description where 2.0.0 asks for a name
_INSTEAD = {('classification', '1.1.0'): '2.0.0'}

TASKS = {
    'classification': ['classification', 'scene-classification'],
    'segmentation': ['segmentation', 'semantic-segmentation'],
    'embedding': ['similarity-search'],
}
"""MLM's names of what models do."""

_NAME = re.compile(r'[^a-zA-Z0-9_.-]+')
_VERSION = re.compile(r'^\d+\.\d+\.\d+')
_MODEL_TYPE = 'application/octet-stream'


@dataclass(frozen=True)
class AssetKind:
    """What a file of a model is.

    Args:
        title: In words.
        media_type: Its media type.
        artifact: MLM's ``artifact_type``, of a file that is a model whole; None of weights alone.
        roles: STAC roles.
    """

    title: str
    media_type: str
    artifact: str | None
    roles: tuple[str, ...]


KINDS = {
    '.onnx': AssetKind(
        'ONNX model', f'{_MODEL_TYPE}; framework=onnx; profile=onnx', 'onnx', ('mlm:model',)
    ),
    '.pt2': AssetKind(
        'PyTorch program', f'{_MODEL_TYPE}; application=pytorch', 'torch.export.save', ('mlm:model',)
    ),
    '.safetensors': AssetKind(
        'Weights for torchgeo-explora', f'{_MODEL_TYPE}; application=safetensors', None,
        ('mlm:weights', 'data'),
    ),
}  # fmt: skip
"""Files that an item may have, by the end of their name."""


def export_stac(
    spec: PortableSpec,
    path: str | Path,
    assets: Mapping[str, str | Path],
    *,
    resolution: float | None = None,
) -> dict[str, Any]:
    """Write a STAC item that describes a model, valid by the schemas of STAC and its extensions.

    Args:
        spec: Describes the model.
        path: The file to write, ending in ``.json``.
        assets: Files of the model by a key, at least one ``.onnx`` or ``.pt2``; they are hashed,
            and named relative to ``path``.
        resolution: Size of a pixel in metres; what the model says by default.

    Returns:
        The item.

    Raises:
        ConfigError: If a package of the extra ``export`` is missing, or a file is no model.
        OutputError: If it cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix != '.json':
        raise ConfigError(f'{path} does not end in .json: choose a name that does.')
    item = stac_item(spec, path.parent, assets, resolution=resolution)
    validate_item(item)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(item, indent=2) + '\n', encoding='utf-8')
    return item


def stac_item(
    spec: PortableSpec,
    folder: Path,
    assets: Mapping[str, str | Path],
    *,
    resolution: float | None = None,
) -> dict[str, Any]:
    """Return the item, not validated. Arguments as in :func:`export_stac`.

    It has no geometry and is valid for all times: where and when a model holds is not known.
    """
    name = _name(f'{spec.model}-{spec.task}')
    bands = [{'name': band} for band in spec.images.bands]
    metres = metres_of(spec) if resolution is None else resolution
    properties = {
        'title': f'{spec.model}: {spec.task}',
        'datetime': None,
        'start_datetime': '1900-01-01T00:00:00Z',
        'end_datetime': '9999-12-31T23:59:59Z',
        'bands': bands,
        **({} if metres is None else {'gsd': metres}),
        **_model(spec, name),
        'mlm:input': [_input(spec)],
        'mlm:output': [_output(spec)],
    }
    return {
        'type': 'Feature',
        'stac_version': STAC_VERSION,
        'stac_extensions': [_uri(name, version) for name, version in EXTENSIONS.items()],
        'id': f'{name}-{spec.weights_hash[:12]}',
        'geometry': None,
        'properties': properties,
        # STAC wants bands in an asset before it allows them for all, and MLM wants them for all
        'assets': {
            key: _asset(Path(file), folder) | {'bands': bands} for key, file in assets.items()
        },
        'links': [],
    }


def _name(text: str) -> str:
    """A name as MLM allows it."""
    cleaned = _NAME.sub('-', text).strip('-_.')
    return cleaned if cleaned[:1].isalpha() else f'model-{cleaned}'


def _model(spec: PortableSpec, name: str) -> dict[str, Any]:
    version = _VERSION.match(torch.__version__)
    return {
        'mlm:name': name,
        'mlm:architecture': 'Vision Transformer',
        'mlm:tasks': TASKS[spec.task],
        'mlm:framework': 'PyTorch',
        **({} if version is None else {'mlm:framework_version': version.group()}),
        'mlm:total_parameters': spec.parameters,
        'mlm:memory_size': 4 * spec.parameters,
        'mlm:pretrained': True,
        'mlm:hyperparameters': {
            'model': spec.model,
            'torchgeo_explora': __version__,
            'weights_sha256': spec.weights_hash,
            **{_NAME.sub('_', key): value for key, value in spec.options.items()},
        },
    }


def _input(spec: PortableSpec) -> dict[str, Any]:
    mean, std = spec.raw_statistics()
    values = 'raw values' if spec.images.scale is not None else 'values scaled to [0, 1]'
    pairs = () if spec.images.scale is None else spec.images.scale
    ends = ', '.join(dict.fromkeys(f'{low:g} to {high:g}' for low, high in pairs))
    cut = f', of which those beyond {ends} count as these' if ends else ''
    return {
        'name': INPUT,
        'description': f'Tiles of {values}{cut}, less the mean, by the standard deviation.',
        'bands': list(spec.images.bands),
        'input': _structure((-1, *spec.input_shape), ('batch', 'channel', 'height', 'width')),
        'value_scaling': [
            {'type': 'z-score', 'mean': m, 'stddev': s} for m, s in zip(mean, std, strict=True)
        ],
        'resize_type': None,
        'pre_processing_function': None,
    }


def _output(spec: PortableSpec) -> dict[str, Any]:
    axes = {'classification': ('class',), 'segmentation': ('class', 'height', 'width')}
    order = ('batch', *axes.get(spec.task, ('channel',)))
    return {
        'name': spec.output,
        'tasks': TASKS[spec.task],
        'result': _structure((-1, *spec.output_shape), order),
        'classification:classes': [_class(spec, value) for value in range(len(spec.classes))],
        'post_processing_function': None,
    }


def _structure(shape: tuple[int, ...], order: tuple[str, ...]) -> dict[str, Any]:
    return {'shape': list(shape), 'dim_order': list(order), 'data_type': 'float32'}


def _class(spec: PortableSpec, value: int) -> dict[str, Any]:
    title = spec.classes[value]
    plain = re.sub(r'[^0-9A-Za-z_-]+', '_', title).strip('_')
    named = {'value': value, 'name': plain or f'class_{value}', 'title': title}
    if spec.colors is not None:
        named['color_hint'] = ''.join(f'{part:02X}' for part in spec.colors[value])
    return named | {'description': title}


def _asset(file: Path, folder: Path) -> dict[str, Any]:
    kind = KINDS.get(file.suffix)
    if kind is None:
        raise ConfigError(f'{file} is no file of a model: give {", ".join(KINDS)} files.')
    with file.open('rb') as content:
        digest = hashlib.file_digest(content, 'sha256').hexdigest()
    inside = file.absolute().is_relative_to(folder.absolute())
    place = file.absolute().relative_to(folder.absolute()) if inside else file.absolute()
    return {
        'href': f'./{place.as_posix()}' if inside else place.as_uri(),
        'title': kind.title,
        'type': kind.media_type,
        'roles': list(kind.roles),
        'file:size': file.stat().st_size,
        'file:checksum': f'1220{digest}',  # a multihash: SHA-256 of 32 bytes
        **({} if kind.artifact is None else {'mlm:artifact_type': kind.artifact}),
    }


def _uri(name: str, version: str) -> str:
    return f'https://stac-extensions.github.io/{name}/v{version}/schema.json'


@cache
def carried_schemas() -> dict[str, Any]:
    """Return the schemas that come with this package, by the address that others name them by."""
    found = {}
    for name, version in _CARRIED.items():
        file = files('torchgeo_explora.export').joinpath('schemas', f'{name}-v{version}.json')
        found[_uri(name, version)] = json.loads(file.read_text(encoding='utf-8'))
    for (name, version), other in _INSTEAD.items():
        found[_uri(name, version)] = found[_uri(name, other)]
    return found


def validate_item(item: Mapping[str, Any]) -> None:
    """Validate an item by the schemas of STAC and of its extensions, offline.

    Args:
        item: As JSON.

    Raises:
        ConfigError: If pystac or jsonschema is missing, an extension is none that this package
            knows, or the item is not valid.
    """
    pystac, validator = needed_validator()
    unknown = set(item['stac_extensions']) - carried_schemas().keys()
    if unknown:
        raise ConfigError(f'There is no schema here for {", ".join(sorted(unknown))}.')
    try:
        validator.validate(
            dict(item), pystac.STACObjectType.ITEM, STAC_VERSION, item['stac_extensions']
        )
    except pystac.STACValidationError as error:
        raise ConfigError(f'The STAC item would not be valid: {error}') from error


def needed_validator() -> tuple[ModuleType, Any]:
    """Import pystac, and return it with a validator that has all schemas at hand.

    Raises:
        ConfigError: If pystac or jsonschema is missing.
    """
    try:
        importlib.import_module('jsonschema')
        pystac = importlib.import_module('pystac')
        validation = importlib.import_module('pystac.validation.stac_validator')
    except ImportError as error:
        raise ConfigError(
            f'STAC items are validated with pystac and jsonschema, and {error.name or error} is '
            "missing: install them with pip install 'torchgeo-explora[export]'."
        ) from error
    validator = validation.JsonSchemaSTACValidator()
    validator.schema_cache.update(carried_schemas())
    return pystac, validator
