"""Health of a representation: how many directions it uses, how far it moved, whether it collapsed.

Pure functions. The verdict compares a network with the base it started from, never with a fixed
number that one data set happened to give, and asks for several checks in a row where noise could
speak.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from torchgeo_explora.errors import ConfigError

# Below this spread of the base's own features (all images alike, float32 rounding) there is no
# spread left that a network could lose
RESOLUTION = 1e-6


def effective_rank(features: Float[Tensor, 'n dim'], center: bool = True) -> float:
    """Exponential of the entropy of the normalised singular values.

    Between 1 and min(n, dim): the number of directions that the features really use. 0 where all
    features are equal (and centred), NaN where one is not finite.

    Args:
        features: One row an image.
        center: Whether the mean is removed first; a common offset is no direction of its own.

    Source: Roy and Vetterli 2007, definition 1.
    """
    x = features.double()
    if not x.isfinite().all():
        return math.nan
    scale = x.abs().max()
    x = x - x.mean(dim=0) if center else x
    singular = torch.linalg.svdvals(x)
    # what is left of equal rows after the mean is removed is rounding, and no direction
    if singular.max() <= scale * len(x) * torch.finfo(features.dtype).eps:
        return 0.0
    share = singular / singular.sum()
    return float(torch.special.entr(share).sum().exp())


def mean_pairwise_cosine(features: Float[Tensor, 'n dim']) -> float:
    """Mean cosine of all pairs of different rows, in [-1/(n-1), 1]; 1 if all point one way.

    Args:
        features: At least two rows.
    """
    unit = F.normalize(features.double(), dim=1)
    count = len(unit)
    # the sum over all pairs is the squared norm of the sum of rows
    total = unit.sum(dim=0).square().sum() - unit.square().sum()
    return (total / (count * (count - 1))).item()


def feature_spread(features: Float[Tensor, 'n dim']) -> float:
    """Mean standard deviation of each dimension of the L2-normalised rows.

    Between 0 (all rows point one way) and 1/sqrt(dim) (rows spread evenly over the sphere).
    """
    return F.normalize(features.double(), dim=1).std(dim=0, correction=0).mean().item()


def drift(base: Float[Tensor, 'n dim'], features: Float[Tensor, 'n dim']) -> float:
    """One minus the mean cosine between the features of an image now and at the base, in [0, 2].

    Args:
        base: Features of the images by the base model.
        features: Features of the same images, in the same order.
    """
    return 1 - F.cosine_similarity(base.double(), features.double(), dim=1).mean().item()


def linear_cka(x: Float[Tensor, 'n p'], y: Float[Tensor, 'n q']) -> float:
    """Linear centred kernel alignment of two representations of the same images, in [0, 1].

    1 if one is a rotation and scaling of the other. NaN if one of them is constant.

    Source: Kornblith et al. 2019, equation 4 with linear kernels.
    """
    a = x.double() - x.double().mean(dim=0)
    b = y.double() - y.double().mean(dim=0)
    cross, own = torch.linalg.norm(a.T @ b), torch.linalg.norm(a.T @ a)
    return float(cross.square() / (own * torch.linalg.norm(b.T @ b)))


@dataclass(frozen=True)
class PrototypeUsage:
    """How a batch is spread over the prototypes.

    Args:
        used: Effective number of prototypes over the batch: exponential of the entropy of the
            mean assignment, in [1, K].
        each: Effective number of prototypes of one image: exponential of the mean entropy of its
            assignment, in [1, K].
        entropy: Entropy of the mean assignment as a share of log K, in [0, 1].
    """

    used: float
    each: float
    entropy: float


def prototype_usage(probabilities: Float[Tensor, 'n prototypes']) -> PrototypeUsage:
    """Effective numbers of prototypes, from the teacher's probabilities.

    Of what the student is taught, so after centring: before it one prototype may lead everywhere in
    a healthy run. Sinkhorn-Knopp makes ``used`` large by construction; it tells of a collapse under
    softmax centring.

    Args:
        probabilities: Teacher assignments; each row sums to 1.
    """
    p = probabilities.double()
    marginal = torch.special.entr(p.mean(dim=0)).sum()
    each = torch.special.entr(p).sum(dim=1).mean()
    entropy = float(marginal) / math.log(p.shape[1])
    return PrototypeUsage(float(marginal.exp()), float(each.exp()), entropy)


@dataclass(frozen=True)
class HealthCheck:
    """What was measured of one network at one step; None where it was not measured.

    Args:
        step: Optimizer steps done.
        loss_finite: Whether every loss since the check before was finite.
        rank: :func:`effective_rank`.
        cosine: :func:`mean_pairwise_cosine`.
        knn: Accuracy of nearest neighbours in [0, 1].
        prototypes: ``entropy`` of :func:`prototype_usage`.
    """

    step: int
    loss_finite: bool = True
    rank: float | None = None
    cosine: float | None = None
    knn: float | None = None
    prototypes: float | None = None


@dataclass(frozen=True)
class HealthHistory:
    """Checks of one network in the order of time.

    Args:
        base: The network before the first step.
        checks: Later checks.
        knn_images: Number of images that the accuracy of nearest neighbours is measured on.
    """

    base: HealthCheck
    checks: tuple[HealthCheck, ...] = ()
    knn_images: int | None = None


@dataclass(frozen=True)
class CollapseLimits:
    """Where change ends and collapse begins. Wide, so that a healthy run is never stopped.

    Args:
        rank_fraction: Least effective rank, as a share of the base's. Adapting to one domain
            narrows features; three quarters of the directions gone is another thing.
        spread_fraction: Least ``1 - mean pairwise cosine``, as a share of the base's: with 0.1, a
            base at 0.5 may go to 0.95. Relative, since the images of one domain are alike.
        knn_drop: Greatest fall of nearest neighbours below the base, in accuracy (0.1 is ten
            points); more where few images are scored (three standard errors).
        prototypes: Least entropy of the mean assignment as a share of log K. At 0.05, 1.7 of
            65,536 or 1.5 of 4,096 prototypes are used: all images go to one.
        checks: Checks in a row that must fail, for rank and spread.
        knn_checks: The same for nearest neighbours and prototypes, which may dip while the new
            heads are noise.

    Raises:
        ConfigError: If a limit is out of range.
    """

    rank_fraction: float = 0.25
    spread_fraction: float = 0.1
    knn_drop: float = 0.1
    prototypes: float = 0.05
    checks: int = 2
    knn_checks: int = 3

    def __post_init__(self) -> None:
        shares = (self.rank_fraction, self.spread_fraction, self.knn_drop, self.prototypes)
        if not all(0 <= share <= 1 for share in shares):
            raise ConfigError(
                f'The collapse limits rank_fraction, spread_fraction, knn_drop and prototypes are '
                f'{shares}; each must be in [0, 1]: leave them out for the defaults.'
            )
        if min(self.checks, self.knn_checks) < 1:
            raise ConfigError(
                f'The collapse limits count {self.checks} checks and {self.knn_checks} of nearest '
                'neighbours; both must be at least 1.'
            )


@dataclass(frozen=True)
class Verdict:
    """Whether a network collapsed, and why in plain words.

    Args:
        collapsed: Whether it did.
        reason: What was seen and what to do; empty for a healthy network.
    """

    collapsed: bool
    reason: str = ''


@dataclass(frozen=True)
class _Rule:
    """A quantity, how many failing checks in a row count, when one fails and how to say it."""

    value: Callable[[HealthCheck], float | None]
    checks: int
    fails: Callable[[float], bool] = field(repr=False)
    reason: Callable[[float], str] = field(repr=False)


def _failing(history: HealthHistory, rule: _Rule) -> HealthCheck | None:
    """Last check, if it and those before it fail a rule as many times in a row as it takes."""
    seen = [check for check in history.checks if rule.value(check) is not None]
    last = seen[-rule.checks :]
    if len(last) < rule.checks:
        return None
    values = [rule.value(check) for check in last]
    return last[-1] if all(v is not None and rule.fails(v) for v in values) else None


def _finite_rule() -> _Rule:
    return _Rule(
        lambda check: float(check.loss_finite),
        1,
        lambda finite: finite == 0,
        lambda _: (
            'the loss is no longer a finite number. Lower the learning rate, or train with '
            'bfloat16 or float32 instead of float16.'
        ),
    )


def _feature_rule() -> _Rule:
    return _Rule(
        lambda check: check.rank,
        1,
        math.isnan,
        lambda _: (
            'its features are no longer finite numbers. Lower the learning rate, or train with '
            'bfloat16 or float32 instead of float16.'
        ),
    )


def _rank_rule(base: float, limits: CollapseLimits) -> _Rule:
    floor = limits.rank_fraction * base
    return _Rule(
        lambda check: check.rank,
        limits.checks,
        lambda rank: rank < floor,
        lambda rank: (
            f'its features use only {rank:.1f} directions where the base used {base:.1f} '
            f'(limit {floor:.1f}): images become hard to tell apart. Lower the learning rate of '
            'the unfrozen blocks, warm up the heads for longer, or raise the KoLeo weight.'
        ),
    )


def _spread_rule(base: float, limits: CollapseLimits) -> _Rule:
    ceiling = 1 - limits.spread_fraction * (1 - base)
    return _Rule(
        lambda check: check.cosine,
        limits.checks,
        lambda cosine: cosine > ceiling,
        lambda cosine: (
            f'the features of different images are nearly the same: mean cosine {cosine:.3f} '
            f'where the base had {base:.3f} (limit {ceiling:.3f}). Lower the learning rate, warm '
            'up the heads for longer, or use Sinkhorn-Knopp centring and a higher KoLeo weight.'
        ),
    )


def _knn_rule(base: float, images: int | None, limits: CollapseLimits) -> _Rule:
    # standard error of a difference of two shares of n images is at most sqrt(1 / 2n)
    noise = 0.0 if images is None else 3 * math.sqrt(0.5 / images)
    floor = base - max(limits.knn_drop, noise)
    return _Rule(
        lambda check: check.knn,
        limits.knn_checks,
        lambda accuracy: accuracy < floor,
        lambda accuracy: (
            f'nearest neighbours fell to {100 * accuracy:.1f} % where the base had '
            f'{100 * base:.1f} % (limit {100 * floor:.1f} %, {limits.knn_checks} checks in a '
            'row). Lower the learning rate, or take an earlier checkpoint.'
        ),
    )


def _prototype_rule(limits: CollapseLimits) -> _Rule:
    return _Rule(
        lambda check: check.prototypes,
        limits.knn_checks,
        lambda used: used < limits.prototypes,
        lambda used: (
            f'the teacher assigns nearly all images to one prototype: entropy {used:.3f} of its '
            f'maximum (limit {limits.prototypes:g}). Use Sinkhorn-Knopp centring, or a higher '
            'teacher temperature.'
        ),
    )


def _rules(history: HealthHistory, limits: CollapseLimits) -> list[_Rule]:
    base = history.base
    rules = [_finite_rule(), _feature_rule(), _prototype_rule(limits)]
    if base.rank is not None:
        rules.append(_rank_rule(base.rank, limits))
    if base.cosine is not None and 1 - base.cosine > RESOLUTION:
        rules.append(_spread_rule(base.cosine, limits))
    if base.knn is not None:
        rules.append(_knn_rule(base.knn, history.knn_images, limits))
    return rules


def collapse_verdict(history: HealthHistory, limits: CollapseLimits | None = None) -> Verdict:
    """Judge whether a network collapsed by its last checks.

    Args:
        history: The base and the checks since.
        limits: Where collapse begins; None stands for the defaults.

    Returns:
        The first rule broken: loss not finite, features not finite, prototypes, rank, spread,
        nearest neighbours.
    """
    for rule in _rules(history, CollapseLimits() if limits is None else limits):
        check = _failing(history, rule)
        if check is not None:
            value = rule.value(check)
            assert value is not None, 'a failing check has the value of its rule'
            return Verdict(True, f'At step {check.step} {rule.reason(value)}')
    return Verdict(False)
