"""Callback that writes what ``predict`` finds: a table of images, or masks."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.tasks._reports.classes import ClassInfo, class_info, task_kind
from torchgeo_explora.tasks._reports.collect import decide
from torchgeo_explora.tasks._reports.files import sample_file
from torchgeo_explora.tasks._reports.loaders import gathered, pick_loader
from torchgeo_explora.tasks._reports.masks import Place, write_picture, write_raster
from torchgeo_explora.tasks._reports.predicted import Rows, class_shares, image_values, write_rows

FOLDER = 'predictions'
MASKS = 'masks'
TABLE = 'predictions.csv'


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of ``predict`` into ``predictions/`` of the run's folder.

    Of a classification, ``predictions.csv`` has a row an image: its position in the data set, its
    file where that is known, the most probable class and its probability. Of a segmentation,
    ``masks/`` has a mask an image, and ``predictions.csv`` each class's share of its pixels. Where
    samples name their ``file`` and their ``window`` in it, a mask is a GeoTIFF in the grid of that
    file, with nodata where the file has none; otherwise it is a PNG in the colours of the classes.
    The values of either are class indices; names begin with the position in the data set.

    Several loaders have a folder each, ``predictions_0/`` and so on. Predictions need not be
    returned as well: ``--return_predictions false`` saves their memory.

    Args:
        probabilities: Whether the table of images has the probability of every class.
        folder: Name of the folder in that of the run.

    Raises:
        ConfigError: In a prediction, if the task gives no probabilities of classes.
    """

    def __init__(self, probabilities: bool = False, folder: str = FOLDER) -> None:
        super().__init__('batch')
        self.probabilities, self.folder = probabilities, folder
        self._parts: dict[int, list[Rows]] = {}
        self._info: dict[int, ClassInfo] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with nothing."""
        task_kind(pl_module)
        self._parts, self._info = {}, {}
        self._run_folder = Path(trainer.log_dir or trainer.default_root_dir)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: object,
        batch_indices: Sequence[int] | None,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the rows of a batch, and write its masks."""
        scores = class_scores_of(prediction, pl_module)
        number = dataloader_idx
        if number not in self._info:
            self._info[number] = class_info(trainer, pl_module, scores)
        info, parts = self._info[number], self._parts.setdefault(number, [])
        seen = sum(len(part.indices) for part in parts)
        found = batch_indices if batch_indices else range(seen, seen + len(scores))
        indices = np.array(found, np.int64)
        files = dict(zip(indices.tolist(), map(str, batch.get('file', [])), strict=False))
        if not info.dense:
            values = image_values(scores, info, self.probabilities)
        else:
            masks = decide(scores, info, probabilities=True)[0].cpu().numpy()
            values = class_shares(masks, len(info.names))
            if not getattr(trainer, 'fast_dev_run', False):
                folder = self._target(trainer, number) / MASKS
                write_masks(folder, masks, indices.tolist(), info, batch)
        parts.append(Rows(indices, values, files))

    def _target(self, trainer: pl.Trainer, number: int) -> Path:
        loaders = trainer.predict_dataloaders
        several = isinstance(loaders, list | tuple) and len(loaders) > 1
        return self._run_folder / (f'{self.folder}_{number}' if several else self.folder)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the rows of all processes and write them."""
        # a process may have had no batch of a loader, and has to take part all the same
        found = gathered({n: (Rows.join(p), self._info[n]) for n, p in self._parts.items()})
        self._parts = {}
        if not trainer.is_global_zero or getattr(trainer, 'fast_dev_run', False):
            return
        for number in sorted({number for part in found for number in part}):
            parts = [part[number] for part in found if number in part]
            rows, info = Rows.join([rows for rows, _ in parts]), parts[0][1]
            loader = pick_loader(trainer.predict_dataloaders, number)
            file_of = partial(sample_file, getattr(loader, 'dataset', None))
            folder = self._target(trainer, number)
            path = write_rows(folder / TABLE, rows, info, file_of)
            rank_zero_info(f'Wrote {len(rows.indices):,} predictions: {path}')
            if info.dense:
                rank_zero_info(f'Wrote their masks: {folder / MASKS}')


def class_scores_of(prediction: object, task: pl.LightningModule) -> Tensor:
    """Return the probabilities in what a task's ``predict_step`` gives.

    Args:
        prediction: Probabilities (B, K), or a dictionary with ``probabilities`` (B, K, H, W).
        task: Whose they are.

    Raises:
        ConfigError: If there are none.
    """
    found = prediction.get('probabilities') if isinstance(prediction, Mapping) else prediction
    if not isinstance(found, Tensor) or found.ndim not in (2, 4):
        raise ConfigError(
            f'{type(task).__name__} predicts no probabilities of classes, which PredictionWriter '
            'writes: use it with a task for classification or segmentation.'
        )
    return found.float()


def write_masks(
    folder: Path,
    masks: NDArray[np.int64],
    indices: Sequence[int],
    info: ClassInfo,
    batch: Mapping[str, Any],
) -> list[Path]:
    """Write the masks of a batch.

    Args:
        folder: Where they go.
        masks: Class indices (B, H, W).
        indices: Positions of the samples in the data set.
        info: What is known of the classes.
        batch: May hold ``file``, a path a sample, and ``window``, int64 (B, 4): row, column, height
            and width of the part of the file that a sample shows in its upper left.

    Raises:
        ImageError: If a file cannot be read any more.
        OutputError: If a mask cannot be written.
    """
    files, windows = batch.get('file'), batch.get('window')
    paths = []
    for row, (index, mask) in enumerate(zip(indices, masks, strict=True)):
        if files is None or not isinstance(windows, Tensor):
            paths.append(write_picture(folder / f'{index:06d}.png', mask, info.colors))
            continue
        place = Place(str(files[row]), *map(int, windows[row].tolist()))
        # rasters of several folders may have one name
        name = f'{index:06d}_{Path(place.file).stem}_{place.row}_{place.column}.tif'
        paths.append(write_raster(folder / name, mask, place, info.names, info.colors))
    return paths
