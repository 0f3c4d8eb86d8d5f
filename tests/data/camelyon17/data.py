"""Makes a Camelyon17-WILDS of a few random patches, with and without labels.

Run as a script with a folder's name to look at it.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.fmow_rgb.data import picture

HEADER = ('', 'patient', 'node', 'x_coord', 'y_coord', 'tumor', 'slide', 'center', 'split')
CENTRES = (0, 1, 2, 3, 4)
SLIDES = {0: (0, 3), 1: (10, 12), 2: (20, 23), 3: (30, 33), 4: (40, 44)}
"""Two slides of each hospital; 23 is the one that ``mixed-to-test`` moves."""


def rows(labelled: bool, patches: int = 4) -> list[tuple[object, ...]]:
    """Rows of ``metadata.csv`` without their index.

    Args:
        labelled: Whether tumours are known.
        patches: Number of patches of every slide.
    """
    found: list[tuple[object, ...]] = []
    for centre in CENTRES:
        for slide in SLIDES[centre]:
            for number in range(patches):
                x, y = 96 * number + 3328, 21_792 + slide
                tumour = (slide + number) % 2 if labelled else -1
                split = int(number == patches - 1) if labelled else -1
                found.append(
                    (f'{4 + slide // 2:03d}', slide % 5, x, y, tumour, slide, centre, split)
                )
    return found


def write_release(folder: Path, labelled: bool, patches: int = 4) -> Path:
    """One release; patches with a tumour are darker. Returns ``folder``."""
    folder.mkdir(parents=True)
    (folder / 'RELEASE_v1.0.txt').touch()
    table = rows(labelled, patches)
    write_table(folder / 'metadata.csv', table)
    for seed, (patient, node, x, y, tumour, *_) in enumerate(table):
        stem = f'patient_{patient}_node_{node}'
        path = folder / 'patches' / stem / f'patch_{stem}_x_{x}_y_{y}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = picture(seed, 96, 96).astype(np.int64) // (3 if tumour == 1 else 1)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def write_table(path: Path, table: Sequence[Sequence[object]]) -> None:
    """``metadata.csv``, with the index that pandas writes first."""
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows([(number, *row) for number, row in enumerate(table)])


def write_camelyon17(root: Path, patches: int = 4) -> Path:
    """Both releases; returns ``root``."""
    write_release(root / 'camelyon17_v1.0', True, patches)
    write_release(root / 'camelyon17_unlabeled_v1.0', False, patches)
    return root


if __name__ == '__main__':
    write_camelyon17(Path(sys.argv[1]))
