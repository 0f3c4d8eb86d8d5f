"""Whether a raster fits a model, and what of it the model is given.

Bands, scaling and the size of a pixel come from the model's own description. What a raster has
otherwise is refused with the reason; what a user overrides is noted, so that it can be said.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import CRSError

from torchgeo_explora.datasets._bands import canonical_band
from torchgeo_explora.errors import ImageError
from torchgeo_explora.inference.raster import (
    Pixels,
    RasterInfo,
    Selection,
    opened,
    read_block,
)
from torchgeo_explora.inference.windows import Block, Interval
from torchgeo_explora.models import InputSpec, ModelSpec

FARTHEST_RESOLUTION = 2.0
"""A pixel may be this many times larger or smaller than those that the model was fitted on."""

NARROWEST = 0.25
"""Least share of the model's range that a whole-number type must be able to hold."""

DARKEST = 0.005
"""Share of the model's range below which all values are taken for those of another unit."""

SAMPLES, SAMPLE_SIZE = 3, 128
"""Windows along each axis, and their side in pixels, that are looked at to check the values."""

METRES_PER_DEGREE = 111_320.0


@dataclass(frozen=True)
class Fit:
    """What a model is given of a raster.

    Args:
        selection: Bands to read, in the order of the model.
        low: (bands,) raw values that become 0.
        high: (bands,) raw values that become 1.
        overridden: Reasons to refuse the raster that the user overrode.
    """

    selection: Selection
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    overridden: tuple[str, ...]


@dataclass
class Objections:
    """Collects what does not fit; raises at once unless that is overridden.

    Args:
        path: Of the raster.
        force: Whether the user overrides.
    """

    path: str
    force: bool
    found: list[str] = field(default_factory=list)

    def object(self, reason: str, remedy: str) -> None:
        """Note what does not fit.

        Args:
            reason: What it is.
            remedy: What to do instead of overriding.

        Raises:
            ImageError: Unless the user overrides.
        """
        if not self.force:
            raise ImageError(f'{self.path}: {reason}: {remedy}, or override with --force.')
        self.found.append(reason)


def fit_raster(
    info: RasterInfo,
    spec: ModelSpec | InputSpec,
    bands: Sequence[int | str] | None = None,
    scale: tuple[float, float] | None = None,
    force: bool = False,
) -> Fit:
    """Match a raster to a model.

    Args:
        info: Header of the raster.
        spec: Describes the model.
        bands: 1-based indexes or names of the raster's bands, in the order of the model's; None
            to find them by name, or by their order where there are as many.
        scale: Raw values that become 0 and 1, in all bands; None for the model's.
        force: Override objections where there is a way to go on.

    Returns:
        What the model is given.

    Raises:
        ImageError: If the raster does not fit.
    """
    objections = Objections(info.path, force)
    selection = select_bands(info, spec.bands, bands, objections)
    dtype = 'uint8' if selection.palette is not None else info.dtype
    low, high = _ends(info.path, dtype, spec, scale)
    check_type(dtype, low, high, objections)
    check_values(info, selection, low, high, objections)
    check_resolution(info, spec.resolution, objections)
    return Fit(selection, low, high, tuple(objections.found))


def select_bands(
    info: RasterInfo,
    needed: Sequence[str],
    wanted: Sequence[int | str] | None,
    objections: Objections,
) -> Selection:
    """Choose the bands that a model is given.

    Args:
        info: Header of the raster.
        needed: Names of the model's bands.
        wanted: What the user chose; None for nothing.
        objections: Takes what does not fit.

    Returns:
        What to read.

    Raises:
        ImageError: If there is no sensible choice.
    """
    if wanted is not None:
        return Selection(_wanted_bands(info, needed, wanted))
    if info.palette is not None and len(needed) == 3:
        return Selection((1,), info.palette)
    names = [canonical_band(name).lower() for name in info.names]
    keys = [canonical_band(name).lower() for name in needed]
    if all(names.count(key) == 1 for key in keys):
        return Selection(tuple(names.index(key) + 1 for key in keys))
    if info.bands < len(needed):
        raise ImageError(
            f'{info.path} has {_bands(info)}, and the model needs {len(needed)} '
            f'({", ".join(needed)}): give a raster with all of them.'
        )
    _object_to_order(info, needed, names, keys, objections)
    return Selection(info.indexes[: len(needed)])


