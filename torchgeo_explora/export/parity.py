"""Whether an exported model gives what the one in PyTorch gives."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.errors import ConfigError, ImageError, OutputError
from torchgeo_explora.export.portable import PortableModel

BOUND = 1e-4
"""Largest difference allowed, of probabilities, or as a share of the largest value if above 1."""

type Array = NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How close an exported model is.

    Args:
        difference: Largest absolute difference of a value, over batches of one and of three.
        largest: Largest absolute value.
        agreement: Share of images or pixels that get the same class; None of embeddings.
    """

    difference: float
    largest: float
    agreement: float | None

    @property
    def bound(self) -> float:
        """Largest difference that is allowed."""
        return BOUND * max(1.0, self.largest)


def random_chip(model: PortableModel, seed: int = 0) -> Tensor:
    """Draw a standardised image (bands, side, side) where there is none to read.

    Args:
        model: What it is for.
        seed: Of the values, even in [0, 1] before they are standardised.
    """
    shape, images = model.spec.input_shape, model.spec.images
    unit = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    return (unit - mean) / std


def compare(
    model: PortableModel, run: Callable[[Array], Array], chip: Tensor, path: Path
) -> Parity:
    """Run both models on a chip, alone and in a batch with its mirror images.

    Args:
        model: The model in PyTorch.
        run: Gives the outputs of the exported model for a batch.
        chip: Standardised image (bands, side, side).
        path: Of the exported model, for messages.

    Returns:
        How close they are.

    Raises:
        ImageError: If the chip is of another shape than the model takes.
        OutputError: If they are not close, or the exported model cannot be run.
    """
    if tuple(chip.shape) != model.spec.input_shape:
        raise ImageError(
            f'The chip is of shape {tuple(chip.shape)}: the model takes {model.spec.input_shape}.'
        )
    pairs = []
    for batch in (chip[None], torch.stack([chip.flip(1), chip, chip.flip(2)])):
        with torch.no_grad():
            expected: Array = model(batch).numpy()
        pairs.append((expected, _run(run, batch.numpy(), path)))
    return _judge(pairs, model.spec.task != 'embedding', path)


def _run(run: Callable[[Array], Array], batch: Array, path: Path) -> Array:
    try:
        return run(batch)
    except ConfigError:
        raise
    except Exception as error:  # whatever the runtime raises, nothing is written
        raise OutputError(
            f'{path} was not written, because the exported model cannot be run ({error}).'
        ) from error


def _judge(pairs: list[tuple[Array, Array]], classes: bool, path: Path) -> Parity:
    for expected, found in pairs:
        if expected.shape != found.shape:
            raise OutputError(
                f'{path} was not written: the exported model gives {found.shape}, the one in '
                f'PyTorch {expected.shape}.'
            )
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    same = [(a.argmax(1) == b.argmax(1)).mean() for a, b in pairs] if classes else None
    largest = max(float(np.abs(a).max()) for a, _ in pairs)
    parity = Parity(difference, largest, None if same is None else float(min(same)))
    if not difference <= parity.bound:  # NaN too
        raise OutputError(
            f'{path} was not written: the exported model differs from the one in PyTorch by up to '
            f'{difference:.2g}, {parity.bound:.2g} is allowed; try another version of torch.'
        )
    return parity
