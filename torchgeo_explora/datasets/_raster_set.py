"""Rasters taken together: which can be used, their bands, and where their windows may lie."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torchgeo_explora.errors import ImageError

from ._draws import PARTS, Strata, Validity, find_strata
from ._headers import check_alike, name_some
from ._pixels import select_bands
from ._rasters import RasterSource, read_sources, read_valid

LARGEST_SIDE = 256
"""Pixels of a window's side unless the user says otherwise; DINOv2 crops 224."""

ALIKE = 0.01
"""Share by which pixels may differ in size and still have one resolution."""


@dataclass(frozen=True)
class WindowOptions:
    """What windows of rasters are to be like; see :class:`GeoTIFFFolder`."""

    image_size: int | None = None
    bands: Sequence[int | str] | None = None
    repeat_grey: bool = False
    min_valid: float = 0.9
    resolution: float | None = None
    num_channels: int | None = None
    min_size: int = 1


@dataclass(frozen=True, eq=False)
class Raster:
    """A raster that is used.

    Args:
        source: The raster.
        indexes: 1-based bands to read.
        strata: Where its windows may lie.
    """

    source: RasterSource
    indexes: tuple[int, ...]
    strata: Strata


@dataclass(frozen=True, eq=False)
class RasterSet:
    """Rasters of one kind.

    Args:
        rasters: Those that are used.
        skipped: Why others are not.
        bands: Name of every band of an image, or its index where it has none.
        image_size: Pixels of a side of an image.
        resolution: Metres of a pixel of an image; None where that is not known or varies.
    """

    rasters: list[Raster]
    skipped: dict[Path, str]
    bands: tuple[str, ...]
    image_size: int
    resolution: float | None


def survey(paths: Sequence[str], options: WindowOptions) -> RasterSet:
    """Look at rasters, leaving out those that cannot be used, which a warning names.

    Args:
        paths: What GDAL opens.
        options: What windows are to be like.

    Raises:
        ImageError: If none can be used, or they are of different kinds.
    """
    sources, skipped = read_sources(paths)
    sources = _large_enough(sources, options.min_size, skipped)
    indexes = [select_bands(source.header, options.bands) for source in sources]
    _check_kinds(sources, indexes, options)
    indexes = _in_one_order(sources, indexes, options.bands)
    side = _usual_side(sources) if options.image_size is None else options.image_size
    sides, resolution = _measure_pixels(sources, side, options.resolution)
    found: list[Raster] = []
    for source, chosen, own in zip(sources, indexes, sides, strict=True):
        strata = _strata(source, chosen, own, len(found), options.min_valid)
        if isinstance(strata, str):
            skipped[Path(source.path)] = strata
        else:
            found.append(Raster(source, chosen, strata))
    _check_some(found, skipped)
    _say_what_is_left_out(skipped, len(paths))
    return RasterSet(found, skipped, _names(sources, indexes, options), side, resolution)


def _large_enough(
    sources: Sequence[RasterSource], least: int, skipped: dict[Path, str]
) -> list[RasterSource]:
    for source in sources:
        height, width = source.header.height, source.header.width
        if min(height, width) < least:
            skipped[Path(source.path)] = (
                f'it has {height} x {width} pixels, and a side needs {least}, one patch of the model'
            )
    kept = [source for source in sources if Path(source.path) not in skipped]
    _check_some(kept, skipped)
    return kept


def _check_some(kept: Sequence[object], skipped: Mapping[Path, str]) -> None:
    if not kept:
        path, reason = next(iter(skipped.items()))
        raise ImageError(
            f'None of {len(skipped)} rasters can be used; the first is {path} ({reason}). Give '
            'others.'
        )


def _say_what_is_left_out(skipped: Mapping[Path, str], count: int) -> None:
    if skipped:
        reasons = name_some(f'{path} ({reason})' for path, reason in skipped.items())
        warnings.warn(f'{len(skipped)} of {count} rasters are left out: {reasons}.', stacklevel=4)


