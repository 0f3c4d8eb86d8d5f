"""Makes a RESISC45 of a few random images, laid out as TorchGeo reads it.

Run as a script with a folder's name to look at it.
"""

import sys
from pathlib import Path

from PIL import Image
from torchgeo.datasets import RESISC45

from tests.data.fmow_rgb.data import picture

CLASSES = ('airplane', 'beach', 'wetland')
NUMBERS = {'train': (1, 2, 3, 4), 'val': (5, 6), 'test': (7, 8, 9)}


def write_resisc45(root: Path, size: int = 256) -> Path:
    """JPEGs of 256x256 in folders of their classes, and the lists of the splits; returns ``root``."""
    for split, numbers in NUMBERS.items():
        names = [f'{name}_{number:03d}.jpg' for name in CLASSES for number in numbers]
        for seed, name in enumerate(names):
            path = root / RESISC45.directory / name.rsplit('_', 1)[0] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(seed + 50 * numbers[0], size, size)).save(path, quality=95)
        (root / f'resisc45-{split}.txt').write_text(''.join(f'{name}\n' for name in names))
    return root


if __name__ == '__main__':
    write_resisc45(Path(sys.argv[1]))
