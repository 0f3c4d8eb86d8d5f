"""What is known of the classes, the bands and the files of the images that are predicted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import Subset

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.tasks._reports.colors import Color, class_colors

type Kind = Literal['binary', 'multiclass']


@dataclass(frozen=True)
class ClassInfo:
    """What is known of the classes of a task and of its images.

    Args:
        names: Of the classes.
        colors: Of the classes.
        bands: Names of the bands of the images, if known.
        ignore_index: Value of labels that are not scored.
        kind: Whether logits are one number for two classes, or one a class.
        dense: Whether every pixel has a class.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    bands: tuple[str, ...] | None
    ignore_index: int | None
    kind: Kind
    dense: bool

    @property
    def ignored(self) -> int | None:
        """Class that is not scored, if one of the classes is."""
        index = self.ignore_index
        return index if index is not None and 0 <= index < len(self.names) else None

    @property
    def unit(self) -> str:
        """What is counted."""
        return 'pixels' if self.dense else 'images'


def task_kind(task: pl.LightningModule) -> Kind:
    """Return what the logits of a task are.

    Raises:
        ConfigError: If an image can have several classes.
    """
    kind = task.hparams.get('task', 'multiclass')
    if kind not in ('binary', 'multiclass'):
        raise ConfigError(
            f'The task is {kind}, where an image can have several classes: reports and prediction '
            'files are for tasks with one class, binary or multiclass.'
        )
    return 'binary' if kind == 'binary' else 'multiclass'


def class_info(trainer: pl.Trainer, task: pl.LightningModule, scores: Tensor) -> ClassInfo:
    """Find out about the classes from the data module and the task.

    Args:
        trainer: Whose data module names classes, colours and bands.
        task: Whose arguments say what the data module does not.
        scores: Logits or probabilities, (B, K) or (B, K, H, W); K is 1 if binary.

    Raises:
        ConfigError: If an image can have several classes.
    """
    kind = task_kind(task)
    holders = list(_holders(trainer))
    count = 2 if kind == 'binary' else scores.shape[1]
    labels = task.hparams.get('labels')
    named = [getattr(holder, 'classes', None) for holder in holders]
    names = next((n for n in [labels, *named] if _is_list(n, count)), None)
    colors = next((c for h in holders if _is_list(c := getattr(h, 'colors', None), count)), None)
    bands = next((b for h in holders if _is_list(b := getattr(h, 'bands', None))), None)
    texts = tuple(f'class {i}' for i in range(count)) if names is None else tuple(map(str, names))
    return ClassInfo(
        texts, tuple(class_colors(texts, colors)),
        None if bands is None else tuple(str(band) for band in bands),
        task.hparams.get('ignore_index'), kind, scores.ndim == 4,
    )  # fmt: skip


def _is_list(value: object, length: int | None = None) -> bool:
    fits = isinstance(value, list | tuple) and len(value) > 0
    return fits and (length is None or len(value) == length)  # type: ignore[arg-type]


def _holders(trainer: pl.Trainer) -> Iterator[object]:
    """What may name classes and bands: the data module and its data sets."""
    datamodule = getattr(trainer, 'datamodule', None)
    yield datamodule
    for split in ('test', 'predict', 'val', 'train'):
        for name in (f'{split}_dataset', 'dataset'):
            yield from _inside(getattr(datamodule, name, None))


def _inside(dataset: object) -> Iterator[object]:
    while dataset is not None:
        yield dataset
        dataset = dataset.dataset if isinstance(dataset, Subset) else None
