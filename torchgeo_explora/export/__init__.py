"""Models for programs that do not know this package: ONNX, PyTorch programs, STAC items."""

from torchgeo_explora.export.deepness import deepness_metadata
from torchgeo_explora.export.onnx import export_onnx
from torchgeo_explora.export.parity import Parity, random_chip
from torchgeo_explora.export.portable import (
    Embedder,
    PortableModel,
    PortableSpec,
    portable_backbone,
    portable_model,
)
from torchgeo_explora.export.program import export_program
from torchgeo_explora.export.stac import export_stac, stac_item, validate_item

__all__ = [
    'Embedder',
    'Parity',
    'PortableModel',
    'PortableSpec',
    'deepness_metadata',
    'export_onnx',
    'export_program',
    'export_stac',
    'portable_backbone',
    'portable_model',
    'random_chip',
    'stac_item',
    'validate_item',
]
