"""``estimate``: what a run would take on this machine, measured on a few steps of it."""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from torchgeo_explora.cli.choices import choose_device, choose_precision
from torchgeo_explora.cli.console import duration, say, size
from torchgeo_explora.cli.images import LARGEST_SIDE
from torchgeo_explora.cli.plan import count_steps, patch_size, task_arguments
from torchgeo_explora.cli.rasters import open_rasters
from torchgeo_explora.cli.settings import AdaptSettings, given_options
from torchgeo_explora.cli.values import Values, known_values
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.datasets.image_folder import image_root
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.presets import get_preset, recipe_fields
from torchgeo_explora.objectives.steps import (
    clip_gradients,
    make_optimizer,
    micro_batch,
    step_seed,
)
from torchgeo_explora.tasks.dinov2 import ExPLoRADINOv2

SMALL, LARGE = 2, 8
"""Batch sizes that are timed; time and memory of others lie on the line through them."""
REPEATS = 2
ADAM_STATES = 2


@dataclass(frozen=True)
class Cost:
    """Time and saved activations of a step.

    Args:
        seconds: Of a step.
        saved: Bytes kept for the backward pass.
    """

    seconds: float
    saved: float


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Args:
        model: timm name.
        device: Where it was timed.
        precision: Lightning's name.
        trainable: Weights of the encoder that train.
        encoder: Weights of the encoder.
        heads: Weights of the heads, which train too and are thrown away at the end.
        weight_bytes: Student, heads, and the teacher's own copies.
        gradient_bytes: Gradients.
        optimizer_bytes: AdamW's two averages.
        activation_bytes: Kept for the backward pass at the run's batch size.
        peak_bytes: Most memory that the timed steps took on a GPU; None elsewhere.
        images: Images of an epoch, or None.
        batch_size: Images of a batch.
        steps: Batches of the run.
        step_seconds: Of one step.
        hours: Of the run, without probes.
    """

    model: str
    device: str
    precision: str
    trainable: int
    encoder: int
    heads: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    peak_bytes: int | None
    images: int | None
    batch_size: int
    steps: int
    step_seconds: float
    hours: float

    def lines(self) -> list[str]:
        """Lay it out for people."""
        total = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        total += self.activation_bytes
        share = 100 * self.trainable / self.encoder
        lines = [
            f'{self.model} on {self.device} in {self.precision}',
            f'  trains       {self.trainable:,} of {self.encoder:,} encoder weights '
            f'({share:.1f} %), and {self.heads:,} of the heads',
            f'  weights      {size(self.weight_bytes)}, gradients {size(self.gradient_bytes)}, '
            f'optimizer {size(self.optimizer_bytes)}',
            f'  activations  {size(self.activation_bytes)} at batch {self.batch_size}',
            f'  memory       {size(total)} in all, without what the libraries need',
        ]
        if self.peak_bytes is not None:
            lines.append(f'  GPU          {size(self.peak_bytes)} at batch {LARGE}, measured')
        rate = self.batch_size / self.step_seconds
        lines += [
            f'  steps        {self.steps:,} of {self.batch_size} images, '
            f'{self.steps * self.batch_size:,} images seen'
            + ('' if self.images is None else f' of {self.images:,}'),
            f'  time         {self.step_seconds:.2f} s a step ({rate:.1f} images/s): '
            f'{duration(self.hours * 3600)}, without probes and reading of images',
        ]
        return lines


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0.

    Raises:
        ExploraError: If something is wrong that the user can mend.
    """
    settings = AdaptSettings(**{'folder': '', **given_options(args)})
    device = choose_device(settings.device)
    if args.images is not None or settings.images:
        seen = Seen(args.images, None, ()) if args.images is not None else look(settings)
    elif settings.epochs is not None:
        raise ConfigError('--epochs was given without images: name a folder, or give --images N.')
    else:
        seen = Seen(None, None, ())
    if not args.json:
        say(f'Timing steps of {SMALL} and {LARGE} images on {device}')
    found = estimate(settings, seen, device)
    if args.json:
        say(json.dumps(asdict(found), indent=2))
    else:
        for line in found.lines():
            say(line)
    return 0


@dataclass(frozen=True)
class Seen:
    """What is known of the images of a run.

    Args:
        count: How many there are in a pass; None where that is not known.
        channels: Their bands; None for those of the model.
        bands: Names of the bands.
    """

    count: int | None
    channels: int | None
    bands: tuple[str, ...]


