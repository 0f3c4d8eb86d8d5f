"""Scores of predicted classes, from a matrix of counts, as WILDS computes them.

Macro averages are over the classes that occur among the true ones: an image that is taken for a
class which does not occur is an error of its own class, and that class is not averaged over.

Source: WILDS (arXiv:2012.07421), sections 4.1 and 4.2; the values are those of its package.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchgeo_explora.errors import ConfigError


def confusion_counts(
    predicted: Int[Tensor, ' images'], labels: Int[Tensor, ' images'], num_classes: int
) -> Int[Tensor, 'classes classes']:
    """Count pairs of true and predicted classes.

    Args:
        predicted: Predicted class of every image.
        labels: True class of every image.
        num_classes: Number of classes.

    Returns:
        Images by true class (rows) and predicted class (columns).

    Raises:
        ConfigError: If a class is not one of 0 to ``num_classes - 1``.
    """
    for name, classes in (('predicted', predicted), ('true', labels)):
        if len(classes) > 0 and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            raise ConfigError(
                f'The {name} classes are {int(classes.min())} to {int(classes.max())}, but there '
                f'are {num_classes} classes: give numbers from 0 to {num_classes - 1}.'
            )
    pairs = labels.long() * num_classes + predicted.long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(counts: Int[Tensor, 'classes classes']) -> Float[Tensor, '']:
    """Share of images whose class is predicted.

    Args:
        counts: Images by true and predicted class.

    Returns:
        0 to 1; 0 without images.
    """
    return _ratio(counts.diagonal().sum(), counts.sum())


def macro_recall(counts: Int[Tensor, 'classes classes']) -> Float[Tensor, '']:
    """Mean over the true classes of the share of a class's images that are predicted as it.

    Args:
        counts: Images by true and predicted class.

    Returns:
        0 to 1; 0 without images.
    """
    return _over_present(_ratio(counts.diagonal(), counts.sum(dim=1)), counts)


def macro_f1(counts: Int[Tensor, 'classes classes']) -> Float[Tensor, '']:
    """Mean over the true classes of the harmonic mean of precision and recall.

    Args:
        counts: Images by true and predicted class.

    Returns:
        0 to 1; 0 without images.
    """
    found = counts.sum(dim=0) + counts.sum(dim=1)
    return _over_present(_ratio(2 * counts.diagonal(), found), counts)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Part of a whole, 0 where there is nothing; float64 until the end, for equal values."""
    return part.double() / whole.clamp(min=1).double()


def _over_present(values: Tensor, counts: Tensor) -> Tensor:
    present = counts.sum(dim=1) > 0
    return (values * present).sum() / present.sum().clamp(min=1)