def _object_to_order(
    info: RasterInfo,
    needed: Sequence[str],
    names: Sequence[str],
    keys: Sequence[str],
    objections: Objections,
) -> None:
    remedy = 'choose them with --bands'
    model = f'the model needs {", ".join(needed)}'
    if info.bands > len(needed):
        objections.object(f'it has {_bands(info)}, {model}, and names do not tell which', remedy)
    elif info.palette is not None:
        objections.object(f'its values are indexes of a colour table, {model}', 'write grey values')
    elif any(
        key in names and names.index(key) + 1 != info.indexes[i] for i, key in enumerate(keys)
    ):
        objections.object(f'it has {_bands(info)}, {model}: the order differs', remedy)


def _bands(info: RasterInfo) -> str:
    named = [info.names[index - 1] for index in info.indexes if info.names[index - 1]]
    count = f'{info.bands} band' + ('' if info.bands == 1 else 's')
    return f'{count} ({", ".join(named)})' if named else count


def _wanted_bands(
    info: RasterInfo, needed: Sequence[str], wanted: Sequence[int | str]
) -> tuple[int, ...]:
    if len(wanted) != len(needed):
        raise ImageError(
            f'{len(wanted)} bands were chosen, and the model needs {len(needed)} '
            f'({", ".join(needed)}): choose as many, in this order.'
        )
    names = [canonical_band(name).lower() for name in info.names]
    return tuple(_index(info, names, band) for band in wanted)


def _index(info: RasterInfo, names: Sequence[str], band: int | str) -> int:
    if isinstance(band, int) and 1 <= band <= len(names):
        return band
    if isinstance(band, str) and canonical_band(band).lower() in names:
        return names.index(canonical_band(band).lower()) + 1
    raise ImageError(
        f'{info.path} has no band {band!r}: choose from 1 to {len(names)}, or from the names '
        f'{", ".join(filter(None, info.names)) or "(it has none)"}.'
    )


