"""Write low-rank updates as a PEFT adapter that stock PEFT and timm read.

PEFT knows no update of Q and V inside a fused ``qkv``. A rank-r update of n parts is the same
as one rank-nr update of the whole layer whose up-projection is zero outside the parts' blocks,
with ``lora_alpha`` n times as large.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchgeo_explora._files import replacing, write_tensors
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.lora import LoRALinear

PREFIX = 'base_model.model.'
ADAPTER_CONFIG, ADAPTER_WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


def stacked_factors(
    layer: LoRALinear,
) -> tuple[Float[Tensor, 'stacked d_in'], Float[Tensor, 'd_out stacked']]:
    """Return A and B of one low-rank update of the whole layer, B block-structured."""
    a = layer.lora_A.detach().cpu()
    b = torch.zeros(layer.out_features, len(a))
    for index, part in enumerate(layer.segments):
        columns = slice(index * layer.rank, (index + 1) * layer.rank)
        b[part.start : part.stop, columns] = layer.up(part.name).detach().cpu()
    return a, b


def save_peft(
    model: nn.Module,
    folder: str | Path,
    base_model: str = '',
    besides: Collection[str] = (),
) -> list[Path]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    ``peft.PeftModel.from_pretrained(stock_model, folder)`` then gives the same outputs.

    Args:
        model: An adapted model in which nothing but low-rank factors trains.
        folder: Where the two files go.
        base_model: Name of the timm model, for the adapter's configuration.
        besides: Names of parameters that train too and that the caller keeps elsewhere.

    Returns:
        The paths written.

    Raises:
        ConfigError: If other parameters train as well, or nothing is adapted: PEFT files would
            lose them silently.
        OutputError: If a file cannot be written.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    _check_only_lora(model, layers, besides)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        a, b = stacked_factors(layer)
        tensors[f'{PREFIX}{name}.lora_A.weight'] = a.contiguous()
        tensors[f'{PREFIX}{name}.lora_B.weight'] = b.contiguous()
    config = json.dumps(_config(layers, base_model), indent=2)
    folder = Path(folder)
    weights = write_tensors(folder / ADAPTER_WEIGHTS, tensors, {'format': 'pt'})
    with replacing(folder / ADAPTER_CONFIG) as path:
        path.write_text(config)
    return [weights, folder / ADAPTER_CONFIG]


def _check_only_lora(
    model: nn.Module, layers: dict[str, LoRALinear], besides: Collection[str]
) -> None:
    factors = {id(p) for m in layers.values() for p in m.parameters() if p.requires_grad}
    others = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in factors and name not in besides
    ]
    if not layers or others:
        reason = f'it also trains {others[0]}' if others else 'it has no low-rank updates'
        raise ConfigError(
            f'The model does not fit into a PEFT adapter: {reason}, which PEFT would drop. '
            'Export merged weights or adapter.safetensors instead.'
        )


def _config(layers: dict[str, LoRALinear], base_model: str) -> dict[str, object]:
    ranks = {name: len(layer.lora_A) for name, layer in layers.items()}
    # scale = lora_alpha / r must stay alpha / rank for every layer
    alphas = {name: layer.scale * ranks[name] for name, layer in layers.items()}
    first = next(iter(layers))
    return {
        'peft_type': 'LORA',
        'base_model_name_or_path': base_model,
        'inference_mode': True,
        'r': ranks[first],
        'lora_alpha': alphas[first],
        'lora_dropout': 0.0,
        'bias': 'none',
        'fan_in_fan_out': False,
        'target_modules': sorted(layers),
        'rank_pattern': {layer_pattern(name): rank for name, rank in ranks.items()},
        'alpha_pattern': {layer_pattern(name): alpha for name, alpha in alphas.items()},
    }


def layer_pattern(name: str) -> str:
    """Return PEFT's pattern of one layer alone, for its tables of ranks and scales."""
    return f'^{re.escape(name)}$'
