"""Starts that are no plain state dict: deltas, fitted models and checkpoints of unfinished runs.

Each becomes a checkpoint of stock keys with low-rank updates merged, or is refused with the reason.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.adapters.config import ExPLoRAConfig
from torchgeo_explora.adapters.merge import merge_lora
from torchgeo_explora.adapters.state import FORMAT as ADAPTER_FORMAT
from torchgeo_explora.adapters.state import load_adapter
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models._checkpoint import Checkpoint
from torchgeo_explora.models._sources import TIMM_SOURCE
from torchgeo_explora.models._stored import own_texts
from torchgeo_explora.models.fitted import backbone_of, is_fitted

TRAINED = 'torchgeo_explora'
"""Key of a training checkpoint under which :func:`describe_training` says what is in it."""
_FUSED = ('q', 'k', 'v')  # parts of attn.qkv, in the order of its rows
Build = Callable[..., VisionTransformer]


def describe_training(
    vit: VisionTransformer,
    root: str,
    config: ExPLoRAConfig,
    facts: Mapping[str, Any],
    blend: float = 1.0,
) -> str:
    """Return what a task stores under :data:`TRAINED` in its checkpoints, as JSON.

    Args:
        vit: The network that the task would publish.
        root: Prefix of its keys in the state dict of the task.
        config: What was adapted.
        facts: More about the network: ``base``, ``bands``, ``mean``, ``std``, ``labels``.
        blend: How far from the start to go when it is published, see ``adapters.blend``; the start
            is then stored under ``explora.start``.
    """
    return json.dumps(
        {
            'root': root,
            'config': json.loads(config.to_json()),
            'blend': blend,
            'facts': {k: v for k, v in facts.items() if v is not None},
            'texts': own_texts(vit),
        }
    )


def as_start(checkpoint: Checkpoint, base_weights: object, build: Build) -> Checkpoint:
    """Turn a fitted model, a delta or a training checkpoint into a backbone's weights.

    Args:
        checkpoint: What was read; other weights are returned as they are.
        base_weights: Weights that a delta belongs to; None for what the delta names.
        build: Makes the model with base weights: ``build(weights, bands)``.

    Raises:
        ConfigError: If ``base_weights`` is given for weights that are no delta.
        WeightsError: If a delta has no base weights, or others, or a file is incomplete.
    """
    if checkpoint.metadata.get('format') == ADAPTER_FORMAT:
        return _from_delta(checkpoint, base_weights, build)
    if base_weights is not None:
        raise ConfigError(
            f'Base weights are given, but {checkpoint.source} is no delta (adapter.safetensors), '
            'which alone needs them: leave base_weights or --base out.'
        )
    if is_fitted(checkpoint):
        return backbone_of(checkpoint)
    return _from_training(checkpoint) if TRAINED in checkpoint.metadata else checkpoint


def _from_delta(checkpoint: Checkpoint, base_weights: object, build: Build) -> Checkpoint:
    base = _named_base(checkpoint) if base_weights is None else base_weights
    first = checkpoint.tensors.get('patch_embed.proj.weight')
    vit = build(base, None if first is None else first.shape[1])
    load_adapter(vit, checkpoint.source)
    merged = merge_lora(vit)
    metadata = {k: v for k, v in checkpoint.metadata.items() if k != 'format'}
    state = {key: tensor.detach() for key, tensor in merged.state_dict().items()}
    return Checkpoint(state, {**metadata, **own_texts(merged)}, checkpoint.source)


def _named_base(checkpoint: Checkpoint) -> bool:
    """True, for timm's own weights, where a delta says that it belongs to those of its model."""
    base, start = (checkpoint.metadata.get(name, '') for name in ('base', 'start'))
    if not base or start != f'{TIMM_SOURCE}{base}':
        named = f'it was trained from {start}' if start else 'it does not say from which'
        raise WeightsError(
            f'{checkpoint.source} holds only what an adaptation changed, and needs the weights '
            f'that it was trained from ({named}): give them as base_weights, or use the merged '
            'file beside it.'
        )
    return True


def _from_training(checkpoint: Checkpoint) -> Checkpoint:
    told = json.loads(checkpoint.metadata[TRAINED])
    config = ExPLoRAConfig.from_json(json.dumps(told['config']))
    root, share = f'state_dict.{told["root"]}', float(told['blend'])
    own = _under(checkpoint.tensors, root)
    if not own:
        raise WeightsError(
            f'{checkpoint.source} says that its network is under {root}, and nothing is there: it '
            'is incomplete; use another checkpoint.'
        )
    for name, start in _under(checkpoint.tensors, 'explora.start.').items():
        own[name] = torch.lerp(start.to(own[name]), own[name], share)
    facts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in told['facts'].items()}
    tensors = merge_factors(own, config.alpha, share)
    return Checkpoint(tensors, {**facts, **told['texts']}, checkpoint.source)


def _under(tensors: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    return {k.removeprefix(root): t for k, t in tensors.items() if k.startswith(root)}


def merge_factors(
    tensors: Mapping[str, Tensor], alpha: float, share: float = 1.0
) -> dict[str, Tensor]:
    """Merge the low-rank factors in a state dict into the weights that they belong to.

    Equal to the state dict of ``merge_lora(blend(model, ...))``, without building a model.

    Args:
        tensors: State dict of an adapted model.
        alpha: Numerator of the scale ``alpha / rank``.
        share: What up-projections are multiplied with.
    """
    merged = {k: t for k, t in tensors.items() if 'lora_' not in k}
    for key in tensors:
        if key.endswith('.lora_A'):
            layer = key.removesuffix('.lora_A')
            weight = merged[f'{layer}.weight'].clone()
            ups = _ups(tensors, layer)
            for (name, up), down in zip(ups.items(), tensors[key].chunk(len(ups)), strict=True):
                rows = _rows(name, weight) if len(up) < len(weight) else slice(None)
                weight[rows].addmm_(up * share, down, alpha=alpha / up.shape[1])
            merged[f'{layer}.weight'] = weight
    return merged


def _ups(tensors: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    """Up-projections of a layer by part, in the order in which the down-projections are stacked."""
    prefix = f'{layer}.lora_B_'
    found = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    order: Sequence[str] = _FUSED if set(found) <= set(_FUSED) else sorted(found)
    return {name: found[name] for name in order if name in found}


def _rows(part: str, weight: Tensor) -> slice:
    width = len(weight) // len(_FUSED)
    index = _FUSED.index(part)
    return slice(index * width, (index + 1) * width)
