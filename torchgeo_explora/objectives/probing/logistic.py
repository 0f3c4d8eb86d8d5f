"""Multinomial logistic regression on frozen features: fast, deterministic, low in variance."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.probing.features import Features


@dataclass(frozen=True)
class LogisticResult:
    """Result of a logistic regression.

    Args:
        accuracy: Share of the scored images classified correctly, in [0, 1].
        strength: Inverse regularisation C that was used.
        loss: Minimum found of the regularised objective a training image.
        gradient: Largest absolute gradient of that objective there.
        predictions: Class predicted for each scored image (images,).
    """

    accuracy: float
    strength: float
    loss: float
    gradient: float
    predictions: Int[Tensor, ' images']


def objective(
    weight: Float[Tensor, 'classes features'],
    bias: Float[Tensor, ' classes'],
    x: Float[Tensor, 'n features'],
    labels: Int[Tensor, ' n'],
    strength: float,
) -> Float[Tensor, '']:
    """Mean cross-entropy plus ``|weight|^2 / (2 C n)``: scikit-learn's objective divided by C n."""
    penalty = weight.square().sum() / (2 * strength * len(x))
    return F.cross_entropy(x @ weight.T + bias, labels) + penalty


def fit_logistic(
    x: Float[Tensor, 'n features'],
    labels: Int[Tensor, ' n'],
    num_classes: int,
    strength: float,
    max_iterations: int = 1000,
    tolerance: float = 1e-5,
) -> tuple[Float[Tensor, 'classes features'], Float[Tensor, ' classes']]:
    """Minimise :func:`objective` by L-BFGS from zero, in the precision of ``x``."""
    weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn='strong_wolfe',
    )

    def closure() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = objective(weight, bias, x, labels, strength)
            loss.backward()
        return loss.item()

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _standardise(
    train: Float[Tensor, 'n f'], others: Sequence[Float[Tensor, '_ f']]
) -> list[Float[Tensor, '_ f']]:
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return [(x - mean) / std for x in (train, *others)]


def _accuracy(predictions: Int[Tensor, ' n'], labels: Int[Tensor, ' n']) -> float:
    return (predictions == labels).double().mean().item()


def _choose(
    x: Float[Tensor, 'n f'],
    labels: Int[Tensor, ' n'],
    num_classes: int,
    strengths: Sequence[float],
    seed: int,
) -> float:
    """Strength with the highest accuracy on a seeded hold-out of a fifth; ties to the smallest."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    held, kept = order[: max(1, len(x) // 5)], order[max(1, len(x) // 5) :]
    scores = {}
    for strength in sorted(strengths):
        weight, bias = fit_logistic(x[kept], labels[kept], num_classes, strength)
        scores[strength] = _accuracy((x[held] @ weight.T + bias).argmax(dim=1), labels[held])
    return max(scores, key=lambda strength: scores[strength])


def _strengths(strength: float | Sequence[float]) -> list[float]:
    values = list(strength) if isinstance(strength, Sequence) else [strength]
    if len(values) == 0 or min(values) <= 0:
        raise ConfigError(
            f'The strengths C of the logistic regression are {values}; there must be one and each '
            'must be positive: use 1.0.'
        )
    return values


def logistic_regression(
    train: Features,
    test: Features,
    strength: float | Sequence[float] = 1.0,
    blocks: int = 1,
    average_pool: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> LogisticResult:
    """Fit a multinomial logistic regression to standardised features and score it.

    Inputs are the class tokens of the last ``blocks`` and, on demand, the mean patch token, each
    dimension with zero mean and unit variance over the training images. Computed in float64.

    Args:
        train: Features with labels to fit to.
        test: Features with labels to score on.
        strength: Inverse regularisation C; of several, the best on a fifth of ``train`` held out
            by ``seed`` is taken and fitted again on all of it.
        blocks: Number of last blocks.
        average_pool: Whether the mean patch token is appended.
        seed: Draws the hold-out.
        device: Where to compute; None keeps the features where they are.

    Raises:
        ConfigError: If labels or blocks are missing or a strength is not positive.
    """
    strengths = _strengths(strength)
    place = train.cls.device if device is None else torch.device(device)
    labels, truth = train.require_labels().to(place), test.require_labels().to(place)
    raw = [part.inputs(blocks, average_pool).to(place).double() for part in (train, test)]
    x, y = _standardise(raw[0], raw[1:])
    num_classes = int(torch.cat([labels, truth]).max()) + 1
    chosen = strengths[0]
    if len(strengths) > 1:
        chosen = _choose(x, labels, num_classes, strengths, seed)
    weight, bias = fit_logistic(x, labels, num_classes, chosen)
    gradient, loss = torch.func.grad_and_value(objective)(weight, bias, x, labels, chosen)
    predictions = (y @ weight.T + bias).argmax(dim=1)
    return LogisticResult(
        _accuracy(predictions, truth),
        chosen,
        loss.item(),
        gradient.abs().max().item(),
        predictions.cpu(),
    )
