"""What the data sets of WILDS share: releases, tables, samples with metadata."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.errors import ConfigError, ImageError

from ._crops import Cropping, Draw
from ._download import fetch, unpack_tar
from ._headers import name_some
from ._index import ImageIndex, spread
from ._indexed import IndexedImages, read_rgb
from ._plots import plot_sample

WILDS_URL = 'https://worksheets.codalab.org/rest/bundles/{}/contents/blob/'
"""Where WILDS keeps its archives, by the identifier of their bundle."""

UNLABELLED = -100
"""What WILDS writes for a label that is not known."""

_PROBES = 32


@dataclass(frozen=True)
class Release:
    """A published version of a data set.

    Args:
        name: Name of the data set.
        version: Its version.
        bundle: Identifier of its archive.
        size: Bytes of the archive. WILDS publishes no hash.
        rows: Number of images of every split.
    """

    name: str
    version: str
    bundle: str
    size: int
    rows: Mapping[str, int]

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f'{self.name}_v{self.version}'

    @property
    def marker(self) -> str:
        """File that WILDS' archives hold, whose name tells the version."""
        return f'RELEASE_v{self.version}.txt'


class Wilds(IndexedImages, ABC):
    """A split of one of WILDS' data sets, labelled or not.

    Args:
        root: Folder with the folder of the release, or the latter itself.
        split: Name of the split.
        split_scheme: Which images are in it.
        cropping: How images become squares.
        seed: Seed of random crops.
        check_files: Whether to look for every file now.
        download: Whether to download what is missing.
        checksum: Whether to check the size of what is downloaded.

    Attributes:
        metadata_fields: Names of the entries of a sample's ``metadata``.
        official_metrics: What the benchmark reports.
        releases: The published versions, of which the split's is read.
        schemes: Split schemes that there are.
    """

    bands = ('red', 'green', 'blue')
    metadata_fields: ClassVar[tuple[str, ...]]
    official_metrics: ClassVar[tuple[str, ...]]
    releases: ClassVar[tuple[Release, ...]]
    schemes: ClassVar[tuple[str, ...]] = ('official',)
    # where images lie, in the folder of a release
    images: ClassVar[Mapping[str, str]]

    def __init__(
        self,
        root: Path | str,
        split: str,
        split_scheme: str,
        cropping: Cropping | None,
        seed: int,
        check_files: bool,
        download: bool,
        checksum: bool,
    ) -> None:
        self.root, self.split, self.download = Path(root), split, download
        self.split_scheme = split_scheme
        self.skipped: dict[str, list[str]] = {}
        self.release = self._release()
        folder = self._folder(checksum)
        index = self._index(folder)
        if len(index) == 0:
            raise ImageError(f'{folder / "metadata.csv"} has no image of {split}: give all of it.')
        images = folder / self.images[self.release.name]
        probes = [images / index.paths[row] for row in spread(len(index), _PROBES)]
        if not any(path.is_file() for path in probes):
            raise DatasetNotFoundError(self)
        self._compare_size(len(index))
        super().__init__(
            index, images, Cropping() if cropping is None else cropping, seed, check_files
        )

    def _release(self) -> Release:
        """The version that has the split."""
        if self.split_scheme not in self.schemes:
            raise ConfigError(
                f'split_scheme is {self.split_scheme!r}: give {" or ".join(map(repr, self.schemes))}.'
            )
        for release in self.releases:
            if self.split in release.rows:
                return release
        known = [split for release in self.releases for split in release.rows]
        raise ConfigError(f'split is {self.split!r}: give one of {", ".join(known)}.')

    def _folder(self, checksum: bool) -> Path:
        """The release's folder, downloaded where this is asked for and needed."""
        release = self.release
        for folder in (self.root / release.folder, self.root):
            if (folder / 'metadata.csv').is_file():
                _check_version(folder, release)
                return folder
        if not self.download:
            raise DatasetNotFoundError(self)
        return download_release(self.root, release, checksum)

    @abstractmethod
    def _index(self, folder: Path) -> ImageIndex:
        """Images of the split, and what is known of them."""

    def _compare_size(self, count: int) -> None:
        """Say so where the split is not the published one."""
        published = self.release.rows[self.split]
        if self.split_scheme == 'official' and count != published:
            warnings.warn(
                f'{self.root}: {self.split} has {count:,} images, but {published:,} were published: '
                'numbers that are measured on it cannot be compared with those of others.',
                stacklevel=4,
            )

    def _sample(
        self, position: int, draw: Draw, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        image = self._image(position, draw)
        return None if image is None else {'image': image}

    def _read(self, position: int) -> Tensor:
        return read_rgb(self._path(position))

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
        """
        return plot_sample(sample, self.bands, self.classes, show_titles, suptitle)


def _check_version(folder: Path, release: Release) -> None:
    """Refuse another version, whose splits or labels are others."""
    found = sorted(path.name for path in folder.glob('RELEASE_v*.txt'))
    if found and release.marker not in found:
        raise ImageError(
            f'{folder} is another version ({", ".join(found)}) than {release.folder}: give the '
            f'folder of {release.folder}, or of what holds it.'
        )


def download_release(root: Path, release: Release, checksum: bool) -> Path:
    """Download and unpack a release.

    Args:
        root: Folder to put its folder in.
        release: What to download.
        checksum: Whether to check the archive's size; its own CRC is checked in any case.

    Returns:
        The release's folder.

    Raises:
        ImageError: If what was downloaded is not what was published.
    """
    archive, folder = root / f'{release.folder}.tar.gz', root / release.folder
    fetch(WILDS_URL.format(release.bundle), archive, release.size if checksum else None)
    unpack_tar(archive, folder)
    return folder


def read_metadata(
    path: Path, numbers: Sequence[str], texts: Sequence[str] = (), gaps: Sequence[str] = ()
) -> pd.DataFrame:
    """Columns of a table of millions of rows.

    Args:
        path: A comma-separated file with a header.
        numbers: Columns of whole numbers, which become int32.
        texts: Columns of texts; numbers keep their leading zeros.
        gaps: Columns of numbers of which some may be missing, which become float64 with NaN.

    Returns:
        The columns, in the order of the file's rows.

    Raises:
        ImageError: If the file cannot be read, lacks a column, or has something else than a whole
            number in one of ``numbers``; the rows are named.
    """
    kinds = dict.fromkeys(numbers, 'int32') | dict.fromkeys(texts, 'str')
    kinds |= dict.fromkeys(gaps, 'float64')
    try:
        _check_columns(path, list(kinds))
        return pd.read_csv(
            path, usecols=list(kinds), dtype=kinds, keep_default_na=False,
            na_values={name: ['', 'nan', 'NaN'] for name in gaps},
        )  # fmt: skip
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ImageError(
            f'{path} cannot be read ({error}): give a comma-separated table in UTF-8.'
        ) from error
    except (ValueError, OverflowError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(_describe_bad_rows(path, [*numbers, *gaps])) from error


def _check_columns(path: Path, wanted: Sequence[str]) -> None:
    header = list(pd.read_csv(path, nrows=0).columns)
    missing = [name for name in wanted if name not in header]
    if missing:
        raise ImageError(
            f'{path} has the columns {", ".join(header)}, but no {", ".join(missing)}: give '
            "the table of WILDS' release."
        )


def _describe_bad_rows(path: Path, names: Sequence[str]) -> str:
    """Name the rows that hold no whole numbers."""
    texts = pd.read_csv(path, usecols=list(names), dtype=str, keep_default_na=False)
    bad = [
        f'row {row + 2}: {name} {texts[name].iloc[row]!r}'
        for name in names
        for row in np.flatnonzero(~texts[name].str.fullmatch(r'-?\d{1,9}').to_numpy(dtype=bool))
    ]
    return (
        f'{path} has something else than whole numbers in {len(bad)} places ({name_some(bad)}): '
        "give the table of WILDS' release."
    )
