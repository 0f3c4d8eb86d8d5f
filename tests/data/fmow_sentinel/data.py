"""Makes an fMoW-Sentinel of a few random chips in the published layout.

Run as a script with a folder's name to look at it.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.data.folder.data import write_raster

CLASSES = ('airport', 'crop_field', 'lake_or_pond')
HEADER = ('category', 'location_id', 'image_id', 'timestamp', 'polygon')
TABLES = {'train': 'train.csv', 'val': 'val.csv', 'test': 'test_gt.csv'}
POLYGON = 'POLYGON ((7.1 50.7, 7.2 50.7, 7.2 50.8, 7.1 50.8, 7.1 50.7))'


def chip(seed: int, bands: int = 13, height: int = 40, width: int = 36) -> NDArray[np.uint16]:
    """Digital numbers, (bands, height, width): a gradient and noise, brighter from band to band."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(200, 1800, width) * np.linspace(0.5, 1.5, height)[:, None]
    noise = rng.integers(1, 900, (bands, height, width))
    return (ramp + noise + 60 * np.arange(bands)[:, None, None]).astype(np.uint16)


def layout_path(split: str, category: str, location: int, image: int) -> str:
    """Path of a chip in the archive, from the folder of its split on."""
    stem = f'{category}_{location}'
    return f'{split}/{category}/{stem}/{stem}_{image}.tif'


def write_sentinel(
    root: Path,
    splits: Sequence[str] = ('train', 'val', 'test'),
    locations: int = 2,
    images: Sequence[int] = (3, 100),
    folder: str = 'fmow-sentinel',
) -> Path:
    """Tables and 13-band uint16 GeoTIFFs whose sizes vary; returns ``root``.

    Files of the test split lie in ``test_gt``, as their table is called.
    """
    root.mkdir(parents=True, exist_ok=True)
    seed = 0
    for split in splits:
        with (root / TABLES[split]).open('w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for category in CLASSES:
                for location in range(locations):
                    for image in images:
                        time = f'201{5 + seed % 5}-0{1 + seed % 9}-16T0{seed % 10}:30:00Z'
                        writer.writerow((category, location, image, time, POLYGON))
                        place = Path(TABLES[split]).stem if split == 'test' else split
                        path = root / folder / layout_path(place, category, location, image)
                        write_raster(path, chip(seed, height=36 + seed % 9, width=40 - seed % 7))
                        seed += 1
    return root


if __name__ == '__main__':
    write_sentinel(Path(sys.argv[1]))
