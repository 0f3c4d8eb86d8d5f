"""Distances in maps: those of the windows that the model saw, and nothing else changes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray

import tests.token_vits  # noqa: F401  # registers a group-channel model
from tests.inference.conftest import segmentation_spec, write_raster
from torchgeo_explora.cli import main
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference import PredictSettings, predict_rasters
from torchgeo_explora.models import (
    FeatureOrigin,
    FeatureReference,
    backbone_fingerprint,
    build_classifier,
    create_backbone,
    fit_feature_reference,
    load_model,
    pooled_features,
    save_model,
)
from torchgeo_explora.models.fitted import find_backbone
from torchgeo_explora.models.segmentation import build_segmenter

OneLine = Callable[[], str]
SIZE = 32


@dataclass(frozen=True)
class Fitted:
    """A fitted model's file with the features of its images beside it.

    Args:
        path: Of the model.
        reference: As it was written.
    """

    path: Path
    reference: FeatureReference


def _write(
    folder: Path, task: str, name: str = 'test_vit', bands: int = 3, seed: int = 0
) -> Fitted:
    backbone = create_backbone(name, seed=seed, img_size=SIZE)[0]
    network: Any = build_classifier(backbone, 3)
    if task == 'segmentation':
        network = build_segmenter(backbone, 'fpn', 3, seed=0)
    else:
        torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(1))
    options = {'decoder': 'fpn'} if task == 'segmentation' else {'pooling': 'avg'}
    spec = segmentation_spec(bands, image_size=SIZE, model=name, task=task, options=options)
    path = save_model(network, spec, folder / f'{task}{bands}' / 'model.safetensors')
    generator = torch.Generator().manual_seed(2)
    images = 0.3 + 0.2 * torch.rand((40, bands, SIZE, SIZE), generator=generator)
    with torch.inference_mode():
        features = pooled_features(backbone.eval(), images)
    origin = FeatureOrigin(name, backbone_fingerprint(backbone), SIZE)
    reference = fit_feature_reference(features, origin)
    reference.save(path.with_name('features.safetensors'))
    return Fitted(path, reference)


@pytest.fixture(scope='module')
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fitted]:
    """A segmentation and a classification model."""
    folder = tmp_path_factory.mktemp('models')
    return {task: _write(folder, task) for task in ('segmentation', 'classification')}


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A raster: dark on the left, bright and coarse on the right; a corner without data."""
    values = np.random.default_rng(0).integers(70, 130, (3, 80, 150), dtype=np.uint8)
    values[:, :, 75:] = np.kron(np.arange(10 * 15).reshape(10, 15) % 2, np.ones((8, 5))) * 200 + 50
    values[:, 64:, :64] = 0
    return write_raster(tmp_path / 'scene.tif', values, nodata=0)


def _run(scene: Path, model: Path, out: Path, *more: str) -> int:
    return main(
        ['predict', str(scene), '--model', str(model), '--out', str(out), '--device', 'cpu',
         '--precision', '32', *more]
    )  # fmt: skip


def _read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as source:
        values: NDArray[Any] = source.read()
    return values


def test_a_cell_has_the_distance_of_its_window(
    models: dict[str, Fitted], scene: Path, tmp_path: Path
) -> None:
    fitted, out = models['classification'], tmp_path / 'maps'
    assert _run(scene, fitted.path, out, '--uncertainty', 'distance') == 0
    with rasterio.open(out / 'scene_uncertainty.tif') as source:
        assert source.descriptions == ('distance',)
        distance = source.read(1)
    values = _read(scene).astype(np.float32) / 255
    vit = find_backbone(load_model(fitted.path)[0])[1]
    for left in (0, 32, 96):
        window = torch.from_numpy(values[None, :, :SIZE, left : left + SIZE])
        with torch.inference_mode():
            expected = fitted.reference.distance(pooled_features(vit, window)).item()
        cell = distance[:SIZE, left : left + SIZE]
        np.testing.assert_allclose(cell, expected, rtol=1e-4)
    assert np.isnan(distance[64:, :64]).all()
    assert np.isfinite(distance[:64]).all()
    # windows like those of the reference are near, the pattern is far
    assert distance[10, 10] < 2 < distance[10, 110]


