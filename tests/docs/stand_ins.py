"""What the pages name and a test does not have: small models and files under the same names."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import _registry
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models._api import WeightsEnum

from tests.data.eurosat.data import write_eurosat
from tests.data.fmow_rgb.data import write_tables
from tests.data.fmow_sentinel.data import chip, write_sentinel
from tests.data.fmow_temporal.data import write_temporal
from tests.data.folder.data import write_classes, write_raster
from tests.data.polygons.data import grid, noise, square, write, write_polygons
from torchgeo_explora._typing import GridSize
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.layers.sincos import sincos_grid
from torchgeo_explora.models import (
    FeatureOrigin,
    ModelSpec,
    backbone_fingerprint,
    build_classifier,
    build_decoder,
    create_backbone,
    fit_feature_reference,
    pooled_features,
    save_backbone,
    save_model,
)

SMALL: dict[str, Any] = {'embed_dim': 32, 'depth': 4, 'num_heads': 2}
MORE: dict[str, dict[str, Any]] = {
    'group_channel': {'channel_embed_dim': 8},
    'temporal': {'time_embed_dim': 12},
}
"""Further sizes of models whose name holds a word."""

FAMILIES = (
    'vit_{}_patch14_dinov2', 'vit_{}_patch16_224', 'explora_vit_{}_patch14_dinov2',
    'explora_group_channel_vit_{}_patch8_96', 'explora_temporal_vit_{}_patch16_224',
)  # fmt: skip
FULL = 'vit_large_patch14_dinov2'
"""A model that keeps its size: a block that counts its weights runs on torch's meta device."""

NAMES = tuple(
    name
    for family in FAMILIES
    for size in ('small', 'base', 'large')
    if (name := family.format(size)) != FULL
)


