"""The paper's linear probe: 28 linear classifiers trained at once on frozen features.

Seven learning rates times last one or four blocks times with or without the mean patch token, by
SGD on the sum of their cross-entropies. No classifier's gradient touches another's weights, so
the learning rates of one set of inputs are stacked into one parameter: one matrix product, and one
update with a learning rate for each row. The inputs are slices of one tensor.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.probing.features import Features, Progress, check_blocks

PAPER_LEARNING_RATES = (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""For a batch of 256; the official configuration of ExPLoRA's linear probe."""
REFERENCE_BATCH = 256
PAPER_ITERATIONS = 15_000  # 10 epochs of 1,500


@dataclass(frozen=True)
class LinearProbeConfig:
    """What is trained, and how.

    Args:
        learning_rates: Rates for a batch of 256; they are scaled by ``batch_size / 256``.
        blocks: Numbers of last blocks whose class tokens are concatenated.
        average_pool: Whether the mean patch token is appended; one set of classifiers for each.
        batch_size: Images an iteration, over all processes.
        iterations: SGD steps; the rates follow a cosine to 0 over them.
        momentum: SGD momentum.
        weight_std: Standard deviation of the initial weights; biases begin at 0.
        seed: Draws the initial weights and the order of images.

    Raises:
        ConfigError: If a value is out of range.
    """

    learning_rates: tuple[float, ...] = PAPER_LEARNING_RATES
    blocks: tuple[int, ...] = (1, 4)
    average_pool: tuple[bool, ...] = (False, True)
    batch_size: int = 256
    iterations: int = 2000
    momentum: float = 0.9
    weight_std: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        grids = (self.learning_rates, self.blocks, self.average_pool)
        if not all(grids) or any(len(set(grid)) < len(grid) for grid in grids):
            raise ConfigError(
                f'The grids of the linear probe are {grids}; each needs at least one value and no '
                'value twice: leave them out for the paper values.'
            )
        numbers = (*self.learning_rates, *self.blocks, self.batch_size, self.iterations)
        if min(numbers) <= 0 or not 0 <= self.momentum < 1 or self.weight_std < 0:
            raise ConfigError(
                f'The linear probe was configured as {self}; rates, blocks, batch size and '
                'iterations must be positive, momentum in [0, 1), weight_std at least 0.'
            )

    @classmethod
    def paper(cls) -> 'LinearProbeConfig':
        """10 epochs of 1,500 iterations, as the paper probes fMoW."""
        return cls(iterations=PAPER_ITERATIONS)

    @property
    def inputs(self) -> list[tuple[int, bool]]:
        """All pairs of a number of last blocks and whether the mean patch token is appended."""
        return list(itertools.product(self.blocks, self.average_pool))


@dataclass(frozen=True)
class ClassifierScore:
    """One of the classifiers and what it scores.

    Args:
        blocks: Number of last blocks it sees.
        average_pool: Whether it sees the mean patch token.
        learning_rate: Its rate for a batch of 256.
        accuracy: Top-1 accuracy on the validation set in [0, 1]; 0 if it diverged.
        diverged: Whether its weights stopped being finite.
        test_accuracy: Top-1 accuracy on a separate test set, or None.
    """

    blocks: int
    average_pool: bool
    learning_rate: float
    accuracy: float
    diverged: bool
    test_accuracy: float | None = None

    @property
    def name(self) -> str:
        """Name for logs, for example ``4_blocks_avg_lr_0.01``."""
        pooled = '_avg' if self.average_pool else ''
        return f'{self.blocks}_blocks{pooled}_lr_{self.learning_rate:g}'


@dataclass(frozen=True)
class LinearProbeResult:
    """Scores of all classifiers.

    Args:
        scores: One entry for each classifier.
        bank: The trained classifiers.
    """

    scores: tuple[ClassifierScore, ...]
    bank: 'ProbeBank' = field(repr=False, compare=False)

    @property
    def best(self) -> ClassifierScore:
        """Classifier with the highest validation accuracy; the first of several."""
        return max(self.scores, key=lambda score: score.accuracy)