def _ends(
    path: str, dtype: str, spec: ModelSpec | InputSpec, scale: tuple[float, float] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Raw values that become 0 and 1."""
    if scale is not None:
        pairs = [scale] * len(spec.bands)
    elif spec.scale is not None:
        pairs = list(spec.scale)
    elif dtype == 'uint8':  # pictures in bytes are divided by 255 wherever models are fitted
        pairs = [(0.0, 255.0)] * len(spec.bands)
    elif np.dtype(dtype).kind == 'f':
        pairs = [(0.0, 1.0)] * len(spec.bands)  # the model takes images in [0, 1]
    else:
        raise ImageError(
            f'{path} holds {dtype}, and the model does not tell which raw values become 0 and 1: '
            'give them with --scale.'
        )
    ends = np.asarray(pairs, dtype=np.float32)
    return ends[:, 0], ends[:, 1]


def check_type(
    dtype: str, low: NDArray[np.float32], high: NDArray[np.float32], objections: Objections
) -> None:
    """Object to a type of whole numbers that cannot hold the values that the model expects.

    Args:
        dtype: NumPy's name of the type.
        low: (bands,) raw values that become 0.
        high: (bands,) raw values that become 1.
        objections: Takes what does not fit.

    Raises:
        ImageError: If the type is too narrow.
    """
    if np.dtype(dtype).kind not in 'iu':
        return
    limits, ends = np.iinfo(dtype), np.sort(np.stack([low, high]), axis=0)
    inside = np.minimum(ends[1], limits.max) - np.maximum(ends[0], limits.min)
    if (inside / (ends[1] - ends[0])).min() < NARROWEST:
        objections.object(
            f'it holds {dtype}, {limits.min} to {limits.max}, and the model expects values from '
            f'{ends[0].min():g} to {ends[1].max():g}',
            'give the values that the model was fitted on',
        )


def check_values(
    info: RasterInfo,
    selection: Selection,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    objections: Objections,
) -> None:
    """Object to values that are those of another unit or sensor, judged from a few windows.

    Args:
        info: Header of the raster.
        selection: Bands that are read.
        low: (bands,) raw values that become 0.
        high: (bands,) raw values that become 1.
        objections: Takes what does not fit.

    Raises:
        ImageError: If more than half of a band's values lie beyond the model's range, or nearly
            all of them in its darkest 0.5 %.
    """
    if info.dtype == 'uint8' and ((high - low) >= NARROWEST * 255).all():
        return  # bytes for bytes
    samples = _sample(info, selection)
    for band in range(len(selection.indexes) if selection.palette is None else 3):
        values = np.concatenate([sample[band].compressed() for sample in samples])
        if values.size == 0:
            continue
        unit = (values.astype(np.float64) - low[band]) / (float(high[band]) - float(low[band]))
        middle, top = float(np.median(values)), float(np.quantile(unit, 0.99))
        beyond = float(((unit < 0) | (unit > 1)).mean())
        if beyond > 0.5 or top < DARKEST:
            objections.object(
                f'band {band + 1} has values around {middle:g}, and the model expects them from '
                f'{low[band]:g} to {high[band]:g}',
                'give the values that the model was fitted on',
            )


def _sample(info: RasterInfo, selection: Selection) -> list[Pixels]:
    rows, columns = (
        [
            Interval(first, min(first + SAMPLE_SIZE, length))
            for first in sorted(
                {
                    max(length - SAMPLE_SIZE, 0) * part // max(SAMPLES - 1, 1)
                    for part in range(SAMPLES)
                }
            )
        ]
        for length in (info.extent.height, info.extent.width)
    )
    with opened(info.path) as source:
        return [
            read_block(source, info, selection, Block(row, column))
            for row in rows
            for column in columns
        ]


def check_resolution(info: RasterInfo, resolution: float | None, objections: Objections) -> None:
    """Object to pixels that are much larger or smaller than those of the model.

    Args:
        info: Header of the raster.
        resolution: Size of the model's pixels in metres or units of a coordinate reference system.
        objections: Takes what does not fit.

    Raises:
        ImageError: If a pixel is more than twice or less than half as large in every unit that
            ``resolution`` may be in.
    """
    sizes = pixel_sizes(info)
    if resolution is None or not sizes:
        return
    ratios = [size / resolution for size in sizes]
    if min(abs(math.log(ratio)) for ratio in ratios) > math.log(FARTHEST_RESOLUTION) + 1e-9:
        objections.object(
            f'its pixels are {sizes[0]:.3g} m wide and those of the model {resolution:.3g}, more '
            f'than {FARTHEST_RESOLUTION:g} times apart',
            'resample it first',
        )


def pixel_sizes(info: RasterInfo) -> tuple[float, ...]:
    """Return the side of a pixel in metres, and in units of the coordinate reference system.

    Args:
        info: Header of a raster.

    Returns:
        Geometric means of width and height; nothing where the raster is not placed on Earth.
    """
    place = info.place
    if not place.placed:
        return ()
    assert place.crs is not None, 'placed rasters have one'
    side = math.sqrt(abs(place.transform.determinant))
    if place.crs.is_geographic:
        grid, extent = place.transform, info.extent
        latitude = grid.d * extent.width / 2 + grid.e * extent.height / 2 + grid.f
        narrowing = math.cos(math.radians(min(abs(latitude), 89.0)))
        return side * METRES_PER_DEGREE * math.sqrt(narrowing), side
    try:
        return side * float(place.crs.linear_units_factor[1]), side
    except CRSError:  # a local system without a known unit
        return (side,)
