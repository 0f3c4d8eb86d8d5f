"""fMoW-Sentinel: layouts, bands, scaling, and everything that is wrong with a row or a chip."""

import csv
import json
import shutil
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from matplotlib import pyplot as plt
from torch.utils.data import DataLoader
from torchgeo.datasets import DatasetNotFoundError, EuroSAT, RGBBandsMissingError

from tests.data.fmow_sentinel.data import chip, layout_path, write_sentinel
from tests.data.folder.data import write_raster
from tests.datasets import index_sizes
from tests.processes import run
from torchgeo_explora.datasets import (
    SATMAE_BANDS,
    SENTINEL2_BANDS,
    Cropping,
    FMoWSentinel,
    canonical_band,
    satmae_scale,
)
from torchgeo_explora.datasets import _fmow_download as download
from torchgeo_explora.datasets._fmow import CATEGORIES
from torchgeo_explora.errors import ConfigError, ImageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_sentinel(tmp_path)


def _rows(table: Path) -> list[list[str]]:
    with table.open(newline='') as file:
        return list(csv.reader(file))


def _write(table: Path, rows: Sequence[Sequence[object]]) -> None:
    with table.open('w', newline='') as file:
        csv.writer(file).writerows(rows)


def _files(root: Path) -> list[Path]:
    """Files of the training split in the order of the table."""
    return [
        root / 'fmow-sentinel' / layout_path('train', row[0], int(row[1]), int(row[2]))
        for row in _rows(root / 'train.csv')[1:]
    ]


class TestLayouts:
    def test_published(self, root: Path) -> None:
        for split in ('train', 'val', 'test'):
            dataset = FMoWSentinel(root, split)
            assert len(dataset) == 12 and dataset.skipped == {}
            assert dataset.labels.bincount().nonzero()[:, 0].tolist() == [0, 11, 27]

    def test_values_are_the_files_scaled_by_name(self, root: Path) -> None:
        dataset = FMoWSentinel(root)
        places = [SENTINEL2_BANDS.index(name) for name in SATMAE_BANDS]
        for index, path in enumerate(_files(root)):
            with rasterio.open(path) as source:
                values = source.read()[places]
            expected = torch.from_numpy(satmae_scale(values, SATMAE_BANDS)).float() / 255
            sample = dataset[index]
            assert torch.equal(sample['image'], expected)
            assert sample['label'].dtype == torch.int64
            assert dataset.classes[int(sample['label'])] == path.parts[-3]

    def test_without_the_archives_folder(self, root: Path) -> None:
        (root / 'fmow-sentinel' / 'train').replace(root / 'train')
        assert len(FMoWSentinel(root)) == 12

    @pytest.mark.parametrize('prefix', ['', 'fmow-sentinel/', '/atlas/u/someone/fmow-sentinel/'])
    def test_given_paths_where_the_layout_has_no_files(self, root: Path, prefix: str) -> None:
        """Another naming of the files, so that only the column leads to them."""
        header, *rows = _rows(root / 'train.csv')
        folder = root / 'fmow-sentinel' / 'train' / 'all'
        folder.mkdir()
        for number, path in enumerate(_files(root)):
            path.replace(folder / f'{number}.tif')
        table = [[*row, f'{prefix}train/all/{n}.tif'] for n, row in enumerate(rows)]
        _write(root / 'train.csv', [[*header, 'image_path'], *table])
        dataset = FMoWSentinel(root)
        assert len(dataset) == 12 and dataset.index.paths[3].endswith('train/all/3.tif')

    def test_an_index_column_and_other_spellings(self, root: Path) -> None:
        header, *rows = _rows(root / 'train.csv')
        names = ['', *('Category', 'location_id', 'image_id', 'Timestamp', 'polygon')]
        _write(root / 'train.csv', [names, *([n, *row] for n, row in enumerate(rows))])
        assert FMoWSentinel(root).labels.tolist() == [0] * 4 + [11] * 4 + [27] * 4
        assert header[0] == 'category'

    def test_another_table(self, root: Path) -> None:
        _write(root / 'some.csv', _rows(root / 'train.csv')[:4])
        assert len(FMoWSentinel(root, csv='some.csv')) == 3
        assert len(FMoWSentinel(root, csv=(root / 'some.csv').absolute())) == 3

    def test_nothing_there(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError, match='download=False'):
            FMoWSentinel(tmp_path / 'elsewhere')
        shutil.rmtree(root / 'fmow-sentinel')
        with pytest.raises(DatasetNotFoundError):
            FMoWSentinel(root)
        with pytest.raises(ConfigError, match='split'):
            FMoWSentinel(root, 'validation')  # type: ignore[arg-type]