class ProbeBank(nn.Module):
    """Linear classifiers for every pair of inputs and every learning rate.

    Args:
        config: What is trained.
        dim: Width of the features.
        num_classes: Number of classes.
        available_blocks: Number of last blocks in the features.

    Raises:
        ConfigError: If more blocks are needed than there are, or there is no class.
    """

    def __init__(
        self, config: LinearProbeConfig, dim: int, num_classes: int, available_blocks: int
    ) -> None:
        super().__init__()
        check_blocks(max(config.blocks), available_blocks)
        if num_classes < 1:
            raise ConfigError(
                f'The probe was given {num_classes} classes: it needs at least 1 class.'
            )
        self.config, self.dim, self.available_blocks = config, dim, available_blocks
        generator = torch.Generator().manual_seed(config.seed)
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for pair in config.inputs:
            shape = (len(config.learning_rates), num_classes, self._columns(*pair).width)
            weight = torch.empty(shape).normal_(0, config.weight_std, generator=generator)
            self.weights[_key(*pair)] = nn.Parameter(weight)
            self.biases[_key(*pair)] = nn.Parameter(torch.zeros(shape[:2]))

    @property
    def device(self) -> torch.device:
        """Where the classifiers are."""
        return next(self.parameters()).device

    def _columns(self, blocks: int, average_pool: bool) -> '_Columns':
        start = (self.available_blocks - blocks) * self.dim
        stop = (self.available_blocks + int(average_pool)) * self.dim
        return _Columns(start, stop)

    def stack(self, features: Features) -> Float[Tensor, 'images all']:
        """Lay class tokens and the mean patch token side by side: every input is a slice of it."""
        return features.inputs(self.available_blocks, average_pool=True)

    def logits(
        self, x: Float[Tensor, 'n all'], blocks: int, average_pool: bool
    ) -> Float[Tensor, 'n rates classes']:
        """Logits of the classifiers of one pair of inputs, from :meth:`stack`."""
        key, columns = _key(blocks, average_pool), self._columns(blocks, average_pool)
        weight = self.weights[key]
        flat = x[:, columns.start : columns.stop] @ weight.flatten(0, 1).T  # (n, rates*classes)
        out: Tensor = flat.unflatten(1, weight.shape[:2]) + self.biases[key]
        return out

    def forward(self, x: Float[Tensor, 'n all'], labels: Int[Tensor, ' n']) -> Float[Tensor, '']:
        """Sum over all classifiers of their mean cross-entropy.

        Args:
            x: Features from :meth:`stack`.
            labels: Class indices.
        """
        count = len(self.config.learning_rates)
        answers = labels.repeat_interleave(count)  # (n,) -> (n*rates,)
        terms = [
            F.cross_entropy(self.logits(x, *pair).flatten(0, 1), answers)
            for pair in self.config.inputs
        ]
        return count * torch.stack(terms).sum()  # the mean over rates, back to their sum

    def optimizer(self) -> 'StackedSGD':
        """SGD with the learning rates of the configuration, scaled with its batch size."""
        config = self.config
        rates = [rate * config.batch_size / REFERENCE_BATCH for rate in config.learning_rates]
        return StackedSGD(self.parameters(), rates, config.momentum)

    @torch.no_grad()
    def predict(
        self, features: Features, pair: tuple[int, bool], chunk: int = 4096
    ) -> Int[Tensor, 'n rates']:
        """Classes predicted by the classifiers of one pair of inputs, on the bank's device."""
        rows = self.stack(features).split(chunk)
        return torch.cat([self.logits(x.to(self.device), *pair).argmax(dim=2) for x in rows])

    def score(self, features: Features) -> tuple[ClassifierScore, ...]:
        """Score every classifier on labelled features.

        Raises:
            ConfigError: If the features have no labels.
        """
        labels = features.require_labels().to(self.device)[:, None]
        scores = []
        for pair in self.config.inputs:
            accuracies = (self.predict(features, pair) == labels).double().mean(dim=0).tolist()
            finite = self.weights[_key(*pair)].isfinite().all(dim=2).all(dim=1).tolist()
            for rate, accuracy, fine in zip(
                self.config.learning_rates, accuracies, finite, strict=True
            ):
                scores.append(ClassifierScore(*pair, rate, accuracy if fine else 0.0, not fine))
        return tuple(scores)


