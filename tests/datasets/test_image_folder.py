"""Folders of images: order, labels, bands, scaling, windows, damage, archives."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from tests.data.folder.data import pixels, write_classes, write_picture, write_raster
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.errors import ConfigError, ImageError, OutputError


def _damage(path: Path) -> Path:
    """Cut a file's end off: its header can still be read."""
    path.write_bytes(path.read_bytes()[:-200])
    return path


def test_pictures_are_their_bytes_over_255(tmp_path: Path) -> None:
    write_picture(tmp_path / 'x.png', seed=3)
    image = ImageFolder(tmp_path)[0]['image']
    expected = torch.from_numpy(pixels(3)).permute(2, 0, 1).float() / 255
    assert image.dtype == torch.float32
    assert torch.equal(image, expected)


def test_order_is_that_of_the_names(tmp_path: Path) -> None:
    for name in ('b/2.png', 'b/1.png', 'a/z/9.png', 'c.png', 'B.PNG'):
        write_picture(tmp_path / name)
    paths = [
        header.path.relative_to(tmp_path).as_posix() for header in ImageFolder(tmp_path).headers
    ]
    assert paths == ['B.PNG', 'a/z/9.png', 'b/1.png', 'b/2.png', 'c.png']


def test_hidden_files_and_other_files_are_no_images(tmp_path: Path) -> None:
    write_picture(tmp_path / 'x.png')
    for name in ('.hidden.png', '__MACOSX/x.png', '.cache/x.png'):
        write_picture(tmp_path / name)
    (tmp_path / 'labels.csv').write_text('x.png,1')
    assert len(ImageFolder(tmp_path)) == 1


