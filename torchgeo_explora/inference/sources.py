"""Finds rasters: files, folders, globs, lists in text files, and whatever else GDAL opens."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from torchgeo_explora.errors import ConfigError

EXTENSIONS = ('.tif', '.tiff', '.vrt', '.jp2', '.img')
"""Files that are taken from folders; a file that is named may have any."""

_RESULTS = ('_pred', '_probabilities', '_uncertainty', '_embedding', '_rgb')
_REMOTE = ('://', '/vsi')


@dataclass(frozen=True)
class Source:
    """A raster to predict.

    Args:
        path: Its file, or what GDAL opens instead.
        target: Where results go, relative to the output folder, without the end of the name.
    """

    path: str
    target: str


def find_rasters(items: Sequence[str | os.PathLike[str]], out: Path) -> list[Source]:
    """List rasters whose results have names of their own; see :func:`list_sources`.

    Raises:
        ConfigError: If there is none, or results of two would have the same name.
    """
    found = list_sources(items, out)
    _check_targets(found)
    return found


def list_sources(items: Sequence[str | os.PathLike[str]], out: Path) -> list[Source]:
    """List rasters.

    Args:
        items: Files, folders (with all that is below), globs, ``.txt`` files with one of these a
            line, URLs and ``/vsi`` paths. What is no file and no glob is listed as it is, so that
            opening it can say what is wrong.
        out: Folder of the results; what is in there is no source.

    Returns:
        Rasters in the order of ``items``, those of a folder by name; each once.

    Raises:
        ConfigError: If there is none.
    """
    found: dict[str, Source] = {}
    for item in items:
        for source in _expand(os.fspath(item), out.absolute()):
            found.setdefault(source.path, source)
    if not found:
        raise ConfigError(
            f'{", ".join(map(str, items)) or "nothing"} holds no raster: give files, or folders '
            f'with {", ".join(EXTENSIONS)} files.'
        )
    return list(found.values())


def _expand(item: str, out: Path) -> Iterator[Source]:
    if any(sign in item for sign in _REMOTE):
        yield Source(item, PurePath(item).stem)
        return
    path = Path(item).expanduser()
    if path.is_dir():
        yield from _in_folder(path, out)
    elif path.suffix.lower() == '.txt' and path.is_file():
        yield from _in_list(path, out)
    elif not path.exists() and glob.has_magic(item):
        for match in sorted(glob.glob(os.fspath(path), recursive=True)):  # noqa: PTH207
            if Path(match).suffix.lower() in EXTENSIONS and not _is_result(Path(match), out):
                yield Source(match, Path(match).stem)
    else:
        yield Source(os.fspath(path), path.stem)


def _in_folder(folder: Path, out: Path) -> Iterator[Source]:
    files = (
        Path(place, name)
        for place, folders, names in os.walk(folder)
        for name in names
        if not name.startswith('.') and not _hidden(Path(place), folder)
    )
    for file in sorted(files, key=lambda file: file.relative_to(folder).parts):
        if file.suffix.lower() in EXTENSIONS and not _is_result(file, out):
            yield Source(os.fspath(file), os.fspath(file.relative_to(folder).with_suffix('')))


def _hidden(place: Path, folder: Path) -> bool:
    return any(part.startswith('.') for part in place.relative_to(folder).parts)


def _is_result(file: Path, out: Path) -> bool:
    return file.absolute().is_relative_to(out) and file.stem.endswith(_RESULTS)


def _in_list(path: Path, out: Path) -> Iterator[Source]:
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'{path} cannot be read as a list ({error}): give a text file.'
        ) from error
    for line in (line.strip() for line in lines):
        if line and not line.startswith('#'):
            beside = path.parent / line
            yield from _expand(os.fspath(beside) if beside.exists() else line, out)


def _check_targets(sources: Sequence[Source]) -> None:
    seen: dict[str, str] = {}
    for source in sources:
        if source.target in seen:
            raise ConfigError(
                f'{seen[source.target]} and {source.path} would both give {source.target}_pred.tif:'
                ' give the folder above them, so that results keep their folders, or run twice.'
            )
        seen[source.target] = source.path