class StackedSGD(torch.optim.Optimizer):
    """SGD with momentum whose parameters are stacks: row i has learning rate ``lr * rates[i]``.

    Each row is updated as ``torch.optim.SGD`` would update it alone. ``lr`` is 1 and is what a
    scheduler changes.

    Args:
        params: Parameters, each of ``len(rates)`` rows.
        rates: Learning rate of each row.
        momentum: SGD momentum, without dampening.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], rates: Sequence[float], momentum: float
    ) -> None:
        super().__init__(params, {'lr': 1.0, 'rates': tuple(rates), 'momentum': momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Do one step.

        Args:
            closure: Evaluates the loss again, as Lightning's does.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if 'momentum_buffer' not in state:
            state['momentum_buffer'] = torch.zeros_like(parameter)
        momentum = state['momentum_buffer'].mul_(group['momentum']).add_(gradient)
        rates = parameter.new_tensor([group['lr'] * rate for rate in group['rates']])
        parameter.addcmul_(momentum, rates.view(-1, *[1] * (parameter.ndim - 1)), value=-1)


@dataclass(frozen=True)
class _Columns:
    start: int
    stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start


def _key(blocks: int, average_pool: bool) -> str:
    return f'{blocks}_avg' if average_pool else f'{blocks}'


def sample_stream(count: int, batch_size: int, seed: int) -> Iterator[Int[Tensor, ' batch']]:
    """Endless batches of indices: one seeded permutation after another, cut without a rest.

    Args:
        count: Number of images.
        batch_size: Indices in a batch.
        seed: Draws the permutations.
    """
    generator = torch.Generator().manual_seed(seed)
    pending = torch.empty(0, dtype=torch.int64)
    while True:
        while len(pending) < batch_size:
            pending = torch.cat([pending, torch.randperm(count, generator=generator)])
        yield pending[:batch_size]
        pending = pending[batch_size:]


def cosine_to_zero(optimizer: torch.optim.Optimizer, iterations: int) -> CosineAnnealingLR:
    """The paper's schedule, one step an iteration."""
    return CosineAnnealingLR(optimizer, iterations)


def train_bank(
    bank: ProbeBank, train: Features, progress: Callable[[Progress], None] | None = None
) -> None:
    """Train a bank on cached features for the iterations of its configuration.

    Args:
        bank: Classifiers, on the device to compute on.
        train: Features with labels.
        progress: Called after each iteration.

    Raises:
        ConfigError: If the features have no labels.
    """
    total = bank.config.iterations
    x, labels = bank.stack(train).to(bank.device), train.require_labels().to(bank.device)
    stream = sample_stream(len(x), bank.config.batch_size, bank.config.seed)
    optimizer = bank.optimizer()
    schedule = cosine_to_zero(optimizer, total)
    start = time.monotonic()
    for done, index in enumerate(itertools.islice(stream, total), start=1):
        rows = index.to(bank.device)
        optimizer.zero_grad()
        with torch.enable_grad():
            bank(x[rows], labels[rows]).backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(Progress(done, total, time.monotonic() - start))


def with_test_scores(
    scores: tuple[ClassifierScore, ...], test: tuple[ClassifierScore, ...]
) -> tuple[ClassifierScore, ...]:
    """Enter the accuracies of ``test`` as the test accuracies of ``scores``."""
    accuracies: Mapping[str, float] = {score.name: score.accuracy for score in test}
    return tuple(replace(score, test_accuracy=accuracies[score.name]) for score in scores)


def linear_probe(
    train: Features,
    val: Features,
    test: Features | None = None,
    config: LinearProbeConfig | None = None,
    device: torch.device | str = 'cpu',
    progress: Callable[[Progress], None] | None = None,
) -> LinearProbeResult:
    """Train all classifiers on cached features and score them.

    The paper draws a new random crop for every image and iteration; here the features are
    computed once, or once for each of several views (join them with
    :meth:`Features.concatenate`). As in the paper the best classifier is chosen on ``val``. Where
    ``val`` is also what is reported, as in the paper, that is a slightly optimistic number; with
    ``test`` the choice is made on ``val`` and the number on ``test`` is clean.

    Args:
        train: Features with labels to train on.
        val: Features with labels that choose the best classifier.
        test: Features with labels that are scored beside ``val``, or None.
        config: What is trained; None stands for the defaults.
        device: Where to train.
        progress: Called after each iteration.

    Raises:
        ConfigError: If labels are missing or more blocks are needed than were extracted.
    """
    settings = LinearProbeConfig() if config is None else config
    parts = [part for part in (train, val, test) if part is not None]
    num_classes = int(torch.cat([part.require_labels() for part in parts]).max()) + 1
    available = train.cls.shape[1]
    bank = ProbeBank(settings, train.cls.shape[2], num_classes, available).to(device)
    train_bank(bank, train, progress)
    scores = bank.score(val)
    if test is not None:
        scores = with_test_scores(scores, bank.score(test))
    return LinearProbeResult(scores, bank)
