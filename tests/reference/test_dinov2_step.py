"""One whole training step against losses and gradients that the official DINOv2 printed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchgeo_explora._typing import GridSize
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.models import create_backbone, load_backbone
from torchgeo_explora.objectives import DINOv2Config, DINOv2Losses, DINOv2Objective

LOSSES = {
    'dino_local_crops_loss': 'dino_local',
    'dino_global_crops_loss': 'dino_global',
    'koleo_loss': 'koleo',
    'ibot_loss': 'ibot',
}


class Reference(NamedTuple):
    """One file: state dicts of student and teacher, inputs and outputs, and the arguments."""

    name: str
    values: dict[str, Tensor]
    config: dict[str, Any]

    def state(self, prefix: str) -> dict[str, Tensor]:
        """The part of the state dict below a prefix, for instance ``student.backbone.``."""
        start = f'param/{prefix}'
        return {k.removeprefix(start): v for k, v in self.values.items() if k.startswith(start)}

    @property
    def centering(self) -> str:
        """What turns teacher outputs into targets: the argument, or the file's name."""
        named = str(self.config.get('centering', self.name))
        return 'sinkhorn_knopp' if 'sinkhorn' in named else 'softmax'


@pytest.fixture(scope='module')
def references(reference_dir: Path) -> list[Reference]:
    """Every file of this form in the folder of references."""
    found = []
    for path in sorted(reference_dir.glob('dinov2_step*.npz')):
        with np.load(path) as file:
            values = {name: torch.from_numpy(file[name]) for name in file.files if name != 'config'}
            found.append(Reference(path.stem, values, json.loads(str(file['config']))))
    if not found:
        pytest.skip(f'{reference_dir} has no dinov2_step*.npz')
    return found


def _settings(reference: Reference) -> DINOv2Config:
    """Sizes of the heads, read from their weights; flags from the arguments."""
    head, config = reference.state('student.dino_head.'), reference.config
    linear = [v for k, v in head.items() if k.startswith('mlp') and k.endswith('weight')]
    prototypes, bottleneck = head['last_layer.weight_v'].shape
    own = reference.state('student.ibot_head.')
    separate = len(own) > 0
    weights = config.get('weights', {})
    return DINOv2Config(
        prototypes=prototypes,
        hidden_dim=len(linear[0]),
        bottleneck_dim=bottleneck,
        head_layers=len(linear),
        separate_head=separate,
        ibot_prototypes=len(own['last_layer.weight_v']) if separate else None,
        centering='softmax' if reference.centering == 'softmax' else 'sinkhorn_knopp',
        student_temperature=config.get('student_temp', 0.1),
        dino_weight=weights.get('dino', 1.0),
        koleo_weight=weights.get('koleo', 0.1),
        ibot_weight=weights.get('ibot', 1.0),
        train_mask_token=True,
        chunk=config['batch'] + 1,  # several chunks, the last one not full
    )


def _objective(reference: Reference) -> DINOv2Objective:
    """Student and teacher of a file, everything trained."""
    config, state = reference.config['backbone'], reference.state('student.backbone.')
    registers = state['register_tokens'].shape[1] if 'register_tokens' in state else 0
    student, _ = create_backbone(
        'vit_small_patch14_dinov2',
        img_size=config['img_size'],
        in_chans=config.get('in_chans', 3),
        patch_size=config['patch_size'],
        embed_dim=config['embed_dim'],
        depth=config['depth'],
        num_heads=config['num_heads'],
        mlp_ratio=config['mlp_ratio'],
        init_values=config['init_values'],
        reg_tokens=registers,
        no_embed_class=registers > 0,
    )
    student.requires_grad_(True)
    objective = DINOv2Objective(student, _settings(reference), state['mask_token'])
    for name, vit, heads in (
        ('student', objective.student, objective.student_heads),
        ('teacher', objective.teacher, objective.teacher_heads),
    ):
        load_backbone(vit, reference.state(f'{name}.backbone.'))
        for loss, head in heads.items():
            head.load_state_dict(reference.state(f'{name}.{loss}_head.'))
    _set_centers(reference, objective)
    return objective.train()


