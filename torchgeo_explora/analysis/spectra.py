"""How the patches of an image spread: eigenvalues of their covariance, and effective ranks."""

import torch
from jaxtyping import Float
from torch import Tensor


def patch_eigenvalues(tokens: Float[Tensor, 'b n d']) -> Float[Tensor, 'b k']:
    """Return the eigenvalues of the covariance of each image's patches, the largest first.

    The patches are centred in their own image, so that what all of them share counts for nothing;
    sums are divided by n - 1, as in a principal component analysis.

    Args:
        tokens: Patch tokens of each image; at least two.

    Returns:
        float64, k = min(n, d); the others are zero. None is negative.

    Source: ExPLoRA, section 6.3 ("mean and variance of eigenvalues" of patch features); how many
    images and components were used is not said there.
    """
    x = tokens.double()
    x = x - x.mean(dim=1, keepdim=True)
    n, d = x.shape[1:]
    small = x @ x.mT if n <= d else x.mT @ x  # both have the same eigenvalues above zero
    values: Tensor = torch.linalg.eigvalsh(small / (n - 1))  # ascending
    return values.flip(1).clamp(min=0)


def spectral_rank(eigenvalues: Float[Tensor, '*axes k']) -> Float[Tensor, '*axes']:
    """Return the effective rank of features with these eigenvalues of the covariance.

    Exponential of the entropy of the normalised singular values: 1 if all features lie on a line,
    k if they spread evenly; 0 where they are all alike.

    Args:
        eigenvalues: Not negative; squares of the singular values up to a common factor.

    Source: Roy and Vetterli 2007, definition 1.
    """
    singular = eigenvalues.double().sqrt()
    total = singular.sum(dim=-1, keepdim=True)
    share = singular / torch.where(total > 0, total, 1)
    rank = torch.special.entr(share).sum(dim=-1).exp()
    return torch.where(total[..., 0] > 0, rank, 0.0)


def covariance_eigenvalues(features: Float[Tensor, 'n d']) -> Float[Tensor, ' k']:
    """Return the eigenvalues of the covariance of features, one row an image, the largest first.

    Args:
        features: At least two rows.
    """
    return patch_eigenvalues(features[None])[0]
