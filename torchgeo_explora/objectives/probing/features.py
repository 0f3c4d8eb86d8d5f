"""Features of a frozen vision transformer, extracted once and kept for every probe."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.layers.tokens import global_token, intermediate_tokens, patch_tokens

Batch = Mapping[str, Any] | Tensor
Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Features:
    """Features of some images, float32 on the CPU unless moved.

    Args:
        cls: Class tokens of the last blocks, each after the final norm, in block order, so that
            ``cls[:, -1]`` is the model's output (images, blocks, dim). For a model without a class
            token these are mean patch tokens.
        patch_mean: Mean patch token of the last block after the final norm (images, dim).
        labels: Class indices (images,), or None for unlabelled images.
    """

    cls: Float[Tensor, 'images blocks dim']
    patch_mean: Float[Tensor, 'images dim']
    labels: Int[Tensor, ' images'] | None = None

    def __len__(self) -> int:
        return len(self.cls)

    @property
    def last(self) -> Float[Tensor, 'images dim']:
        """Class tokens of the last block."""
        return self.cls[:, -1]

    def require_labels(self) -> Int[Tensor, ' images']:
        """Return the labels.

        Raises:
            ConfigError: If there are none.
        """
        if self.labels is None:
            raise ConfigError(
                'The images of a probe have no labels, and a probe needs them: '
                'give a data set with a class for each image.'
            )
        return self.labels

    def inputs(self, blocks: int, average_pool: bool) -> Float[Tensor, 'images features']:
        """Concatenate class tokens of the last blocks and, on demand, the mean patch token.

        Args:
            blocks: Number of last blocks.
            average_pool: Whether the mean patch token of the last block is appended.

        Raises:
            ConfigError: If fewer blocks were extracted.
        """
        check_blocks(blocks, self.cls.shape[1])
        x = self.cls[:, self.cls.shape[1] - blocks :].flatten(1)  # (n, blocks, d) -> (n, blocks*d)
        return torch.cat([x, self.patch_mean], dim=1) if average_pool else x

    def select(self, index: Int[Tensor, ' chosen']) -> 'Features':
        """Return the features of some images."""
        labels = None if self.labels is None else self.labels[index]
        return Features(self.cls[index], self.patch_mean[index], labels)

    @staticmethod
    def concatenate(parts: Sequence['Features']) -> 'Features':
        """Join features of several sets or views; labels are kept if every part has them."""
        labels = [part.labels for part in parts if part.labels is not None]
        return Features(
            torch.cat([part.cls for part in parts]),
            torch.cat([part.patch_mean for part in parts]),
            torch.cat(labels) if len(labels) == len(parts) else None,
        )


def check_blocks(blocks: int, available: int) -> None:
    """Refuse a number of last blocks that does not exist.

    Raises:
        ConfigError: If ``blocks`` is not between 1 and ``available``.
    """
    if not 1 <= blocks <= available:
        raise ConfigError(
            f'The probe asks for the last {blocks} blocks and {available} are there: '
            f'ask for 1 to {available} blocks.'
        )


@dataclass(frozen=True)
class Progress:
    """State of a long computation.

    Args:
        done: Images or iterations finished.
        total: How many there will be, or None if unknown.
        seconds: Time since the start.
    """

    done: int
    total: int | None
    seconds: float

    @property
    def rate(self) -> float:
        """Images or iterations a second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds to go at the present rate, or None if unknown."""
        if self.total is None or self.rate == 0:
            return None
        return (self.total - self.done) / self.rate


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, then restore every module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _unpack(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Images, labels and timestamps; those that the model takes are on its device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True), None, None
    times: Tensor | None = batch.get('timestamps')
    times = None if times is None else times.to(device)
    return batch['image'].to(device, non_blocking=True), batch.get('label'), times


def image_features(
    model: VisionTransformer,
    images: Float[Tensor, 'b *axes h w'],
    n_last_blocks: int = 4,
    timestamps: Float[Tensor, 'b dates 3'] | None = None,
) -> Features:
    """Features of one batch of normalised images, on the model's device and with its mode.

    Args:
        model: Any timm vision transformer.
        images: Normalised images, (b, c, h, w), or (b, dates, c, h, w) for a temporal model.
        n_last_blocks: Number of last blocks whose class token is kept.
        timestamps: (year - 2002, month - 1, hour) of every date, for a temporal model.

    Raises:
        ConfigError: If the model has fewer blocks.
    """
    check_blocks(n_last_blocks, len(model.blocks))
    blocks = range(-n_last_blocks, 0)
    outputs = intermediate_tokens(model, images, blocks, timestamps=timestamps)
    cls = torch.stack([global_token(model, tokens) for tokens in outputs], dim=1)
    return Features(cls.float(), patch_tokens(model, outputs[-1]).float().mean(dim=1))


def _to_cpu(features: Features, labels: Tensor | None) -> Features:
    kept = None if labels is None else labels.to('cpu', torch.int64)
    return Features(features.cls.cpu(), features.patch_mean.cpu(), kept)


def extract_features(
    model: VisionTransformer,
    batches: Iterable[Batch],
    transform: Transform | None = None,
    n_last_blocks: int = 4,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[Progress], None] | None = None,
    total: int | None = None,
) -> Features:
    """Extract the features of a stream of images with a frozen model.

    The model is moved to ``device`` and stays there; the mode of each of its modules is restored.
    For a model without a class token the mean patch token stands in for it.

    Args:
        model: Any timm vision transformer.
        batches: Batches of images (b, c, h, w), or mappings with ``image``, perhaps ``label`` and, for
            a temporal model, ``timestamps``.
        transform: Resizes, crops and normalises a batch of images on the device.
        n_last_blocks: Number of last blocks whose class token is kept.
        device: Where the model runs; None keeps the model where it is.
        dtype: float32, or the half precision of autocast (the official probe uses float16).
        progress: Called after each batch.
        total: Number of images, for the progress.

    Raises:
        ConfigError: If the model has fewer blocks.
        ImageError: If there is no image.

    Source: DINOv2's linear evaluation, as used by ExPLoRA; class tokens after the final norm.
    """
    place = next(model.parameters()).device if device is None else torch.device(device)
    model.to(place)
    parts: list[Features] = []
    start, done = time.monotonic(), 0
    with evaluation_mode(model), torch.autocast(place.type, dtype, dtype != torch.float32):
        for batch in batches:
            images, labels, times = _unpack(batch, place)
            images = images if transform is None else transform(images)
            found = image_features(model, images, n_last_blocks, times)
            parts.append(_to_cpu(found, labels))
            done += len(images)
            if progress is not None:
                progress(Progress(done, total, time.monotonic() - start))
    if not parts:
        raise ImageError(
            'The features of no image were asked for: give at least one batch of images.'
        )
    return Features.concatenate(parts)
