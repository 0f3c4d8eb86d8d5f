"""The DINOv2 objective: what is shared, pruned and chunked changes no number."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.losses import textbook
from tests.objectives.dinov2_cases import (
    Batch,
    assert_near,
    gradients_of,
    losses_of,
    make_batch,
    make_objective,
    update_every_tensor,
    with_own_teacher,
)
from tests.token_vits import make_groups, make_temporal
from tests.vits import make_vit
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora, lora_finetuning
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.heads import DINOHead
from torchgeo_explora.layers.tokens import encode, global_token, patch_tokens
from torchgeo_explora.losses import sinkhorn_knopp
from torchgeo_explora.objectives import DINOv2Config, DINOv2Losses, DINOv2Objective

OBJECTIVES: dict[str, dict[str, Any]] = {
    'explora': {},
    'separate_heads': {'separate_head': True, 'ibot_prototypes': 24},
    'softmax': {'centering': 'softmax'},
    'softmax_separate': {'centering': 'softmax', 'separate_head': True},
    'mask_token': {'train_mask_token': True},
    'weights': {'dino_weight': 0.5, 'ibot_weight': 2.0, 'koleo_weight': 0.3, 'head_layers': 2},
    'registers': {'variant': 'registers', 'vit': {'patch_size': 14, 'img_size': 56}},
    'no_class_token': {'variant': 'no_class_token', 'vit': {'patch_size': 14, 'img_size': 56}},
    'fine_tuning': {'adapter': lora_finetuning(4)},
    'all': {'adapter': ExPLoRAConfig(rank=0, train_all=True)},
}
TERMS = ('total', 'dino_local', 'dino_global', 'ibot', 'koleo')
EACH = pytest.mark.parametrize('options', OBJECTIVES.values(), ids=OBJECTIVES)


def _assert_same_losses(found: DINOv2Losses, expected: DINOv2Losses) -> None:
    for name in TERMS:
        assert_near(getattr(found, name).detach(), getattr(expected, name).detach(), name)


def _assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    total = torch.cat([gradient.flatten() for gradient in expected.values()]).norm().item()
    for name, gradient in expected.items():
        # a key's bias has no influence: its gradient is rounding alone
        assert_near(found[name], gradient, name, 1e-6 * total)


def _head(heads: torch.nn.ModuleDict, objective: DINOv2Objective, loss: str) -> DINOHead:
    head = heads[loss if objective.config.separate_head else 'dino']
    assert isinstance(head, DINOHead)
    return head


def _plain_losses(
    objective: DINOv2Objective, batch: Batch, temperature: float
) -> dict[str, Tensor]:
    """Spec section C.4 written out: every token, every logit, one pair of crops at a time."""
    images, mask, config = len(batch.mask) // 2, batch.mask, objective.config
    student, teacher = objective.student, objective.teacher
    tau, heads = config.student_temperature, objective.student_heads
    with torch.no_grad():
        seen = encode(teacher, batch.global_crops)
        own = objective.teacher_heads
        cls = _center(
            _head(own, objective, 'dino')(global_token(teacher, seen)), temperature, config
        )
        patch = _head(own, objective, 'ibot')(patch_tokens(teacher, seen)[mask])
        cls, patch = cls.unflatten(0, (2, images)), _center(patch, temperature, config)
    tokens = encode(student, batch.global_crops, mask, objective.mask_token)
    features = global_token(student, tokens)
    local = global_token(student, encode(student, batch.local_crops))
    large = _head(heads, objective, 'dino')(features).unflatten(0, (2, images))
    small = _head(heads, objective, 'dino')(local).unflatten(0, (-1, images))
    patches = _head(heads, objective, 'ibot')(patch_tokens(student, tokens)[mask])
    crossed = textbook.dino(large[:1], cls[1:], tau) + textbook.dino(large[1:], cls[:1], tau)
    pairs = 2 + 2 * len(small)
    koleo = textbook.koleo(features[:images]) + textbook.koleo(features[images:])
    return {
        'dino_local': config.dino_weight * textbook.dino(small, cls, tau) / pairs,
        'dino_global': config.dino_weight * crossed / pairs,
        'ibot': config.ibot_weight * textbook.ibot(patches, patch, mask, tau),
        'koleo': config.koleo_weight * koleo,
    }


def _center(logits: Tensor, temperature: float, config: DINOv2Config) -> Tensor:
    if config.centering == 'softmax':  # the centre is zero before the first update
        return torch.softmax(logits / temperature, dim=-1)
    return sinkhorn_knopp(logits, temperature)


@EACH
def test_equals_the_equations(options: dict[str, Any]) -> None:
    """Pruning, chunks, shared heads and summed targets change neither losses nor gradients."""
    objective, _ = make_objective(**options, chunk=7)
    batch = make_batch()
    plain = _plain_losses(objective, batch, 0.06)
    losses = losses_of(objective, batch)
    for name, expected in plain.items():
        assert_near(getattr(losses, name).detach().double(), expected.detach().double(), name)
    total = torch.stack([value.double() for value in plain.values()]).sum()
    assert_near(losses.total.detach().double(), total.detach(), 'total')
    named = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(total, list(named.values()))
    _assert_same_gradients(gradients_of(objective, batch), dict(zip(named, slopes, strict=True)))


@EACH
def test_frozen_teacher_tensors_are_the_students(options: dict[str, Any]) -> None:
    objective, _ = make_objective(**options)
    twin, batch = with_own_teacher(objective), make_batch()
    for step, momentum in enumerate((0.9, 0.0, 0.7)):
        optimizers = [torch.optim.SGD(_trained(each), lr=0.05) for each in (objective, twin)]
        for each, optimizer in zip((objective, twin), optimizers, strict=True):
            losses = losses_of(each, batch, 0.04 + 0.01 * step)
            losses.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            each.update_centers(losses)
        objective.update_teacher(momentum)
        update_every_tensor(twin, momentum)
        teacher = dict(objective.teacher.named_parameters())
        for name, parameter in objective.student.named_parameters():
            shared = teacher[name].data_ptr() == parameter.data_ptr()
            assert shared == (not parameter.requires_grad), name
            if shared:
                assert torch.equal(teacher[name], parameter)
        _assert_same_losses(losses_of(objective, batch), losses_of(twin, batch))
    for own, other in zip(objective.teacher.parameters(), twin.teacher.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def _trained(objective: DINOv2Objective) -> list[torch.nn.Parameter]:
    return [p for p in objective.parameters() if p.requires_grad]


@EACH
def test_sharing_changes_no_number(options: dict[str, Any]) -> None:
    objective, _ = make_objective(**options)
    twin, batch = with_own_teacher(objective), make_batch()
    shared = {p.data_ptr() for p in objective.teacher.parameters()}
    assert not shared & {p.data_ptr() for p in twin.teacher.parameters()}
    found, expected = losses_of(objective, batch), losses_of(twin, batch)
    for name in TERMS:
        assert torch.equal(getattr(found, name), getattr(expected, name))
    twin_gradients = gradients_of(twin, batch)
    for name, gradient in gradients_of(objective, batch).items():
        assert torch.equal(gradient, twin_gradients[name])


@pytest.mark.parametrize('chunk', [1, 7, 10**6])
@pytest.mark.parametrize('key', ['explora', 'separate_heads', 'softmax'])
def test_chunks_change_no_number(key: str, chunk: int) -> None:
    batch = make_batch()
    objective, _ = make_objective(**OBJECTIVES[key])
    other, _ = make_objective(**OBJECTIVES[key], chunk=chunk)
    _assert_same_losses(losses_of(other, batch), losses_of(objective, batch))
    _assert_same_gradients(gradients_of(other, batch), gradients_of(objective, batch))


def test_sharing_survives_copies_devices_and_state_dicts() -> None:
    objective, _ = make_objective()
    for moved in (
        copy.deepcopy(objective),
        copy.deepcopy(objective).double(),
        _reloaded(objective),
    ):
        frozen = [n for n, p in moved.student.named_parameters() if not p.requires_grad]
        assert len(frozen) > 10
        for name in frozen:
            student, teacher = (vit.get_parameter(name) for vit in (moved.student, moved.teacher))
            assert student.data_ptr() == teacher.data_ptr()


def _reloaded(objective: DINOv2Objective) -> DINOv2Objective:
    other, _ = make_objective(vit={'seed': 4})
    other.load_state_dict(objective.state_dict())
    for own, value in zip(other.parameters(), objective.parameters(), strict=True):
        assert torch.equal(own, value)
    return other


@pytest.mark.parametrize('key', ['explora', 'softmax_separate'])
def test_forward_changes_nothing(key: str) -> None:
    objective, _ = make_objective(**OBJECTIVES[key])
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    state = torch.get_rng_state()
    losses_of(objective, make_batch())
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_centres_follow_the_teacher() -> None:
    objective, _ = make_objective(centering='softmax', center_momentum=0.8)
    batch = make_batch()
    losses = losses_of(objective, batch)
    with torch.no_grad():
        tokens = encode(objective.teacher, batch.global_crops)
        head = _head(objective.teacher_heads, objective, 'dino')
        for name, rows in (
            ('cls', global_token(objective.teacher, tokens)),
            ('patch', patch_tokens(objective.teacher, tokens)[batch.mask]),
        ):
            mean = head(rows).mean(dim=0, keepdim=True)
            torch.testing.assert_close(getattr(losses, f'{name}_mean'), mean)
            centre = objective.centers[name].get_buffer('center')
            assert not centre.any()
            objective.update_centers(losses)
            torch.testing.assert_close(centre, 0.2 * mean)
            objective.centers[name].get_buffer('center').zero_()
            for other in objective.centers.values():
                other.get_buffer('center').zero_()


@pytest.mark.parametrize('key', ['explora', 'softmax', 'separate_heads', 'mask_token'])
def test_no_patch_masked(key: str) -> None:
    """Nothing to predict: no loss, finite gradients everywhere, and a centre that stays."""
    objective, _ = make_objective(**OBJECTIVES[key])
    batch = make_batch(masked=False)
    losses = losses_of(objective, batch)
    assert losses.ibot == 0
    assert all(gradient.isfinite().all() for gradient in gradients_of(objective, batch).values())
    for centre in objective.centers.values():
        centre.get_buffer('center').fill_(1.0)
    objective.update_centers(losses)
    if 'patch' in objective.centers:
        assert objective.centers['patch'].get_buffer('center').eq(1).all()
        assert not objective.centers['cls'].get_buffer('center').eq(1).all()


def test_teacher_has_no_gradient_and_no_stochastic_depth() -> None:
    objective, _ = make_objective(vit={'drop_path_rate': 0.9})
    assert objective.training and objective.student.training
    assert not any(module.training for module in objective.teacher.modules())
    assert not any(module.training for module in objective.teacher_heads.modules())
    batch = make_batch()
    first, second = losses_of(objective, batch), losses_of(objective, batch)
    assert first.total != second.total  # the student drops, with another draw each time
    assert torch.equal(first.usage, second.usage)
    first.total.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())


def test_teacher_sees_unmasked_crops() -> None:
    objective, _ = make_objective()
    batch = make_batch()
    plain = Batch(batch.global_crops, batch.local_crops, torch.zeros_like(batch.mask))
    found, expected = losses_of(objective, batch).cls_mean, losses_of(objective, plain).cls_mean
    torch.testing.assert_close(found, expected)


def _fresh(prototypes: int, **config: Any) -> DINOv2Objective:  # noqa: ANN401
    """An untouched objective: student and teacher equal, heads at their initial values."""
    student = make_vit('patch14_layerscale')
    apply_explora(student, ExPLoRAConfig(rank=4))
    settings = DINOv2Config(prototypes=prototypes, **config)
    return DINOv2Objective(student, settings, None, torch.Generator().manual_seed(0))


def test_losses_at_the_start() -> None:
    """Spec section C.4: 9.86, 1.232 and 2.77 with 65,536 prototypes and 8 local crops."""
    objective = _fresh(65_536, hidden_dim=64)  # logits of 256 random signs spread by 1/16
    batch = make_batch(images=2, n_local=8)
    shown = losses_of(objective, batch, 0.04).displayed()
    uniform = math.log(65_536)
    assert uniform * 16 / 18 == pytest.approx(9.86, abs=0.01)
    assert shown['dino_local'].item() == pytest.approx(9.86, rel=0.03)
    assert shown['dino_global'].item() == pytest.approx(1.232, rel=0.03)
    assert shown['ibot'].item() == pytest.approx(2.77, rel=0.03)  # half the crops are masked


@pytest.mark.parametrize(('prototypes', 'n_local'), [(512, 2), (4096, 6)])
def test_losses_at_the_start_of_other_sizes(prototypes: int, n_local: int) -> None:
    objective = _fresh(prototypes, hidden_dim=32)
    shown = losses_of(objective, make_batch(4, n_local), 0.07).displayed()
    uniform, pairs = math.log(prototypes), 2 + 2 * n_local
    assert shown['dino_local'].item() == pytest.approx(2 * n_local / pairs * uniform, rel=0.06)
    assert shown['dino_global'].item() == pytest.approx(2 / pairs * uniform, rel=0.06)
    assert shown['ibot'].item() == pytest.approx(uniform / 4, rel=0.06)


def test_heads_are_seeded_and_teacher_starts_equal() -> None:
    first, second = _fresh(64), _fresh(64)
    for own, other in zip(
        first.student_heads.parameters(), second.student_heads.parameters(), strict=True
    ):
        assert torch.equal(own, other)
    for student, teacher in (
        (first.student, first.teacher),
        (first.student_heads, first.teacher_heads),
    ):
        for own, other in zip(student.parameters(), teacher.parameters(), strict=True):
            assert torch.equal(own, other)


def test_usage() -> None:
    """1 where prototypes are used alike, 0 where one takes everything."""
    objective = _fresh(64, hidden_dim=16, bottleneck_dim=8)
    batch = make_batch()
    assert losses_of(objective, batch, 10.0).usage.item() == pytest.approx(1.0, abs=1e-3)
    with torch.no_grad():
        head = _head(objective.teacher_heads, objective, 'dino')
        cls = global_token(objective.teacher, encode(objective.teacher, batch.global_crops))
        head.last_layer.get_parameter('weight_v')[0] = head.bottleneck(cls).mean(dim=0)
        head.last_layer.get_parameter('weight_g')[0] = 100.0
    assert losses_of(objective, batch, 0.04).usage < 0.1


def test_bfloat16_autocast_is_near() -> None:
    objective, _ = make_objective()
    batch = make_batch()
    exact = losses_of(objective, batch)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = losses_of(objective, batch)
    for name in TERMS:
        found, expected = getattr(half, name), getattr(exact, name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)
    half.total.backward()
    gradients = [p.grad for p in _trained(objective)]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize('separate', [False, True])
def test_submodules_are_what_trains_once(separate: bool) -> None:
    objective, report = make_objective(separate_head=separate, train_mask_token=True)
    parts = dict(objective.submodules())
    assert list(parts) == ['backbone', 'dino', *(['ibot'] if separate else [])]
    found = [id(p) for part in parts.values() for p in part]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in _trained(objective)}
    assert sum(p.numel() for p in parts['backbone']) == report.trainable_parameters + 24


@pytest.mark.parametrize(
    'arguments',
    [{'prototypes': 1}, {'student_temperature': 0.0}, {'chunk': 0}],
)
def test_impossible_numbers(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        DINOv2Config(**arguments)


def test_unknown_centering() -> None:
    config = DINOv2Config()
    object.__setattr__(config, 'centering', 'mean')  # tests check the annotations before
    with pytest.raises(ConfigError, match="centering is 'mean': use sinkhorn_knopp"):
        config.__post_init__()


def test_mask_token_defaults_to_zeros() -> None:
    objective = _fresh(64)
    assert objective.mask_token.shape == (1, 24)
    assert not objective.mask_token.any() and not objective.mask_token.requires_grad
    assert isinstance(objective.teacher, VisionTransformer)


@pytest.mark.parametrize('make', [make_groups, make_temporal])
def test_several_tokens_a_patch_are_refused(make: Callable[..., VisionTransformer]) -> None:
    with pytest.raises(ConfigError, match='use masked autoencoding'):
        DINOv2Objective(make(), DINOv2Config())
