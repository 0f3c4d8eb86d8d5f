"""The averaged teacher, by hand."""

import copy

import pytest
import torch
from torch import nn

from tests.objectives.dinov2_cases import make_objective
from tests.vits import make_vit, shake_factors
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora
from torchgeo_explora.layers.lora import LoRALinear
from torchgeo_explora.objectives import averaged_pairs, ema_update, shared_copy


def test_low_rank_factors_are_averaged_separately() -> None:
    """The teacher's update is EMA(B) EMA(A), not EMA(B A) (spec section B.1)."""
    objective, _ = make_objective()
    student = objective.student.get_submodule('blocks.0.attn.qkv')
    teacher = objective.teacher.get_submodule('blocks.0.attn.qkv')
    assert isinstance(student, LoRALinear) and isinstance(teacher, LoRALinear)
    a, b = teacher.lora_A.double(), teacher.up('q').double()
    for momentum in (0.9, 0.5, 0.996):
        shake_factors(objective.student, seed=round(1000 * momentum))
        a = momentum * a + (1 - momentum) * student.lora_A.double()
        b = momentum * b + (1 - momentum) * student.up('q').double()
        objective.update_teacher(momentum)
        torch.testing.assert_close(teacher.lora_A.double(), a, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(teacher.up('q').double(), b, rtol=1e-5, atol=1e-6)
    update = teacher.merged_weight()[:24] - teacher.weight[:24]
    expected = teacher.scale * b @ a[: teacher.rank]
    torch.testing.assert_close(update.double(), expected, rtol=1e-4, atol=1e-5)


def test_heads_are_averaged() -> None:
    objective, _ = make_objective()
    old = copy.deepcopy(objective.teacher_heads)
    objective.update_teacher(0.75)
    for before, teacher, student in zip(
        old.parameters(),
        objective.teacher_heads.parameters(),
        objective.student_heads.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(teacher, 0.75 * before + 0.25 * student)


@pytest.mark.parametrize(('momentum', 'equals_student'), [(0.0, True), (1.0, False)])
def test_ends_of_the_range(momentum: float, equals_student: bool) -> None:
    objective, _ = make_objective()
    before = [p.clone() for p in objective.teacher.parameters()]
    objective.update_teacher(momentum)
    expected = list(objective.student.parameters()) if equals_student else before
    for teacher, value in zip(objective.teacher.parameters(), expected, strict=True):
        assert torch.equal(teacher, value)


def test_pairs_are_all_that_trains() -> None:
    vit = make_vit()
    apply_explora(vit, ExPLoRAConfig(rank=4))
    teacher = shared_copy(vit)
    pairs = averaged_pairs(vit, teacher)
    trained = [p for p in vit.parameters() if p.requires_grad]
    assert [source.data_ptr() for _, source in pairs] == [p.data_ptr() for p in trained]
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in trained)


def test_nothing_to_average() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    assert averaged_pairs(frozen, shared_copy(frozen)) == []
    ema_update([], 0.5)
