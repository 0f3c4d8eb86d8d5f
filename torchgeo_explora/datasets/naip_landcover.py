"""NAIP land cover: aerial chips of California's Central Valley and their main kind of cover."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.errors import ConfigError, ImageError

from ._cdl import class_names
from ._crops import Cropping, Draw
from ._csv import Column, read_chunks
from ._index import ImageIndex, PackedStrings, spread
from ._indexed import IndexedImages
from ._plots import plot_sample

NAIPLandCoverSplit = Literal['train', 'val', 'test', 'val+test']

_SPLITS = {'train': (0,), 'val': (1,), 'test': (2,), 'val+test': (1, 2)}
_SPLIT_NAMES = {
    'train': 0,
    'val': 1,
    'valid': 1,
    'validation': 1,
    'test': 2,
    '0': 0,
    '1': 1,
    '2': 2,
}
_FOLDERS = ('', 'land_cover_representation', 'land_cover_rep_v1.1', 'land_cover_rep_v1.0')
_TABLES = ('metadata.csv', 'metadata_filtered.csv')
_TILES, _LABELS, _ARRAY = 'supervised_50_100', 'y_50_100.npy', 'splits.npy'
_COLUMNS = (
    Column('path', ('file_name', 'filename', 'path', 'image_path')),
    Column('code', ('landcover', 'land_cover'), required=False),
    Column('y', ('y', 'label'), required=False),
    Column('split', ('split_str', 'splitstr', 'split')),
)
_MOST_CLASSES = 66
_PROBES = 32


@dataclass
class _Table:
    """All chips of all splits.

    Args:
        paths: Of the chips.
        codes: What stands as the class, (N,).
        splits: 0 train, 1 val, 2 test, (N,).
    """

    paths: PackedStrings
    codes: NDArray[np.int64]
    splits: NDArray[np.int64]


class NAIPLandCover(IndexedImages):
    """NAIP land cover: 300,000 chips of 100x100 pixels at 0.6 m, of 66 kinds of cover.

    Chips are of the USDA's aerial photographs (red, green, blue, near infrared); their class is the
    one of the Cropland Data Layer that most pixels have. The paper trains on 244,471 and scores on
    55,529, which are the chips of ``val`` and ``test`` together, as in SatMAE's code.

    Two layouts are read. SustainBench's, in ``root`` or in ``land_cover_representation``,
    ``land_cover_rep_v1.1`` or ``land_cover_rep_v1.0`` in it::

        metadata.csv: file_name (or fileName), y (or landCover), split_str (or splitStr), ...
        <file_name>, or tile_triplets/<file_name>: arrays of (100, 100, 4 or more)

    and that of SatMAE's loader, of the same chips::

        supervised_50_100/<i>tile.npy: arrays of (100, 100, 3 or more)
        y_50_100.npy: the class of every chip
        splits.npy: 0 train, 1 val, 2 test

    Classes are the codes that occur in any split, ascending, as SatMAE numbers them, and are named
    by the layer's legend. Numbers of 0 to 65 that stand in a column ``y`` are taken as numbers
    of classes already, whose names are then not known.

    Neither data set was at hand when this was written: layouts are those of the public loaders
    (SustainBench, USat, SatMAE), and a table with other names is refused with a sentence. A chip
    that cannot be used is replaced by the next one, counted and named.

    If you use this data set, please cite https://arxiv.org/abs/1805.02855. There is no download;
    https://sustainlab-group.github.io/sustainbench/docs/datasets/sdg15/land_cover_representation.html

    Args:
        root: Folder of the data set.
        split: ``train``, ``val``, ``test`` or, for the paper's protocol, ``val+test``.
        bands: Names of the bands, in order, of red, green, blue and nir.
        cropping: How chips become squares; None to leave them as they are.
        seed: Seed of random crops.
        csv: Table to read, an absolute path or relative to ``root``.
        check_files: Look for every file at once and leave missing ones out; by default a missing
            file is found when it is read.

    Raises:
        DatasetNotFoundError: If the table or the chips are not there.
        ImageError: If the table cannot be used.
        ConfigError: If an argument is not possible.

    Attributes:
        codes: The layer's code of every class; None where the table numbers classes itself.
    """

    all_bands = ('red', 'green', 'blue', 'nir')

    def __init__(
        self,
        root: Path | str = 'data',
        split: NAIPLandCoverSplit = 'train',
        bands: Sequence[str] = ('red', 'green', 'blue'),
        cropping: Cropping | None = None,
        seed: int = 0,
        csv: Path | str | None = None,
        check_files: bool = False,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f'split is {split!r}: give one of {", ".join(_SPLITS)}.')
        unknown = [band for band in bands if band not in self.all_bands]
        if unknown or len(set(bands)) != len(bands) or not bands:
            raise ConfigError(
                f'bands are {list(bands)}: give some of {", ".join(self.all_bands)}, each once.'
            )
        self.root, self.split, self.bands = Path(root), split, tuple(bands)
        self.skipped: dict[str, list[str]] = {}
        table, folder = self._table(csv)
        labels = self._number(table.codes)
        rows = np.flatnonzero(np.isin(table.splits, _SPLITS[split]))
        if len(rows) == 0:
            raise ImageError(f'{self.root} has no chip of {split}: give all of the table.')
        index = ImageIndex(table.paths, torch.from_numpy(labels)).take(rows)
        super().__init__(
            index, folder, Cropping() if cropping is None else cropping, seed, check_files
        )

    def _table(self, csv: Path | str | None) -> tuple[_Table, Path]:
        """The chips, and the folder that their paths are relative to."""
        for base in [self.root / name for name in _FOLDERS]:
            if csv is None and (base / _LABELS).is_file() and (base / _ARRAY).is_file():
                return _read_arrays(base), base
            for name in _TABLES if csv is None else (csv,):
                if (base / name).is_file():
                    table = self._read_table(base / name)
                    return table, self._images((base / name).parent, table.paths)
        raise DatasetNotFoundError(self)

    def _images(self, folder: Path, paths: PackedStrings) -> Path:
        some = [paths[row] for row in spread(len(paths), _PROBES)]
        for place in (folder, folder / 'tile_triplets'):
            if any((place / path).is_file() for path in some):
                return place
        raise DatasetNotFoundError(self)

    def _read_table(self, path: Path) -> _Table:
        """Rows of a table; those without a whole number as class or without a split are left out."""
        paths, codes, splits = [], [], []
        for chunk in read_chunks(path, _COLUMNS):
            texts = chunk.columns.get('code', chunk.columns.get('y'))
            if texts is None:
                raise ImageError(f'{path} has no column y or landCover: name the class so.')
            code = _numbers(texts)
            split = np.array(
                [_SPLIT_NAMES.get(text.strip().lower(), -1) for text in chunk.columns['split']]
            )
            good = (code >= 0) & (split >= 0)
            self._leave_out(chunk.ragged, 'has too few columns')
            bad = [chunk.rows[place] for place in np.flatnonzero(~good).tolist()]
            self._leave_out(bad, 'has no whole number as class, or no known split')
            texts = chunk.columns['path']
            paths.append(PackedStrings([texts[row].strip() for row in np.flatnonzero(good)]))
            codes.append(code[good])
            splits.append(split[good])
        if not sum(map(len, codes)):
            raise ImageError(f'{path} has no row that can be used: give one chip in each row.')
        return _Table(PackedStrings.join(paths), np.concatenate(codes), np.concatenate(splits))

    def _leave_out(self, rows: Iterable[int], reason: str) -> None:
        items = [f'row {row}' for row in rows]
        if items:
            self.skipped.setdefault(reason, []).extend(items)

    def _number(self, codes: NDArray[np.int64]) -> NDArray[np.int16]:
        """Numbers of the classes, and their names."""
        found = np.unique(codes)
        if found[-1] < _MOST_CLASSES:  # every code of the layer's land cover is above 100
            self.codes, self.classes = None, [str(number) for number in range(found[-1] + 1)]
            labels = codes.astype(np.int16)
        else:
            self.codes, self.classes = found.tolist(), class_names(found.tolist())
            labels = np.searchsorted(found, codes).astype(np.int16)
        if len(self.classes) != _MOST_CLASSES:
            warnings.warn(
                f'{self.root} has {len(self.classes)} classes, the published data set '
                f'{_MOST_CLASSES}: numbers measured on it cannot be compared with those of others.',
                stacklevel=4,
            )
        return labels

    def _sample(
        self, position: int, draw: Draw, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        image = self._image(position, draw)
        return None if image is None else {'image': image}

    def _read(self, position: int) -> Tensor:
        chip = np.load(self._path(position), allow_pickle=False)
        places = [self.all_bands.index(band) for band in self.bands]
        if chip.ndim != 3 or chip.shape[2] <= max(places):
            raise ImageError(
                f'it has the shape {chip.shape}, not rows, columns and {max(places) + 1} bands'
            )
        pixels = chip[..., places].transpose(2, 0, 1)
        if pixels.dtype != np.uint8 and not ((pixels >= 0) & (pixels <= 255)).all():
            raise ImageError(f'its {pixels.dtype} values are not all in 0 to 255')
        return torch.from_numpy(pixels.astype(np.uint8))

    def plot(
        self, sample: dict[str, Tensor], show_titles: bool = True, suptitle: str | None = None
    ) -> Figure:
        """Draw a sample.

        Args:
            sample: What ``__getitem__`` returns, with ``prediction`` or not.
            show_titles: Whether to write the class.
            suptitle: Title of the figure, instead of the class.

        Returns:
            A figure.

        Raises:
            RGBBandsMissingError: If the first bands are not red, green and blue.
        """
        return plot_sample(sample, self.bands, self.classes, show_titles, suptitle)


def _numbers(texts: Sequence[str]) -> NDArray[np.int64]:
    """Whole numbers of at least 0; -1 where there is none."""
    stems = [text.strip().removesuffix('.0') for text in texts]
    return np.array([int(stem) if stem.isdecimal() else -1 for stem in stems], dtype=np.int64)


def _read_arrays(base: Path) -> _Table:
    """Chips in the layout of SatMAE's loader."""
    try:
        codes, splits = (
            np.load(base / name, allow_pickle=False).astype(np.int64) for name in (_LABELS, _ARRAY)
        )
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(
            f'{base / _LABELS} or {_ARRAY} cannot be read ({error}): give arrays of numbers.'
        ) from error
    if codes.shape != splits.shape or codes.ndim != 1 or len(codes) == 0:
        raise ImageError(
            f'{base / _LABELS} has the shape {codes.shape} and {_ARRAY} {splits.shape}: give one '
            'number for each chip in both.'
        )
    return _Table(
        PackedStrings([f'{_TILES}/{row}tile.npy' for row in range(len(codes))]), codes, splits
    )
