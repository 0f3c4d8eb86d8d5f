"""How alike the blocks of two models represent the same images."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from torchgeo_explora.errors import ConfigError


def cka_matrix(
    x: Sequence[Float[Tensor, 'n _p']], y: Sequence[Float[Tensor, 'n _q']]
) -> Float[Tensor, 'rows columns']:
    """Return the linear centred kernel alignment of every pair of representations, in [0, 1].

    1 where one is a rotation and scaling of the other. The estimate is biased upwards where the
    images are not many more than the dimensions; compare only numbers from as many images. NaN
    where a representation is constant.

    Args:
        x: Representations of n images, for instance of every block of a model.
        y: Others of the same images in the same order.

    Returns:
        float64, one row for each of ``x`` and one column for each of ``y``.

    Raises:
        ConfigError: If they are not of as many images.

    Source: Kornblith et al. 2019, equation 4 with linear kernels; of Gram matrices, so that memory
    is that of n x n values for each representation.
    """
    counts = {len(features) for features in (*x, *y)}
    if len(counts) != 1:
        raise ConfigError(
            f'Representations of {", ".join(map(str, sorted(counts)))} images were given: compare '
            'those of the same images.'
        )
    rows, columns = (torch.stack([_unit_gram(features) for features in side]) for side in (x, y))
    return (rows @ columns.T).double()


def _unit_gram(features: Float[Tensor, 'n d']) -> Float[Tensor, ' nn']:
    """Gram matrix of centred features as one row of length 1, float32 to halve the memory."""
    centred = features.double() - features.double().mean(dim=0)
    gram = centred @ centred.T
    length: Tensor = torch.linalg.norm(gram)
    return (gram / length).flatten().float()
