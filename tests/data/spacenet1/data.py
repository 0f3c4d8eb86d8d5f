"""Makes a SpaceNet 1 of a few random chips, laid out as TorchGeo reads it.

Run as a script with a folder's name to look at it.
"""

import sys
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from rasterio.transform import from_origin

PIXEL = 4.5e-6
"""Degrees: about half a metre."""


def write_spacenet1(
    root: Path, train: int = 12, test: int = 3, height: int = 406, width: int = 439
) -> Path:
    """RGB chips of bytes in degrees, and a file of buildings for each that has labels."""
    for split, count in (('train', train), ('test', test)):
        folder = root / 'SN1_buildings' / split
        for kind in ('3band', 'geojson'):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            rng = np.random.default_rng([len(split), number])
            west, north = -43.6 + number * width * PIXEL, -22.9
            with rasterio.open(
                folder / '3band' / f'3band_AOI_1_RIO_img{number}.tif', 'w', driver='GTiff', count=3,
                height=height, width=width, dtype='uint8', crs='EPSG:4326',
                transform=from_origin(west, north, PIXEL, PIXEL),
            ) as sink:  # fmt: skip
                sink.write(rng.integers(1, 256, (3, height, width), dtype=np.uint8))
            corners = rng.random((4, 2)) * (width * 0.8, height * 0.8) * PIXEL
            houses = [
                shapely.box(west + x, north - y - 60 * PIXEL, west + x + 80 * PIXEL, north - y)
                for x, y in corners
            ]
            if split == 'train':
                geopandas.GeoDataFrame(geometry=houses, crs='EPSG:4326').to_file(
                    folder / 'geojson' / f'Geo_AOI_1_RIO_img{number}.geojson'
                )
    return root


if __name__ == '__main__':
    write_spacenet1(Path(sys.argv[1]))