@pytest.mark.parametrize('task', ['segmentation', 'classification'])
def test_everything_else_stays_as_it_is(
    task: str, models: dict[str, Fitted], scene: Path, tmp_path: Path
) -> None:
    measures = ('--probabilities', '--uncertainty', 'margin', 'entropy')
    plain, more = tmp_path / 'plain', tmp_path / 'more'
    assert _run(scene, models[task].path, plain, *measures) == 0
    assert _run(scene, models[task].path, more, *measures, 'distance') == 0
    assert (plain / 'scene_pred.tif').read_bytes() == (more / 'scene_pred.tif').read_bytes()
    for kind, bands in (('probabilities', 3), ('uncertainty', 2)):
        first, second = (_read(folder / f'scene_{kind}.tif') for folder in (plain, more))
        np.testing.assert_array_equal(first, second[:bands])
    distance = _read(more / 'scene_uncertainty.tif')[2]
    assert distance[:60, :40].mean() * 1.5 < distance[:60, 110:].mean()


def test_a_distance_that_is_the_same_everywhere_stays_so(
    models: dict[str, Fitted], tmp_path: Path
) -> None:
    scene = write_raster(tmp_path / 'flat.tif', np.full((3, 70, 90), 90, dtype=np.uint8))
    out = tmp_path / 'maps'
    assert _run(scene, models['segmentation'].path, out, '--uncertainty', 'distance') == 0
    distance = _read(out / 'flat_uncertainty.tif')[0]
    assert distance.max() - distance.min() <= 1e-6 * distance.max()


def test_half_precision_hardly_moves_the_distance(
    models: dict[str, Fitted], scene: Path, tmp_path: Path
) -> None:
    model, spec = load_model(models['segmentation'].path)
    found = []
    for precision in ('float32', 'bfloat16'):
        settings = PredictSettings(uncertainty=('distance',), precision=precision)
        reference = models['segmentation'].reference
        predict_rasters([scene], model, spec, tmp_path / precision, settings, reference=reference)
        found.append(_read(tmp_path / precision / 'scene_uncertainty.tif'))
    np.testing.assert_allclose(found[0], found[1], rtol=0.1)


def test_a_model_of_groups_of_bands(tmp_path: Path) -> None:
    fitted = _write(tmp_path, 'classification', 'tiny_group_channel_vit', bands=6)
    values = np.random.default_rng(0).integers(70, 130, (6, 40, 40), dtype=np.uint8)
    scene = write_raster(tmp_path / 'scene.tif', values)
    assert _run(scene, fitted.path, tmp_path / 'maps', '--uncertainty', 'distance') == 0
    assert np.isfinite(_read(tmp_path / 'maps' / 'scene_uncertainty.tif')).all()


def test_a_run_goes_on_only_with_the_same_reference(
    models: dict[str, Fitted], scene: Path, tmp_path: Path, one_line: OneLine
) -> None:
    fitted, out = models['segmentation'], tmp_path / 'maps'
    assert _run(scene, fitted.path, out, '--uncertainty', 'distance') == 0
    (out / 'scene_pred.tif').unlink()
    origin, noise = fitted.reference.origin, torch.Generator().manual_seed(5)
    width = len(fitted.reference.mean)
    other = fit_feature_reference(torch.randn((30, width), generator=noise), origin)
    path = other.save(tmp_path / 'other.safetensors')
    more = ('--uncertainty', 'distance', '--reference', str(path), '--resume')
    assert _run(scene, fitted.path, out, *more) == 2
    assert 'started with other reference' in one_line()


def test_what_is_missing_or_of_another_model_is_refused(
    models: dict[str, Fitted], scene: Path, tmp_path: Path, one_line: OneLine
) -> None:
    out, fitted = tmp_path / 'maps', models['segmentation']
    alone = tmp_path / 'alone.safetensors'
    alone.write_bytes(fitted.path.read_bytes())
    other = models['classification'].path.with_name('features.safetensors')
    stranger = _write(tmp_path / 'stranger', 'classification', seed=1)
    strange = stranger.path.with_name('features.safetensors')
    cases = [
        (alone, ['--uncertainty', 'distance'], 'features.safetensors is not there'),
        (alone, ['--reference', str(other)], 'ask for that, too'),
        (fitted.path, ['--uncertainty', 'distance', '--reference', str(fitted.path)], 'is no refe'),
        (alone, ['--uncertainty', 'distance', '--reference', str(strange)], 'of other weights'),
    ]
    for model, arguments, reason in cases:
        assert _run(scene, model, out, *arguments) == 2
        assert reason in one_line()
        assert not out.exists()
    # the two models here share their backbone, and so the reference of one is right for the other
    more = ('--uncertainty', 'distance', '--reference', str(other))
    assert _run(scene, alone, out, *more) == 0
    loaded, spec = load_model(alone)
    with pytest.raises(ConfigError, match=r'give the features\.safetensors'):
        predict_rasters([scene], loaded, spec, out, PredictSettings(uncertainty=('distance',)))
