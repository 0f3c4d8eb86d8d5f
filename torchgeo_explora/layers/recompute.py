"""Recompute the activations of somebody else's modules in the backward pass, part by part."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the base of all kinds
from torch.utils.checkpoint import checkpoint


def called_children(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children of a module that it calls: those in its lists and dictionaries too.

    Args:
        module: Any module; lists and dictionaries of modules are never called themselves.
    """
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from called_children(child)
        else:
            yield child


@contextmanager
def recomputing(*modules: nn.Module) -> Iterator[None]:
    """Within the context, keep only the inputs of the children of some modules.

    What the children compute is computed again in the backward pass (Chen et al. 2016, "Training
    deep nets with sublinear memory cost"), with the same random numbers. Outputs, gradients and the
    running statistics of batch norms are those of a plain call. Dropouts and activations that work in
    place are called as they are; other children must not change their inputs. Without gradients
    nothing is different.

    Args:
        *modules: To be called in the context; their children take and return tensors.
    """
    if not torch.is_grad_enabled():
        yield
        return
    children = [
        child
        for module in modules
        for child in called_children(module)
        if not getattr(child, 'inplace', False)  # a dropout or activation of this kind keeps little
    ]
    for child in children:
        child.forward = partial(_recomputed, child, child.forward)
    try:
        yield
    finally:
        for child in children:
            del child.forward  # the one of its class shows again


def _recomputed(
    module: nn.Module, forward: Callable[..., Tensor], *args: object, **kwargs: object
) -> Tensor:
    """Call a module, or a sequence of modules part by part, and keep the inputs alone."""
    parts = _parts(module)
    if len(parts) == 1:
        return _recompute(module, forward, *args, **kwargs)
    (x,) = args
    for part in parts:
        x = _recompute(part, part, x)
    assert isinstance(x, Tensor), 'a sequence has parts'
    return x


def _parts(module: nn.Module) -> list[nn.Module]:
    """Split a sequence before its dropouts, whose masks and outputs are as large as their inputs."""
    if type(module) is not nn.Sequential:
        return [module]
    parts: list[list[nn.Module]] = [[]]
    for step in module:
        if isinstance(step, nn.Dropout) and parts[-1]:
            parts.append([])
        parts[-1].append(step)
    return [nn.Sequential(*part) for part in parts]


def _recompute(
    module: nn.Module,
    forward: Callable[..., Tensor],
    *args: object,
    **kwargs: Any,  # noqa: ANN401  # the module's own
) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _spare_statistics(module)

    out: Tensor = checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)
    return out


@contextmanager
def _spare_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms update copies of their running statistics, which were updated before."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
