"""fMoW-Sentinel: Sentinel-2 composites of fMoW's places, with SatMAE's scaling."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.errors import ConfigError, ImageError

from ._bands import SATMAE_BANDS, SENTINEL2_BANDS, band_positions, satmae_range, satmae_scale
from ._crops import Cropping, Draw
from ._fmow import FMoW, find_folder
from ._fmow_download import download_sentinel
from ._index import ImageIndex
from ._plots import plot_sample
from ._tables import SENTINEL_COLUMNS, Table, read_table

_TABLES = {'train': ('train.csv',), 'val': ('val.csv',), 'test': ('test_gt.csv', 'test.csv')}


class FMoWSentinel(FMoW):
    """fMoW-Sentinel: 13-band Sentinel-2 composites of 62 kinds of places (SatMAE).

    Published at https://purl.stanford.edu/vg497cb6002 in this layout, with or without the folder
    ``fmow-sentinel``::

        train.csv, val.csv, test_gt.csv: category, location_id, image_id, timestamp, polygon
        fmow-sentinel/<split>/<category>/<category>_<location_id>/<category>_<location_id>_<image_id>.tif

    A column ``image_path``, which many copies have, is used where the layout finds no file. Paths
    may be absolute, of another machine (all before the folder of the split is then left out), or
    Windows'. Rows without a known class, whole numbers or a timestamp that can be read are left
    out, counted and named.

    Values are scaled as SatMAE does, to 256 steps between each band's mean -+ 2 standard deviations
    (:func:`~torchgeo_explora.datasets.satmae_scale`). Values without data (NaN, nodata) become 0,
    and the first image with some is named. An image of another number of bands, or all of zeros or
    without data (a composite that failed), is replaced by the next one like a missing one. Whole
    images are read, of the wanted bands only, and then cut.

    If you use this data set, please cite https://arxiv.org/abs/2207.08051 and
    https://arxiv.org/abs/1711.07846. Licences: fMoW Challenge Public License and Copernicus'.

    Args:
        root: Folder with the tables.
        split: ``train``, ``val`` or ``test``.
        bands: Names of the bands, in the order in which they come out, spelled ``B2`` or ``B02``.
        cropping: How images, whose sizes vary, become squares.
        band_names: Names of the bands in the files, in order.
        seed: Seed of random crops.
        csv: Table to read instead of the split's, an absolute path or relative to ``root``.
        check_files: Look for every file at once and leave missing ones out; by default a missing
            file is found when it is read.
        download: Whether to download what is missing (78 GB).
        checksum: Whether to check what is downloaded: sizes and numbers of rows, and the archive's
            own CRC while it is unpacked. The publisher gives no hashes.

    Raises:
        DatasetNotFoundError: If the table or the images are not there.
        ImageError: If the table cannot be used.
        ConfigError: If an argument is not possible.

    Attributes:
        bands: Names of the channels.
    """

    all_bands = SENTINEL2_BANDS
    rgb_bands = ('B4', 'B3', 'B2')

    def __init__(
        self,
        root: Path | str = 'data',
        split: Literal['train', 'val', 'test'] = 'train',
        bands: Sequence[str] = SATMAE_BANDS,
        cropping: Cropping | None = None,
        band_names: Sequence[str] = SENTINEL2_BANDS,
        seed: int = 0,
        csv: Path | str | None = None,
        check_files: bool = False,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        if split not in _TABLES:
            raise ConfigError(f"split is {split!r}: give 'train', 'val' or 'test'.")
        self.root, self.split, self.download = Path(root), split, download
        self.bands, self.band_names = tuple(bands), tuple(band_names)
        self._positions = band_positions(self.band_names, self.bands, 'fMoW-Sentinel')
        satmae_range(self.bands)
        if download:
            download_sentinel(self.root, split, checksum)
        table = self._table(csv)
        self.skipped = table.skipped
        index, folder = self._locate(table)
        super().__init__(
            index, folder, Cropping() if cropping is None else cropping, seed, check_files
        )
        self._check_bands()

    def _table(self, csv: Path | str | None) -> Table:
        names = _TABLES[self.split] if csv is None else (csv,)
        paths = [self.root / base / name for base in ('', 'fmow-sentinel') for name in names]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise DatasetNotFoundError(self)
        return read_table(found[0], SENTINEL_COLUMNS, self.split)

    def _locate(self, table: Table) -> tuple[ImageIndex, Path]:
        """Paths that lead to files, and what they are relative to."""
        found = find_folder(self.root, table.forms([_in_truth_folder]))
        if found is None:
            raise DatasetNotFoundError(self)
        return table.index(found[0]), found[1]

    def _check_bands(self) -> None:
        """Refuse files that all have another number of bands than there are names."""
        for position in range(min(len(self), 100)):
            try:
                with rasterio.open(self._path(position)) as source:
                    count = source.count
            except rasterio.errors.RasterioError:
                continue
            if count == len(self.band_names):
                return
        raise ImageError(
            f'{self.folder}: none of the first images can be read and has {len(self.band_names)} '
            f'bands, {", ".join(self.band_names)}: give band_names, the names of all bands of the '
            'files in order.'
        )

    def _sample(
        self, position: int, draw: Draw, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        image = self._image(position, draw)
        return None if image is None else {'image': image}

    def _read(self, position: int) -> Tensor:
        with rasterio.open(self._path(position)) as source:
            if source.count != len(self.band_names):
                raise ImageError(f'it has {source.count} bands, not {len(self.band_names)}')
            indexes = [place + 1 for place in self._positions]
            masked = source.nodata is not None
            pixels = source.read(indexes, masked=masked)
        missing = np.ma.getmaskarray(pixels) if masked else np.zeros(1, dtype=bool)
        if pixels.dtype.kind == 'f':
            missing = missing | ~np.isfinite(pixels.data if masked else pixels)
        values = np.where(missing, 0, pixels) if missing.any() else np.asarray(pixels)
        if not values.any():
            raise ImageError('all of its values are 0 or without data')
        scaled = satmae_scale(values, self.bands)
        if missing.any():
            scaled[missing] = 0
            self._note_gaps(position, int(missing.sum()))
        return torch.from_numpy(scaled)

    def plot(
        self, sample: dict[str, Tensor], show_titles: bool = True, suptitle: str | None = None
    ) -> Figure:
        """Draw a sample in true colour, and in false colour where there is near infrared.

        Args:
            sample: What ``__getitem__`` returns, with ``prediction`` or not.
            show_titles: Whether to write the class above each picture.
            suptitle: Title of the figure.

        Returns:
            A figure.

        Raises:
            RGBBandsMissingError: If the bands do not include red, green and blue.
        """
        return plot_sample(sample, self.bands, self.classes, show_titles, suptitle)


def _in_truth_folder(path: str) -> str | None:
    """The path of a test image in a folder that is named like its table, ``test_gt``."""
    return f'test_gt/{path.removeprefix("test/")}' if path.startswith('test/') else None
