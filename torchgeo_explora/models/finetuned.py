"""A fine-tuned classifier of a few MB: low-rank updates as PEFT files, and the head beside them.

Stock PEFT and timm read the folder, see docs/finetune.md; :func:`load_finetuned` does it without
PEFT, checks the base weights, and merges.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora._files import write_tensors
from torchgeo_explora.adapters.peft import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PREFIX,
    layer_pattern,
    save_peft,
)
from torchgeo_explora.adapters.state import base_fingerprint
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.layers.lora import LoRALinear
from torchgeo_explora.models._checkpoint import Checkpoint, read_checkpoint
from torchgeo_explora.models._loading import create_backbone
from torchgeo_explora.models._stored import own_texts, stored_grid, stored_groups
from torchgeo_explora.models.classifier import Classifier, build_classifier
from torchgeo_explora.models.fitted import FittedModel
from torchgeo_explora.models.spec import ModelSpec

HEAD = 'head.safetensors'
FORMAT = 'torchgeo-explora-head'
_BACKBONE = 'backbone.'


def save_finetuned(
    model: Classifier, spec: ModelSpec, folder: str | Path, start: str = ''
) -> list[Path]:
    """Write what fine-tuning changed: ``adapter_config.json``, ``adapter_model.safetensors``, head.

    ``head.safetensors`` holds what PEFT files cannot: the classifier, the norm before it, whatever
    else trained, and the position embeddings at the size that was trained on, all under the names
    that timm gives them.

    Args:
        model: A classifier whose backbone has low-rank updates; it is left as it is.
        spec: Describes it.
        folder: Where the three files go.
        start: What the backbone started from, for people.

    Returns:
        The paths written.

    Raises:
        ConfigError: If the backbone has no low-rank updates.
        OutputError: If a file cannot be written.
    """
    folder, vit = Path(folder), model.backbone
    others = _trained_besides(vit)
    paths = save_peft(vit, folder, spec.model, besides=others)
    state = vit.state_dict()
    kept = [*others, *([] if vit.pos_embed is None else ['pos_embed'])]
    tensors = {name: state[name] for name in kept}
    tensors |= {k: t for k, t in model.state_dict().items() if not k.startswith(_BACKBONE)}
    texts = {
        'format': FORMAT,
        'spec': spec.to_json(),
        'start': start,
        'others': json.dumps(others),
        'base_hash': base_fingerprint(vit, _trained(vit)),
        **own_texts(vit),
    }
    whole = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
    return [*paths, write_tensors(folder / HEAD, whole, texts)]


def load_finetuned(
    folder: str | Path,
    base_weights: str | Path | WeightsEnum | bool = True,
    classes: Sequence[str] | None = None,
) -> tuple[nn.Module, ModelSpec]:
    """Read what :func:`save_finetuned` wrote, onto the weights that it was trained from.

    Args:
        folder: The folder.
        base_weights: What the fine-tuning started from, named as for ``create_backbone``; True for
            timm's own weights.
        classes: Names that the head must have; any when not given.

    Returns:
        The merged model in evaluation mode, which takes images in [0, 1] and gives logits, and its
        description.

    Raises:
        ConfigError: If the head is of other classes.
        WeightsError: If a file cannot be read, or the base weights are others.
    """
    folder = Path(folder)
    head = read_checkpoint(folder / HEAD)
    spec = _spec_of(head)
    if classes is not None and tuple(classes) != spec.classes:
        raise ConfigError(
            f'The head in {folder} is of {len(spec.classes)} classes ({", ".join(spec.classes)}), '
            f'{len(classes)} are asked for ({", ".join(classes)}): train a head for these.'
        )
    vit = _base(spec, head, base_weights)
    factors = _factors(folder)
    others = json.loads(head.metadata['others'])
    if base_fingerprint(vit, {*others}) != head.metadata['base_hash']:
        raise WeightsError(
            f'{folder} was trained from other weights ({head.metadata["start"]}) than it is put on '
            f'(fingerprints differ): give those as base_weights.'
        )
    _merge(vit, factors, folder)
    model = build_classifier(vit, len(spec.classes), spec.options.get('pooling', 'avg'))
    _fill(model, head)
    return FittedModel(model, spec.mean, spec.std).eval(), spec


def _trained(vit: VisionTransformer) -> set[str]:
    return {name for name, parameter in vit.named_parameters() if parameter.requires_grad}


def _trained_besides(vit: VisionTransformer) -> list[str]:
    """Names of what trains in a backbone besides low-rank factors."""
    factors = {
        f'{name}.{inner}'
        for name, module in vit.named_modules()
        if isinstance(module, LoRALinear)
        for inner, _ in module.named_parameters()
    }
    return sorted(_trained(vit) - factors)


def _spec_of(head: Checkpoint) -> ModelSpec:
    if head.metadata.get('format') != FORMAT:
        raise WeightsError(
            f'{head.source} is no head that fine-tuning wrote: give the folder with '
            f'{ADAPTER_CONFIG}, {ADAPTER_WEIGHTS} and {HEAD}.'
        )
    spec = ModelSpec.from_json(head.metadata['spec'])
    rows = len(head.tensors.get('head.weight', ()))
    if rows != len(spec.classes):
        raise WeightsError(
            f'{head.source} holds a head of {rows} outputs and names {len(spec.classes)} classes: '
            'it belongs to another model; copy the folder again.'
        )
    return spec


def _base(
    spec: ModelSpec, head: Checkpoint, weights: str | Path | WeightsEnum | bool
) -> VisionTransformer:
    """Build the backbone with its base weights, at the size that was trained on."""
    groups, grid = stored_groups(head), stored_grid(head)
    arguments: dict[str, Any] = {} if groups is None else {'channel_groups': groups}
    vit, _ = create_backbone(spec.model, weights, in_chans=len(spec.bands), **arguments)
    if grid is not None:
        height, width = vit.patch_embed.patch_size
        vit.set_input_size((grid.height * height, grid.width * width))
    return vit


def _factors(folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Read down- and up-projections, and their scale, by layer."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(
            f'{folder / ADAPTER_CONFIG} cannot be read ({error}): copy the folder again.'
        ) from error
    tensors = read_checkpoint(folder / ADAPTER_WEIGHTS).tensors
    names = [str(name) for name in config['target_modules']]
    alphas = {name: float(config['alpha_pattern'][layer_pattern(name)]) for name in names}
    found = {}
    for name in names:
        a, b = (tensors[f'{PREFIX}{name}.lora_{part}.weight'] for part in 'AB')
        found[name] = (a, b, alphas[name] / len(a))
    return found


def _merge(
    vit: VisionTransformer, factors: Mapping[str, tuple[Tensor, Tensor, float]], folder: Path
) -> None:
    weights = {name: vit.get_parameter(f'{name}.weight') for name in factors}
    with torch.no_grad():
        for name, (a, b, scale) in factors.items():
            if weights[name].shape != (len(b), a.shape[1]):
                raise WeightsError(
                    f'{folder} does not fit the model: {name} is of another size; it belongs to '
                    'another model.'
                )
            weights[name].addmm_(b.to(weights[name]), a.to(weights[name]), alpha=scale)


def _fill(model: Classifier, head: Checkpoint) -> None:
    """Copy everything that PEFT files do not hold."""
    own = dict(model.state_dict())
    with torch.no_grad():
        for name, tensor in head.tensors.items():
            target = own.get(name, own.get(f'{_BACKBONE}{name}'))
            if target is None or target.shape != tensor.shape:
                raise WeightsError(
                    f'{head.source} does not fit the model: {name} is missing there or of another '
                    'shape; it belongs to another model.'
                )
            target.copy_(tensor)
