"""What is written for other programs gives what the model in PyTorch gives, or is not written."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.export.conftest import BUILDERS, classifier, describe, vit
from tests.token_vits import make_temporal
from torchgeo_explora.errors import ConfigError, ImageError, OutputError
from torchgeo_explora.export import (
    PortableModel,
    deepness_metadata,
    export_onnx,
    export_program,
    portable_backbone,
    portable_model,
    random_chip,
)
from torchgeo_explora.export.portable import trace
from torchgeo_explora.models import InputSpec
from torchgeo_explora.models.classifier import build_classifier
from torchgeo_explora.models.fitted import FittedModel

SLOW = pytest.mark.slow
type Runs = Callable[[str], Written]
TASKS = [pytest.param(task, marks=SLOW if task == 'segmentation' else ()) for task in BUILDERS]


class Written(NamedTuple):
    """A model as it was written."""

    onnx: Path
    program: Path
    session: Any
    module: torch.nn.Module


@pytest.fixture(scope='session')
def written(models: dict[str, PortableModel], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Gives the model of a task, written as ONNX and as a program when it is first asked for."""
    folder = tmp_path_factory.mktemp('written')

    @functools.cache
    def write(task: str) -> Written:
        model, onnx_path, path = models[task], folder / f'{task}.onnx', folder / f'{task}.pt2'
        program, chip = trace(model), random_chip(model)
        export_onnx(model, onnx_path, chip, program=program)
        export_program(model, path, chip, program=program)
        module = torch.export.load(path).module()
        return Written(onnx_path, path, onnxruntime.InferenceSession(onnx_path), module)

    return write


def _batch(model: PortableModel, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, *model.spec.input_shape, generator=generator)


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('size', [1, 2, 5])
def test_outputs_are_those_of_torch(
    task: str, size: int, models: dict[str, PortableModel], written: Runs
) -> None:
    images = _batch(models[task], size)
    with torch.no_grad():
        expected = models[task](images).numpy()
    (found,) = written(task).session.run(None, {'images': images.numpy()})
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(written(task).module(images), expected, atol=1e-6)
    assert expected.shape == (size, *models[task].spec.output_shape)


@pytest.mark.parametrize('task', TASKS)
def test_files_say_what_they_are_and_nothing_of_this_machine(
    task: str, models: dict[str, PortableModel], written: Runs
) -> None:
    proto, spec = onnx.load(written(task).onnx), models[task].spec
    shapes = [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    ]
    assert shapes == [['batch', *spec.input_shape], ['batch', *spec.output_shape]]
    assert [value.name for value in proto.graph.output] == [spec.output]
    assert {item.domain: item.version for item in proto.opset_import}[''] == 18
    extra = {'torchgeo_explora.json': ''}
    torch.export.load(written(task).program, extra_files=extra)
    assert json.loads(extra['torchgeo_explora.json'])['weights_sha256'] == spec.weights_hash
    here = str(Path(torch.__file__).parent.parent).encode(), str(Path(__file__).parents[2]).encode()
    for file in (written(task).onnx, written(task).program):
        content = file.read_bytes()
        assert not any(place in content for place in here)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, written: Runs) -> None:
    model = classifier()
    export_onnx(model, tmp_path / 'again.onnx', random_chip(model))
    again = (tmp_path / 'again.onnx').read_bytes()
    assert again == written('classification').onnx.read_bytes()


def _as_deepness_reads(session: Any) -> dict[str, Any]:  # noqa: ANN401
    texts = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(text) for name, text in texts.items()}


def test_raw_values_go_through_deepness_as_through_predict(
    models: dict[str, PortableModel], written: Runs
) -> None:
    model = models['classification']
    spec = model.spec
    assert spec.images.scale is not None
    raw = np.random.default_rng(0).integers(0, 5000, (4, *spec.input_shape)).astype(np.uint16)
    low, high = (np.array(ends)[:, None, None] for ends in zip(*spec.images.scale, strict=True))
    unit = torch.from_numpy(np.clip((raw - low) / (high - low), 0, 1)).float()
    fitted = FittedModel(model.network, spec.images.mean, spec.images.std).eval()
    with torch.no_grad():
        expected = fitted(unit).softmax(1)
    session = written('classification').session
    told = _as_deepness_reads(session)
    mean, std = (
        np.array(told[f'standardization_{name}'])[:, None, None] for name in ('mean', 'std')
    )
    seen = ((raw * (1.0 / 255.0)).astype(np.float32) - mean) / std
    (found,) = session.run(None, {'images': seen.astype(np.float32)})
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


