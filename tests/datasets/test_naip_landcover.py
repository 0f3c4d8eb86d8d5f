"""NAIP land cover: both layouts, classes, bands and what is wrong with tables and chips."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchgeo.datasets import DatasetNotFoundError

from tests.data.naip_landcover.data import (
    CODES,
    SPLITS,
    chip,
    chips,
    write_satmae,
    write_sustainbench,
)
from torchgeo_explora.datasets import Cropping, NAIPLandCover
from torchgeo_explora.datasets._cdl import LEGEND, class_names
from torchgeo_explora.errors import ConfigError, ImageError

pytestmark = pytest.mark.filterwarnings('ignore:.*the published data set')

NAMES = ['Grapes', 'Almonds', 'Developed/Open Space', 'Shrubland']


@pytest.fixture(scope='module')
def sustainbench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sustainbench(tmp_path_factory.mktemp('naip'))


@pytest.mark.parametrize('split', ['train', 'val', 'test', 'val+test'])
@pytest.mark.parametrize('layout', ['sustainbench', 'nested', 'bare', 'satmae'])
def test_layouts(tmp_path: Path, layout: str, split: str) -> None:
    """Images, labels and their order are those of the table, whatever the layout."""
    if layout == 'satmae':
        root = write_satmae(tmp_path)
    elif layout == 'bare':  # SustainBench's own loader puts the folder before the name
        header = ('fileName', 'landCover', 'split', 'splitStr')
        root = write_sustainbench(tmp_path, header, folder='')
    else:
        write_sustainbench(tmp_path / 'land_cover_representation')
        root = tmp_path if layout == 'nested' else tmp_path / 'land_cover_representation'
    dataset = NAIPLandCover(root, split)  # type: ignore[arg-type]
    expected = [(number, code) for number, name, code in chips() if name in split.split('+')]
    assert len(dataset) == len(expected) == sum(SPLITS[name] for name in split.split('+'))
    for place, (number, code) in enumerate(expected):
        sample = dataset[place]
        pixels = torch.from_numpy(chip(number)[..., :3]).permute(2, 0, 1)
        assert torch.equal((255 * sample['image']).round().to(torch.uint8), pixels)
        assert dataset.codes is not None and dataset.codes[int(sample['label'])] == code
    assert dataset.classes == NAMES and dataset.codes == list(CODES)


def test_bands_by_name(sustainbench: Path) -> None:
    every = NAIPLandCover(sustainbench, bands=NAIPLandCover.all_bands)[0]['image']
    chosen = NAIPLandCover(sustainbench, bands=('nir', 'red'))[0]['image']
    assert every.shape == (4, 100, 100) and torch.equal(chosen, every[[3, 0]])
    with pytest.raises(ConfigError, match=r"bands are ..red', 'swir'.: give some of red, green"):
        NAIPLandCover(sustainbench, bands=('red', 'swir'))


def test_numbers_of_classes_are_taken_as_they_are(tmp_path: Path) -> None:
    root = write_satmae(tmp_path)
    codes = np.load(root / 'y_50_100.npy')
    numbers = np.searchsorted(np.array(CODES), codes)
    np.save(root / 'y_50_100.npy', numbers)
    dataset = NAIPLandCover(root, 'test')
    assert dataset.codes is None and dataset.classes == ['0', '1', '2', '3']
    splits = np.load(root / 'splits.npy')
    assert dataset.labels.tolist() == numbers[splits == 2].tolist()


def test_names_of_the_legend_are_all_different() -> None:
    assert LEGEND[1] == 'Corn' and LEGEND[254] == 'Dbl Crop Barley/Soybeans' and len(LEGEND) > 130
    assert class_names([64, 75, 152, 300]) == [
        'Shrubland (64)',
        'Almonds',
        'Shrubland (152)',
        '300',
    ]
    names = class_names(sorted(LEGEND))
    assert len(set(names)) == len(names)


def test_crops_and_pictures(sustainbench: Path) -> None:
    dataset = NAIPLandCover(sustainbench, cropping=Cropping(32, 'resized', (0.2, 0.5)), seed=1)
    assert dataset[0]['image'].shape == (3, 32, 32)
    assert not torch.equal(dataset.draw(0, 0)['image'], dataset.draw(0, 1)['image'])
    assert dataset.plot(dataset[0]).get_suptitle().startswith('Label: ')


def test_other_numbers_of_classes_are_said(sustainbench: Path) -> None:
    with pytest.warns(UserWarning, match='has 4 classes, the published data set 66'):
        NAIPLandCover(sustainbench)


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        (np.zeros((100, 100), np.uint8), r'has the shape \(100, 100\), not rows, columns and 3'),
        (np.full((4, 4, 4), 300, np.int16), 'int16 values are not all in 0 to 255'),
        (None, 'cannot be used'),
    ],
)
def test_bad_chips_are_replaced(
    tmp_path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None, reason: str
) -> None:
    dataset = NAIPLandCover(write_sustainbench(tmp_path), 'train')
    path = Path(dataset.file_of(0))
    if values is None:
        path.write_bytes(b'no array')
    else:
        np.save(path, values)
    with pytest.warns(UserWarning, match=reason):
        sample = dataset[0]
    assert torch.equal(sample['image'], dataset[1]['image'])
    assert dataset.damaged == [dataset.index.paths[0]]


class TestTables:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError):
            NAIPLandCover(tmp_path)
        (write_sustainbench(tmp_path) / 'tile_triplets').rename(tmp_path / 'elsewhere')
        with pytest.raises(DatasetNotFoundError):
            NAIPLandCover(tmp_path)

    def test_bad_rows_are_left_out_and_named(self, tmp_path: Path) -> None:
        path = write_sustainbench(tmp_path) / 'metadata.csv'
        lines = path.read_text().splitlines()
        lines[1] = lines[1].replace(lines[1].split(',')[1], 'grapes')
        lines[2] = lines[2].rsplit(',', 1)[0] + ',holdout'
        path.write_text('\n'.join(lines))
        with pytest.warns(UserWarning, match=r'no whole number as class.*\(row 2, row 3\)'):
            total = sum(len(NAIPLandCover(tmp_path, split)) for split in ('train', 'val', 'test'))
        assert total == sum(SPLITS.values()) - 2

    @pytest.mark.parametrize('column', ['y', 'file_name'])
    def test_missing_column(self, tmp_path: Path, column: str) -> None:
        path = write_sustainbench(tmp_path) / 'metadata.csv'
        path.write_text(path.read_text().replace(column, 'other', 1))
        with pytest.raises(ImageError, match='has no column y' if column == 'y' else 'file_name'):
            NAIPLandCover(tmp_path)

    def test_arrays_that_do_not_fit(self, tmp_path: Path) -> None:
        root = write_satmae(tmp_path)
        np.save(root / 'splits.npy', np.zeros(3))
        with pytest.raises(ImageError, match=r'\(24,\) and splits.npy \(3,\)'):
            NAIPLandCover(root)
        (root / 'splits.npy').write_bytes(b'')
        with pytest.raises(ImageError, match='cannot be read'):
            NAIPLandCover(root)

    def test_arguments(self, sustainbench: Path) -> None:
        with pytest.raises(ConfigError, match="split is 'all': give one of train, val, test"):
            NAIPLandCover(sustainbench, 'all')  # type: ignore[arg-type]
