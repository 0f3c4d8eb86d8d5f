"""The base of ``replay``: a small vision transformer trained with labels on the source domain.

The paper's base has seen 142 million natural images without labels. Nothing like that fits into a
minute, so the replay's base learns the source domain's classes with their labels instead; the
adaptation to the target domain then sees no labels at all.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora.cli.replay_model import NAME, SIDE
from torchgeo_explora.cli.training import ProgressLine
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.layers.tokens import encode, global_token
from torchgeo_explora.models import create_backbone
from torchgeo_explora.objectives.probing import Progress
from torchgeo_explora.transforms import EvalTransform

BATCH, PEAK_RATE, WEIGHT_DECAY = 64, 1.5e-3, 0.05
LEAST_CROP, WARMUP = 0.4, 0.15


@dataclass(frozen=True)
class Base:
    """A pre-trained base.

    Args:
        model: The vision transformer.
        accuracy: Of its own classifier on source scenes it has not seen, in [0, 1].
        seconds: Of training.
    """

    model: VisionTransformer
    accuracy: float
    seconds: float


def train_base(
    train: SyntheticScenes, test: SyntheticScenes, epochs: int, seed: int, device: torch.device
) -> Base:
    """Train the base.

    Args:
        train: Labelled source scenes.
        test: Other source scenes.
        epochs: Passes over ``train``.
        seed: Of weights, order and crops.
        device: Where to train.
    """
    start = time.monotonic()
    model, _ = create_backbone(NAME, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(model.embed_dim, len(train.classes))
    with torch.no_grad():
        head.weight.normal_(0, 0.01, generator=generator)
        head.bias.zero_()
    model, head = model.to(device).train(), head.to(device)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, PEAK_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, steps, pct_start=WARMUP)
    line = ProgressLine('Base, source scenes')
    for step, (images, labels) in enumerate(batches(train, steps, generator), start=1):
        features = global_token(model, encode(model, images.to(device)))
        loss = F.cross_entropy(head(features), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        line(Progress(step * BATCH, steps * BATCH, time.monotonic() - start))
    return Base(model.eval(), classify(model, head, test, device), time.monotonic() - start)


def batches(
    scenes: SyntheticScenes, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random crops of scenes, turned and mirrored, with their labels.

    Args:
        scenes: Where they come from.
        steps: Number of batches.
        generator: Source of everything random.
    """
    transform = EvalTransform(SIDE)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(scenes), generator=generator)
        index, order = order[:BATCH], order[BATCH:]
        images = scenes.images[index].float().div(255)
        yield transform(_crop(images, generator)), scenes.labels[index]


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """One square crop for a whole batch, and one of the eight symmetries of the square."""
    side = images.shape[-1]
    least = round(side * LEAST_CROP**0.5)
    length = int(torch.randint(least, side + 1, (), generator=generator))
    top, left, turns, mirror = (
        int(torch.randint(high, (), generator=generator))
        for high in (side - length + 1, side - length + 1, 4, 2)
    )
    crop = images[..., top : top + length, left : left + length]
    turned = torch.rot90(crop, turns, (-2, -1))
    return turned.flip(-1) if mirror else turned


@torch.no_grad()
def classify(
    model: VisionTransformer, head: nn.Linear, scenes: SyntheticScenes, device: torch.device
) -> float:
    """Return the accuracy of a model with a classifier on some scenes.

    Args:
        model: The vision transformer.
        head: Its classifier.
        scenes: What is classified.
        device: Where to compute.
    """
    transform, right = EvalTransform(SIDE).to(device), 0
    for images, labels in zip(scenes.images.split(100), scenes.labels.split(100), strict=True):
        normalised = transform(images.to(device).float().div(255))
        predicted = head(global_token(model, encode(model, normalised))).argmax(dim=1)
        right += int((predicted.cpu() == labels).sum())
    return right / len(scenes)