def _check_kinds(
    sources: Sequence[RasterSource], indexes: Sequence[Sequence[int]], options: WindowOptions
) -> None:
    kinds = [
        f'{len(chosen)} band{"" if len(chosen) == 1 else "s"} of {source.header.dtype}'
        for chosen, source in zip(indexes, sources, strict=True)
    ]
    check_alike(kinds, [source.header for source in sources])
    count = _channels(len(indexes[0]), options)
    needed = 3 if options.repeat_grey else options.num_channels
    if needed is not None and count != needed:
        raise ImageError(
            f'{sources[0].path} has {kinds[0]}, but {needed} are needed: choose them with `bands` '
            "(--bands; 1-based indexes or names), or repeat a grey band with mode 'rgb' (--grey)."
        )


def _channels(bands: int, options: WindowOptions) -> int:
    return 3 if options.repeat_grey and bands == 1 else bands


def _in_one_order(
    sources: Sequence[RasterSource],
    indexes: Sequence[tuple[int, ...]],
    wanted: Sequence[int | str] | None,
) -> list[tuple[int, ...]]:
    """Bands of every raster in the order of the first that names them all, where others do too."""
    if wanted is not None:
        return list(indexes)
    named = [_named(source, chosen) for source, chosen in zip(sources, indexes, strict=True)]
    order = next((names for names in named if all(names)), None)
    ordered = []
    for names, chosen in zip(named, indexes, strict=True):
        if order is None or sorted(names) != sorted(order) or len({*names}) != len(names):
            ordered.append(chosen)
        else:
            ordered.append(tuple(chosen[names.index(name)] for name in order))
    return ordered


def _named(source: RasterSource, indexes: Sequence[int]) -> list[str]:
    return [source.header.names[index - 1].lower() for index in indexes]


def _names(
    sources: Sequence[RasterSource], indexes: Sequence[tuple[int, ...]], options: WindowOptions
) -> tuple[str, ...]:
    named = [
        [source.header.names[index - 1] for index in chosen]
        for source, chosen in zip(sources, indexes, strict=True)
    ]
    names = next((found for found in named if all(found)), named[0])
    chosen = [name or str(index) for name, index in zip(names, indexes[0], strict=True)]
    return tuple(chosen * (_channels(len(chosen), options) // len(chosen)))


def _usual_side(sources: Sequence[RasterSource]) -> int:
    short = [min(source.header.height, source.header.width) for source in sources]
    return min(int(np.median(short)), LARGEST_SIDE)


def _measure_pixels(
    sources: Sequence[RasterSource], side: int, wanted: float | None
) -> tuple[list[int], float | None]:
    """Side of a window in each raster's own pixels, and the resolution that comes out."""
    pixels = [source.pixel() for source in sources]
    unknown = [source.path for source, p in zip(sources, pixels, strict=True) if p is None]
    if wanted is not None and unknown:
        raise ImageError(
            f'{name_some(unknown)}: no place on the Earth, so that pixels cannot be resampled to a '
            'resolution: leave the resolution out, or warp them first.'
        )
    asked = [side if wanted is None or p is None else round(side * wanted / p) for p in pixels]
    limits = [min(source.header.height, source.header.width) for source in sources]
    sides = [max(min(a, b), 1) for a, b in zip(asked, limits, strict=True)]
    if wanted is not None:
        return sides, wanted
    known = [pixel for pixel in pixels if pixel is not None]
    alike = not unknown and float(np.ptp(known)) <= ALIKE * max(known)
    return sides, float(np.median(known)) if alike and set(sides) == {side} else None


def _strata(
    source: RasterSource, indexes: Sequence[int], side: int, file: int, least: float
) -> Strata | str:
    """Where windows may lie, or why there are none."""
    try:
        points = read_valid(source, max(side // PARTS, 1), indexes)
    except ImageError as error:
        return str(error)
    size = (source.header.height, source.header.width)
    found = find_strata(file, size, side, Validity(points, *size), least)
    if len(found) > 0:
        return found
    return (
        f'no window of {side} pixels holds data in {100 * least:g} % of its pixels, and of the '
        f'whole raster {100 * float(points.mean()):.0f} % do'
    )
