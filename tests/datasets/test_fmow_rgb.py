"""fMoW-RGB: tables as found in the wild, the raw layout, boxes with context, damage."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torchgeo.datasets import DatasetNotFoundError

from tests.data.fmow_rgb.data import (
    CLASSES,
    HEADER,
    NUMBERS,
    TABLES,
    path_of,
    write_raw,
    write_tables,
)
from torchgeo_explora.datasets import Cropping, FMoWRGB
from torchgeo_explora.datasets._crops import Box
from torchgeo_explora.datasets._fmow_boxes import ImageNotes, context_window
from torchgeo_explora.errors import ConfigError, ImageError


def _rows(table: Path) -> list[list[str]]:
    with table.open(newline='') as file:
        return list(csv.reader(file))


def _write(table: Path, rows: Sequence[Sequence[object]]) -> None:
    with table.open('w', newline='') as file:
        csv.writer(file).writerows(rows)


def _pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1).float() / 255


def test_there_are_62_classes_in_order() -> None:
    assert len(FMoWRGB.classes) == 62 and FMoWRGB.classes == sorted(FMoWRGB.classes)
    assert [FMoWRGB.classes.index(name) for name in NUMBERS] == list(NUMBERS.values())


class TestTables:
    def test_samples_are_the_files(self, tmp_path: Path) -> None:
        dataset = FMoWRGB(write_tables(tmp_path))
        assert len(dataset) == 18 and not dataset.cut_boxes and dataset.num_channels == 3
        for index, row in enumerate(_rows(tmp_path / TABLES['train'])[1:]):
            sample = dataset[index]
            assert torch.equal(sample['image'], _pixels(tmp_path / 'fmow' / row[1]))
            assert int(sample['label']) == int(row[0])

    @pytest.mark.parametrize(
        'header', [HEADER, ('label', 'path', 'timestamp'), ('Unnamed: 0', 'col1', 'col2'), ('Class', 'image', 'date')]
    )  # fmt: skip
    @pytest.mark.parametrize('numbers', [True, False])
    def test_spellings(self, tmp_path: Path, header: tuple[str, ...], numbers: bool) -> None:
        dataset = FMoWRGB(write_tables(tmp_path, (1, 1), numbers=numbers, header=header))
        assert dataset.labels.tolist() == [NUMBERS[name] for name in CLASSES for _ in range(2)]

    def test_columns_in_another_order_are_found_by_name(self, tmp_path: Path) -> None:
        write_tables(tmp_path)
        table = tmp_path / TABLES['train']
        _write(table, [[number, *row[::-1]] for number, row in enumerate(_rows(table))])
        _write(table, [['', 'timestamp', 'image_path', 'category'], *_rows(table)[1:]])
        assert FMoWRGB(tmp_path).labels.unique().tolist() == sorted(NUMBERS.values())

    @pytest.mark.parametrize('name', ['val_62classes.csv', 'test_62classes.csv'])
    def test_either_name_of_the_validation_table(self, tmp_path: Path, name: str) -> None:
        write_tables(tmp_path, tables={'val': name})
        assert len(FMoWRGB(tmp_path, 'val')) == len(FMoWRGB(tmp_path, 'test')) == 18
        with pytest.raises(DatasetNotFoundError, match='manually'):
            FMoWRGB(tmp_path, 'train')

    @pytest.mark.parametrize('folder', ['', 'fmow', 'fmow-rgb'])
    def test_pictures_below_the_root(self, tmp_path: Path, folder: str) -> None:
        dataset = FMoWRGB(write_tables(tmp_path, folder=folder))
        assert dataset[17]['image'].shape[0] == 3

    @pytest.mark.parametrize('prefix', ['/atlas/u/train/data/fmow-rgb/', './', 'C:\\data\\'])
    def test_paths_of_another_machine(self, tmp_path: Path, prefix: str) -> None:
        write_tables(tmp_path)
        table = tmp_path / TABLES['train']
        header, *rows = _rows(table)
        separator = '\\' if '\\' in prefix else '/'
        changed = [[row[0], prefix + row[1].replace('/', separator), row[2]] for row in rows]
        _write(table, [header, *changed])
        if separator == '\\':
            with pytest.warns(UserWarning, match='Windows paths'):
                dataset = FMoWRGB(tmp_path)
        else:
            dataset = FMoWRGB(tmp_path)
        assert torch.equal(dataset[4]['image'], _pixels(tmp_path / 'fmow' / rows[4][1]))

    def test_absolute_paths_that_are_there(self, tmp_path: Path) -> None:
        write_tables(tmp_path / 'a')
        table = tmp_path / 'a' / TABLES['train']
        header, *rows = _rows(table)
        changed = [[row[0], (tmp_path / 'a' / 'fmow' / row[1]).as_posix(), row[2]] for row in rows]
        _write(tmp_path / TABLES['train'], [header, *changed])
        assert len(FMoWRGB(tmp_path)) == 18

    def test_crops_in_folders_of_their_boxes(self, tmp_path: Path) -> None:
        write_tables(tmp_path)
        for path in list((tmp_path / 'fmow').rglob('*.jpg')):
            place = path.parent.name.rsplit('_', 1)[0]
            (path.parent / f'{place}_-1').mkdir(exist_ok=True)
            path.replace(path.parent / f'{place}_-1' / path.name)
        assert FMoWRGB(tmp_path)[3]['image'].shape[0] == 3

    def test_a_missing_column(self, tmp_path: Path) -> None:
        write_tables(tmp_path)
        _write(tmp_path / TABLES['train'], [['image_path'], ['train/airport/x.jpg']])
        with pytest.raises(
            ImageError, match=r"columns image_path, but none.*'category' or 'label'"
        ):
            FMoWRGB(tmp_path)

    def test_labels_that_are_none(self, tmp_path: Path) -> None:
        write_tables(tmp_path)
        table = tmp_path / TABLES['train']
        rows = _rows(table)
        rows[1][0], rows[2][0], rows[3][0], rows[4][0] = '62', '-1', 'castle', '0.0'
        _write(table, rows)
        with pytest.warns(UserWarning, match="3 of 18 .*row 2: '62', row 3: '-1', row 4: 'castle'"):
            dataset = FMoWRGB(tmp_path)
        assert dataset.labels[0] == 0 and len(dataset) == 15

    def test_timestamps_do_not_matter_to_single_pictures(self, tmp_path: Path) -> None:
        write_tables(tmp_path)
        table = tmp_path / TABLES['train']
        _write(table, [row[:2] for row in _rows(table)])
        assert len(FMoWRGB(tmp_path)) == 18

    def test_damage(self, tmp_path: Path) -> None:
        write_tables(tmp_path)
        paths = [tmp_path / 'fmow' / row[1] for row in _rows(tmp_path / TABLES['train'])[1:]]
        paths[0].unlink()
        paths[1].write_bytes(paths[1].read_bytes()[:300])
        Image.new('RGB', (20, 20)).save(paths[2])
        Image.new('L', (20, 20), 99).save(paths[4])
        dataset = FMoWRGB(tmp_path)
        with pytest.warns(UserWarning) as warned:
            sample = dataset[0]
        assert torch.equal(sample['image'], dataset[3]['image']) and len(dataset.damaged) == 3
        assert '3 of 18 so far' in str(warned[-1].message)
        assert 'all of its values are 0' in str(warned[-1].message)
        assert dataset[4]['image'].shape == (3, 20, 20)  # a grey picture is repeated

    def test_no_picture_of_the_table_is_there(self, tmp_path: Path) -> None:
        write_tables(tmp_path)
        (tmp_path / 'fmow').rename(tmp_path / 'elsewhere')
        with pytest.raises(DatasetNotFoundError):
            FMoWRGB(tmp_path)
        with pytest.raises(DatasetNotFoundError):
            FMoWRGB(tmp_path, csv='no.csv')


class TestRaw:
    def test_pictures_are_cut_to_their_boxes(self, tmp_path: Path) -> None:
        dataset = FMoWRGB(write_raw(tmp_path))
        assert len(dataset) == 18 and dataset.cut_boxes
        assert dataset.labels.unique().tolist() == sorted(NUMBERS.values())
        path = tmp_path / path_of('train', 'airport', 0, 1)
        left, top, width, height = json.loads(path.with_suffix('.json').read_text())[
            'bounding_boxes'
        ][0]['box']
        # 44 of 91 rows: 0.48, so 0.2 of the width; 36 of 110 columns: 0.33, so 0.3 of the height
        across, down = int(44 * 0.2 / 2), int(36 * 0.3 / 2)
        expected = _pixels(path)[
            :, top - down : top + height + down, left - across : left + width + across
        ]
        assert torch.equal(dataset[1]['image'], expected)

    def test_other_kind_and_whole_pictures(self, tmp_path: Path) -> None:
        write_raw(tmp_path / 'fmow-rgb', splits=('train',))
        dataset = FMoWRGB(tmp_path, kind='msrgb', cut_boxes=False)
        assert dataset.index.paths[0].endswith('_msrgb.jpg')
        assert dataset[0]['image'].shape == (3, 90, 110)
        with pytest.raises(DatasetNotFoundError):
            FMoWRGB(tmp_path, 'val')

    def test_a_table_of_raw_pictures(self, tmp_path: Path) -> None:
        write_raw(tmp_path)
        rows = [('category', 'image_path'), ('zoo', path_of('train', 'zoo', 0, 0))]
        _write(tmp_path / TABLES['train'], rows)
        dataset = FMoWRGB(tmp_path)
        assert dataset.cut_boxes and dataset[0]['image'].shape[1] < 90

    @pytest.mark.parametrize(
        ('notes', 'reason'),
        [
            ({}, 'bounding_boxes'),
            ({'bounding_boxes': [{'category': 'airport', 'box': [1, 2]}]}, 'bounding_boxes'),
            ({'bounding_boxes': [{'category': 'zoo', 'box': [1, 2, 30, 30]}]}, 'no box of airport'),
            (
                {'bounding_boxes': {'category': 'airport', 'box': [1, 2, 2, 30]}},
                'no box of airport',
            ),
            ({'bounding_boxes': [{'category': 'airport', 'box': [900, 2, 9, 9]}]}, 'outside'),
            ('not json', 'bounding_boxes'),
        ],
    )
    def test_useless_notes(self, tmp_path: Path, notes: object, reason: str) -> None:
        write_raw(tmp_path)
        path = (tmp_path / path_of('train', 'airport', 0, 0)).with_suffix('.json')
        path.write_text(notes if isinstance(notes, str) else json.dumps(notes))
        dataset = FMoWRGB(tmp_path)
        with pytest.warns(UserWarning, match=reason):
            sample = dataset[0]
        assert torch.equal(sample['image'], dataset[1]['image'])


@pytest.mark.parametrize(
    ('side', 'multiple'), [(60, 0.15), (50, 0.15), (49, 0.2), (39, 0.3), (29, 0.5), (19, 1), (9, 2)]
)
def test_context_grows_as_boxes_shrink(side: int, multiple: float) -> None:
    notes = ImageNotes((Box(40, 40, 3, 3), Box(20, 20, side, side)), ('zoo', 'zoo'), '')
    box = context_window(notes, 'zoo', 100, 100)
    margin = int(side * multiple / 2)
    assert box.top == box.left == 20 - margin if margin < 20 else box.top == 0
    assert box.height == box.width == min(20 + side + margin, 100) - box.top


def test_plot(tmp_path: Path) -> None:
    dataset = FMoWRGB(write_tables(tmp_path), cropping=Cropping(24))
    figure = dataset.plot(dataset[5])
    shown = figure.axes[0].images[0].get_array()
    assert shown is not None and 'airport' in figure.get_suptitle()
    assert np.allclose(np.asarray(shown), dataset[5]['image'].permute(1, 2, 0))
    plt.close(figure)


@pytest.mark.parametrize('wrong', [{'split': 'seq'}, {'kind': 'tif'}, {'cut_boxes': 'never'}])
def test_impossible_arguments(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match='give'):
        FMoWRGB(tmp_path, **wrong)  # type: ignore[arg-type]
