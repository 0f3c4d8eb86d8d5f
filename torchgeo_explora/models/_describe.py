"""Say what a weights file is: its kind, the model it belongs to, and what it says of itself."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from torchgeo_explora.adapters.config import ExPLoRAConfig
from torchgeo_explora.adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from torchgeo_explora.adapters.state import FORMAT as ADAPTER_FORMAT
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.models._architecture import architecture_of_tensors, find_root
from torchgeo_explora.models._checkpoint import Checkpoint, read_checkpoint
from torchgeo_explora.models._saving import GENERATOR
from torchgeo_explora.models.finetuned import HEAD
from torchgeo_explora.models.fitted import backbone_of, is_fitted, read_spec, tensors_hash


def describe_file(path: str | Path) -> dict[str, Any]:
    """Describe a weights file.

    Args:
        path: Any file that :func:`read_checkpoint` reads.

    Returns:
        ``path``, ``kind``, ``bytes``, ``sha256``, ``tensors`` (their number), ``parameters`` (of
        all tensors), ``dtypes``, ``metadata``, and, where the file holds a plain vision
        transformer, ``root`` (the prefix of its keys), ``architecture`` (in words), ``model`` (a
        timm name or None), ``encoder_parameters``, ``grid`` (patches, height and width, or None)
        and ``bands``. Of a fitted model, ``fitted`` has its :class:`ModelSpec` and ``intact``,
        whether the weights are those that it was written for; of a delta, ``delta`` has what
        trained and the base that it belongs to.

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


def describe_peft(folder: str | Path) -> dict[str, Any]:
    """Describe the folder of a PEFT adapter, with a head beside it or without.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``; fine-tuning with
            this package writes ``head.safetensors`` too.

    Returns:
        ``path``, ``kind``, ``base``, ``rank``, ``alpha``, ``targets``, ``parameters`` (of the
        factors), ``bytes`` (of all three files) and ``head``: the :class:`ModelSpec` and what the
        backbone started from, or None.

    Raises:
        WeightsError: If a file cannot be read.
    """
    folder = Path(folder).expanduser()
    config = _peft_config(folder / ADAPTER_CONFIG)
    files = [folder / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD)]
    head = read_checkpoint(folder / HEAD) if (folder / HEAD).is_file() else None
    told = {} if head is None else head.metadata
    return {
        'path': str(folder),
        'kind': 'PEFT adapter' if head is None else 'fine-tuned model: PEFT adapter and head',
        'base': config.get('base_model_name_or_path'),
        'rank': config.get('r'),
        'alpha': config.get('lora_alpha'),
        'targets': config.get('target_modules'),
        'parameters': _count(read_checkpoint(folder / ADAPTER_WEIGHTS).tensors),
        'bytes': sum(path.stat().st_size for path in files if path.is_file()),
        'head': {'spec': json.loads(told['spec']), 'start': told.get('start', '')}
        if 'spec' in told
        else None,
    }


def _peft_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f'{path} could not be read as the configuration of a PEFT adapter ({error}): give a '
            'folder that PEFT or a fine-tuning wrote.'
        ) from error
    return dict(content)


def _describe_content(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.metadata.get('format') == ADAPTER_FORMAT:
        return {'kind': 'adapter (what an adaptation changed)', 'delta': _delta(checkpoint)}
    if is_fitted(checkpoint):
        inner = _describe_encoder(backbone_of(checkpoint))
        return inner | {'kind': 'fitted model', 'fitted': _fitted(checkpoint)}
    if all('lora_' in name for name in checkpoint.tensors):
        return {'kind': 'LoRA factors, for instance a PEFT adapter'}
    return _describe_encoder(checkpoint)


def _delta(checkpoint: Checkpoint) -> dict[str, Any]:
    """What an adaptation trained, and what it belongs to."""
    config = ExPLoRAConfig.from_json(checkpoint.metadata['config'])
    known = {name: checkpoint.metadata.get(name) for name in ('base', 'start', 'method')}
    return {
        **known,
        'rank': config.rank,
        'unfreeze_blocks': list(config.unfreeze_blocks),
        'base_hash': checkpoint.metadata['base_hash'],
    }


def _fitted(checkpoint: Checkpoint) -> dict[str, Any]:
    """The description of a fitted model, and whether its weights are those described."""
    spec = read_spec(checkpoint)
    intact = tensors_hash(checkpoint.tensors) == spec.weights_hash
    return {**dataclasses.asdict(spec), 'intact': intact}


def _describe_encoder(checkpoint: Checkpoint) -> dict[str, Any]:
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
