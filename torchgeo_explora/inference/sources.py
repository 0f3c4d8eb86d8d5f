"""Finds rasters: files, folders, globs, lists, archives, STAC, and whatever else GDAL opens."""

import glob
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference.stac import ENDINGS, StacRaster, is_stac, stac_rasters

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
        reason: Why there is no raster to open, where that is known already.
    """

    path: str
    target: str
    reason: str | None = None


def find_rasters(
    items: Sequence[str | os.PathLike[str]], out: Path, asset: str | None = None
) -> list[Source]:
    """List rasters whose results have names of their own; see :func:`list_sources`.

    Raises:
        ConfigError: If there is none, or results of two would have the same name.
    """
    found = list_sources(items, out, asset)
    _check_targets(found)
    return found


def list_sources(
    items: Sequence[str | os.PathLike[str]], out: Path, asset: str | None = None
) -> list[Source]:
    """List rasters.

    Args:
        items: Files, folders (with all that is below), globs, ``.zip`` archives of rasters, STAC
            files (``.json``, ``.geojson``; on the web too), ``.txt`` files with one of these a
            line, URLs and ``/vsi`` paths. What is no file and no glob is listed as it is, so that
            opening it can say what is wrong.
        out: Folder of the results; what is in there is no source.
        asset: Key of the asset that is taken of STAC items; None for the only one there is.

    Returns:
        Rasters in the order of ``items``, those of a folder by name; each once.

    Raises:
        ConfigError: If there is none.
    """
    found: dict[str, Source] = {}
    for item in items:
        for source in _expand(os.fspath(item), out.absolute(), asset):
            found.setdefault(source.path, source)
    if not found:
        raise ConfigError(
            f'{", ".join(map(str, items)) or "nothing"} holds no raster: give files, folders '
            f'with {", ".join(EXTENSIONS)} files, or quoted patterns of others, as in '
            "'photos/*.png'."
        )
    return list(found.values())


def _expand(item: str, out: Path, asset: str | None) -> Iterator[Source]:
    named = '://' in item or Path(item).expanduser().exists() or not glob.has_magic(item)
    if is_stac(item) and named:
        yield from _in_stac(item, asset)
        return
    if any(sign in item for sign in _REMOTE):
        yield Source(item, PurePath(item).stem)
        return
    path = Path(item).expanduser()
    if path.is_dir():
        yield from _in_folder(path, out)
    elif path.suffix.lower() == '.txt' and path.is_file():
        yield from _in_list(path, out, asset)
    elif path.suffix.lower() == '.zip' and path.is_file():
        yield from _in_archive(path)
    elif not path.exists() and glob.has_magic(item):
        for match in sorted(glob.glob(os.fspath(path), recursive=True)):  # noqa: PTH207
            if Path(match).suffix.lower() in (*ENDINGS, '.zip'):
                yield from _expand(match, out, asset)
            elif _is_meant(Path(match), path) and not _is_result(Path(match), out):
                yield Source(match, Path(match).stem)
    else:
        yield Source(os.fspath(path), path.stem)


def _is_meant(match: Path, pattern: Path) -> bool:
    """Whether a file is taken for a raster: by its ending, or one that the pattern spells out."""
    ending = match.suffix.lower()
    return ending in EXTENSIONS or ending == pattern.suffix.lower() != ''


def _in_stac(item: str, asset: str | None) -> Iterator[Source]:
    place = item if '://' in item else os.fspath(Path(item).expanduser())
    for number, found in enumerate(stac_rasters(place, asset)):
        if isinstance(found, StacRaster):
            yield Source(found.path, found.name)
        else:  # named in the summary, while the others go on
            yield Source(f'{place}#{number}', f'{PurePath(place).stem}_{number}', str(found))


def _in_archive(path: Path) -> Iterator[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except (OSError, zipfile.BadZipFile) as error:
        yield Source(
            os.fspath(path), path.stem, f'{path} cannot be read as a zip archive ({error}).'
        )
        return
    for name in names:
        member = PurePath(name)
        if '..' in member.parts or member.is_absolute():  # results would leave their folder
            yield Source(
                f'{path}/{name}', path.stem, f'{path} has a member {name!r} outside of it.'
            )
        elif member.suffix.lower() in EXTENSIONS and not member.name.startswith('.'):
            yield Source(f'/vsizip/{path}/{name}', os.fspath(member.with_suffix('')))


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


def _in_list(path: Path, out: Path, asset: str | None) -> Iterator[Source]:
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'{path} cannot be read as a list ({error}): give a text file.'
        ) from error
    for line in (line.strip() for line in lines):
        if line and not line.startswith('#'):
            beside = os.fspath(path.parent / line)
            there = Path(beside).exists() or any(glob.iglob(beside, recursive=True))  # noqa: PTH207
            yield from _expand(beside if there else line, out, asset)


def _check_targets(sources: Sequence[Source]) -> None:
    seen: dict[str, str] = {}
    for source in sources:
        if source.target in seen:
            raise ConfigError(
                f'{seen[source.target]} and {source.path} would both give {source.target}_pred.tif:'
                ' give the folder above them, so that results keep their folders, or run twice.'
            )
        seen[source.target] = source.path
