"""Download of fMoW-Sentinel from the Stanford Digital Repository."""

from dataclasses import dataclass
from pathlib import Path

from torchgeo.datasets.utils import download_url

from torchgeo_explora.errors import ImageError

from ._download import fetch, unpack_tar

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
    fetch(URL + ARCHIVE, root / ARCHIVE, ARCHIVE_BYTES if checksum else None)
    unpack_tar(root / ARCHIVE, root / 'fmow-sentinel', 'fmow-sentinel')


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
