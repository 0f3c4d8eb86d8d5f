"""Makes a NAIP land cover of a few random chips, in both layouts.

Run as a script with a folder's name to look at them.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.data.fmow_rgb.data import picture

CODES = (69, 75, 121, 152)
"""Grapes, almonds, developed open space and shrubland in the Cropland Data Layer."""
SPLITS = {'train': 12, 'val': 4, 'test': 8}
SIDE = 100


def chip(seed: int, bands: int = 5) -> NDArray[np.uint8]:
    """(100, 100, bands): red, green, blue, near infrared and a mask of land cover."""
    infrared = 255 - picture(seed, SIDE, SIDE)[..., :1]
    mask = np.full_like(infrared, CODES[seed % len(CODES)])
    return np.concatenate([picture(seed, SIDE, SIDE), infrared, mask], axis=2)[..., :bands]


def chips() -> list[tuple[int, str, int]]:
    """Number, split and code of every chip, in an order that mixes the splits."""
    splits = [split for split, count in SPLITS.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(splits)).tolist()
    return [
        (number, splits[place], CODES[number % len(CODES)]) for number, place in enumerate(order)
    ]


def write_sustainbench(root: Path, header: tuple[str, ...] = ('file_name', 'y', 'split', 'split_str'),
                       folder: str = 'tile_triplets') -> Path:  # fmt: skip
    """SustainBench's layout; returns ``root``."""
    (root / 'tile_triplets').mkdir(parents=True)
    numbers = {'train': 0, 'val': 1, 'test': 2}
    with (root / 'metadata.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for number, split, code in chips():
            name = f'{number // 3}{("anchor", "neighbor", "distant")[number % 3]}.npy'
            np.save(root / 'tile_triplets' / name, chip(number))
            path = f'{folder}/{name}' if folder else name
            writer.writerow((path, code, numbers[split], split))
    return root


def write_satmae(root: Path) -> Path:
    """The layout of SatMAE's loader; returns ``root``."""
    (root / 'supervised_50_100').mkdir(parents=True)
    table = chips()
    for number, _, _ in table:
        np.save(root / 'supervised_50_100' / f'{number}tile.npy', chip(number))
    np.save(root / 'y_50_100.npy', np.array([code for _, _, code in table]))
    numbers = {'train': 0, 'val': 1, 'test': 2}
    np.save(root / 'splits.npy', np.array([numbers[split] for _, split, _ in table]))
    return root


if __name__ == '__main__':
    write_sustainbench(Path(sys.argv[1]) / 'sustainbench')
    write_satmae(Path(sys.argv[1]) / 'satmae')
