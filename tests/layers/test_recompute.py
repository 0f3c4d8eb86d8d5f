"""Recomputed activations change no number."""

import copy

import pytest
import torch
from torch import Tensor, nn

from torchgeo_explora.layers.recompute import called_children, recomputing


class Branches(nn.Module):
    """Lists of blocks with batch norm and dropout, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        block = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)]
        self.blocks = nn.ModuleList([nn.Sequential(*block), nn.Sequential(nn.Conv2d(3, 3, 1))])
        self.head = nn.Sequential(
            nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Conv2d(3, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.blocks[1](x) + x)
        out: Tensor = self.head(self.blocks[0](x))
        return out


@pytest.fixture
def model() -> Branches:
    """A model with weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Branches()


def _step(model: nn.Module, recompute: bool) -> tuple[Tensor, dict[str, Tensor | None]]:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        if recompute:
            with recomputing(model):
                out = model(images)
        else:
            out = model(images)
        torch.rand(3)  # other draws come between
        out.square().sum().backward()
    return out, {name: p.grad for name, p in model.named_parameters()}


def test_values_gradients_and_statistics_are_those_of_a_plain_call(model: Branches) -> None:
    again = copy.deepcopy(model)
    (expected, gradients), (found, others) = _step(model, False), _step(again, True)
    assert torch.equal(found, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=0, atol=0)
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(again.named_buffers())[name], buffer), name
    seen = again.get_buffer('blocks.0.1.num_batches_tracked')
    assert int(seen) == 2  # called twice, counted twice


def test_only_inputs_are_kept(model: Branches) -> None:
    kept = []
    for recompute in (False, True):
        packed: list[int] = []

        def pack(tensor: Tensor, packed: list[int] = packed) -> Tensor:
            packed.append(tensor.untyped_storage().nbytes())
            return tensor

        images = torch.randn(4, 3, 8, 8)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if recompute:
                with recomputing(model):
                    model(images)
            else:
                model(images)
        kept.append(sum(packed))
    assert kept[1] < kept[0] / 2


def test_modules_are_left_as_they_were(model: Branches) -> None:
    with pytest.raises(RuntimeError), recomputing(model):
        model(torch.zeros(1, 7, 8, 8))
    assert all('forward' not in vars(part) for part in model.modules())


def test_without_gradients_nothing_is_different(model: Branches) -> None:
    with torch.no_grad(), recomputing(model):
        assert all('forward' not in vars(part) for part in model.modules())


def test_lists_are_not_called(model: Branches) -> None:
    assert list(called_children(model)) == [model.blocks[0], model.blocks[1], model.head]
