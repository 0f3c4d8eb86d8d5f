"""AdamW for the objective: who decays, which learning-rate curve each part follows, clipping."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from torchgeo_explora.adapters.surgery import NORMS
from torchgeo_explora.layers.heads import DINOHead
from torchgeo_explora.objectives.dinov2 import DINOv2Objective
from torchgeo_explora.objectives.presets import OptimizationConfig, Schedules

Part = Literal['backbone', 'unfrozen', 'head', 'prototypes']
PARTS: tuple[Part, ...] = ('backbone', 'unfrozen', 'head', 'prototypes')


def parameter_groups(
    objective: DINOv2Objective, unfrozen: Iterable[str]
) -> list[dict[str, object]]:
    """Group what trains by part and by whether it decays.

    Args:
        objective: Student and heads.
        unfrozen: Names of the student's blocks that train in full.

    Returns:
        Groups with ``params``, ``part`` (the learning-rate curve) and ``decay``; no decay for
        biases, norms, scales and tokens. Empty groups are left out.
    """
    groups: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for part, decay, parameter in _assign(objective, tuple(f'{name}.' for name in unfrozen)):
        groups.setdefault((part, decay), []).append(parameter)
    return [
        {'params': groups[key], 'part': key[0], 'decay': key[1]}
        for key in ((part, decay) for part in PARTS for decay in (True, False))
        if key in groups
    ]


def _assign(
    objective: DINOv2Objective, unfrozen: tuple[str, ...]
) -> Iterator[tuple[Part, bool, nn.Parameter]]:
    norms = {
        id(p) for m in objective.student.modules() if isinstance(m, NORMS) for p in m.parameters()
    }
    tokens = {id(token) for token in (objective.student.cls_token, objective.student.reg_token)}
    for name, parameter in objective.student.named_parameters():
        if parameter.requires_grad:
            part: Part = 'unfrozen' if name.startswith(unfrozen) and unfrozen else 'backbone'
            # matrices decay; biases, norms, LayerScale and tokens do not
            yield part, id(parameter) not in norms | tokens and is_matrix(parameter), parameter
    if objective.mask_token.requires_grad:
        yield 'backbone', False, objective.mask_token
    for head in objective.student_heads.values():
        assert isinstance(head, DINOHead)
        last = {id(p) for p in head.last_layer.parameters()}
        for parameter in head.parameters():
            yield (
                'prototypes' if id(parameter) in last else 'head',
                is_matrix(parameter),
                parameter,
            )


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has at least two dimensions that are not 1, and so may decay."""
    return sum(size > 1 for size in parameter.shape) >= 2


def make_optimizer(
    objective: DINOv2Objective, unfrozen: Sequence[str], config: OptimizationConfig
) -> torch.optim.AdamW:
    """Return AdamW over what trains; rates are set before every step by :func:`set_rates`."""
    return adamw(parameter_groups(objective, unfrozen), config.betas)


def adamw(groups: list[dict[str, object]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return AdamW with rates of 0, the fast form of it on the groups' device.

    Args:
        groups: Groups of parameters with anything that the caller wants to find in them again.
        betas: Of AdamW.
    """
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas)
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    if all(p.device.type == 'cpu' for p in parameters):
        # on a CPU torch's default passes over memory ten times; on a GPU its default is fast
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
    # a fused step may take float16's loss scale out itself: too late for clipping before it
    optimizer._step_supports_amp_scaling = False
    return optimizer


def set_rates(
    optimizer: Optimizer, schedules: Schedules, config: OptimizationConfig, step: int
) -> None:
    """Set learning rate and weight decay of every group for micro-batch ``step``."""
    rates = {
        'backbone': schedules.backbone_lr(step),
        'unfrozen': schedules.backbone_lr(step) * config.unfrozen_lr_scale,
        'head': schedules.head_lr(step),
        'prototypes': schedules.prototype_lr(step),
    }
    for group in optimizer.param_groups:
        group['lr'] = rates[group['part']]
        group['weight_decay'] = schedules.weight_decay(step) if group['decay'] else 0.0


def clip_gradients(objective: DINOv2Objective, limit: float) -> None:
    """Clip the gradient norm of the backbone and of each head; a limit of 0 clips nothing."""
    if limit > 0:
        for _, parameters in objective.submodules():
            torch.nn.utils.clip_grad_norm_(parameters, limit)
