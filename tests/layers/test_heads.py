import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.heads import DINOHead


def _head(seed: int = 0, **sizes: int) -> DINOHead:
    defaults = {'in_dim': 8, 'out_dim': 24, 'hidden_dim': 20, 'bottleneck_dim': 12}
    return DINOHead(**(defaults | sizes), generator=torch.Generator().manual_seed(seed))


def _tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_parameters_have_the_official_names_and_shapes() -> None:
    shapes = {name: tuple(p.shape) for name, p in _head().named_parameters()}
    assert shapes == {
        'mlp.0.weight': (20, 8), 'mlp.0.bias': (20,),
        'mlp.2.weight': (20, 20), 'mlp.2.bias': (20,),
        'mlp.4.weight': (12, 20), 'mlp.4.bias': (12,),
        'last_layer.weight_g': (24, 1), 'last_layer.weight_v': (24, 12),
    }  # fmt: skip
    assert set(_head(num_layers=1).state_dict()) == {
        'mlp.weight', 'mlp.bias', 'last_layer.weight_g', 'last_layer.weight_v'
    }  # fmt: skip


@pytest.mark.parametrize('num_layers', [1, 2, 3, 4])
def test_equals_torch_layers_with_weight_norm(num_layers: int) -> None:
    head = _head(num_layers=num_layers)
    with torch.no_grad():
        head.last_layer.weight_g.uniform_(0.5, 2)
    last = nn.utils.parametrizations.weight_norm(nn.Linear(12, 24, bias=False), dim=0)
    last.load_state_dict(
        {
            'parametrizations.weight.original0': head.last_layer.weight_g,
            'parametrizations.weight.original1': head.last_layer.weight_v,
        }
    )
    x = _tokens(5, 8)
    logits, expected = head(x), last(F.normalize(head.mlp(x), dim=1))
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    slopes = zip(head.last_layer.parameters(), last.parameters(), strict=True)
    for found, wanted in slopes:
        torch.testing.assert_close(found.grad, wanted.grad)


def test_logits_are_bottleneck_times_prototypes() -> None:
    head, x = _head(), _tokens(2, 3, 8)
    z, p = head.bottleneck(x), head.prototypes()
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(2, 3))
    torch.testing.assert_close(p.norm(dim=1), torch.ones(24))
    torch.testing.assert_close(head(x), z @ p.T)
    assert head(x).abs().max() <= 1


def test_initial_weights() -> None:
    head = _head(in_dim=200, hidden_dim=300, bottleneck_dim=64, out_dim=500)
    for linear in (m for m in head.mlp.modules() if isinstance(m, nn.Linear)):
        assert abs(float(linear.weight.detach().std()) - 0.02) < 1e-3
        assert not linear.bias.any()
    assert torch.equal(head.last_layer.weight_g, torch.ones(500, 1))
    assert all(p.requires_grad for p in head.parameters())


def test_the_generator_decides_the_weights_and_nothing_else_is_drawn() -> None:
    state = torch.get_rng_state()
    first, second, other = _head(0).state_dict(), _head(0).state_dict(), _head(1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first['mlp.0.weight'], other['mlp.0.weight'])
    assert not torch.equal(first['last_layer.weight_v'], other['last_layer.weight_v'])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_bottleneck_is_normalised_in_float32_under_autocast(dtype: torch.dtype) -> None:
    head, x = _head(), _tokens(6, 8)
    with torch.autocast('cpu', dtype):
        z = head.bottleneck(x)
        logits = head(x)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(6), rtol=1e-6, atol=1e-6)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), head(x), rtol=0, atol=3e-2)


def test_a_zero_token_gives_finite_logits_and_gradients() -> None:
    head = _head()
    x = torch.zeros(1, 8, requires_grad=True)
    head(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    'size', ['in_dim', 'out_dim', 'hidden_dim', 'bottleneck_dim', 'num_layers']
)
def test_sizes_are_positive(size: str) -> None:
    with pytest.raises(ConfigError, match=r'received .*0.*at least 1.*Correct'):
        _head(**{size: 0})
