"""Who trains at which rate, and who decays."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.objectives.dinov2_cases import losses_of, make_batch, make_objective
from torchgeo_explora.adapters import ExPLoRAConfig
from torchgeo_explora.objectives import OptimizationConfig, make_schedules
from torchgeo_explora.objectives.param_groups import parameter_groups
from torchgeo_explora.objectives.steps import clip_gradients, make_optimizer, set_rates

CASES: dict[str, dict[str, Any]] = {
    'explora': {},
    'first_and_last': {'adapter': ExPLoRAConfig(rank=4, unfreeze_blocks=(0, -1))},
    'separate': {'separate_head': True, 'train_mask_token': True},
    'swiglu': {'variant': 'swiglu', 'vit': {'patch_size': 14, 'img_size': 56}},
    'registers': {'variant': 'registers', 'vit': {'patch_size': 14, 'img_size': 56}},
    'all': {'adapter': ExPLoRAConfig(rank=0, train_all=True)},
    'rank_1': {'adapter': ExPLoRAConfig(rank=1, unfreeze_blocks=())},
}
EACH = pytest.mark.parametrize('options', CASES.values(), ids=CASES)


@EACH
def test_everything_that_trains_once(options: dict[str, Any]) -> None:
    objective, report = make_objective(**options)
    groups: list[Any] = parameter_groups(objective, report.unfrozen)
    found = [id(p) for group in groups for p in group['params']]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in objective.parameters() if p.requires_grad}
    keys = [(group['part'], group['decay']) for group in groups]
    assert len(keys) == len(set(keys))


@EACH
def test_parts_and_decay_by_name(options: dict[str, Any]) -> None:
    """Spec section C.2: no decay for biases, norms and gammas; the last layer has its own rate."""
    objective, report = make_objective(**options)
    names = {id(p): n for n, p in objective.named_parameters()}
    groups: list[Any] = parameter_groups(objective, report.unfrozen)
    for group in groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            if 'last_layer' in name:
                part = 'prototypes'
            elif name.startswith('student_heads.'):
                part = 'head'
            elif any(name.startswith(f'student.{block}.') for block in report.unfrozen):
                part = 'unfrozen'
            else:
                part = 'backbone'
            assert group['part'] == part, name
            free = name.endswith(('bias', 'gamma', 'token', 'weight_g')) or 'norm' in name
            if 'lora' not in name and 'pos_embed' not in name:
                assert group['decay'] == (not free), name
    assert next(g for g in groups if g['part'] == 'prototypes')['params'] != []


def test_rates_are_set_and_state_is_kept_for_what_trains_only() -> None:
    objective, report = make_objective()
    config = OptimizationConfig(
        unfrozen_lr_scale=0.5, head_lr_scale=2.0, weight_decay=0.1, weight_decay_end=0.3,
        freeze_last_layer=0.5, warmup=0.0,
    )  # fmt: skip
    curves = make_schedules(config, 10, 1024)
    optimizer = make_optimizer(objective, report.unfrozen, config)
    set_rates(optimizer, curves, config, 3)
    rates = {group['part']: group['lr'] for group in optimizer.param_groups}
    backbone = curves.backbone_lr(3)
    assert rates == {
        'backbone': backbone, 'unfrozen': backbone / 2, 'head': curves.head_lr(3), 'prototypes': 0.0,
    }  # fmt: skip
    assert curves.head_lr(3) == pytest.approx(2 * backbone, rel=1e-3)
    for group in optimizer.param_groups:
        assert group['weight_decay'] == (curves.weight_decay(3) if group['decay'] else 0.0)
    before = {n: p.detach().clone() for n, p in objective.named_parameters()}
    losses_of(objective, make_batch()).total.backward()
    optimizer.step()
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert set(optimizer.state) == set(trained)
    stored = sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.ndim > 0)
    assert stored == 2 * sum(p.numel() for p in trained)
    for name, parameter in objective.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (parameter.requires_grad and 'last_layer' not in name), name


def test_clipping_by_submodule() -> None:
    objective, _ = make_objective(separate_head=True)
    losses_of(objective, make_batch()).total.backward()
    parts = dict(objective.submodules())
    norms = {name: _norm(part) for name, part in parts.items()}
    limit = sorted(norms.values())[1] * 0.99  # between the least and the others
    clip_gradients(objective, limit)
    for name, part in parts.items():
        assert _norm(part) == pytest.approx(min(norms[name], limit), rel=1e-4), name
    kept = {name: _norm(part) for name, part in parts.items()}
    clip_gradients(objective, 0.0)
    assert {name: _norm(part) for name, part in parts.items()} == kept


def _norm(parameters: list[nn.Parameter]) -> float:
    gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
    return float(torch.cat(gradients).norm())
