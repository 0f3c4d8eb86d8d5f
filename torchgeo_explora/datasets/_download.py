"""Archives that are fetched, checked and unpacked so that a folder is complete or absent."""

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path

from torchgeo.datasets.utils import download_url

from torchgeo_explora.errors import ImageError


def fetch(url: str, archive: Path, size: int | None) -> None:
    """Download an archive unless it is there.

    Args:
        url: Where it is.
        archive: Where it goes.
        size: Its published size in bytes; None not to check it.

    Raises:
        ImageError: If it has another size.
    """
    if not archive.is_file():
        archive.parent.mkdir(parents=True, exist_ok=True)
        download_url(url, archive.parent, archive.name)
    found = archive.stat().st_size
    if size is not None and found != size:
        raise ImageError(
            f'{archive} has {found:,} bytes, but {size:,} were published: remove it and download it '
            'again.'
        )


def unpack_tar(archive: Path, target: Path, inner: str | None = None) -> None:
    """Unpack a .tar.gz file; the folder has its name only once all of it is there.

    The archive's own CRC is checked over every byte.

    Args:
        archive: The file.
        target: Folder that must not be there.
        inner: Folder of the archive that becomes ``target``; None for all that it holds.

    Raises:
        ImageError: If the archive is damaged, or holds no such folder.
    """
    partial = target.with_name(f'.{target.name}.partial')
    content = partial if inner is None else partial / inner
    try:
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode='r|') as file:
                file.extractall(partial, filter='data')
            while stream.read(1 << 20):  # tarfile leaves the end, where the checksum is
                pass
        if not content.is_dir():
            raise ImageError(f'{archive} holds no folder {inner}: give the published one.')
        content.replace(target)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ImageError(
            f'{archive} cannot be unpacked ({error}): see that there is room for its images, or '
            'remove it and download it again.'
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
