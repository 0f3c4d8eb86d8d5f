"""What a single patch token tells a linear classifier: where it lies, and what the image shows."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.probing import cosine_to_zero, sample_stream


@dataclass(frozen=True)
class TokenProbeConfig:
    """How the linear classifiers of single tokens are trained.

    Softmax regression by AdamW from zero weights; the rate follows a cosine to 0. Nothing is drawn
    but the order of the tokens.

    Args:
        steps: Optimizer steps.
        batch_size: Tokens of a step.
        learning_rate: Of the first step.
        weight_decay: AdamW's, not on biases.
        seed: Draws the order of the tokens.
        standardize: Whether inputs get zero mean and unit variance. Without it the rate of learning
            depends on the scale of the features, which grows from block to block.

    Raises:
        ConfigError: If a value is out of range.
    """

    steps: int = 600
    batch_size: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0
    standardize: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f'The probe of tokens was configured as {self}: steps, batch size and rate must be '
                'positive and weight decay at least 0.'
            )


@dataclass(frozen=True)
class TokenProbeScore:
    """What a linear classifier of single tokens scores on images that it was not trained on.

    Args:
        accuracy: Share of the held-out tokens classified correctly, in [0, 1].
        train_accuracy: The same of the tokens it was trained on.
        chance: Share of the commonest class among the held-out tokens.
        trained: Tokens trained on.
        scored: Held-out tokens.
    """

    accuracy: float
    train_accuracy: float
    chance: float
    trained: int
    scored: int


def token_probe(
    train: Float[Tensor, 'n d'],
    labels: Int[Tensor, ' n'],
    held_out: Float[Tensor, 'm d'],
    truth: Int[Tensor, ' m'],
    classes: int,
    config: TokenProbeConfig | None = None,
) -> TokenProbeScore:
    """Train a linear classifier on tokens and score it on those of other images.

    Args:
        train: Tokens to train on.
        labels: Their classes, from 0: cells of the patch grid, or classes of the images.
        held_out: Tokens of other images.
        truth: Their classes.
        classes: Number of classes.
        config: How; None stands for the defaults.

    Raises:
        ConfigError: If there is nothing to train on or to score.

    Source: ExPLoRA, section 6.3 and the project page: linear classifiers of a patch's position
    and of the image's class from each patch. Its hyper-parameters are not said; these are ours.
    """
    if min(len(train), len(held_out)) < 1:
        raise ConfigError(
            f'A probe was given {len(train)} tokens to train on and {len(held_out)} to score: give '
            'more images, so that some can be held out.'
        )
    settings = TokenProbeConfig() if config is None else config
    mean, scale = _standard(train, settings.standardize)
    weight, bias = _fit((train - mean) * scale, labels, classes, settings)
    weight, bias = weight * scale, bias - (weight * scale) @ mean  # on tokens as they are

    def accuracy(tokens: Tensor, answers: Tensor) -> float:
        rows = zip(tokens.split(16_384), answers.split(16_384), strict=True)
        right = [((x @ weight.T + bias).argmax(dim=1) == y).sum() for x, y in rows]
        return int(torch.stack(right).sum()) / len(tokens)

    return TokenProbeScore(
        accuracy(held_out, truth),
        accuracy(train, labels),
        int(torch.bincount(truth).max()) / len(truth),
        len(train),
        len(held_out),
    )


def _standard(
    x: Float[Tensor, 'n d'], wanted: bool
) -> tuple[Float[Tensor, ' d'], Float[Tensor, ' d']]:
    """What is subtracted from tokens, and what they are then multiplied with."""
    if not wanted:
        return torch.zeros_like(x[0]), torch.ones_like(x[0])
    std = x.std(dim=0, correction=0)
    return x.mean(dim=0), torch.where(std > 0, std, 1).reciprocal()


def _fit(
    x: Float[Tensor, 'n d'], labels: Int[Tensor, ' n'], classes: int, config: TokenProbeConfig
) -> tuple[Float[Tensor, 'classes d'], Float[Tensor, ' classes']]:
    """Softmax regression; returns weights and biases."""
    weight = nn.Parameter(x.new_zeros(classes, x.shape[1]))
    bias = nn.Parameter(x.new_zeros(classes))
    groups = [
        {'params': [weight], 'weight_decay': config.weight_decay},
        {'params': [bias], 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    schedule = cosine_to_zero(optimizer, config.steps)
    stream = sample_stream(len(x), min(config.batch_size, len(x)), config.seed)
    for index in itertools.islice(stream, config.steps):
        rows = index.to(x.device)
        optimizer.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(F.linear(x[rows], weight, bias), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()