class TestLabels:
    def test_class_folders(self, tmp_path: Path) -> None:
        dataset = ImageFolder(write_classes(tmp_path, count=2))
        assert dataset.classes == ['a', 'b', 'c']
        assert [int(dataset[i]['label']) for i in range(6)] == [0, 0, 1, 1, 2, 2]

    @pytest.mark.parametrize(
        'names', [('x.png',), ('a/x.png', 'y.png'), ('a/x.png', 'a/y.png'), ('train/x.png', 'test/y.png')]
    )  # fmt: skip
    def test_auto_finds_none(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        for name in names:
            write_picture(tmp_path / name)
        dataset = ImageFolder(tmp_path)
        assert dataset.classes is None and 'label' not in dataset[0]

    def test_false_and_true(self, tmp_path: Path) -> None:
        write_classes(tmp_path / 'classes')
        assert ImageFolder(tmp_path / 'classes', with_labels=False).labels is None
        assert ImageFolder(tmp_path, with_labels=True).classes == ['classes']
        write_picture(tmp_path / 'classes' / 'stray.png')
        with pytest.raises(ImageError, match='outside of class folders'):
            ImageFolder(tmp_path / 'classes', with_labels=True)

    def test_given_classes_number_the_labels(self, tmp_path: Path) -> None:
        write_classes(tmp_path, classes=('b', 'c'), count=1)
        dataset = ImageFolder(tmp_path, classes=['a', 'b', 'c'])
        assert dataset.labels is not None and dataset.labels.tolist() == [1, 2]
        with pytest.raises(ImageError, match='class folders c'):
            ImageFolder(tmp_path, classes=['a', 'b'])


class TestSize:
    @pytest.mark.parametrize('size', [16, 9, 24])
    def test_equals_torchvision(self, tmp_path: Path, size: int) -> None:
        Image.fromarray(pixels(0, size=20)[:16]).save(tmp_path / 'x.png')
        image = torch.from_numpy(pixels(0, size=20)[:16]).permute(2, 0, 1).float() / 255
        image = functional.resize(
            image, [size], interpolation=InterpolationMode.BICUBIC, antialias=True
        ).clamp(0, 1)
        expected = functional.center_crop(image, [size, size])
        ours = ImageFolder(tmp_path, image_size=size)[0]['image']
        torch.testing.assert_close(ours, expected, atol=0.51 / 255, rtol=0)  # bytes

    def test_too_small(self, tmp_path: Path) -> None:
        write_picture(tmp_path / 'large.png', size=20)
        write_picture(tmp_path / 'small.png', size=13)
        with pytest.raises(ImageError, match=r'1 images are smaller than 14 .*small\.png'):
            ImageFolder(tmp_path, min_size=14)


class TestBands:
    def test_alpha_is_left_out_and_said(self, tmp_path: Path) -> None:
        write_picture(tmp_path / 'x.png', seed=1, bands=4)
        with pytest.warns(UserWarning, match='alpha channel of 1 images'):
            dataset = ImageFolder(tmp_path)
        expected = torch.from_numpy(pixels(1, bands=4)).permute(2, 0, 1)[:3].float() / 255
        assert torch.equal(dataset[0]['image'], expected)

    def test_a_band_taken_for_alpha_can_be_read(self, tmp_path: Path) -> None:
        values = pixels(0, bands=4).transpose(2, 0, 1)
        assert (values[3] == 0).any()
        write_raster(tmp_path / 'x.tif', values)  # GDAL takes a fourth band of bytes for alpha
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            image = ImageFolder(tmp_path, bands=[4, 1])[0]['image']
        assert torch.equal(image, torch.from_numpy(values[[3, 0]]).float() / 255)

    def test_grey_becomes_rgb_only_if_asked(self, tmp_path: Path) -> None:
        write_picture(tmp_path / 'x.png', bands=1)
        assert ImageFolder(tmp_path).num_channels == 1
        image = ImageFolder(tmp_path, mode='rgb')[0]['image']
        assert image.shape[0] == 3 and torch.equal(image[0], image[2])
        with pytest.raises(ImageError, match='has 1 band, but 3 are needed'):
            ImageFolder(tmp_path, num_channels=3)

    def test_mixed_bands_name_the_odd_files(self, tmp_path: Path) -> None:
        for number in range(3):
            write_picture(tmp_path / f'{number}.png')
        write_picture(tmp_path / 'odd.png', bands=1)
        with pytest.raises(
            ImageError, match=r'3 images have 3 bands.*odd\.png \(1 band of uint8\)'
        ):
            ImageFolder(tmp_path)
        assert len(ImageFolder(tmp_path, bands=[1])) == 4
        assert len(ImageFolder(tmp_path, mode='rgb')) == 4

    def test_selection_by_index_and_name(self, tmp_path: Path) -> None:
        values = pixels(0, bands=4).transpose(2, 0, 1)
        write_raster(tmp_path / 'x.tif', values, names=('B02', 'B03', 'B04', 'B08'))
        by_name = ImageFolder(tmp_path, bands=['B04', 'B02'])[0]['image']
        assert torch.equal(by_name, ImageFolder(tmp_path, bands=[3, 1])[0]['image'])
        assert torch.equal(by_name, torch.from_numpy(values[[2, 0]]).float() / 255)
        with pytest.raises(ImageError, match="no band 'B8A'"):
            ImageFolder(tmp_path, bands=['B8A'])


class TestScale:
    @pytest.mark.parametrize('dtype', ['uint16', 'int16', 'float32'])
    def test_given_for_every_type(self, tmp_path: Path, dtype: str) -> None:
        values = np.arange(-64, 192).reshape(1, 16, 16).clip(0 if dtype == 'uint16' else -64)
        write_raster(tmp_path / 'x.tif', values.astype(dtype))
        image = ImageFolder(tmp_path, scale=(0, 100))[0]['image']
        expected = torch.from_numpy(values).float().div(100).clamp(0, 1)
        torch.testing.assert_close(image, expected)

    def test_percentiles_are_the_folders_not_the_images(self, tmp_path: Path) -> None:
        for number in range(4):
            values = np.full((2, 16, 16), 1000 * number, dtype=np.uint16)
            values[1] += 50
            write_raster(tmp_path / f'{number}.tif', values)
        dataset = ImageFolder(tmp_path, percentiles=(0, 100))
        assert dataset.scale.low == (0, 50) and dataset.scale.high == (3000, 3050)
        means = [dataset[i]['image'].mean().item() for i in range(4)]
        assert means == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-6)

    def test_values_without_data_count_for_nothing(self, tmp_path: Path) -> None:
        values = np.full((1, 16, 16), 500, dtype=np.float32)
        values[0, :4], values[0, 4:8], values[0, 8] = -9999, np.nan, 700
        write_raster(tmp_path / 'x.tif', values, nodata=-9999)
        dataset = ImageFolder(tmp_path, percentiles=(0, 100))
        assert dataset.scale.low == (500,) and dataset.scale.high == (700,)
        image = dataset[0]['image'][0]
        assert not image[:8].any() and bool((image[8] == 1).all())

    @pytest.mark.parametrize('scale', [(1,), (5, 5), ((0, 0), (1, 1)), ((0, 0, 0), (1, 1))])
    def test_impossible(self, tmp_path: Path, scale: tuple[float, ...]) -> None:
        write_picture(tmp_path / 'x.png')
        with pytest.raises(ConfigError, match='scale'):
            ImageFolder(tmp_path, scale=scale)


