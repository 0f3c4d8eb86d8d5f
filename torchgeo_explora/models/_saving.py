"""Write a merged backbone as safetensors under stock timm keys, whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

import torchgeo_explora
from torchgeo_explora._files import write_tensors
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models._stored import own_texts

GENERATOR = 'torchgeo_explora'


def save_backbone(
    model: VisionTransformer, path: str | Path, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write a model's weights as ``safetensors`` with metadata.

    The file appears under its name only when it is complete and on disk.

    Args:
        model: A vision transformer with stock timm keys; LoRA must be merged before.
        path: The file to write, ending in ``.safetensors``; an existing one is replaced.
        metadata: What the weights are: ``base`` (model and weights that were adapted), ``bands``,
            ``mean``, ``std``, ``scale`` (for each band the raw values that become 0 and 1),
            ``size`` (pixels), ``resolution``, ``config``; :func:`read_input` reads them. Strings
            are kept, other values become JSON. ``format``, ``generator``, ``version``, ``grid`` (patches, height and width) and,
            for a group-channel model, ``channel_groups`` and ``in_chans`` are added.

    Returns:
        The path written.

    Raises:
        ConfigError: If the model still has LoRA layers, or the suffix is another one.
        OutputError: If the file cannot be written; nothing is left behind.
    """
    path = Path(path).expanduser()
    if path.suffix != '.safetensors':
        raise ConfigError(f'{path} does not end in .safetensors: choose a name that does.')
    state = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    unmerged = [key for key in state if 'lora_' in key]
    if unmerged:
        raise ConfigError(
            f'The model has LoRA layers ({unmerged[0]} and {len(unmerged) - 1} more): merge them '
            'with merge_lora before it is saved, or save the adapter instead.'
        )
    return write_tensors(path, state, {**_texts(metadata), **_own_texts(model)})


def _texts(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    items = {} if metadata is None else metadata
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in items.items()}


def _own_texts(model: VisionTransformer) -> dict[str, str]:
    own = {'format': 'pt', 'generator': GENERATOR, 'version': torchgeo_explora.__version__}
    return own | own_texts(model)
