"""What ``adapt`` is given: a folder of images, or rasters of any size."""

import glob
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchgeo_explora.cli.console import say_left_out
from torchgeo_explora.datasets._headers import RASTER_EXTENSIONS, find_images, read_headers
from torchgeo_explora.datasets._rasters import EXTENSIONS as RASTER_FILES
from torchgeo_explora.datasets.image_folder import EXTENSIONS as IMAGE_FILES
from torchgeo_explora.datasets.image_folder import SPLITS
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.inference.sources import list_sources

LARGEST_CHIP = 512
"""Longer side in pixels of images that are taken for chips, each an image of its own."""

LOOKED_AT = 64
"""Images whose size is looked at."""

type Found = dict[str, Any]
"""``folder``, ``sources`` and ``read_as`` of :class:`AdaptSettings`."""


def settle_sources(items: Sequence[str], read_as: str = 'auto', asset: str | None = None) -> Found:
    """Find out what was given, once for the whole run.

    Args:
        items: What the user named.
        read_as: ``images``, ``rasters``, or ``auto`` to look at it.
        asset: Of STAC items.

    Returns:
        ``folder`` of images, or ``sources`` with the absolute path or address of every raster.

    Raises:
        ConfigError: If it is neither.
    """
    form = _form(items) if read_as == 'auto' else read_as
    if form == 'rasters':
        found = list_sources(items, Path('/nowhere'), asset)
        usable = [source.path for source in found if source.reason is None]
        if len(usable) < len(found):
            reasons = {s.path: s.reason for s in found if s.reason is not None}
            say_left_out(reasons)
        if not usable:
            raise ConfigError(f'None of {len(found)} rasters can be used: {found[0].reason}')
        return {'folder': '', 'sources': list(map(_absolute, usable)), 'read_as': form}
    if len(items) != 1:
        raise ConfigError(
            f'{len(items)} folders or files of images were given ({items[0]} and others): give one '
            'folder with all of them, or rasters (.tif, .vrt, .jp2, .img).'
        )
    return {'folder': _absolute(items[0]), 'sources': None, 'read_as': form}


def _absolute(item: str) -> str:
    if '://' in item or item.startswith('/vsi'):
        return item
    return str(Path(item).expanduser().resolve())


def _form(items: Sequence[str]) -> str:
    return 'rasters' if len(items) > 1 or _holds_rasters(items[0]) else 'images'


def _holds_rasters(item: str) -> bool:
    path = Path(item).expanduser()
    if path.is_dir():
        return _is_raster_folder(path)
    remote = '://' in item or item.startswith('/vsi')
    pattern = glob.has_magic(item) and not path.exists()
    return remote or pattern or path.suffix.lower() in {*RASTER_FILES, '.txt', '.json', '.geojson'}


def _is_raster_folder(folder: Path) -> bool:
    """Whether a folder holds rasters alone, and not chips sorted into classes or splits."""
    try:
        found = find_images(folder, tuple({*RASTER_FILES, *IMAGE_FILES}))
    except ImageError:
        return False
    if any(path.suffix.lower() not in RASTER_FILES for path in found):
        return False
    if any(path.suffix.lower() not in RASTER_EXTENSIONS for path in found):
        return True
    tops = {path.relative_to(folder).parts[0] for path in found}
    sorted_in = all(len(path.relative_to(folder).parts) > 1 for path in found) and len(tops) > 1
    return not (sorted_in and (tops <= SPLITS or _are_chips(found)))


def _are_chips(paths: Sequence[Path]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            headers, _ = read_headers(paths[:: max(len(paths) // LOOKED_AT, 1)])
        except ImageError:
            return False
    return all(max(header.height, header.width) <= LARGEST_CHIP for header in headers)
