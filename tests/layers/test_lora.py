"""The merged forward and low-rank backward pass against ``x (W + s B A)^T + b`` by autograd."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgeo_explora.layers.lora import LoRALinear, Segment, linear_rows, lora_linear

# name -> parts of a layer with 12 outputs, in their order
PARTS: dict[str, list[Segment]] = {
    'whole': [Segment('all', 0, 12)],
    'q_and_v': [Segment('q', 0, 4), Segment('v', 8, 12)],
    'k': [Segment('k', 4, 8)],
    'all_three': [Segment('q', 0, 4), Segment('k', 4, 8), Segment('v', 8, 12)],
    'unequal': [Segment('a', 1, 3), Segment('b', 5, 12)],
}


def _layer(
    parts: str, rank: int = 3, bias: bool = True, dtype: torch.dtype = torch.float32
) -> LoRALinear:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(7, 12, bias=bias)
    layer = LoRALinear(linear, PARTS[parts], rank, 2.0, generator)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.to(dtype)


def _input(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator).to(dtype).requires_grad_()


def _plain(layer: LoRALinear, x: Tensor) -> Tensor:
    """The definition, differentiated by autograd."""
    update = torch.zeros_like(layer.weight)
    for part in layer.segments:
        rows = (layer.up(part.name) @ layer.down(part.name)) * layer.scale
        update = update + F.pad(rows, (0, 0, part.start, layer.out_features - part.stop))
    return F.linear(x, layer.weight + update, layer.bias)


def _gradients(out: Tensor, x: Tensor, layer: LoRALinear) -> list[Tensor]:
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return list(torch.autograd.grad(out, [x, *trained], slope))


def _assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize('shape', [(5, 7), (2, 3, 7), (2, 1, 3, 7), (7,)])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('rank', [1, 3, 7])
@pytest.mark.parametrize('parts', PARTS)
def test_values_and_gradients(parts: str, rank: int, bias: bool, shape: tuple[int, ...]) -> None:
    layer, x = _layer(parts, rank, bias), _input(*shape)
    out, plain = layer(x), _plain(layer, x)
    _assert_near(out, plain, 1e-6)
    for found, expected in zip(_gradients(out, x, layer), _gradients(plain, x, layer), strict=True):
        _assert_near(found, expected, 1e-5)


@pytest.mark.parametrize('parts', PARTS)
def test_gradcheck(parts: str) -> None:
    layer, x = _layer(parts, dtype=torch.float64), _input(2, 3, 7, dtype=torch.float64)
    ups = tuple(layer.up(part.name).detach().requires_grad_() for part in layer.segments)
    starts = [part.start for part in layer.segments]

    def apply(x: Tensor, a: Tensor, *bs: Tensor) -> Tensor:
        return lora_linear(x, layer.weight, layer.bias, a, bs, starts, layer.scale)

    assert torch.autograd.gradcheck(apply, (x, layer.lora_A.detach().requires_grad_(), *ups))


def test_gradients_where_only_some_are_needed() -> None:
    layer, x = _layer('q_and_v'), _input(5, 7)
    every = _gradients(layer(x), x, layer)
    fixed = layer(x.detach())
    slope = torch.randn(fixed.shape, generator=torch.Generator().manual_seed(2))
    trained = [p for p in layer.parameters() if p.requires_grad]
    for found, expected in zip(torch.autograd.grad(fixed, trained, slope), every[1:], strict=True):
        assert torch.equal(found, expected)
    layer.requires_grad_(False)  # a teacher that still has to pass gradients on
    (grad_x,) = torch.autograd.grad(layer(x), x, slope)
    assert torch.equal(grad_x, every[0])


def test_base_never_trains() -> None:
    layer = _layer('q_and_v')
    layer(_input(5, 7)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias is not None and layer.bias.grad is None
    assert {n for n, p in layer.named_parameters() if p.requires_grad} == {
        'lora_A', 'lora_B_q', 'lora_B_v',
    }  # fmt: skip


@pytest.mark.parametrize('parts', ['whole', 'q_and_v'])
def test_bfloat16_autocast(parts: str) -> None:
    """As near to the exact values as torch's own autocast of the definition is."""
    layer, x = _layer(parts), _input(64, 7)
    exact = [_plain(layer, x), *_gradients(_plain(layer, x), x, layer)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out, plain = layer(x), _plain(layer, x)
    assert out.dtype == plain.dtype == torch.bfloat16
    found = [out, *_gradients(out, x, layer)]
    usual = [plain, *_gradients(plain, x, layer)]
    for ours, theirs, true in zip(found, usual, exact, strict=True):
        error, usual_error = (
            (ours - true).norm() / true.norm(),
            (theirs - true).norm() / true.norm(),
        )
        assert error <= max(1.5 * usual_error.item(), 2**-8)
    for parameter, gradient in zip(
        [x, *(p for p in layer.parameters() if p.requires_grad)], found[1:], strict=True
    ):
        assert gradient.dtype == parameter.dtype


def test_kept_for_backward() -> None:
    """Nothing of the size of the weight or the tokens is kept besides the layer's own input."""
    layer = _layer('q_and_v')
    x = _input(50, 7)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert len(kept) > 0
    own = {p.data_ptr() for p in layer.parameters()} | {x.data_ptr()}
    assert {tensor.data_ptr() for tensor in kept} <= own


@pytest.mark.parametrize('parts', ['whole', 'q_and_v', 'k', 'all_three'])
@pytest.mark.parametrize(('start', 'stop'), [(0, 12), (0, 4), (4, 12), (4, 8), (8, 12)])
def test_rows(parts: str, start: int, stop: int) -> None:
    layer, x = _layer(parts), _input(5, 7)
    cut = [part for part in layer.segments if not (part.stop <= start or stop <= part.start)]
    if any(part.start < start or stop < part.stop for part in cut):
        with pytest.raises(AssertionError, match='cut'):
            layer.rows(x, start, stop)
        return
    found, expected = layer.rows(x, start, stop), layer(x)[:, start:stop]
    _assert_near(found, expected, 1e-6)
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad(found, trained, slope, allow_unused=True)
    theirs = torch.autograd.grad(expected, trained, slope, allow_unused=True)
    for own, other in zip(ours, theirs, strict=True):
        if own is None:
            assert other is None or not other.any()
        else:
            assert other is not None
            _assert_near(own, other, 1e-5)


@pytest.mark.parametrize('bias', [True, False])
def test_rows_of_a_plain_layer(bias: bool) -> None:
    linear, x = nn.Linear(7, 12, bias=bias), _input(5, 7)
    torch.testing.assert_close(linear_rows(linear, x, 4, 9), linear(x)[:, 4:9])


def test_merged_weight() -> None:
    layer, x = _layer('q_and_v'), _input(5, 7)
    merged = layer.merged_weight()
    assert not merged.requires_grad
    _assert_near(F.linear(x, merged, layer.bias), layer(x), 1e-6)
    base = layer.weight[4:8]
    assert torch.equal(merged[4:8], base)  # K has no update


def test_starts_unchanged_and_shares_the_weights() -> None:
    linear = nn.Linear(7, 12)
    stock, x = copy.deepcopy(linear), _input(5, 7)
    layer = LoRALinear(linear, PARTS['q_and_v'], 3)
    assert torch.equal(layer(x), stock(x))
    assert layer.weight is linear.weight
    assert list(layer.state_dict()) == ['weight', 'bias', 'lora_A', 'lora_B_q', 'lora_B_v']
