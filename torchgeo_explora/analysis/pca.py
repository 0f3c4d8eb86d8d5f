"""Pictures of patch features in three colours, with one basis for all that are compared."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.pca import PCAAccumulator, PCABasis


@dataclass(frozen=True, eq=False)
class PCAMaps:
    """Pictures of patch features.

    Args:
        basis: Principal components that all pictures share.
        maps: By name, red, green and blue in [0, 1] of each patch (images, gh, gw, 3).
    """

    basis: PCABasis
    maps: dict[str, Float[Tensor, 'b gh gw 3']]


def pca_maps(
    features: Mapping[str, Float[Tensor, 'b _gh _gw d']], basis: PCABasis | None = None
) -> PCAMaps:
    """Colour patches by the first three principal components of all features together.

    Equal colours mean equal features, across images and models. That says something where one
    model was adapted from the other; the dimensions of models that were trained apart have nothing
    to do with one another.

    Args:
        features: By name, those of one or several models or images; all of one width.
        basis: Made before; None to fit one on all features given.

    Raises:
        ConfigError: If the widths differ.
    """
    widths = {name: x.shape[-1] for name, x in features.items()}
    if len(set(widths.values())) > 1:
        told = ', '.join(f'{name} {width}' for name, width in widths.items())
        raise ConfigError(
            f'Features of different widths ({told}) cannot share a basis: compare models of one '
            'size, or draw them one by one.'
        )
    if basis is None:
        sums = PCAAccumulator()
        for x in features.values():
            sums.add(x)
        basis = sums.fit(3)
    return PCAMaps(basis, {name: basis.to_rgb(basis.project(x)) for name, x in features.items()})
