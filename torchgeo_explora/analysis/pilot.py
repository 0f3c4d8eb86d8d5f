"""Short trial adaptations: the real objective on the user's images, for a few steps."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.adapters import apply_explora, blend, merge_lora, trained_in_full
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives import DINOv2Objective, Recipe, make_schedules
from torchgeo_explora.objectives.probing import Progress, sample_stream
from torchgeo_explora.objectives.prototypes import prototypes_from_images
from torchgeo_explora.objectives.steps import (
    clip_gradients,
    make_multicrop,
    make_optimizer,
    micro_batch,
    set_rates,
    step_seed,
)


@dataclass(frozen=True)
class Candidate:
    """What an adaptation would train.

    Args:
        unfreeze_blocks: Blocks trained in full, from 0, ascending.
        rank: Rank of the low-rank updates of the others.
    """

    unfreeze_blocks: tuple[int, ...]
    rank: int

    @property
    def name(self) -> str:
        """Name for tables, in the paper's way but with blocks from 0: ``[11]-r64``."""
        return f'[{", ".join(map(str, self.unfreeze_blocks))}]-r{self.rank}'


@dataclass(frozen=True, eq=False)
class Pilot:
    """What came of a trial.

    Args:
        model: The model that the recipe would publish, low-rank updates merged.
        seconds: Median time of a step, without the first.
        trainable: Weights of the encoder that trained.
        loss: Of the last step.
    """

    model: VisionTransformer
    seconds: float
    trainable: int
    loss: float


def run_pilot(
    start: VisionTransformer,
    mask_token: Float[Tensor, '1 d'],
    recipe: Recipe,
    candidate: Candidate,
    images: Float[Tensor, 'n c h w'],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    steps: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[Progress], None] | None = None,
) -> Pilot:
    """Adapt a copy of a model for a few steps, with a whole schedule of that length.

    Every candidate sees the same images, crops and masks in the same order.

    Args:
        start: The base, on the device to compute on; left as it is.
        mask_token: Of the base.
        recipe: Everything but blocks and rank.
        candidate: Blocks and rank.
        images: Images in [0, 1].
        mean: Mean of each band.
        std: Standard deviation of each band.
        steps: Optimizer steps.
        seed: Of everything drawn.
        dtype: float32, or bfloat16 for autocast.
        progress: Called after each step.

    Raises:
        ConfigError: If there are too few images, steps, or the loss stops being a finite number.
    """
    if min(steps, len(images) - 1) < 1:
        raise ConfigError(
            f'A trial of {steps} steps on {len(images)} images was asked for: give at least one '
            'step and two images.'
        )
    device, generator = next(start.parameters()).device, torch.Generator().manual_seed(seed)
    student = copy.deepcopy(start)
    adapter = replace(
        recipe.adapter, rank=candidate.rank, unfreeze_blocks=candidate.unfreeze_blocks
    )
    report = apply_explora(student, adapter, generator)
    initial = trained_in_full(student)
    objective = DINOv2Objective(student, recipe.objective, mask_token, generator).to(device)
    trainer = _Trainer(objective, recipe, images, mean, std, steps, seed, dtype)
    seconds, loss = trainer.train(report.unfrozen, progress)
    networks = {'student': objective.student, 'teacher': objective.teacher}
    config = recipe.optimization
    published = blend(networks[config.publish], initial, config.blend)
    return Pilot(merge_lora(published).eval(), seconds, report.trainable_parameters, loss)


@dataclass(frozen=True, eq=False)
class _Trainer:
    """The loop; arguments as in :func:`run_pilot`."""

    objective: DINOv2Objective
    recipe: Recipe
    images: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps: int
    seed: int
    dtype: torch.dtype

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """Yield batches without end, the same for every candidate."""
        size = min(self.recipe.batch_size, len(self.images))
        for index in sample_stream(len(self.images), size, self.seed):
            yield self.images[index].to(device)

    def train(
        self, unfrozen: tuple[str, ...] | list[str], progress: Callable[[Progress], None] | None
    ) -> tuple[float, float]:
        """Train; return the median time of a step and the last loss."""
        recipe, config = self.recipe, self.recipe.optimization
        device = next(self.objective.parameters()).device
        optimizer = make_optimizer(self.objective, unfrozen, config)
        schedules = make_schedules(config, self.steps, recipe.batch_size)
        multicrop = make_multicrop(recipe.crops, self.images.shape[1], self.mean, self.std)
        multicrop = multicrop.to(device)
        self.objective.train()
        half = torch.autocast(device.type, self.dtype, self.dtype != torch.float32)
        if config.prototype_init == 'images':
            with half:
                prototypes_from_images(self.objective, multicrop, self._limited(device), self.seed)
        times, total, began = [], 0.0, time.monotonic()
        for step, batch in zip(range(self.steps), self.batches(device), strict=False):
            start = time.perf_counter()
            temperature = schedules.teacher_temperature(step)
            with half:
                losses = micro_batch(
                    self.objective, multicrop, recipe.crops, batch, step_seed(self.seed, step),
                    temperature,
                )  # fmt: skip
            losses.total.backward()
            self.objective.update_centers(losses)
            set_rates(optimizer, schedules, config, step)
            clip_gradients(self.objective, config.clip)
            optimizer.step()
            optimizer.zero_grad()
            self.objective.update_teacher(schedules.momentum(step))
            total = float(losses.total.detach())
            times.append(time.perf_counter() - start)
            if not torch.isfinite(losses.total.detach()):
                raise ConfigError(
                    f'The loss is no finite number at step {step} of a trial: lower base_lr.'
                )
            if progress is not None:
                progress(Progress(step + 1, self.steps, time.monotonic() - began))
        later = sorted(times[1:] if len(times) > 1 else times)
        return later[len(later) // 2], total

    def _limited(self, device: torch.device) -> Iterator[Tensor]:
        """Batches of one pass: prototypes are drawn of no image twice."""
        size = min(self.recipe.batch_size, len(self.images))
        stream = self.batches(device)
        for _ in range(max(len(self.images) // size, 1)):
            yield next(stream)
