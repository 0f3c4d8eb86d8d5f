"""Makes a EuroSAT of a few random images, laid out as TorchGeo reads it.

Run as a script with a folder's name to look at it.
"""

import sys
from pathlib import Path

import numpy as np
from torchgeo.datasets import EuroSAT, EuroSATSpatial

from tests.data.folder.data import write_raster

CLASSES = ('AnnualCrop', 'Forest')
NUMBERS = {'train': (1, 2, 3), 'val': (4,), 'test': (5, 6)}


def write_eurosat(root: Path, size: int = 64) -> Path:
    """13-band uint16 GeoTIFFs and the lists of both splits."""
    rng = np.random.default_rng(0)
    for split, numbers in NUMBERS.items():
        names = [f'{name}_{number}.tif' for name in CLASSES for number in numbers]
        for name in names:
            values = rng.integers(0, 4000, (13, size, size)).astype(np.uint16)
            write_raster(root / EuroSAT.base_dir / name.split('_')[0] / name, values)
        listing = ''.join(name.replace('.tif', '.jpg') + '\n' for name in names)
        for dataset in (EuroSAT, EuroSATSpatial):
            (root / dataset.split_filenames[split]).write_text(listing)
    return root


if __name__ == '__main__':
    write_eurosat(Path(sys.argv[1]))