class TestWindows:
    def test_cover_the_raster(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 256, (3, 40, 37)).astype(np.uint8)
        write_raster(tmp_path / 'x.tif', values)
        dataset = ImageFolder(tmp_path, tile=16)
        assert len(dataset) == 9
        seen = np.zeros((40, 37), dtype=bool)
        for tile, sample in zip(dataset.tiles, (dataset[i] for i in range(9)), strict=True):
            assert tile.window is not None
            rows, columns = tile.window.toslices()
            seen[rows, columns] = True
            expected = torch.from_numpy(values[:, rows, columns]).float() / 255
            assert torch.equal(sample['image'], expected)
        assert seen.all()

    def test_small_rasters_and_pictures_stay_whole(self, tmp_path: Path) -> None:
        write_raster(tmp_path / 'x.tif', np.zeros((3, 31, 64), dtype=np.uint8))
        write_picture(tmp_path / 'y.png', size=64)
        assert len(ImageFolder(tmp_path, tile=16)) == 2

    def test_without_data_are_left_out(self, tmp_path: Path) -> None:
        values = np.zeros((3, 48, 48), dtype=np.uint8)
        values[:, 20, 20] = 9  # one pixel, in the middle window
        write_raster(tmp_path / 'x.tif', values, nodata=0)
        (tile,) = ImageFolder(tmp_path, tile=16).tiles
        assert tile.window is not None and tile.window.toslices() == (slice(16, 32), slice(16, 32))
        write_raster(tmp_path / 'x.tif', np.zeros_like(values), nodata=0)
        with pytest.raises(ImageError, match='pixel of data'):
            ImageFolder(tmp_path, tile=16)


class TestDamage:
    def test_unreadable_headers_are_counted_and_named(self, tmp_path: Path) -> None:
        write_classes(tmp_path, count=3)
        (tmp_path / 'a' / 'bad.jpg').write_bytes(b'no image')
        (tmp_path / 'a' / 'bad.tif').write_bytes(b'II*\0')
        with pytest.warns(UserWarning, match=r'2 of 11 images cannot be read .*bad\.jpg'):
            dataset = ImageFolder(tmp_path)
        assert len(dataset) == 9
        assert [path.name for path in dataset.skipped] == ['bad.jpg', 'bad.tif']

    @pytest.mark.parametrize('cache', ['none', 'ram'])
    def test_truncated_image(self, tmp_path: Path, cache: str) -> None:
        write_classes(tmp_path, count=3)
        path = _damage(tmp_path / 'b' / '1.png')
        with pytest.warns(UserWarning, match=r'1\.png is damaged'):
            dataset = ImageFolder(tmp_path, image_size=16, cache=cache)  # type: ignore[arg-type]
            samples = [dataset[i] for i in range(len(dataset))]
        assert list(dataset.damaged) == [path]
        if cache == 'none':  # the next image stands in, with its own label
            assert torch.equal(samples[4]['image'], samples[5]['image'])
        else:
            assert len(dataset) == 8
        with warnings.catch_warnings():  # said once
            warnings.simplefilter('error')
            assert torch.equal(dataset[4]['image'], samples[4]['image'])

    @pytest.mark.parametrize('cache', ['none', 'ram'])
    def test_none_can_be_decoded(self, tmp_path: Path, cache: str) -> None:
        for number in range(3):
            _damage(write_picture(tmp_path / f'{number}.png'))
        with pytest.warns(UserWarning), pytest.raises(ImageError, match='decoded'):
            ImageFolder(tmp_path, image_size=16, cache=cache)[0]  # type: ignore[arg-type]

    def test_nothing_to_read(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match='not there'):
            ImageFolder(tmp_path / 'missing')
        with pytest.raises(ImageError, match='holds no image'):
            ImageFolder(tmp_path)
        path = tmp_path / 'x.jpg'
        path.write_bytes(b'')
        with pytest.raises(ImageError, match=r'None of 1 images can be read.*x\.jpg'):
            ImageFolder(tmp_path)
        with pytest.raises(ImageError, match='a file, not a folder'):
            ImageFolder(path)


@pytest.mark.parametrize('bands', [1, 3])
def test_the_cache_changes_nothing(tmp_path: Path, bands: int) -> None:
    for number in range(4):
        write_picture(tmp_path / f'{number}.png', seed=number, bands=bands, size=20)
    plain = ImageFolder(tmp_path, image_size=16, mode='rgb')
    cached = ImageFolder(tmp_path, image_size=16, mode='rgb', cache='ram')
    for path in tmp_path.iterdir():
        path.write_bytes(b'')  # the cache needs no files
    with pytest.raises(ImageError), pytest.warns(UserWarning):
        plain[0]
    assert cached[3]['image'].shape == (3, 16, 16)


