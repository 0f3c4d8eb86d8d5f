"""fMoW's RGB pictures in both layouts: tables of crops, and the raw data set with boxes."""

import os
from abc import ABC
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.errors import ConfigError, ImageError

from ._crops import Cropping
from ._csv import Column
from ._fmow import BASES, CATEGORIES, FMoW, find_folder, label_numbers
from ._fmow_boxes import context_window, read_notes
from ._index import ImageIndex, PackedStrings, spread
from ._indexed import read_rgb
from ._tables import read_table

# SatMAE calls the second table val_, ExPLoRA test_: both hold the validation images.
_TABLES = {
    'train': ('train_62classes.csv',),
    'val': ('val_62classes.csv', 'test_62classes.csv'),
    'test': ('test_62classes.csv', 'val_62classes.csv'),
}

PICTURES = {'rgb': '_rgb.jpg', 'msrgb': '_msrgb.jpg'}
"""Ends of the names of the raw data set's two kinds of pictures."""


class FMoWPictures(FMoW, ABC):
    """RGB pictures of fMoW, from a table or from the raw data set's folders.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``.
        columns: Columns of the table.
        kind: ``rgb`` or ``msrgb``, of the raw data set.
        cut_boxes: Whether to cut images to the boxes of the JSON files beside them; ``auto`` for
            whether there are any.
        cropping: How images become squares.
        seed: Seed of what is drawn.
        csv: Table to read instead of the split's.
        check_files: Whether to look for every file now.
    """

    bands = ('red', 'green', 'blue')

    def __init__(
        self,
        root: Path | str,
        split: Literal['train', 'val', 'test'],
        columns: Sequence[Column],
        kind: Literal['rgb', 'msrgb'],
        cut_boxes: Literal['auto'] | bool,
        cropping: Cropping | None,
        seed: int,
        csv: Path | str | None,
        check_files: bool,
    ) -> None:
        if split not in _TABLES or kind not in PICTURES or cut_boxes not in {'auto', True, False}:
            raise ConfigError(
                f"split {split!r}, kind {kind!r}, cut_boxes {cut_boxes!r}: give 'train', 'val' or "
                "'test'; 'rgb' or 'msrgb'; 'auto', true or false."
            )
        self.root, self.split, self.kind = Path(root), split, kind
        self.skipped: dict[str, list[str]] = {}
        path = self._table(csv)
        index, folder = self._walk() if path is None else self._locate(path, columns)
        self.cut_boxes = cut_boxes
        if cut_boxes == 'auto':
            probes = (folder / index.paths[row] for row in spread(len(index), 8))
            self.cut_boxes = any(probe.with_suffix('.json').is_file() for probe in probes)
        super().__init__(
            index, folder, Cropping() if cropping is None else cropping, seed, check_files
        )

    def _table(self, csv: Path | str | None) -> Path | None:
        """The table to read; None where there is none and none is asked for."""
        names = _TABLES[self.split] if csv is None else (csv,)
        paths = [self.root / base / name for base in BASES for name in names]
        found = next((path for path in paths if path.is_file()), None)
        if found is None and csv is not None:
            raise DatasetNotFoundError(self)
        return found

    def _locate(self, path: Path, columns: Sequence[Column]) -> tuple[ImageIndex, Path]:
        """Entries of a table, and the folder that its paths are relative to."""
        table = read_table(path, columns)
        self.skipped = table.skipped
        found = find_folder(self.root, table.forms([_in_box_folder]))
        if found is None:
            raise DatasetNotFoundError(self)
        return table.index(found[0]), found[1]

    def _walk(self) -> tuple[ImageIndex, Path]:
        """Pictures of the raw layout."""
        for base in BASES:
            for name in (self.split, f'{self.split}_gt'):
                folder = self.root / base / name
                paths = list(_raw_paths(folder, PICTURES[self.kind]))
                if paths:
                    labels, _ = label_numbers([path.split('/', 1)[0] for path in paths])
                    return ImageIndex(PackedStrings(paths), torch.from_numpy(labels)), folder
        raise DatasetNotFoundError(self)

    def _read(self, position: int) -> Tensor:
        path = self._path(position)
        pixels = read_rgb(path)
        if self.cut_boxes:
            notes = read_notes(path.with_suffix('.json'))
            category = CATEGORIES[int(self.index.labels[position])]
            box = context_window(notes, category, *pixels.shape[1:])
            pixels = pixels[:, box.top : box.top + box.height, box.left : box.left + box.width]
        if not pixels.any():
            raise ImageError('all of its values are 0')
        return pixels.contiguous()


def _in_box_folder(path: str) -> str | None:
    """The path as the baseline's script writes crops: in a folder of the box, ``<class>_-1``."""
    parts = path.rsplit('/', 2)
    if len(parts) < 3:
        return None
    above, place, file = parts
    return f'{above}/{place}/{place.rsplit("_", 1)[0]}_-1/{file}'


def _raw_paths(folder: Path, end: str) -> Iterator[str]:
    """``<class>/<place>/<picture>`` of all pictures of one kind, sorted."""
    for name in CATEGORIES:
        for place in _names(folder / name):
            files = _names(folder / name / place)
            yield from (f'{name}/{place}/{file}' for file in files if file.endswith(end))


def _names(folder: Path) -> list[str]:
    """What is in a folder, sorted; nothing if it is none. Half a million ``Path`` would be slow."""
    return sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208
