"""The projection head of DINO and iBOT: an MLP, a unit-length bottleneck, and unit prototypes.

The parameters carry the official names, so that heads of DINOv2's training checkpoints load
as they are.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from torchgeo_explora.errors import ConfigError

# Standard deviation of the truncated normal that initialises the MLP (DINO, section 3).
INIT_STD = 0.02


class PrototypeLayer(nn.Module):
    """The weight of a linear layer whose rows are directions times a trainable length.

    Row k of the effective weight is ``weight_g[k] * weight_v[k] / ||weight_v[k]||``. It is
    computed where it is used, without hooks, so that it can be given to a fused loss.

    Args:
        in_dim: Width of the input.
        out_dim: Number of prototypes.
        generator: Source of the initial directions; None for torch's default one.

    Source: Salimans and Kingma, "Weight Normalization" (2016), equation 2.
    """

    def __init__(self, in_dim: int, out_dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        bound = in_dim**-0.5  # torch's own initial range of a linear layer
        directions = torch.empty(out_dim, in_dim).uniform_(-bound, bound, generator=generator)
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1))
        self.weight_v = nn.Parameter(directions)

    def weight(self) -> Float[Tensor, 'prototypes bottleneck']:
        """Return the effective weight."""
        # what torch's own parametrization calls: a third of the passes over memory
        weight: Tensor = torch._weight_norm(self.weight_v, self.weight_g, 0)
        return weight


class DINOHead(nn.Module):
    """Map tokens to logits over prototypes, for the DINO and the iBOT loss.

    Args:
        in_dim: Width of the tokens.
        out_dim: Number of prototypes.
        hidden_dim: Width of the MLP's hidden layers.
        bottleneck_dim: Width of the normalised output of the MLP.
        num_layers: Number of linear layers of the MLP, with GELU between them.
        generator: Source of the initial weights; None for torch's default one.

    Raises:
        ConfigError: If a size is not positive.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021),
    section 3.1 and appendix C; sizes of ExPLoRA's published configuration as defaults.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = (in_dim, out_dim, hidden_dim, bottleneck_dim, num_layers)
        if min(sizes) < 1:
            raise ConfigError(
                'DINOHead received (in_dim, out_dim, hidden_dim, bottleneck_dim, num_layers) = '
                f'{sizes}. Each must be at least 1. Correct the one that is not.'
            )
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        self.mlp = _mlp(widths, generator)
        self.last_layer = PrototypeLayer(bottleneck_dim, out_dim, generator)

    def bottleneck(self, x: Float[Tensor, '*batch width']) -> Float[Tensor, '*batch bottleneck']:
        """Return the unit-length outputs of the MLP, in float32 also under autocast."""
        x = self.mlp(x)
        # the smallest length that a half-precision output can be told from zero by
        eps = 1e-6 if x.dtype == torch.float16 else 1e-12
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1, eps=eps)

    def prototypes(self) -> Float[Tensor, 'prototypes bottleneck']:
        """Return the effective weight of the last layer."""
        return self.last_layer.weight()

    def forward(self, x: Float[Tensor, '*batch width']) -> Float[Tensor, '*batch prototypes']:
        """Return the logits, the products of bottleneck and prototypes."""
        return F.linear(self.bottleneck(x), self.prototypes())


def _mlp(widths: list[int], generator: torch.Generator | None) -> nn.Module:
    """Build linear layers with GELU between them; a single layer stands alone, as officially."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = skip_init(nn.Linear, fan_in, fan_out)
        nn.init.trunc_normal_(linear.weight, std=INIT_STD, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.GELU()]
    return layers[0] if len(layers) == 2 else nn.Sequential(*layers[:-1])