class TestBands:
    def test_any_spelling_and_order(self, root: Path) -> None:
        first = FMoWSentinel(root, bands=('B8A', 'B4'))[2]['image']
        second = FMoWSentinel(root, bands=('B04', 'b8a'))[2]['image']
        assert torch.equal(first, second.flip(0))

    def test_eurosats_order_gives_the_same_tensor(self, root: Path) -> None:
        """The same chips with bands in EuroSAT's order, read by name."""
        before = FMoWSentinel(root)[5]['image']
        order = [SENTINEL2_BANDS.index(canonical_band(name)) for name in EuroSAT.all_band_names]
        for path in _files(root):
            with rasterio.open(path) as source:
                values = source.read()
            write_raster(path, values[order])
        after = FMoWSentinel(root, band_names=EuroSAT.all_band_names)[5]['image']
        assert torch.equal(before, after)
        assert not torch.equal(before, FMoWSentinel(root)[5]['image'])

    def test_unknown(self, root: Path) -> None:
        with pytest.raises(ConfigError, match="no band 'B13'"):
            FMoWSentinel(root, bands=('B13',))
        with pytest.raises(ConfigError, match="knows no band 'red'"):
            FMoWSentinel(root, bands=('red',), band_names=('red', *SENTINEL2_BANDS[1:]))

    def test_all_files_have_twelve(self, root: Path) -> None:
        for path in _files(root):
            write_raster(path, chip(0, bands=12))
        with pytest.raises(ImageError, match=r'has 13 bands, B1, B2.*band_names'):
            FMoWSentinel(root)
        names = [name for name in SENTINEL2_BANDS if name != 'B10']
        assert FMoWSentinel(root, band_names=names)[0]['image'].shape[0] == 10


class TestRows:
    def test_a_missing_column(self, root: Path) -> None:
        rows = [row[:1] + row[2:] for row in _rows(root / 'train.csv')]
        _write(root / 'train.csv', rows)
        with pytest.raises(
            ImageError, match=r"columns category, image_id.*none of them is 'location_id'"
        ):
            FMoWSentinel(root)

    def test_bad_rows_are_left_out_counted_and_named(self, root: Path) -> None:
        rows = _rows(root / 'train.csv')
        rows[2][3] = '16.05.2017'
        rows[3][3] = '2017-06-31T00:00:00Z'
        rows[4][3] = '2017-06-30T00:00:00+02:00'
        rows[5][0] = 'castle'
        rows[6][2] = 'three'
        rows[7] = rows[7][:2]
        _write(root / 'train.csv', rows)
        with pytest.warns(UserWarning) as warned:
            dataset = FMoWSentinel(root)
        text = ' '.join(str(one.message) for one in warned)
        assert len(dataset) == 6
        assert '3 of 9 entries are left out: each has no timestamp like' in text
        for part in ("row 3: '16.05.2017'", "row 4: '2017-06-31", "row 6: 'castle'",
                     "row 7: 'three'", 'row 8'):  # fmt: skip
            assert part in text

    def test_no_usable_row(self, root: Path) -> None:
        rows = [[*row[:3], 'yesterday', *row[4:]] for row in _rows(root / 'train.csv')]
        _write(root / 'train.csv', [_rows(root / 'train.csv')[0], *rows[1:]])
        with pytest.raises(ImageError, match=r"no row that can be used .*row 2: 'yesterday'"):
            FMoWSentinel(root)
        (root / 'train.csv').write_text('category,location_id,image_id\n')
        with pytest.raises(ImageError, match='it is empty'):
            FMoWSentinel(root)
        (root / 'train.csv').write_bytes(b'\xff\xfe\x00')
        with pytest.raises(ImageError, match='cannot be read'):
            FMoWSentinel(root)

    def test_windows_paths_are_turned_and_said(self, root: Path) -> None:
        header, *rows = _rows(root / 'train.csv')
        folder = root / 'fmow-sentinel' / 'train' / 'all'
        folder.mkdir()
        for number, path in enumerate(_files(root)):
            path.replace(folder / f'{number}.tif')
        table = [[*row, f'C:\\data\\train\\all\\{n}.tif'] for n, row in enumerate(rows)]
        _write(root / 'train.csv', [[*header, 'image_path'], *table])
        with pytest.warns(UserWarning, match='backslashes of 12 paths are read as slashes'):
            dataset = FMoWSentinel(root)
        assert dataset.index.paths[11] == 'train/all/11.tif' and dataset[11]['label'] == 27
        table[4][-1] = 'C:\\data/train/all/4.tif'
        _write(root / 'train.csv', [[*header, 'image_path'], *table])
        with pytest.raises(ImageError, match=r'row 6.*both slashes and backslashes'):
            FMoWSentinel(root)


