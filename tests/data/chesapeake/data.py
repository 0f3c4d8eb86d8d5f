"""Makes two small NAIP images and the land use below them, laid out as TorchGeo reads them.

Run as a script with a folder's name to look at them.
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

CODES = (0, 11, 21, 41, 127)
"""Some codes of land use; 0 is none."""

WEST, NORTH = 320_000, 4_310_000
NAMES = ('m_3807708_ne_18_1_20130924.tif', 'm_3807708_nw_18_1_20130924.tif')


def _write(path: Path, values: np.ndarray, west: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, 'w', driver='GTiff', count=values.shape[0], height=values.shape[1],
        width=values.shape[2], dtype='uint8', crs='EPSG:26918',
        transform=from_origin(west, NORTH, 1, 1),
    ) as sink:  # fmt: skip
        sink.write(values)


def write_naip(root: Path, side: int = 256) -> Path:
    """Two adjoining images of four bands at 1 m."""
    for number, name in enumerate(NAMES):
        values = np.random.default_rng(number).integers(1, 256, (4, side, side), dtype=np.uint8)
        _write(root / 'naip' / name, values, WEST + number * side)
    return root


def write_chesapeake(root: Path, side: int = 256) -> Path:
    """The images, and labels of one state over both."""
    blocks = np.random.default_rng(5).integers(0, len(CODES), (side // 16, 2 * side // 16))
    codes = np.array(CODES, dtype=np.uint8)[blocks].repeat(16, axis=0).repeat(16, axis=1)
    _write(root / 'chesapeake' / 'dc_lulc_2013_2022-Edition.tif', codes[None], WEST)
    return write_naip(root, side)


if __name__ == '__main__':
    write_chesapeake(Path(sys.argv[1]))
