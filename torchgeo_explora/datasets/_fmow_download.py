"""Download of fMoW-Sentinel from the Stanford Digital Repository."""

import gzip
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from torchgeo.datasets.utils import download_url

from torchgeo_explora.errors import ImageError

URL = 'https://stacks.stanford.edu/file/druid:vg497cb6002/'
ARCHIVE = 'fmow-sentinel.tar.gz'

ARCHIVE_BYTES = 77_497_587_986
"""Size of the archive, which the repository's page gives as 77.50 GB."""


@dataclass(frozen=True)
class TableFile:
    """A published table.

    Args:
        name: Name of the file.
        rows: Number of its rows, without the header.
    """

    name: str
    rows: int


TABLES = {
    'train': TableFile('train.csv', 712_874),
    'val': TableFile('val.csv', 84_939),
    'test': TableFile('test_gt.csv', 84_966),
}


def download_sentinel(root: Path, split: str, checksum: bool) -> None:
    """Download and unpack what is missing of a split.

    Args:
        root: Folder to put it in.
        split: ``train``, ``val`` or ``test``.
        checksum: Whether to check sizes and numbers of rows. The archive's CRC is checked in any
            case, when it is unpacked.

    Raises:
        ImageError: If what was downloaded is not what was published.
    """
    table = TABLES[split]
    if not (root / table.name).is_file():
        download_url(URL + table.name, root, table.name)
        if checksum:
            check_rows(root / table.name, table.rows)
    if (root / 'fmow-sentinel').is_dir() or (root / split).is_dir():
        return
    archive = root / ARCHIVE
    if not archive.is_file():
        download_url(URL + ARCHIVE, root, ARCHIVE)
    if checksum and archive.stat().st_size != ARCHIVE_BYTES:
        raise ImageError(
            f'{archive} has {archive.stat().st_size:,} bytes, but {ARCHIVE_BYTES:,} were '
            'published: remove it and download it again.'
        )
    unpack(archive, root)


def check_rows(path: Path, rows: int) -> None:
    """Refuse a table of another number of rows, which is left under another name.

    Args:
        path: The table.
        rows: Number of rows without the header; no field of these tables has a line break.

    Raises:
        ImageError: If the number differs.
    """
    with path.open('rb') as file:
        found = sum(1 for line in file if line.strip()) - 1
    if found != rows:
        aside = path.replace(path.with_name(f'{path.name}.incomplete'))
        raise ImageError(
            f'{path.name} has {found:,} rows, but {rows:,} were published; it was moved to {aside}: '
            'download it again, or give checksum false if a new version was published.'
        )


def unpack(archive: Path, root: Path) -> None:
    """Unpack the archive; its folder has its name only once all of it is there.

    Args:
        archive: A .tar.gz file of one folder, ``fmow-sentinel``.
        root: Where that folder goes.

    Raises:
        ImageError: If the archive is damaged or holds something else.
    """
    partial = root / '.fmow-sentinel.partial'
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode='r|') as file:
                file.extractall(partial, filter='data')
            while stream.read(1 << 20):  # tarfile leaves the end, where the checksum is
                pass
        if not (partial / 'fmow-sentinel').is_dir():
            raise ImageError(f'{archive} holds no folder fmow-sentinel: give the published one.')
        (partial / 'fmow-sentinel').replace(root / 'fmow-sentinel')
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ImageError(
            f'{archive} cannot be unpacked ({error}): see that there is room for 78 GB more, or '
            'remove it and download it again.'
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
