"""Write predicted masks, as pictures or in the grid of the raster that they belong to."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.transform import Affine
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from torchgeo_explora import __version__
from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ImageError
from torchgeo_explora.tasks._reports.colors import Color

NODATA = 255
"""Value of pixels outside the image, and so the largest number of classes of 8 bits."""


@dataclass(frozen=True)
class Place:
    """Part of a raster that a sample shows in its upper left.

    Args:
        file: The raster.
        row: First row.
        column: First column.
        height: Rows.
        width: Columns.
    """

    file: str
    row: int
    column: int
    height: int
    width: int


def write_picture(path: Path, mask: NDArray[np.int64], colors: Sequence[Color]) -> Path:
    """Write a mask (H, W) as PNG whose values are class indices, shown in the classes' colours.

    Up to 256 classes have a palette; more are written in 16 bits, without colours.

    Raises:
        OutputError: If it cannot be written.
    """
    if len(colors) > 256:
        image = Image.fromarray(mask.astype(np.uint16))
    else:
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette([value for color in colors for value in color])
    with replacing(path) as temporary:
        image.save(temporary, format='PNG')
    return path


def write_raster(
    path: Path,
    mask: NDArray[np.int64],
    place: Place,
    names: Sequence[str],
    colors: Sequence[Color],
) -> Path:
    """Write a mask as GeoTIFF in the grid of the raster that it belongs to.

    The transform is the raster's own in double precision, moved by whole pixels. Pixels that the
    raster has no data for are nodata.

    Args:
        path: Of the file.
        mask: Class indices (H, W), at least as large as the place.
        place: Where it belongs.
        names: Of the classes.
        colors: Of the classes.

    Raises:
        ImageError: If the raster cannot be read any more.
        OutputError: If the file cannot be written.
    """
    wide = len(names) > NODATA
    nodata, dtype = (65535, 'uint16') if wide else (NODATA, 'uint8')
    crs, transform, valid = _grid(place)
    values = np.where(valid, mask[: place.height, : place.width], nodata).astype(dtype)
    tags: dict[str, Any] = {f'class_{index}': name for index, name in enumerate(names)}
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)  # the raster has no place either
        with rasterio.open(
            temporary, 'w', driver='GTiff', height=place.height, width=place.width, count=1,
            dtype=dtype, nodata=nodata, compress='deflate', crs=crs, transform=transform,
        ) as file:  # fmt: skip
            file.write(values, 1)
            file.update_tags(software=f'torchgeo-explora {__version__}', **tags)
            if not wide:
                file.write_colormap(1, {i: (*color, 255) for i, color in enumerate(colors)})
    return path


def _grid(place: Place) -> tuple[CRS | None, Affine, NDArray[np.bool_]]:
    """Coordinate system and transform of a part of a raster, and where it has data."""
    window = Window(place.column, place.row, place.width, place.height)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(place.file) as file:
                valid = file.dataset_mask(window=window) > 0
                moved = window_transform(window, file.transform)
                return file.crs, moved, valid
    except RasterioIOError as error:
        raise ImageError(
            f'{place.file} could not be read to place a mask in it ({error}): keep the images '
            'where they were found until the prediction has ended.'
        ) from error
