"""Rows of the table of predictions, in columns that stay small for millions of images."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora._files import replacing
from torchgeo_explora.tasks._reports.classes import ClassInfo
from torchgeo_explora.tasks._reports.collect import decide


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of the table.

    Args:
        indices: Positions of the samples in the data set, (N,).
        values: What is written of each, (N, M): the class, its probability and, where asked for,
            the probability of every class; of masks, the share of every class.
        files: Files that the samples name themselves, by position.
    """

    indices: NDArray[np.int64]
    values: NDArray[np.float32]
    files: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def join(parts: Sequence['Rows']) -> 'Rows':
        """Join rows of batches or processes in the order of the data set.

        Args:
            parts: At least one.
        """
        indices = np.concatenate([part.indices for part in parts])
        order = np.argsort(indices, kind='stable')
        values = np.concatenate([part.values for part in parts])[order]
        files = {index: name for part in parts for index, name in part.files.items()}
        return Rows(indices[order], values, files)


def image_values(scores: Tensor, info: ClassInfo, every: bool) -> NDArray[np.float32]:
    """Return class and probability of every image, and all probabilities where asked for.

    Args:
        scores: Probabilities (B, K); K is 1 if binary.
        info: What is known of the classes.
        every: Whether all are wanted.
    """
    scores = scores.float().cpu()
    predicted, confidence = decide(scores, info, probabilities=True)
    columns = [predicted.float()[:, None], confidence[:, None]]
    if every:
        columns.append(torch.cat([1 - scores, scores], 1) if info.kind == 'binary' else scores)
    values: NDArray[np.float32] = torch.cat(columns, dim=1).numpy()
    return values


def class_shares(masks: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Return each class's share of the pixels of every mask (B, H, W), as (B, K)."""
    counts = [np.bincount(mask.ravel(), minlength=classes) / mask.size for mask in masks]
    return np.array(counts, np.float32).reshape(-1, classes)


def write_rows(path: Path, rows: Rows, info: ClassInfo, file_of: Callable[[int], str]) -> Path:
    """Write the table.

    Args:
        path: Of the file.
        rows: What it holds.
        info: What is known of the classes.
        file_of: Gives the file of a sample that does not name its own; empty where unknown.

    Raises:
        OutputError: If it cannot be written.
    """
    every = rows.values.shape[1] > 2 or info.dense
    names = [f'{"share" if info.dense else "probability"} of {name}' for name in info.names]
    own = [] if info.dense else ['class_index', 'class', 'probability']
    with replacing(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
        table = csv.writer(file)
        table.writerow(['index', 'file', *own, *(names if every else [])])
        table.writerows(_cells(rows, info, file_of))
    return path


def _cells(rows: Rows, info: ClassInfo, file_of: Callable[[int], str]) -> Iterator[list[str | int]]:
    for index, values in zip(rows.indices.tolist(), rows.values, strict=True):
        name = rows.files.get(index)
        start: list[str | int] = [index, file_of(index) if name is None else name]
        if not info.dense:
            predicted, values = int(values[0]), values[1:]
            start += [predicted, info.names[predicted]]
        yield [*start, *(f'{value:.6g}' for value in values.tolist())]
