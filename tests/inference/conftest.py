"""Small rasters, and models whose right answer is known."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp
from torch import Tensor, nn

from torchgeo_explora.models import ModelSpec

_COS, _SIN = 0.3 * math.cos(0.3), 0.3 * math.sin(0.3)
ROTATED = Affine(_COS, _SIN, 431000.25, _SIN, -_COS, 5417000.75)
NORTH_UP = Affine(10.0, 0.0, 499980.0, 0.0, -10.0, 4200000.0)


class Copy(nn.Module):
    """Returns the bands of its input, as they are."""

    def forward(self, images: Tensor) -> Tensor:
        return images


class Constant(nn.Module):
    """Returns the same values everywhere."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer('values', torch.tensor(values))

    def forward(self, images: Tensor) -> Tensor:
        values: Tensor = self.get_buffer('values')
        return values[None, :, None, None].expand(len(images), -1, *images.shape[2:]).clone()


class Mixing(nn.Module):
    """A small network with random weights, whose outputs depend on where a pixel lies."""

    def __init__(self, bands: int, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(bands, 8, 5, padding=2), nn.Conv2d(8, classes, 5, padding=2)
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def plain(planes: Tensor) -> Tensor:
    """Takes what a model returns for probabilities."""
    return planes


def segmentation_spec(bands: int = 3, classes: int = 3, **changes: Any) -> ModelSpec:  # noqa: ANN401
    """Describe a model for bytes."""
    values: dict[str, Any] = {
        'task': 'segmentation',
        'model': 'test_vit',
        'classes': tuple(f'class {index}' for index in range(classes)),
        'bands': tuple(f'b{index}' for index in range(bands)),
        'mean': (0.0,) * bands,
        'std': (1.0,) * bands,
        'scale': ((0.0, 255.0),) * bands,
        'image_size': 16,
        'weights_hash': 'abc',
    }
    return ModelSpec(**values | changes)


def write_raster(path: Path, values: NDArray[Any], **profile: Any) -> Path:  # noqa: ANN401
    """Write (bands, height, width) as a GeoTIFF.

    Args:
        path: The file.
        values: The bands.
        profile: Further arguments of rasterio; ``descriptions``, ``colorinterp``, ``colormap``,
            ``gcps`` and ``tags`` are set on the open file.
    """
    later = {
        key: profile.pop(key)
        for key in ('descriptions', 'colorinterp', 'colormap', 'tags', 'mask')
        if key in profile
    }
    bands, height, width = values.shape
    placed = {'crs': 'EPSG:32631', 'transform': NORTH_UP} if 'gcps' not in profile else {}
    arguments = {'driver': 'GTiff', 'count': bands, 'height': height, 'width': width}
    arguments |= {'dtype': values.dtype.name} | placed | profile
    with rasterio.open(path, 'w', **arguments) as target:
        if 'colorinterp' in later:
            target.colorinterp = [ColorInterp[name] for name in later['colorinterp']]
        if 'colormap' in later:
            target.write_colormap(1, later['colormap'])
        target.write(values)
        for index, name in enumerate(later.get('descriptions', ()), start=1):
            target.set_band_description(index, name)
        target.update_tags(**later.get('tags', {}))
        if 'mask' in later:
            target.write_mask(later['mask'])
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)