class TestChips:
    def test_a_missing_one_is_replaced_counted_and_named(self, root: Path) -> None:
        files = _files(root)
        files[4].unlink()
        dataset = FMoWSentinel(root)
        with pytest.warns(UserWarning, match=rf'{files[4].name}.*next image.*1 of 12 so far'):
            sample = dataset[4]
        assert torch.equal(sample['image'], dataset[5]['image'])
        assert [Path(path).name for path in dataset.damaged] == [files[4].name]
        with warnings.catch_warnings():  # said once
            warnings.simplefilter('error')
            assert torch.equal(dataset[4]['image'], sample['image'])

    def test_missing_ones_can_be_looked_for_at_once(self, root: Path) -> None:
        files = _files(root)
        files[4].unlink()
        with pytest.warns(UserWarning, match=rf'1 of 12 entries.*is missing.*{files[4].name}'):
            dataset = FMoWSentinel(root, check_files=True)
        assert len(dataset) == 11 and len(dataset.skipped['is missing']) == 1
        assert dataset.labels.tolist() == [0] * 4 + [11] * 3 + [27] * 4

    @pytest.mark.parametrize(
        ('values', 'reason'),
        [
            (chip(0, bands=12), 'it has 12 bands, not 13'),
            (chip(0, bands=1) * 0, 'it has 1 bands, not 13'),
            (chip(0) * 0, 'all of its values are 0 or without data'),
            (np.full((13, 9, 9), np.nan, dtype=np.float32), 'all of its values are 0 or without'),
        ],
    )
    def test_useless_ones_are_replaced(self, root: Path, values: np.ndarray, reason: str) -> None:
        path = _files(root)[0]
        write_raster(path, values)
        dataset = FMoWSentinel(root)
        with pytest.warns(UserWarning, match=reason):
            sample = dataset[0]
        assert torch.equal(sample['image'], dataset[1]['image']) and len(dataset.damaged) == 1

    def test_a_truncated_one_is_replaced(self, root: Path) -> None:
        path = _files(root)[0]
        path.write_bytes(path.read_bytes()[:-4000])
        with pytest.warns(UserWarning, match='cannot be used'):
            dataset = FMoWSentinel(root)
            assert torch.equal(dataset[0]['image'], dataset[1]['image'])

    def test_values_without_data_become_zero_and_are_said_once(self, root: Path) -> None:
        for path in _files(root)[:2]:
            values = chip(0).astype(np.float32)
            values[3, 2:4] = np.nan
            write_raster(path, values)
        values = chip(0).astype(np.int16)
        values[:, 0] = -9999
        write_raster(_files(root)[2], values, nodata=-9999)
        dataset = FMoWSentinel(root, bands=('B4',))
        with pytest.warns(UserWarning, match='has 72 values without data') as warned:
            images = [dataset[index]['image'][0] for index in range(3)]
        assert len(warned) == 1 and len(dataset.with_gaps) == 3
        assert not images[0][2:4].any() and bool(images[0][4:].all())
        assert not images[2][0].any() and bool(images[2][1:].all())

    def test_other_sizes_fit_into_a_batch(self, root: Path) -> None:
        write_raster(_files(root)[0], chip(0, height=5, width=90))
        loader = DataLoader(FMoWSentinel(root, cropping=Cropping(24)), batch_size=12)
        assert next(iter(loader))['image'].shape == (12, 10, 24, 24)

    def test_none_can_be_used(self, root: Path) -> None:
        dataset = FMoWSentinel(root)
        for path in _files(root):
            path.unlink()
        with pytest.warns(UserWarning), pytest.raises(ImageError, match='the images after it'):
            dataset[3]

    def test_workers_report_to_the_process_that_started_them(self, root: Path) -> None:
        _files(root)[7].unlink()
        dataset = FMoWSentinel(root, cropping=Cropping(16))
        for _ in DataLoader(dataset, batch_size=3, num_workers=2):
            pass
        assert len(dataset.damaged) == 1

    def test_replacement_does_not_depend_on_what_was_read_before(self, root: Path) -> None:
        """A resumed run has not met the damage yet, and must draw the same."""
        _files(root)[4].unlink()
        cropping = Cropping(16, 'resized')
        with pytest.warns(UserWarning):
            fresh, used = (FMoWSentinel(root, cropping=cropping) for _ in range(2))
            used.draw(4, 0)
            assert torch.equal(used.draw(4, 3)['image'], fresh.draw(4, 3)['image'])


def test_draws_depend_on_seed_pass_and_position(root: Path) -> None:
    cropping = Cropping(16, 'resized')
    dataset = FMoWSentinel(root, cropping=cropping, seed=1)
    again, other = (FMoWSentinel(root, cropping=cropping, seed=seed) for seed in (1, 2))
    assert torch.equal(dataset.draw(3, 5)['image'], again.draw(3, 5)['image'])
    assert not torch.equal(dataset.draw(3, 5)['image'], dataset.draw(3, 6)['image'])
    assert not torch.equal(dataset.draw(3, 5)['image'], other.draw(3, 5)['image'])
    assert torch.equal(dataset[3]['image'], dataset.draw(3, 0)['image'])
    with pytest.raises(IndexError):
        dataset[12]
    with pytest.raises(ConfigError, match='seed'):
        FMoWSentinel(root, seed=-1)


