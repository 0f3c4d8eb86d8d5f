"""What is measured of images, kept on disk in parts: memory stays flat and a crash costs one part."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from torchgeo_explora._files import write_tensors
from torchgeo_explora.analysis.features import block_patches, cell_numbers
from torchgeo_explora.analysis.spectra import patch_eigenvalues, spectral_rank
from torchgeo_explora.errors import ConfigError, OutputError
from torchgeo_explora.layers.tokens import patch_grid
from torchgeo_explora.objectives.probing import Progress
from torchgeo_explora.objectives.probing.features import evaluation_mode

PART_BYTES = 2**26
"""Size that parts are held to, where a batch alone is not larger."""

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What is measured of the images, and where it is kept.

    Args:
        folder: Of the parts.
        key: Tells apart what must not be mixed: other weights, images or settings.
        blocks: Blocks that are measured, from 0, ascending.
        count: Number of images.
        leading: Eigenvalues that are kept of each image.
        tokens: Patch tokens that are kept of each image, at most.
        batch_size: Images at once.
        seed: Draws the tokens.
    """

    folder: Path
    key: str
    blocks: tuple[int, ...]
    count: int
    leading: int
    tokens: int
    batch_size: int
    seed: int

    def part_size(self, dim: int) -> int:
        """Images of a part: whole batches, so that a resumed run has the same ones."""
        each = len(self.blocks) * (self.tokens + 1) * dim * 4
        return max(PART_BYTES // (each * self.batch_size), 1) * self.batch_size

    def parts(self, dim: int) -> list[tuple[int, int, Path]]:
        """First image, number of images and path of every part."""
        size = self.part_size(dim)
        return [
            (first, min(size, self.count - first), self.folder / f'part-{first:07d}.safetensors')
            for first in range(0, self.count, size)
        ]


@dataclass(frozen=True)
class Runner:
    """How images go through a model.

    Args:
        model: Any vision transformer, on its device.
        transform: Normalises a batch on the device; None for images that are normalised.
        device: Where the model is.
        dtype: float32, or the half precision of autocast.
        workers: Processes that load images.
    """

    model: VisionTransformer
    transform: Transform | None
    device: torch.device
    dtype: torch.dtype
    workers: int

    def images(self, batch: dict[str, Tensor]) -> Tensor:
        """Move a batch to the device and normalise it."""
        images = batch['image'].to(self.device, non_blocking=True)
        return images if self.transform is None else self.transform(images)


def write_parts(
    plan: Plan,
    runner: Runner,
    dataset: Dataset[dict[str, Tensor]],
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Measure all images that no part is there of.

    Args:
        plan: What is measured.
        runner: The model.
        dataset: The images, in a fixed order.
        progress: Called after each batch; counts only the images of this run in its rate.

    Raises:
        ConfigError: If a part of something else is in the folder.
        OutputError: If a part cannot be written.
    """
    parts = plan.parts(runner.model.embed_dim)
    missing = [part for part in parts if not _is_there(part[2], plan.key)]
    order = [index for first, size, _ in missing for index in range(first, first + size)]
    batches = iter(
        DataLoader(
            Subset(dataset, order), plan.batch_size, num_workers=runner.workers,
            generator=torch.Generator(),
        )
    )  # fmt: skip
    start, done = time.monotonic(), plan.count - len(order)
    place = runner.device.type
    half = runner.dtype != torch.float32
    with evaluation_mode(runner.model), torch.autocast(place, runner.dtype, half):
        for first, size, path in missing:
            found: list[dict[str, Tensor]] = []
            for offset in range(0, size, plan.batch_size):
                found.append(measure_batch(plan, runner, next(batches), first + offset))
                done += len(found[-1]['cells'])
                if progress is not None:
                    progress(_progress(done, plan.count, len(order), start))
            write_tensors(path, _joined(found), {'key': plan.key})


def _progress(done: int, count: int, to_do: int, start: float) -> Progress:
    """State with the rate of this run: what an earlier one did took no time now."""
    before = count - to_do
    return Progress(done - before, to_do, time.monotonic() - start)


def _joined(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([item[name] for item in found]).contiguous() for name in found[0]}


def _is_there(path: Path, key: str) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, 'pt') as file:
            own = (file.metadata() or {}).get('key') == key
    except (OSError, SafetensorError) as error:
        raise OutputError(f'{path} cannot be read ({error}): delete it to go on.') from error
    if not own:
        raise ConfigError(
            f'{path.parent} holds parts of another analysis (another model, other images or '
            'settings): choose another folder, or delete it.'
        )
    return True


def measure_batch(
    plan: Plan, runner: Runner, batch: dict[str, Tensor], first: int
) -> dict[str, Tensor]:
    """Measure one batch.

    Args:
        plan: What is measured.
        runner: The model.
        batch: ``image``, and perhaps ``label``.
        first: Number of its first image.

    Returns:
        For each block i ``eigenvalues.i`` (b, leading), ``rank.i`` (b,), ``mean.i`` (b, d) and
        ``tokens.i`` (b, m, d); ``cells`` (b, m) of the tokens; ``label`` where there is one.
    """
    images = runner.images(batch)
    area = patch_grid(runner.model, images).area
    out: dict[str, Tensor] = {}
    chosen: Tensor | None = None
    for index, x in enumerate(block_patches(runner.model, images)):
        if chosen is None:
            chosen = draw_tokens(plan, first, len(images), x.shape[1])
            out['cells'] = cell_numbers(x.shape[1], area)[chosen]
        if index in plan.blocks:
            out |= _measure_block(x, chosen, plan.leading, index)
        if index == plan.blocks[-1]:
            break
    if 'label' in batch:
        out['label'] = batch['label'].to(torch.int64)
    return out


def _measure_block(
    x: Float[Tensor, 'b n d'], chosen: Int[Tensor, 'b m'], leading: int, index: int
) -> dict[str, Tensor]:
    values = patch_eigenvalues(x)
    where = chosen.to(x.device)[..., None].expand(-1, -1, x.shape[2])  # (b, m, d)
    found = {
        'eigenvalues': values[:, :leading],
        'rank': spectral_rank(values),
        'mean': x.mean(dim=1),
        'tokens': x.gather(1, where),
    }
    return {f'{name}.{index}': value.float().cpu() for name, value in found.items()}


def draw_tokens(plan: Plan, first: int, images: int, count: int) -> Int[Tensor, 'b m']:
    """Draw tokens of each image, by the image's number alone: the same for every model and batch.

    Args:
        plan: How many, and the seed.
        first: Number of the first image.
        images: How many images.
        count: Tokens of an image.
    """
    rows = [
        np.sort(np.random.default_rng([plan.seed, first + row]).permutation(count)[: plan.tokens])
        for row in range(images)
    ]
    return torch.from_numpy(np.stack(rows))


def read_parts(plan: Plan, dim: int, name: str) -> Tensor:
    """Read one tensor of all images.

    Args:
        plan: What was measured.
        dim: Width of the model.
        name: As :func:`measure_batch` has it.

    Raises:
        OutputError: If a part cannot be read.
    """
    return torch.cat(list(_each(plan, dim, name)))


def _each(plan: Plan, dim: int, name: str) -> Iterator[Tensor]:
    for _, _, path in plan.parts(dim):
        try:
            with safe_open(path, 'pt') as file:
                yield file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise OutputError(f'{path} cannot be read ({error}): delete it to go on.') from error


def has_labels(plan: Plan, dim: int) -> bool:
    """Whether the images have labels."""
    with safe_open(plan.parts(dim)[0][2], 'pt') as file:
        return 'label' in set(file.keys())


def read_scores(path: Path, key: str) -> dict[str, Any] | None:
    """Read the scores of a block, or None where they are not there or of something else.

    Args:
        path: Of the file.
        key: That they were written with.
    """
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    return content['scores'] if content.get('key') == key else None
