"""``.pt2`` files: programs of torch.export, run by PyTorch alone, without this package and timm."""

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.export.onnx import own_metadata
from torchgeo_explora.export.parity import Array, Parity, compare
from torchgeo_explora.export.portable import PortableModel, trace

DESCRIPTION = 'torchgeo_explora.json'
"""Name under which a program carries its description."""


def export_program(
    model: PortableModel, path: str | Path, chip: Tensor, *, program: ExportedProgram | None = None
) -> Parity:
    """Write a model as a program of torch.export, check it, and keep it if it is right.

    ``torch.export.load(path, extra_files={'torchgeo_explora.json': ''}).module()`` takes
    standardised images (batch, bands, side, side) in batches of any size.

    Args:
        model: What :func:`portable_model` or :func:`portable_backbone` returned.
        path: The file to write, ending in ``.pt2``.
        chip: Standardised image (bands, side, side) to compare on.
        program: The traced model, where it was traced before.

    Returns:
        How close the written model is.

    Raises:
        ConfigError: If the suffix is another one.
        OutputError: If the written model differs, or the file cannot be written; nothing is left.
    """
    path = Path(path).expanduser()
    if path.suffix != '.pt2':
        raise ConfigError(f'{path} does not end in .pt2: choose a name that does.')
    traced = trace(model) if program is None else program
    extra = {
        DESCRIPTION: json.dumps({k: json.loads(v) for k, v in own_metadata(model.spec).items()})
    }
    with replacing(path) as temporary:
        with temporary.open('wb') as file:
            torch.export.save(traced, file, extra_files=extra)
        with temporary.open('rb') as written:
            loaded = torch.export.load(written).module()

        def run(batch: Array) -> Array:
            found: Array = loaded(torch.from_numpy(batch)).numpy()
            return found

        return compare(model, run, chip, path)
