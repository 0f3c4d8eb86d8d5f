"""Losses and head against values that the official DINOv2 printed."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.losses import textbook
from torchgeo_explora.layers.heads import DINOHead
from torchgeo_explora.losses import (
    SoftmaxCentering,
    dino_loss,
    ibot_patch_loss,
    koleo_loss,
    mask_weights,
    prototype_cross_entropy,
    sinkhorn_knopp,
)


class Reference(NamedTuple):
    """One file: its numbers and its configuration."""

    values: dict[str, Tensor]
    config: dict[str, float]


@pytest.fixture(scope='module')
def references(reference_dir: Path) -> list[Reference]:
    """Every file of this form in the folder of references."""
    found = []
    for path in sorted(reference_dir.glob('dinov2_losses*.npz')):
        with np.load(path) as file:
            values = {name: torch.from_numpy(file[name]) for name in file.files if name != 'config'}
            found.append(Reference(values, json.loads(str(file['config']))))
    if not found:
        pytest.skip(f'{reference_dir} has no dinov2_losses*.npz')
    return found


def _assert_close(found: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Compare to the relative tolerance; below the smallest normal number there is none."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=torch.finfo(torch.float32).tiny)


def _centred(reference: Reference) -> tuple[list[Tensor], Tensor]:
    """Three softmaxes about a centre that moves after each, and the centre at the end.

    The official run adds 0, 1 and 2 to the teacher's logits: its softmaxes, which do not
    feel a constant, are those of the same logits, and its centre is not.
    """
    values, config = reference
    centering = SoftmaxCentering(int(config['K']), config['center_momentum'])
    probs = []
    for step in range(3):
        logits = values['teacher'] + step
        probs.append(centering(logits, config['teacher_temp_center']))
        centering.update(logits)
    return probs, centering.center


def test_sinkhorn_knopp(references: list[Reference]) -> None:
    for values, config in references:
        temperature = config['teacher_temp_sinkhorn']
        _assert_close(sinkhorn_knopp(values['teacher'], temperature), values['sinkhorn'])
        _assert_close(sinkhorn_knopp(values['ibot_teacher'], temperature), values['ibot_sinkhorn'])


def test_softmax_centering(references: list[Reference]) -> None:
    for reference in references:
        probs, center = _centred(reference)
        for step, found in enumerate(probs):
            _assert_close(found, reference.values[f'softmax_center_{step}'])
        _assert_close(center, reference.values['center_after_3'])


def test_dino_loss(references: list[Reference]) -> None:
    for reference in references:
        values, config = reference
        crops = (-1, values['student'].shape[1])
        sinkhorn = sinkhorn_knopp(values['teacher'], config['teacher_temp_sinkhorn'])
        centred = _centred(reference)[0][-1]
        for probs, name in [(sinkhorn, 'sinkhorn'), (centred, 'center')]:
            teacher = probs.unflatten(0, crops)
            student = values['student'].clone().requires_grad_()
            loss = dino_loss(student, teacher, config['student_temp'])
            _assert_close(loss.detach(), values[f'dino_loss_{name}'])
            slow = values['student'].double().requires_grad_()
            expected = textbook.dino(slow, teacher, config['student_temp'])
            _assert_same_slope(loss, student, expected, slow)


def test_ibot_loss(references: list[Reference]) -> None:
    for values, config in references:
        teacher = sinkhorn_knopp(values['ibot_teacher'], config['teacher_temp_sinkhorn'])
        mask, temperature = values['ibot_mask'], config['student_temp']
        student = values['ibot_student'].clone().requires_grad_()
        loss = ibot_patch_loss(student, teacher, mask_weights(mask), len(mask), temperature)
        _assert_close(loss.detach(), values['ibot_loss'])
        slow = values['ibot_student'].double().requires_grad_()
        _assert_same_slope(loss, student, textbook.ibot(slow, teacher, mask, temperature), slow)


def test_koleo_loss(references: list[Reference]) -> None:
    for values, _ in references:
        x = values['koleo_input'].clone().requires_grad_()
        loss = koleo_loss(x)
        _assert_close(loss.detach(), values['koleo_loss'])
        slow = values['koleo_input'].double().requires_grad_()
        _assert_same_slope(loss, x, textbook.koleo(slow), slow)


def test_head(references: list[Reference]) -> None:
    for values, _ in references:
        head = _head(values)
        _assert_close(head(values['head_input']), values['head_output'])


def test_fused_loss_of_the_official_head(references: list[Reference]) -> None:
    """The fused loss of the official outputs, with gradients of every parameter of the head."""
    for values, config in references:
        head, temperature = _head(values), config['student_temp']
        x = values['head_input']
        teacher = values['sinkhorn'][torch.arange(len(x)) % len(values['sinkhorn'])]
        weights = torch.full((len(x),), 1 / len(x))
        fused, _ = prototype_cross_entropy(
            head.bottleneck(x),
            head.prototypes(),
            teacher,
            torch.arange(len(x)),
            weights,
            temperature,
        )
        plain = textbook.dino(head(x)[None], teacher[None], temperature).float()
        _assert_close(fused.detach(), plain.detach())
        parameters = tuple(head.parameters())
        slopes = zip(
            torch.autograd.grad(fused, parameters),
            torch.autograd.grad(plain, parameters),
            strict=True,
        )
        for found, expected in slopes:
            assert (found - expected).norm() <= 1e-5 * expected.norm()


def _head(values: dict[str, Tensor]) -> DINOHead:
    """The official head, its sizes read from its weights."""
    prefix = 'param/'
    state = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    linear = [v for k, v in state.items() if k.startswith('mlp') and k.endswith('weight')]
    out_dim, bottleneck_dim = state['last_layer.weight_v'].shape
    head = DINOHead(
        linear[0].shape[1], out_dim, linear[0].shape[0], bottleneck_dim, num_layers=len(linear)
    )
    head.load_state_dict(state)
    return head


def _assert_same_slope(loss: Tensor, x: Tensor, slow_loss: Tensor, slow: Tensor) -> None:
    (found,) = torch.autograd.grad(loss, x)
    (expected,) = torch.autograd.grad(slow_loss, slow)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