def test_the_cache_equals_reading(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (5, 20, 20)).astype(np.uint16)
    write_raster(tmp_path / '16bit' / 'x.tif', values)
    write_picture(tmp_path / '8bit' / 'x.png', size=20)
    for folder in tmp_path.iterdir():
        plain, cached = (ImageFolder(folder, image_size=16, cache=c) for c in ('none', 'ram'))
        assert torch.equal(plain[0]['image'], cached[0]['image'])


class TestArchive:
    def _zip(self, folder: Path, archive: Path, prefix: str = '') -> Path:
        with zipfile.ZipFile(archive, 'w') as file:
            for path in folder.rglob('*.png'):
                file.write(path, Path(prefix, path.relative_to(folder)))
        return archive

    @pytest.mark.parametrize('prefix', ['', 'data/images'])
    def test_equals_the_folder(self, tmp_path: Path, prefix: str) -> None:
        folder = write_classes(tmp_path / 'folder')
        archive = self._zip(folder, tmp_path / 'x.zip', prefix)
        plain, unpacked = ImageFolder(folder), ImageFolder(archive)
        assert plain.classes == unpacked.classes and len(plain) == len(unpacked)
        assert torch.equal(plain[5]['image'], unpacked[5]['image'])

    def test_cache_dir_is_used_again(self, tmp_path: Path) -> None:
        archive = self._zip(write_classes(tmp_path / 'folder'), tmp_path / 'x.zip')
        first = ImageFolder(archive, cache_dir=tmp_path / 'cache').root
        times = {path: path.stat().st_mtime_ns for path in first.rglob('*.png')}
        assert ImageFolder(archive, cache_dir=tmp_path / 'cache').root == first
        assert times == {path: path.stat().st_mtime_ns for path in first.rglob('*.png')}
        assert [path.name for path in (tmp_path / 'cache').iterdir()] == [first.name]

    @pytest.mark.parametrize(
        'name', ['../evil.png', '/evil.png', 'a/../../evil.png', 'C:/evil.png']
    )
    def test_members_cannot_leave(self, tmp_path: Path, name: str) -> None:
        archive = tmp_path / 'x.zip'
        with zipfile.ZipFile(archive, 'w') as file:
            file.writestr(name, b'')
        with pytest.raises(ImageError, match='points outside'):
            ImageFolder(archive, cache_dir=tmp_path / 'cache')
        assert not list(tmp_path.rglob('evil.png'))

    def test_damaged_and_empty(self, tmp_path: Path) -> None:
        archive = tmp_path / 'x.zip'
        archive.write_bytes(b'PK no archive')
        with pytest.raises(ImageError, match='cannot be unpacked'):
            ImageFolder(archive)
        with zipfile.ZipFile(archive, 'w') as file:
            file.writestr('readme.txt', 'no image')
        with pytest.raises(ImageError, match='holds no image'):
            ImageFolder(archive)

    def test_cache_dir_that_is_a_file(self, tmp_path: Path) -> None:
        archive = self._zip(write_classes(tmp_path / 'folder'), tmp_path / 'x.zip')
        (tmp_path / 'cache').write_text('')
        with pytest.raises(OutputError, match='cache_dir'):
            ImageFolder(archive, cache_dir=tmp_path / 'cache')


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ({'image_size': 0}, 'image_size'),
        ({'mode': 'grey'}, 'mode'),
        ({'with_labels': 'yes'}, 'with_labels'),
        ({'cache': 'disk'}, 'cache'),
        ({'cache': 'ram'}, 'image_size'),
        ({'percentiles': (2, 1)}, 'percentiles'),
    ],
)
def test_impossible_arguments(tmp_path: Path, arguments: dict[str, object], word: str) -> None:
    write_picture(tmp_path / 'x.png')
    with pytest.raises(ConfigError, match=word):
        ImageFolder(tmp_path, **arguments)  # type: ignore[arg-type]


def test_real_rasters(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / 'geotiff'
    for name in ('RGB.byte.tif', 'rmnp-rgb.tif', 'drone_rgba_2cm.tif'):
        (tmp_path / name).symlink_to(source / name)
    with pytest.warns(UserWarning, match='alpha channel of 1 images'):
        dataset = ImageFolder(tmp_path, image_size=64, tile=128)
    assert dataset.num_channels == 3
    whole = sum(-(-h.height // 128) * -(-h.width // 128) for h in dataset.headers)
    assert len(dataset.headers) < len(dataset) < whole  # RGB.byte.tif has an empty rim
    assert all(0 < float(dataset[i]['image'].max()) <= 1 for i in range(0, len(dataset), 9))
    with pytest.raises(ImageError, match='do not'):
        ImageFolder(source)
