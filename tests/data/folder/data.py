"""Makes small folders of images: pictures in class folders, and rasters with nodata.

Run as a script with a folder's name to look at them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin


def pixels(seed: int, bands: int = 3, size: int = 16) -> NDArray[np.uint8]:
    """Random bytes, (size, size, bands)."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, bands), dtype=np.uint8)


def write_picture(path: Path, seed: int = 0, bands: int = 3, size: int = 16) -> Path:
    """A PNG or JPEG of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, bands, size).squeeze()).save(path)
    return path


def write_classes(root: Path, classes: Sequence[str] = ('a', 'b', 'c'), count: int = 4) -> Path:
    """``root/<class>/<number>.png``."""
    for label, name in enumerate(classes):
        for number in range(count):
            write_picture(root / name / f'{number}.png', seed=100 * label + number)
    return root


def write_raster(
    path: Path,
    values: NDArray[np.generic],
    nodata: float | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """A GeoTIFF of (bands, height, width) values with 10 m pixels in UTM zone 32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, 'w', driver='GTiff', count=values.shape[0], height=values.shape[1],
        width=values.shape[2], dtype=values.dtype.name, nodata=nodata, crs='EPSG:32632',
        transform=from_origin(500_000, 5_000_000, 10, 10),
    ) as sink:  # fmt: skip
        sink.write(values)
        if names is not None:
            sink.descriptions = tuple(names)
    return path


if __name__ == '__main__':
    write_classes(Path(sys.argv[1]))