def look(settings: AdaptSettings) -> Seen:
    """Look at the images of a run.

    Raises:
        ImageError: If they cannot be used.
    """
    if settings.sources is not None:
        unlabelled = replace(settings, labels=None, class_column=None)
        opened = open_rasters(unlabelled, patch_size(settings.model), 1)
        return Seen(opened.count, opened.module.num_channels, tuple(opened.bands))
    root = image_root(settings.folder)
    train = root / 'train'
    folder = ImageFolder(train if train.is_dir() else root, scale=(0, 1), with_labels=False)
    return Seen(len(folder), folder.num_channels, folder.bands)


def estimate(settings: AdaptSettings, seen: Seen, device: torch.device) -> Estimate:
    """Build the run's model and time a few of its steps on noise.

    Args:
        settings: Of the run.
        seen: What is known of its images.
        device: Where to run.

    Raises:
        ExploraError: If the run would not be possible.
    """
    images = seen.count
    recipe = get_preset(settings.preset).override(
        **{k: v for k, v in settings.extra.items() if k in recipe_fields()}
    )
    batch_size = recipe.batch_size if settings.batch_size is None else settings.batch_size
    if images is not None:
        batch_size = min(batch_size, images)
    many = batch_size if images is None else images
    steps = count_steps(settings, recipe, many, batch_size)
    values = known_values(settings)
    if seen.channels is not None and seen.channels != len(values.mean):
        values = Values([0.5] * seen.channels, [0.25] * seen.channels, 'as good as any for timing')
    patch = patch_size(settings.model)
    arguments = task_arguments(settings, recipe, patch, steps, values, seen.bands)
    task = ExPLoRADINOv2(**arguments).to(device)
    precision = choose_precision(settings.precision, device)
    small, large = (timed_step(task, count, precision) for count in (SMALL, LARGE))
    peak = torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else None
    seconds = max(on_line(small.seconds, large.seconds, batch_size), 1e-9)
    trained = [p for p in task.model.parameters() if p.requires_grad]
    return Estimate(
        model=settings.model,
        device=str(device),
        precision=precision,
        trainable=task.adapter_report.trainable_parameters,
        encoder=task.adapter_report.total_parameters,
        heads=sum(p.numel() for p in task.model.student_heads.parameters()),
        weight_bytes=unique_bytes(task.model),
        gradient_bytes=sum(p.numel() * p.element_size() for p in trained),
        optimizer_bytes=ADAM_STATES * sum(p.numel() * p.element_size() for p in trained),
        activation_bytes=int(on_line(small.saved, large.saved, batch_size)),
        peak_bytes=peak,
        images=images,
        batch_size=batch_size,
        steps=steps,
        step_seconds=seconds,
        hours=steps * seconds / 3600,
    )


def on_line(small: float, large: float, count: int) -> float:
    """Return the value at a batch size on the line through the two that were measured."""
    slope = (large - small) / (LARGE - SMALL)
    return max(small + slope * (count - SMALL), 0.0)


def unique_bytes(module: nn.Module) -> int:
    """Bytes of all tensors of a module, those shared between student and teacher counted once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in module.state_dict().values()
    }
    return sum(storages.values())


def timed_step(task: ExPLoRADINOv2, count: int, precision: str) -> Cost:
    """Time whole steps on noise: crops, both networks, backward pass, optimizer, teacher.

    Args:
        task: The run's task, on its device; its weights do not change, since all rates are 0.
        count: Images of a batch.
        precision: Lightning's name.
    """
    config, generator = task.recipe.optimization, torch.Generator().manual_seed(0)
    optimizer = make_optimizer(task.model, task.adapter_report.unfrozen, config)
    device = next(task.parameters()).device
    shape = (count, task.hparams['in_channels'], LARGEST_SIDE // 2, LARGEST_SIDE // 2)
    images = torch.rand(shape, generator=generator).to(device)
    task.train()
    times = []
    saved = _SavedBytes()
    for repeat in range(1 + REPEATS):  # the first warms up
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, precision.startswith('bf16')), saved:
            losses = micro_batch(
                task.model, task.multicrop, task.recipe.crops, images, step_seed(0, repeat),
                config.teacher_temperature,
            )  # fmt: skip
        losses.total.backward()
        clip_gradients(task.model, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        task.model.update_teacher(1.0)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return Cost(min(times[1:]), saved.total / (1 + REPEATS))


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts bytes saved for the backward pass, each storage once a step, weights left out."""

    def __init__(self) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self.total = 0
        self.seen: set[int] = set()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor

    def __exit__(self, *details: object) -> None:  # of an exception
        super().__exit__(*details)
        self.seen.clear()  # addresses are used again in the next step
