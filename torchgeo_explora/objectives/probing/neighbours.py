"""Weighted nearest-neighbour classification on frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.probing.features import Features


@dataclass(frozen=True)
class KNNResult:
    """Top-1 accuracy of weighted nearest neighbours.

    Args:
        accuracy: Share of images classified correctly, in [0, 1], for each k that was asked for.
        used: Number of neighbours that really voted for each k asked for: at most the number of
            training images.
    """

    accuracy: dict[int, float]
    used: dict[int, int]

    @property
    def best(self) -> float:
        """Highest accuracy over all k."""
        return max(self.accuracy.values())

    @property
    def note(self) -> str | None:
        """Sentence about the k that were clipped, or None."""
        clipped = [k for k, used in self.used.items() if used < k]
        if not clipped:
            return None
        return (
            f'There are only {min(self.used[k] for k in clipped)} training images, so that many '
            f'neighbours voted for k = {", ".join(map(str, clipped))}.'
        )


def _check(k: Sequence[int], temperature: float) -> None:
    if len(k) == 0 or min(k) < 1:
        raise ConfigError(
            f'The numbers of neighbours are {tuple(k)}; each must be at least 1 and there must be '
            'one: use for example 10, 20, 100, 200.'
        )
    if not temperature > 0:
        raise ConfigError(
            f'The temperature of the neighbours is {temperature}; it must be positive: use 0.07.'
        )


def knn_votes(
    train: Float[Tensor, 'train dim'],
    labels: Int[Tensor, ' train'],
    x: Float[Tensor, 'test dim'],
    k: Sequence[int],
    num_classes: int,
    temperature: float = 0.07,
) -> dict[int, Float[Tensor, 'test classes']]:
    """Votes of the nearest neighbours for every class.

    Each neighbour votes for its class with weight ``softmax(cosine / temperature)`` over the
    neighbours found; votes of the largest k sum to 1.

    Args:
        train: Features of the training images, of any norm but 0.
        labels: Their classes.
        x: Features of the images to classify.
        k: Numbers of neighbours, none above the number of training images.
        num_classes: Number of classes.
        temperature: Softmax temperature.
    """
    similarity = F.normalize(x, dim=1) @ F.normalize(train, dim=1).T  # (test, train)
    values, index = similarity.topk(max(k), dim=1)
    weights = (values / temperature).softmax(dim=1)
    votes = weights[..., None] * F.one_hot(labels[index], num_classes)  # (test, k, classes)
    return {count: votes[:, :count].sum(dim=1) for count in k}


def knn(
    train: Features,
    test: Features,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk: int = 512,
    device: torch.device | str | None = None,
) -> KNNResult:
    """Classify by the nearest class tokens of the last block and score it.

    Args:
        train: Features with labels in which neighbours are looked up.
        test: Features with labels that are classified.
        k: Numbers of neighbours; a number above the training images is clipped, and said in
            :attr:`KNNResult.note`.
        temperature: Softmax temperature of the votes.
        chunk: Images classified at once.
        device: Where to compute; None keeps the features where they are.

    Raises:
        ConfigError: If labels are missing, a k is below 1 or the temperature is not positive.

    Source: ExPLoRA's evaluation, which is DINOv2's (k 10, 20, 100, 200, temperature 0.07).
    """
    _check(k, temperature)
    place = train.cls.device if device is None else torch.device(device)
    bank, labels = train.last.to(place), train.require_labels().to(place)
    x, truth = test.last.to(place), test.require_labels().to(place)
    num_classes = int(torch.cat([labels, truth]).max()) + 1
    used = {count: min(count, len(bank)) for count in k}
    correct = dict.fromkeys(used.values(), 0)
    for rows, answers in zip(x.split(chunk), truth.split(chunk), strict=True):
        votes = knn_votes(bank, labels, rows, sorted(correct), num_classes, temperature)
        for count, scores in votes.items():
            correct[count] += int((scores.argmax(dim=1) == answers).sum())
    return KNNResult({count: correct[used[count]] / len(x) for count in used}, used)
