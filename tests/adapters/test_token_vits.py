"""ExPLoRA on encoders with groups of bands or dates: unchanged output, merging, files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.token_vits import inputs_for, make_groups, make_temporal
from tests.vits import shake_factors
from torchgeo_explora.adapters import (
    ExPLoRAConfig,
    apply_explora,
    load_adapter,
    merge_lora,
    save_adapter,
)
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.layers.tokens import encode, encode_visible
from torchgeo_explora.models import create_backbone, save_backbone
from torchgeo_explora.models._token_vit import TokenViT

CONFIG = ExPLoRAConfig(rank=2, unfreeze_blocks=(-1,), train_cls_token=True, train_patch_embed=True)
KINDS = {'groups': make_groups, 'temporal': make_temporal}
Make = Callable[..., TokenViT]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    """Builder of a small model of each kind."""
    return KINDS[request.param]


def _tokens(model: TokenViT) -> list[Tensor]:
    """All tokens, and some: both ways through the model."""
    images, times = inputs_for(model)
    keep = torch.tensor([[40, 3, 17], [0, 31, 47]])
    with torch.no_grad():
        whole = encode(model, images, timestamps=times)
        return [whole, encode_visible(model, images, keep, times)]


def test_adapting_changes_no_output_and_trains_what_is_asked_for(make: Make) -> None:
    model = make()
    before = _tokens(model)
    report = apply_explora(model, CONFIG)
    torch.testing.assert_close(_tokens(model), before)
    trained = set(report.trained)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    embeddings = {name for name, _ in model.named_parameters() if name.startswith('patch_embed.')}
    assert embeddings | {'cls_token', 'norm.weight', 'blocks.2.mlp.fc1.weight'} <= trained
    fixed = {'pos_embed', 'channel_embed', 'channel_cls_embed', 'blocks.0.mlp.fc1.weight'}
    assert not trained & fixed


def test_merged_models_compute_the_same_under_stock_keys(make: Make) -> None:
    model = make()
    keys = set(model.state_dict())
    apply_explora(model, CONFIG)
    shake_factors(model)
    adapted = _tokens(model)
    merged = merge_lora(model)
    assert set(merged.state_dict()) == keys
    torch.testing.assert_close(_tokens(merged), adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted[0], _tokens(make())[0], rtol=1e-2)


def test_adapter_files_go_back_on_their_base_and_on_no_other(make: Make, tmp_path: Path) -> None:
    model = make()
    apply_explora(model, CONFIG)
    shake_factors(model)
    path = save_adapter(model, CONFIG, tmp_path / 'adapter.safetensors')
    again = make()
    assert load_adapter(again, path) == CONFIG
    for found, expected in zip(_tokens(again), _tokens(model), strict=True):
        assert torch.equal(found, expected)
    other = make()
    with torch.no_grad():
        other.get_parameter('blocks.0.mlp.fc1.weight').add_(1)
    with pytest.raises(WeightsError, match='other base weights'):
        load_adapter(other, path)


def test_merged_files_need_nothing_but_the_name(make: Make, tmp_path: Path) -> None:
    model = make()
    apply_explora(model, CONFIG)
    shake_factors(model)
    path = save_backbone(merge_lora(model), tmp_path / 'explora.safetensors')
    name = 'tiny_group_channel_vit' if make is make_groups else 'tiny_temporal_vit'
    found, report = create_backbone(name, path)
    assert report.added == ('mask_token',)
    assert isinstance(found, TokenViT)
    torch.testing.assert_close(_tokens(found), _tokens(model), rtol=1e-4, atol=1e-5)
