"""The KoLeo regulariser: spread features by pushing each one off its nearest neighbour."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError


def koleo_loss(x: Float[Tensor, 'samples width'], eps: float = 1e-8) -> Float[Tensor, '']:
    """Return the negative mean log distance of unit features to their nearest neighbours.

    The neighbours are sought among the given rows, in float32 also under autocast.

    Args:
        x: Features, at least two rows.
        eps: Added to every difference and to the distance, to bear identical rows.

    Returns:
        The loss, a scalar; smaller is more evenly spread.

    Raises:
        ConfigError: If there are fewer than two rows.

    Source: Sablayrolles et al., "Spreading Vectors for Similarity Search" (2019), section 3.
    """
    if len(x) < 2:
        raise ConfigError(
            f'The KoLeo loss received {len(x)} feature(s) of one crop. It needs at least 2, to '
            'have a nearest neighbour. Use a larger batch per device, or set its weight to 0.'
        )
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = F.normalize(x, dim=-1, eps=eps)
        distance = F.pairwise_distance(x, x[_nearest(x)], eps=eps)
        return -(distance + eps).log().mean()


@torch.no_grad()
def _nearest(x: Float[Tensor, 'samples width']) -> Tensor:
    """Return the row number of every unit row's nearest other row."""
    return (x @ x.mT).fill_diagonal_(-1).argmax(dim=1)


class KoLeoLoss(nn.Module):
    """Module form of :func:`koleo_loss`.

    Args:
        eps: Added to every difference and to the distance.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Float[Tensor, 'samples width']) -> Float[Tensor, '']:
        """Return the loss of features, at least two rows."""
        return koleo_loss(x, self.eps)
