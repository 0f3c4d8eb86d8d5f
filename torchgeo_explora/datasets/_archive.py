"""Zip archives of images, unpacked without letting a member leave its folder."""

import atexit
import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from torchgeo_explora.errors import ImageError, OutputError


def unpack_zip(archive: Path, extensions: Sequence[str], cache_dir: Path | None = None) -> Path:
    """Unpack the images of a zip archive.

    Only members with one of the extensions are written. An archive that holds everything in one
    folder is entered, so that class folders lie directly under what is returned.

    Args:
        archive: The zip file.
        extensions: Lower-case extensions with their dot.
        cache_dir: Folder that keeps what was unpacked, found again by the archive's name, size and
            modification time; None for a temporary folder that is removed when the program ends.

    Returns:
        The folder of images.

    Raises:
        ImageError: If the archive is damaged, holds no image, or a member is unsafe.
        OutputError: If there is not enough room, or the folder cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = _image_members(file, archive, extensions)
            return _single_folder(_unpack(file, members, archive, cache_dir))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ImageError(
            f'{archive} cannot be unpacked ({error}): give an undamaged zip file without a '
            'password, or a folder.'
        ) from error


def _image_members(
    file: zipfile.ZipFile, archive: Path, extensions: Sequence[str]
) -> list[zipfile.ZipInfo]:
    """Members to write, each of them checked."""
    members = []
    for member in file.infolist():
        name = Path(member.filename.replace('\\', '/'))
        if name.is_absolute() or '..' in name.parts or ':' in name.parts[0]:
            raise ImageError(
                f'{archive} has the member {member.filename!r}, which points outside of the '
                'archive; nothing was unpacked. Give an archive with relative paths only.'
            )
        link = stat.S_ISLNK(member.external_attr >> 16)
        hidden = any(part.startswith(('.', '__MACOSX')) for part in name.parts)
        if not member.is_dir() and not link and not hidden and name.suffix.lower() in extensions:
            members.append(member)
    if not members:
        raise ImageError(
            f'{archive} holds no image: give an archive of {", ".join(extensions)} files.'
        )
    return members


def _unpack(
    file: zipfile.ZipFile, members: list[zipfile.ZipInfo], archive: Path, cache_dir: Path | None
) -> Path:
    """Write the members under a name that appears only when all of them are there."""
    try:
        if cache_dir is None:
            target = Path(tempfile.mkdtemp(prefix='explora-images-'))
            # forked loader workers leave without running exit handlers, so only the owner removes
            atexit.register(shutil.rmtree, target, ignore_errors=True)
            _extract(file, members, target)
            return target
        target = cache_dir / f'{archive.stem}-{_fingerprint(archive)}'
        if not target.is_dir():
            cache_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache_dir, prefix='.unpacking-') as partial:
                content = Path(partial) / 'content'
                content.mkdir()
                _extract(file, members, content)
                _publish(content, target)
        return target
    except OSError as error:
        raise OutputError(
            f'{archive} cannot be unpacked ({error}): give a folder with room as cache_dir.'
        ) from error


def _publish(content: Path, target: Path) -> None:
    """Give the folder its final name; another process may have been faster."""
    try:
        content.replace(target)
    except OSError:
        if not target.is_dir():
            raise


def _extract(file: zipfile.ZipFile, members: list[zipfile.ZipInfo], target: Path) -> None:
    needed, free = sum(member.file_size for member in members), shutil.disk_usage(target).free
    if needed > free:
        raise OutputError(
            f'{file.filename} needs {needed / 1e6:,.0f} MB unpacked, but {target} has '
            f'{free / 1e6:,.0f} MB free: give a folder with room as cache_dir.'
        )
    for member in members:
        file.extract(member, target)


def _fingerprint(archive: Path) -> str:
    status = archive.stat()
    key = f'{os.fspath(archive.resolve())}:{status.st_size}:{status.st_mtime_ns}'
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _single_folder(folder: Path) -> Path:
    """Enter folders that are the only thing in their parent."""
    children = list(folder.iterdir())
    while len(children) == 1 and children[0].is_dir():
        folder = children[0]
        children = list(folder.iterdir())
    return folder