def _set_centers(reference: Reference, objective: DINOv2Objective) -> None:
    """Take over the centres where a file holds them; they are zero before the first step."""
    for name, loss in (('cls', 'dino'), ('patch', 'ibot')):
        stored = [v for k, v in reference.values.items() if loss in k and 'center' in k]
        if stored and name in objective.centers:
            objective.centers[name].get_buffer('center').copy_(stored[0].reshape(1, -1))


def _is_ours(reference: Reference) -> bool:
    """Whether positions are resampled as we do it: as for the models that were released."""
    config = reference.config['backbone']
    flags = config.get('interpolate_offset', 0.1), config.get('interpolate_antialias', False)
    return flags == (0.1, False)


def _resample_by(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resample with a file's own flags where they are not those of the released models."""
    config = reference.config['backbone']

    def resample(pos: Tensor, grid: GridSize, count: int, source: GridSize | None) -> Tensor:
        offset, anti = config['interpolate_offset'], config['interpolate_antialias']
        return resample_pos_embed(pos, grid, count, source, offset, anti)

    monkeypatch.setattr('torchgeo_explora.layers.tokens.resample_pos_embed', resample)


def _step(reference: Reference, objective: DINOv2Objective) -> DINOv2Losses:
    values = reference.values
    losses: DINOv2Losses = objective(
        values['collated_global_crops'],
        values['collated_local_crops'],
        values['collated_masks'].bool(),
        reference.config['teacher_temp'],
    )
    return losses


def _places(objective: DINOv2Objective) -> dict[str, nn.Parameter]:
    """Where the files hold gradients."""
    vit = objective.student
    return {
        'qkv0': vit.get_parameter('blocks.0.attn.qkv.weight'),
        'norm': vit.get_parameter('norm.weight'),
        'mask_token': objective.mask_token,
        'head_last_v': objective.student_heads.get_parameter('dino.last_layer.weight_v'),
        'cls': vit.get_parameter('cls_token'),
    }


def _assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape, what
    error = ((found - expected).norm() / expected.norm()).item()
    assert error <= 1e-5, f'{what}: relative error {error:.1e}'


def _each(
    references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Reference, DINOv2Objective]]:
    for reference in references:
        with monkeypatch.context() as patch:
            if not _is_ours(reference):
                _resample_by(reference, patch)
            yield reference, _objective(reference)


def test_losses(references: list[Reference], monkeypatch: pytest.MonkeyPatch) -> None:
    for reference, objective in _each(references, monkeypatch):
        shown = _step(reference, objective).displayed()
        for official, name in LOSSES.items():
            expected = reference.values[f'loss_{official}']
            _assert_close(shown[name].detach(), expected, f'{reference.name} {name}')


def test_gradients(references: list[Reference], monkeypatch: pytest.MonkeyPatch) -> None:
    for reference, objective in _each(references, monkeypatch):
        _step(reference, objective).total.backward()
        for name, parameter in _places(objective).items():
            assert parameter.grad is not None
            expected = reference.values[f'grad_{name}']
            _assert_close(parameter.grad, expected, f'{reference.name} {name}')
        assert all(p.grad is None for p in objective.teacher.parameters())


def test_total_is_the_sum_that_is_propagated(
    references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    for reference, objective in _each(references, monkeypatch):
        values = reference.values
        halves = {'koleo_loss', 'ibot_loss'}  # displayed at half their weight
        expected = sum(
            (2 if name in halves else 1) * values[f'loss_{name}'].double() for name in LOSSES
        )
        assert isinstance(expected, Tensor)
        total = _step(reference, objective).total.detach().double()
        _assert_close(total, expected, reference.name)
