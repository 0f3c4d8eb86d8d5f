"""Fold low-rank updates into the weights they belong to.

Merging is an explicit call. The official layer merges itself on ``eval()``, which corrupts a
teacher that is still being averaged.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchgeo_explora.layers.lora import LoRALinear


def merge_lora[M: nn.Module](model: M) -> M:
    """Return a copy of a model with all low-rank updates merged.

    Args:
        model: An adapted model; it is left as it is.

    Returns:
        A plain model with the stock state-dict keys and the same output, every parameter
        trainable.
    """
    merged = copy.deepcopy(model)
    for module in list(merged.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                setattr(module, name, merged_linear(child))
    merged.requires_grad_(True)
    return merged


def merged_linear(layer: LoRALinear) -> nn.Linear:
    """Return a plain linear layer that computes the same as an adapted one."""
    linear = nn.Linear(
        layer.in_features, layer.out_features, bias=layer.bias is not None, device='meta'
    )
    linear.weight = nn.Parameter(layer.merged_weight())
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach().clone())
    return linear.train(layer.training)


def trained_in_full(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what trains besides low-rank factors, by name.

    Taken before training, it is what :func:`blend` goes back towards.
    """
    factors = {id(p) for m in model.modules() if isinstance(m, LoRALinear) for p in m.parameters()}
    return {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in factors
    }


@torch.no_grad()
def blend[M: nn.Module](model: M, start: Mapping[str, Tensor], share: float) -> M:
    """Return a copy of an adapted model that has gone only part of the way.

    Weights are interpolated between the base and the adapted model (Wortsman et al. 2022,
    "Robust fine-tuning of zero-shot models"): exactly so, since a low-rank update is linear in
    its up-projection.

    Args:
        model: An adapted model; it is left as it is.
        start: What :func:`trained_in_full` returned before training.
        share: How far to go, from 0 (the base) to 1 (the adapted model).
    """
    blended = copy.deepcopy(model)
    parameters = dict(blended.named_parameters())
    for name, value in start.items():
        now = parameters[name]
        now.copy_(torch.lerp(value.to(now), now, share))
    for module in blended.modules():
        if isinstance(module, LoRALinear):
            for part in module.segments:
                module.up(part.name).mul_(share)
    return blended
