"""Going only part of the way from the base to the adapted weights."""

import copy

import pytest
import torch

from tests.vits import make_vit, shake_factors
from torchgeo_explora.adapters import (
    ExPLoRAConfig,
    apply_explora,
    blend,
    merge_lora,
    trained_in_full,
)


@pytest.mark.parametrize('share', [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize('targets', [('q', 'v'), ('q', 'k', 'v', 'proj', 'mlp')])
def test_merged_weights_lie_between_base_and_adapted(
    share: float, targets: tuple[str, ...]
) -> None:
    base = make_vit('patch14_layerscale')
    model = copy.deepcopy(base)
    apply_explora(model, ExPLoRAConfig(rank=4, targets=targets))
    start = trained_in_full(model)
    shake_factors(model, scale=0.1)
    adapted = merge_lora(model).state_dict()
    found = merge_lora(blend(model, start, share)).state_dict()
    for name, value in base.state_dict().items():
        wanted = torch.lerp(value, adapted[name], share)
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6)


def test_the_model_itself_is_left_alone() -> None:
    model = make_vit('patch14_layerscale')
    apply_explora(model, ExPLoRAConfig(rank=4))
    start = trained_in_full(model)
    shake_factors(model, scale=0.1)
    before = copy.deepcopy(model.state_dict())
    blend(model, start, 0.3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
