"""Per-step schedules, as pure functions of the micro-batch index."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """Zero, then a linear ramp, then half a cosine, then the final value for ever.

    The ramp includes both its ends, and the cosine begins at ``peak``: the values are those of
    DINOv2's per-iteration schedule.

    Args:
        peak: Value at the end of the ramp.
        final: Value at ``total`` and after.
        total: Micro-batches of the whole schedule.
        warmup: Micro-batches of the ramp.
        start: Value at the beginning of the ramp.
        frozen: Micro-batches at the very beginning during which the value is 0.
        delay: Micro-batches before the ramp begins; the value is ``start`` until then.
    """

    peak: float
    final: float
    total: int
    warmup: int = 0
    start: float = 0.0
    frozen: int = 0
    delay: int = 0

    def __call__(self, step: int) -> float:
        """Return the value at micro-batch ``step``, counted from 0."""
        if step < self.frozen:
            return 0.0
        if step >= self.total:
            return self.final
        step -= self.delay
        if step < self.warmup:
            share = max(step, 0) / max(self.warmup - 1, 1)
            return self.start + (self.peak - self.start) * share
        length = max(self.total - self.warmup - self.delay, 1)
        share = max(step - self.warmup, 0) / length
        return self.final + 0.5 * (self.peak - self.final) * (1 + math.cos(math.pi * share))


def linear_warmup(start: float, end: float, warmup: int) -> WarmupCosine:
    """Return a schedule that ramps from ``start`` to ``end`` and stays there."""
    return WarmupCosine(peak=end, final=end, total=warmup, warmup=warmup, start=start)


def scaled_learning_rate(base: float, effective_batch: int) -> float:
    """Scale a learning rate given for 1,024 images by the square root.

    Args:
        base: Rate for an effective batch of 1,024.
        effective_batch: Images an optimizer step sees: batch x accumulation x ranks.
    """
    return base * math.sqrt(effective_batch / 1024)


@dataclass(frozen=True)
class HalfCosine:
    """A linear ramp from zero, then half a cosine: the per-iteration schedule of MAE.

    Unlike :class:`WarmupCosine` the ramp ends where the cosine begins, so that no value is held
    twice (He et al. 2022, appendix A.1).

    Args:
        peak: Value at the end of the ramp.
        final: Value at ``total`` and after.
        total: Micro-batches of the whole schedule.
        warmup: Micro-batches of the ramp.
    """

    peak: float
    final: float
    total: int
    warmup: int = 0

    def __call__(self, step: int) -> float:
        """Return the value at micro-batch ``step``, counted from 0."""
        if step < self.warmup:
            return self.peak * step / self.warmup
        if step >= self.total:
            return self.final
        share = (step - self.warmup) / (self.total - self.warmup)
        return self.final + 0.5 * (self.peak - self.final) * (1 + math.cos(math.pi * share))


def linearly_scaled_learning_rate(base: float, effective_batch: int) -> float:
    """Scale a learning rate given for 256 images by the batch, as MAE does.

    Args:
        base: Rate for an effective batch of 256.
        effective_batch: Images an optimizer step sees: batch x accumulation x ranks.
    """
    return base * effective_batch / 256