def test_plot(root: Path) -> None:
    dataset = FMoWSentinel(root)
    sample = dataset[0]
    figure = dataset.plot(sample | {'prediction': torch.tensor(61)}, suptitle=None)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == 'true colour' and len(titles) == 3
    heading = figure.get_suptitle()
    assert 'airport' in heading and 'zoo' in heading
    shown = figure.axes[0].images[0].get_array()
    red = SATMAE_BANDS.index('B4')
    assert shown is not None
    assert np.allclose(np.asarray(shown)[..., 0], sample['image'][red])
    plt.close(figure)
    with pytest.raises(RGBBandsMissingError):
        FMoWSentinel(root, bands=('B8',)).plot(FMoWSentinel(root, bands=('B8',))[0])


class TestDownload:
    @pytest.fixture
    def served(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The published files at a place of our own, and what is known of them."""
        source = tmp_path / 'server'
        source.mkdir()
        for table in ('train.csv', 'val.csv', 'test_gt.csv'):
            shutil.copy(root / table, source)
        with tarfile.open(source / download.ARCHIVE, 'w:gz') as archive:
            archive.add(root / 'fmow-sentinel', 'fmow-sentinel')
        monkeypatch.setattr(download, 'URL', source.as_uri() + '/')
        size = (source / download.ARCHIVE).stat().st_size
        monkeypatch.setattr(download, 'ARCHIVE_BYTES', size)
        tables = {
            split: download.TableFile(table.name, 12) for split, table in download.TABLES.items()
        }
        monkeypatch.setattr(download, 'TABLES', tables)
        return source

    def test_downloads_checks_and_unpacks(self, served: Path, tmp_path: Path) -> None:
        dataset = FMoWSentinel(tmp_path / 'new', 'val', download=True)
        assert len(dataset) == 12 and dataset[0]['image'].shape[0] == 10
        names = sorted(path.name for path in (tmp_path / 'new').iterdir())
        assert names == ['fmow-sentinel', 'fmow-sentinel.tar.gz', 'val.csv']

    def test_wrong_size(
        self, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, 'ARCHIVE_BYTES', 5)
        with pytest.raises(ImageError, match='5 were published'):
            FMoWSentinel(tmp_path / 'new', 'val', download=True)
        assert len(FMoWSentinel(tmp_path / 'new', 'val', download=True, checksum=False)) == 12

    def test_wrong_rows(self, served: Path, tmp_path: Path) -> None:
        with (served / 'val.csv').open('a') as file:
            file.write('one,more,row\n')
        with pytest.raises(ImageError, match='13 rows, but 12'):
            FMoWSentinel(tmp_path / 'new', 'val', download=True)
        assert not (tmp_path / 'new' / 'val.csv').exists()

    def test_damaged_archive(self, served: Path, tmp_path: Path) -> None:
        path = served / download.ARCHIVE
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(ImageError, match='cannot be unpacked'):
            FMoWSentinel(tmp_path / 'new', 'val', download=True)
        left = sorted(path.name for path in (tmp_path / 'new').iterdir())
        assert left == ['fmow-sentinel.tar.gz', 'val.csv']


@pytest.mark.slow
def test_half_a_million_rows(tmp_path: Path) -> None:
    """Seconds, far under 1 GB, and no copy in a worker: beside a worker with an index of one row."""
    path = tmp_path / 'fmow-sentinel' / layout_path('train', CATEGORIES[0], 0, 0)
    write_raster(path, chip(0))
    polygon = 'POLYGON ((' + ', '.join(['7.1234567890123 50.7654321098765'] * 5) + '))'
    rows = [
        (CATEGORIES[i % 62], i // 620, i // 62 % 10, f'2016-0{1 + i % 9}-16T00:30:00Z', polygon)
        for i in range(500_000)
    ]
    header = ('category', 'location_id', 'image_id', 'timestamp', 'polygon')
    _write(tmp_path / 'train.csv', [header, *rows])
    _write(tmp_path / 'one.csv', [header, *rows[:1]])
    result = json.loads(run(index_sizes, 'fmow-sentinel', tmp_path, output=tmp_path / 'printed'))
    print(result)  # noqa: T201
    assert result['rows'] == 500_000
    assert result['seconds'] < 20  # 1.4 s on an idle core; other work may share it
    assert result['grown'] < 250e6
    for method in index_sizes.METHODS:
        assert result[method] < 20e6  # the tensors alone hold 40 MB
