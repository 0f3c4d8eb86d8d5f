"""Fold low-rank updates into the weights they belong to.

Merging is an explicit call. The official layer merges itself on ``eval()``, which corrupts a
teacher that is still being averaged (spec section B.1).
"""

import copy

from torch import nn

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