def test_what_deepness_reads(models: dict[str, PortableModel], written: Runs) -> None:
    read = {
        task: {name: json.loads(text) for name, text in deepness_metadata(model.spec).items()}
        for task, model in models.items()
    }
    told = read['segmentation']
    assert told['model_type'] == 'Segmentor'
    assert told['class_names'] == {'0': 'bare ground', '1': 'Gebäude', '2': '水'}
    assert told['tile_size'] == told['tiles_size'] == 40
    assert told['resolution'] == 30  # centimetres
    assert told['standardization_mean'] == pytest.approx([0.485, 0.456, 0.406])
    assert told['standardization_std'] == pytest.approx([0.229, 0.224, 0.225])
    assert told['seg_thresh'] == told['seg_small_segment'] == 0
    assert 'model_type' not in read['classification']
    assert read['embedding']['model_type'] == 'Recognition'
    assert 'class_names' not in read['embedding']
    stored = _as_deepness_reads(written('classification').session)
    assert stored.items() >= read['classification'].items()


@pytest.mark.parametrize(
    ('known', 'given', 'expected'),
    [(0.3, None, 30.0), (0.3, 10.0, 1000.0), (None, None, None), (2.7e-6, None, None)],
)
def test_pixels_in_degrees_are_not_taken_for_metres(
    known: float | None, given: float | None, expected: float | None
) -> None:
    spec = describe(task='classification', image_size=56, resolution=known)
    model = portable_model(build_classifier(vit(), 3), spec)
    told = deepness_metadata(model.spec, given)
    assert told.get('resolution') == (None if expected is None else json.dumps(expected))


def test_values_of_unknown_scale_are_taken_for_bytes() -> None:
    spec = describe(task='classification', image_size=56, scale=None)
    told = deepness_metadata(portable_model(build_classifier(vit(), 3), spec).spec)
    assert json.loads(told['standardization_mean']) == list(spec.mean)


@pytest.mark.parametrize('suffix', [pytest.param('.onnx', marks=SLOW), '.pt2'])
def test_a_model_that_differs_is_not_written(suffix: str, tmp_path: Path) -> None:
    model, other = classifier(), classifier()
    with torch.no_grad():
        other.get_submodule('network.head').get_parameter('bias')[0] += 0.01
    write = export_onnx if suffix == '.onnx' else export_program
    with pytest.raises(OutputError, match='differs from the one in PyTorch'):
        write(model, tmp_path / f'm{suffix}', random_chip(model), program=trace(other))
    assert list(tmp_path.iterdir()) == []


def test_a_chip_of_another_shape_is_refused(
    models: dict[str, PortableModel], tmp_path: Path
) -> None:
    model = models['classification']
    with pytest.raises(ImageError, match='shape'):
        export_program(model, tmp_path / 'm.pt2', torch.zeros(3, 40, 40))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['onnx', 'onnxscript', 'onnxruntime'])
def test_missing_packages_are_named(
    name: str,
    models: dict[str, PortableModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    model = models['classification']
    with pytest.raises(ConfigError, match=rf'{name} is missing.*torchgeo-explora\[export\]'):
        export_onnx(model, tmp_path / 'm.onnx', random_chip(model))


def test_names_that_mislead_are_refused(models: dict[str, PortableModel], tmp_path: Path) -> None:
    model = models['classification']
    with pytest.raises(ConfigError, match=r'\.onnx'):
        export_onnx(model, tmp_path / 'm.pt2', random_chip(model))
    with pytest.raises(ConfigError, match=r'\.pt2'):
        export_program(model, tmp_path / 'm.onnx', random_chip(model))


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(ConfigError, match='multiple'):
        portable_model(build_classifier(vit(), 3), describe(task='classification', image_size=50))
    images = InputSpec(('a', 'b', 'c'), (0.5,) * 3, (0.5,) * 3, None, 56)
    with pytest.raises(ConfigError, match='several dates'):
        portable_backbone(make_temporal(), 'test_vit', images)
    without = vit()
    without.cls_token = None
    with pytest.raises(ConfigError, match='no class token'):
        portable_backbone(without, 'test_vit', images, pooling='token')


def test_the_model_is_left_as_it_is() -> None:
    model = build_classifier(vit(), 3).train()
    portable_model(model, describe(task='classification', image_size=56))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
