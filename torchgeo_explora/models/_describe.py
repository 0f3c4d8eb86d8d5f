"""Say what a weights file is: its kind, the model it belongs to, and what it says of itself."""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from torchgeo_explora.adapters.state import FORMAT as ADAPTER_FORMAT
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.models._architecture import architecture_of_tensors, find_root
from torchgeo_explora.models._checkpoint import Checkpoint, read_checkpoint
from torchgeo_explora.models._saving import GENERATOR


def describe_file(path: str | Path) -> dict[str, Any]:
    """Describe a weights file.

    Args:
        path: Any file that :func:`read_checkpoint` reads.

    Returns:
        ``path``, ``kind``, ``bytes``, ``sha256``, ``tensors`` (their number), ``parameters`` (of
        all tensors), ``dtypes``, ``metadata``, and, where the file holds a plain vision
        transformer, ``root`` (the prefix of its keys), ``architecture`` (in words), ``model`` (a
        timm name or None), ``encoder_parameters``, ``grid`` (patches, height and width, or None)
        and ``bands``.

    Raises:
        WeightsError: If the file cannot be read.
    """
    checkpoint = read_checkpoint(path)
    path = Path(path).expanduser()
    return {
        'path': str(path),
        'bytes': path.stat().st_size,
        'sha256': _sha256(path),
        'tensors': len(checkpoint.tensors),
        'parameters': _count(checkpoint.tensors),
        'dtypes': sorted(
            {str(t.dtype).removeprefix('torch.') for t in checkpoint.tensors.values()}
        ),
        'metadata': checkpoint.metadata,
        **_describe_content(checkpoint),
    }


def _describe_content(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.metadata.get('format') == ADAPTER_FORMAT:
        return {'kind': 'adapter (what an adaptation changed)'}
    if all('lora_' in name for name in checkpoint.tensors):
        return {'kind': 'LoRA factors, for instance a PEFT adapter'}
    try:
        root = find_root(checkpoint.tensors, checkpoint.source)
    except WeightsError:
        return {'kind': 'tensors without a plain vision transformer'}
    names = checkpoint.tensors.items()
    encoder = {k.removeprefix(root): t for k, t in names if k.startswith(root)}
    found = architecture_of_tensors(encoder)
    grid = found.native_grid()
    return {
        'kind': _kind(checkpoint, encoder, root),
        'root': root,
        'architecture': found.describe(),
        'model': found.timm_name(),
        'encoder_parameters': _count(encoder),
        'grid': None if grid is None else [grid.height, grid.width],
        'bands': found.bands,
    }


def _kind(checkpoint: Checkpoint, encoder: dict[str, Tensor], root: str) -> str:
    if checkpoint.metadata.get('generator') == GENERATOR:
        return 'merged backbone'
    if 'teacher' in root.split('.'):
        both = any('attn.q_proj.' in name for name in encoder)
        return 'published ExPLoRA teacher' if both else 'teacher of a training checkpoint'
    if any(name.startswith('decoder') for name in encoder):
        return 'encoder with a decoder (masked autoencoder)'
    if 'pytorch-lightning_version' in checkpoint.metadata:
        return 'Lightning checkpoint'
    wrapper = f', wrapped in {root.removesuffix(".")}' if root else ''
    return f'encoder weights{wrapper}'


def _count(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
