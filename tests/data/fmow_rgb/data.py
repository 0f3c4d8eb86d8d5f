"""Makes an fMoW-RGB of a few random pictures: SatMAE's tables with crops, or the raw layout.

Run as a script with a folder's name to look at both.
"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ('airport', 'golf_course', 'zoo')
NUMBERS = {'airport': 0, 'golf_course': 21, 'zoo': 61}
HEADER = ('category', 'image_path', 'timestamp')
TABLES = {'train': 'train_62classes.csv', 'val': 'val_62classes.csv'}


def picture(seed: int, height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    """A smooth random picture, (height, width, 3), which JPEG leaves nearly as it is."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[:, None]
    low, high, turn = rng.uniform(20, 90, 3), rng.uniform(120, 230, 3), rng.uniform(0, 1, 3)
    return (low + (high - low) * (turn * rows + (1 - turn) * columns)).astype(np.uint8)


def timestamp(seed: int) -> str:
    """A moment between 2010 and 2017, as fMoW writes it."""
    return f'201{seed % 8}-{1 + seed % 12:02d}-09T{seed % 24:02d}:54:11Z'


def path_of(split: str, category: str, place: int, date: int, kind: str = 'rgb') -> str:
    """Path of a picture, from the folder of its split on."""
    stem = f'{category}_{place}'
    return f'{split}/{category}/{stem}/{stem}_{date}_{kind}.jpg'


def _save(path: Path, seed: int, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, height, width)).save(path, quality=95)


def write_tables(
    root: Path,
    dates: Sequence[int] = (3, 2, 1),
    folder: str = 'fmow',
    numbers: bool = True,
    tables: dict[str, str] = TABLES,
    header: Sequence[str] = HEADER,
) -> Path:
    """SatMAE's tables, and crops in ``root/fmow/<split>``; returns ``root``.

    Args:
        root: Folder to write to.
        dates: Number of dates of every place of a class.
        folder: Folder of the pictures.
        numbers: Whether classes are numbers in the tables, or names.
        tables: Name of the table of every split.
        header: Names of the three columns.
    """
    root.mkdir(parents=True, exist_ok=True)
    seed = 0
    for split, table in tables.items():
        with (root / table).open('w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for category in CLASSES:
                for place, count in enumerate(dates):
                    for date in range(count):
                        path = path_of(split, category, place, date)
                        _save(root / folder / path, seed, 40 + seed % 5, 52 - seed % 7)
                        label = NUMBERS[category] if numbers else category
                        writer.writerow((label, path, timestamp(seed)))
                        seed += 1
    return root


def write_raw(
    root: Path, dates: Sequence[int] = (3, 2, 1), splits: Sequence[str] = ('train', 'val')
) -> Path:
    """Whole pictures with a JSON file each, in fMoW's own layout; returns ``root``."""
    seed = 0
    for split in splits:
        for category in CLASSES:
            for place, count in enumerate(dates):
                for date in range(count):
                    for kind in ('rgb', 'msrgb'):
                        path = root / path_of(split, category, place, date, kind)
                        _save(path, seed, 90 + seed % 5, 110)
                        path.with_suffix('.json').write_text(json.dumps(_notes(category, seed)))
                    seed += 1
    return root


def _notes(category: str, seed: int) -> dict[str, object]:
    """What fMoW's JSON files hold, as far as it is read, and some of the rest."""
    box = {'ID': seed, 'category': category, 'box': [30 + seed % 3, 20, 44, 36]}
    return {
        'gsd': 0.5, 'utm': '32U', 'country_code': 'DEU', 'cloud_cover': 3,
        'timestamp': timestamp(seed), 'img_width': 110, 'img_height': 90 + seed % 5,
        'bounding_boxes': [box],
    }  # fmt: skip


if __name__ == '__main__':
    write_tables(Path(sys.argv[1]) / 'tables')
    write_raw(Path(sys.argv[1]) / 'raw')