def _shrunk(name: str, entry: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The entry point of a model with fewer and narrower blocks, whose weights are random."""
    extra = next((sizes for word, sizes in MORE.items() if word in name), {})

    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:  # noqa: ANN401
        return entry(pretrained=False, **{**SMALL, **extra, **arguments})

    return build


@contextmanager
def small_models(files: Path) -> Iterator[None]:
    """Make models of the documented names small, and have stand-ins for downloads.

    Args:
        files: Folder for the stand-ins.
    """
    entries = _registry._model_entrypoints
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setitem(entries, name, _shrunk(name, entries[name]))
        patch.setattr('torchgeo_explora.models._sources.fetch', partial(_download, files))
        yield


def _download(files: Path, weights: WeightsEnum) -> Path:
    """Write a file in the place of one that a weights enum would fetch."""
    path = files / f'{weights}.safetensors'
    if path.is_file():
        return path
    files.mkdir(parents=True, exist_ok=True)
    name = weights.meta['model']
    if 'MAE_Natural' in str(weights):
        return _write_mae(path.with_suffix('.pth'), decoder=not str(weights).endswith('ENCODER'))
    torch.save({'model': timm.create_model(name, num_classes=0).state_dict()}, path)
    return path.rename(path.with_suffix('.pth'))


def _write_mae(path: Path, decoder: bool) -> Path:
    torch.manual_seed(7)
    encoder = VisionTransformer(img_size=224, patch_size=16, num_classes=0, **SMALL)
    state = encoder.state_dict()
    if decoder:
        state |= build_decoder(encoder, 32, 2, 2).state_dict()
    drawn = {key: torch.randn_like(value) / 8 for key, value in state.items()}
    drawn['pos_embed'] = sincos_grid(GridSize(14, 14), SMALL['embed_dim'], num_prefix=1)
    torch.save({'model': drawn}, path)
    return path


def _images(path: Path, count: int = 24) -> None:
    """Class folders of small GeoTIFFs."""
    SyntheticScenes(count, 'target', size=64).write_scenes(path)


def _rasters(path: Path, count: int = 6, side: int = 64) -> None:
    """Adjoining rasters, smooth enough for a model to see something."""
    for number in range(count):
        values = noise(3, side, side, number)
        write(path / f'{number}.tif', values, grid(column=number * side))


def _polygons(path: Path, count: int = 6, side: int = 64) -> None:
    """Squares of two kinds on what :func:`_rasters` wrote."""
    shapes, names = [], []
    for number in range(count):
        for part in range(4):
            column, row = number * side + side // 2 * (part % 2), side // 2 * (part // 2)
            shapes.append(square(column + side // 8, row + side // 8, side // 4))
            names.append(('crop', 'forest')[part % 2])
    write_polygons(path, shapes, {'kind': names, 'class': names, 'crop': names})


def _quarries(path: Path) -> None:
    """Squares on the first raster that :func:`_rasters` wrote, of those that fields are on too."""
    _polygons(path, 1)


def _fields(path: Path, count: int = 6, side: int = 64) -> None:
    """A field of one of two crops on each raster that :func:`_rasters` wrote."""
    shapes = [square(number * side, 0, side) for number in range(count)]
    write_polygons(path, shapes, {'crop': [('wheat', 'maize')[n % 2] for n in range(count)]})


def _landsat(path: Path) -> None:
    """Rasters of seven bands that do not name them."""
    for split, count in (('train', 8), ('test', 4)):
        for number in range(count):
            values = chip(number, bands=7, height=112, width=112)
            write_raster(path / split / f'{number}.tif', values)


def _sentinel_chips(path: Path) -> None:
    for number in range(8):
        write_raster(path / f'{number}.tif', chip(number, bands=13, height=64, width=64))


def _scene(path: Path) -> None:
    write(path, noise(3, 96, 128))


def _weights(path: Path) -> None:
    """Stock weights of the model that the pages use most."""
    backbone, _ = create_backbone('vit_small_patch14_dinov2', seed=0)
    save_backbone(backbone, path, {'base': 'vit_small_patch14_dinov2'})


def _adapted(path: Path) -> None:
    """What an adaptation of the same model leaves."""
    backbone, _ = create_backbone('vit_small_patch14_dinov2', seed=1)
    save_backbone(backbone, path, {'base': 'vit_small_patch14_dinov2', 'method': 'D-ExPLoRA'})


def _archive(path: Path) -> None:
    """A .zip file of pictures in class folders, apart for training and testing."""
    with tempfile.TemporaryDirectory() as folder:
        for split, count in (('train', 12), ('test', 6)):
            write_classes(Path(folder) / split, ('AnnualCrop', 'Forest'), count)
        shutil.make_archive(str(path.with_suffix('')), 'zip', folder)


def _fitted(path: Path) -> None:
    """A classifier of two classes."""
    backbone, _ = create_backbone('vit_small_patch14_dinov2', seed=0, img_size=56)
    spec = ModelSpec(
        task='classification',
        model='vit_small_patch14_dinov2',
        classes=('crop', 'forest'),
        bands=('red', 'green', 'blue'),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        scale=((0, 255),) * 3,
        image_size=56,
        options={'pooling': 'avg'},
    )
    save_model(build_classifier(backbone, num_classes=2), spec, path)


def _reference(path: Path) -> None:
    """The features of the images that the classifier was fitted on."""
    vit, _ = create_backbone('vit_small_patch14_dinov2', seed=0, img_size=56)
    images = torch.rand((24, 3, 56, 56), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = pooled_features(vit.eval(), images)
    origin = FeatureOrigin('vit_small_patch14_dinov2', backbone_fingerprint(vit), 56)
    fit_feature_reference(features, origin).save(path)


FILES: dict[str, Callable[[Path], object]] = {
    'photos': _images,
    'labelled': _images,
    'train': _images,
    'test': _images,
    'scenes': _rasters,
    'rasters': _rasters,
    'images': _rasters,
    'imagery': _rasters,
    'polygons.gpkg': _polygons,
    'buildings.gpkg': _polygons,
    'landcover.gpkg': _polygons,
    'fields.gpkg': _polygons,
    'crops.gpkg': _fields,
    'quarries.gpkg': _quarries,
    'geotiffs': _landsat,
    'chips': _sentinel_chips,
    'scene.tif': _scene,
    'dinov2_vits14.safetensors': _weights,
    'base.safetensors': _weights,
    'model.safetensors': _fitted,
    'features.safetensors': _reference,
    'run1/explora.safetensors': _adapted,
    'explora-0.safetensors': _adapted,
    'output/explora_eurosat/explora.safetensors': _adapted,
    'output/explora_folder/explora.safetensors': _adapted,
    'eurosat_rgb.zip': _archive,
    'eurosat': write_eurosat,
    'fmow-sentinel': write_sentinel,
    'fmow': write_tables,
    'fmow-temporal': write_temporal,
}
"""Files and folders by the name that the pages have for them, with who writes each."""


def given() -> dict[str, Any]:
    """Names that blocks of Python use and do not define."""
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, 56, 56), np.float32))
    return {'images': images}
