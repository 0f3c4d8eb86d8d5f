"""Which layer a parameter is in, at which rate it trains, and what a step's randomness hangs on."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.vits import make_vit
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import build_classifier
from torchgeo_explora.objectives.finetuning import (
    FineTuningConfig,
    finetuning_groups,
    finetuning_optimizer,
    layer_of,
    prepare_backbone,
    step_randomness,
)


def network(**arguments: Any) -> nn.Module:  # noqa: ANN401
    vit = make_vit('registers')
    prepare_backbone(vit, FineTuningConfig(rank=2, **arguments))
    return build_classifier(vit, 5)


@pytest.mark.parametrize(('name', 'layer'), [
    ('backbone.patch_embed.proj.weight', 0), ('backbone.cls_token', 0), ('backbone.pos_embed', 0),
    ('backbone.norm_pre.weight', 0), ('backbone.blocks.0.attn.qkv.weight', 1),
    ('backbone.blocks.2.norm1.bias', 3), ('backbone.norm.weight', 4), ('fc_norm.weight', 4),
    ('head.bias', 4), ('decoder.blocks.0.weight', 4),
])  # fmt: skip
def test_layers(name: str, layer: int) -> None:
    assert layer_of(name, 'backbone.', 3) == layer


def test_groups_hold_all_that_trains_once() -> None:
    model = network(method='full')
    groups = finetuning_groups(model, 'backbone.', 3, 0.1, 0.05, 0.5)
    found: list[nn.Parameter] = [p for group in groups for p in group['params']]  # type: ignore[attr-defined]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in found} == {id(p) for p in trained} and len(found) == len(trained)
    rates = {group['layer']: group['lr'] for group in groups}
    assert rates == pytest.approx({4: 0.1, 3: 0.05, 2: 0.025, 1: 0.0125, 0: 0.00625})
    decays = {id(p): g['weight_decay'] for g in groups for p in g['params']}  # type: ignore[attr-defined]
    names = dict(model.named_parameters())
    assert decays[id(names['head.weight'])] == 0.05
    assert decays[id(names['head.bias'])] == decays[id(names['backbone.cls_token'])] == 0.0
    optimizer = finetuning_optimizer(groups, (0.9, 0.99))
    assert [g['lr'] for g in optimizer.param_groups] == [g['lr'] for g in groups]
    assert all(g['betas'] == (0.9, 0.99) for g in optimizer.param_groups)


def test_methods() -> None:
    def names(**arguments: Any) -> set[str]:  # noqa: ANN401
        vit = make_vit()
        prepare_backbone(vit, FineTuningConfig(**arguments))
        return {n for n, p in vit.named_parameters() if p.requires_grad}

    assert names(method='frozen') == set()
    assert all('lora_' in name for name in names())
    assert len(names()) == 9  # A and two B of three blocks
    assert names(method='full') == {n for n, _ in make_vit().named_parameters()}
    mixed = names(unfreeze_blocks=(-1,), train_norms=True, train_patch_embed=True)
    assert {'patch_embed.proj.weight', 'norm.weight', 'blocks.0.norm1.bias'} <= mixed
    assert 'blocks.2.mlp.fc1.weight' in mixed and 'blocks.1.mlp.fc1.weight' not in mixed


def test_step_randomness_restores_and_repeats() -> None:
    model = network().train()
    dropout = nn.Dropout(0.5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with step_randomness(model, seed, torch.device('cpu')):
            drawn.append(dropout(torch.ones(100)))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize('arguments', [
    {'method': 'prompt'}, {'rank': 0}, {'drop_path': -0.1}, {'targets': ('x',)},
])  # fmt: skip
def test_impossible_configurations(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        prepare_backbone(make_vit(), FineTuningConfig(**arguments))


@pytest.mark.parametrize('numbers', [(0.0, 0.0, 1.0), (0.1, -1.0, 1.0), (0.1, 0.0, 1.5)])
def test_impossible_rates(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match='layer_decay'):
        finetuning_groups(network(), 'backbone.', 3, *numbers)
    frozen = network().requires_grad_(False)
    with pytest.raises(ConfigError, match='Nothing trains'):
        finetuning_groups(frozen, 'backbone.', 3, 0.1, 0.0, 1.0)
