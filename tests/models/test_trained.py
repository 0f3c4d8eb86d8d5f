"""A backbone starts from deltas, fitted models and training checkpoints as from a merged file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.models.test_fitted import SPEC, classifier
from tests.token_vits import shake
from tests.vits import shake_factors
from torchgeo_explora.adapters import (
    ExPLoRAConfig,
    apply_explora,
    blend,
    merge_lora,
    save_adapter,
    trained_in_full,
)
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models import (
    Checkpoint,
    _sources,
    create_backbone,
    load_backbone,
    save_backbone,
    save_model,
)
from torchgeo_explora.models.trained import TRAINED, describe_training, merge_factors

NAME = 'fitted_test_vit'
CONFIG = ExPLoRAConfig(rank=2, alpha=3.0, targets=('q', 'k', 'v', 'proj', 'mlp'))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('targets', [('q', 'v'), ('v', 'k'), ('q', 'k', 'v', 'proj', 'mlp')])
def test_merging_tensors_equals_merging_a_model(targets: tuple[str, ...]) -> None:
    vit, _ = create_backbone(NAME, seed=0)
    shake(vit)
    apply_explora(vit, ExPLoRAConfig(rank=3, alpha=2.0, targets=targets, mlp_rank=2))
    start = trained_in_full(vit)
    shake_factors(vit)
    same(merge_factors(vit.state_dict(), 2.0), merge_lora(vit).state_dict())
    part = {n: torch.lerp(start[n], t, 0.4) if n in start else t
            for n, t in vit.state_dict().items()}  # fmt: skip
    same(merge_factors(part, 2.0, 0.4), merge_lora(blend(vit, start, 0.4)).state_dict())


@pytest.fixture
def delta(tmp_path: Path) -> tuple[Path, Path, dict[str, Tensor]]:
    """A delta, the base that it belongs to, and the merged weights."""
    vit, _ = create_backbone(NAME, seed=0)
    shake(vit)
    base = save_backbone(vit, tmp_path / 'base.safetensors')
    apply_explora(vit, CONFIG)
    shake_factors(vit)
    metadata = {'base': NAME, 'start': str(base), 'mean': '[0.1, 0.2, 0.3]'}
    path = save_adapter(vit, CONFIG, tmp_path / 'adapter.safetensors', metadata)
    return path, base, merge_lora(vit).state_dict()


def test_start_from_a_delta(delta: tuple[Path, Path, dict[str, Tensor]]) -> None:
    path, base, expected = delta
    vit, report = create_backbone(NAME, path, base_weights=base)
    same(vit.state_dict(), expected)
    assert report.source == str(path)
    assert json.loads(report.metadata['mean']) == [0.1, 0.2, 0.3]
    larger, _ = create_backbone(NAME, path, img_size=56, base_weights=base)
    assert larger.pos_embed is not None and larger.pos_embed.shape[1] == 17


def test_a_delta_needs_its_base(
    delta: tuple[Path, Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    path, base, _ = delta
    with pytest.raises(WeightsError, match=r'trained from \(it was trained from .*base_weights'):
        create_backbone(NAME, path)
    other, _ = create_backbone(NAME, seed=5)
    wrong = save_backbone(other, tmp_path / 'other.safetensors')
    with pytest.raises(WeightsError, match='other base weights'):
        create_backbone(NAME, path, base_weights=wrong)
    with pytest.raises(ConfigError, match='is no delta'):
        create_backbone(NAME, base, base_weights=wrong)
    with pytest.raises(ConfigError, match='no weights that base_weights'):
        create_backbone(NAME, None, base_weights=base)


def test_a_delta_of_timm_weights_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is not asked in a test: what timm gives for the name is replaced."""
    stock, _ = create_backbone(NAME, seed=3)
    monkeypatch.setattr(
        _sources, '_timm_weights',
        lambda name: Checkpoint(dict(stock.state_dict()), {}, f'timm weights of {name}'),
    )  # fmt: skip
    vit, report = create_backbone(NAME, True)
    apply_explora(vit, CONFIG)
    shake_factors(vit)
    assert report.source is not None
    metadata = {'base': NAME, 'start': report.source}
    path = save_adapter(vit, CONFIG, tmp_path / 'adapter.safetensors', metadata)
    same(create_backbone(NAME, path)[0].state_dict(), merge_lora(vit).state_dict())


def test_start_from_a_fitted_model(tmp_path: Path) -> None:
    model = classifier(NAME)
    path = save_model(model, SPEC, tmp_path / 'model.safetensors')
    vit, report = create_backbone(NAME, path)
    same(vit.state_dict(), merge_lora(model.backbone).state_dict())
    assert json.loads(report.metadata['std']) == list(SPEC.std)
    with pytest.raises(WeightsError, match='looks like'):
        create_backbone('vit_tiny_patch16_224', path)


def test_start_from_a_training_checkpoint(tmp_path: Path) -> None:
    vit, _ = create_backbone(NAME, seed=0)
    apply_explora(vit, CONFIG)
    start = trained_in_full(vit)
    shake_factors(vit)
    state = {f'model.student.{k}': t for k, t in vit.state_dict().items()}
    checkpoint = {
        'state_dict': {**state, 'model.head.weight': torch.ones(2)},
        'explora': {'start': start},
        TRAINED: describe_training(vit, 'model.student.', CONFIG, {'mean': [0.5] * 3}, 0.7),
    }
    torch.save(checkpoint, tmp_path / 'last.ckpt')
    found, report = create_backbone(NAME, tmp_path / 'last.ckpt')
    same(found.state_dict(), merge_lora(blend(vit, start, 0.7)).state_dict())
    assert report.metadata['mean'] == '[0.5, 0.5, 0.5]'
    checkpoint['state_dict'] = {'other': torch.ones(1)}
    torch.save(checkpoint, tmp_path / 'broken.ckpt')
    with pytest.raises(WeightsError, match='incomplete'):
        create_backbone(NAME, tmp_path / 'broken.ckpt')


def test_delta_loaded_as_a_state_dict_is_refused(
    delta: tuple[Path, Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    vit, _ = create_backbone(NAME)
    with pytest.raises(WeightsError, match='only what an adaptation changed'):
        load_backbone(vit, delta[0])
    save_file({'x': torch.ones(1)}, tmp_path / 'x.safetensors')
    with pytest.raises(WeightsError, match='no plain vision transformer'):
        create_backbone(NAME, tmp_path / 'x.safetensors')
