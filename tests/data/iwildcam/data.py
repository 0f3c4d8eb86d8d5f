"""Makes an iWildCam2020-WILDS of a few random pictures, with and without labels.

Run as a script with a folder's name to look at it.
"""

import csv
import sys
from pathlib import Path

from PIL import Image

from tests.data.fmow_rgb.data import picture

HEADER = (
    '', 'split', 'location_remapped', 'location', 'sequence_remapped', 'seq_id', 'y',
    'category_id', 'datetime', 'filename', 'image_id',
)  # fmt: skip
UNLABELLED_HEADER = (
    '', 'uid', 'location_remapped', 'sequence_remapped', 'datetime', 'y', 'filename',
)  # fmt: skip
SPLITS = {'train': 9, 'val': 4, 'test': 5, 'id_val': 3, 'id_test': 3}
LOCATIONS = {'train': 0, 'id_val': 0, 'id_test': 0, 'val': 1, 'test': 2}
ANIMALS = ('empty', 'tayassu pecari', 'dasyprocta punctata')


def write_labelled(folder: Path) -> Path:
    """Version 2.0; returns ``folder``."""
    (folder / 'train').mkdir(parents=True)
    (folder / 'RELEASE_v2.0.txt').touch()
    rows: list[tuple[object, ...]] = []
    for split, count in SPLITS.items():
        for number in range(count):
            seed = len(rows)
            name = f'{88 + seed:04x}-21bc.jpg'
            Image.fromarray(picture(seed, 40 + seed % 5, 60)).save(folder / 'train' / name)
            time = f'2013-0{1 + seed % 9}-1{seed % 10} {seed % 24:02d}:52:0{seed % 10}.000'
            label = number % len(ANIMALS)
            rows.append((seed, split, LOCATIONS[split], 300 + LOCATIONS[split], seed // 2,
                         f'{seed}-seq', label, 10 * label, time, name, name[:-4]))  # fmt: skip
    _write(folder / 'metadata.csv', HEADER, rows)
    names = [(number, 10 * number, name) for number, name in enumerate(ANIMALS)]
    _write(folder / 'categories.csv', ('y', 'category_id', 'name'), [*names, (99_999, 70, 'fish')])
    return folder


def write_unlabelled(folder: Path, count: int = 6) -> Path:
    """Version 1.0 of the unlabelled pictures; returns ``folder``."""
    (folder / 'images').mkdir(parents=True)
    (folder / 'RELEASE_v1.0.txt').touch()
    rows: list[tuple[object, ...]] = []
    for seed in range(count):
        uid = f'{4000 + seed:x}-uid'
        Image.fromarray(picture(100 + seed, 40, 50)).save(folder / 'images' / f'{uid}.jpg')
        time = '' if seed == 1 else f'2014-11-1{seed} 0{seed}:01:02.000'
        label = (-1, 99_999, 1)[seed % 3]
        rows.append((seed, uid, seed % 2, seed, time, label, f'{uid}.jpg'))
    _write(folder / 'metadata.csv', UNLABELLED_HEADER, rows)
    return folder


def _write(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_iwildcam(root: Path) -> Path:
    """Both releases; returns ``root``."""
    write_labelled(root / 'iwildcam_v2.0')
    write_unlabelled(root / 'iwildcam_unlabeled_v1.0')
    return root


if __name__ == '__main__':
    write_iwildcam(Path(sys.argv[1]))
