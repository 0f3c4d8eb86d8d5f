"""Data module of a folder: splits, held-out images, batches as they are."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from tests.data.folder.data import write_classes, write_picture, write_raster
from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.datamodules.folder import stratified
from torchgeo_explora.datasets import ImageFolder, canonical_band
from torchgeo_explora.errors import ConfigError, ImageError


def _module(root: Path, **arguments: object) -> FolderDataModule:
    module = FolderDataModule(root, image_size=16, batch_size=4, **arguments)  # type: ignore[arg-type]
    module.setup('fit')
    return module


def _held_out(module: FolderDataModule) -> list[int]:
    assert isinstance(module.val_dataset, Subset)
    return list(module.val_dataset.indices)


def test_labelled_images_are_held_out_of_every_class(tmp_path: Path) -> None:
    module = _module(write_classes(tmp_path, count=10))
    assert module.classes == ['a', 'b', 'c'] and module.num_channels == 3
    held_out = _held_out(module)
    assert isinstance(module.train_dataset, Subset)
    assert sorted([*held_out, *module.train_dataset.indices]) == list(range(30))
    assert np.bincount(np.array(held_out) // 10).tolist() == [2, 2, 2]
    assert held_out == _held_out(_module(tmp_path))
    assert held_out != _held_out(_module(tmp_path, seed=1))


def test_pretraining_may_use_the_held_out_images(tmp_path: Path) -> None:
    module = _module(write_classes(tmp_path, count=10), train_on_val=True)
    assert isinstance(module.train_dataset, ImageFolder) and len(module.train_dataset) == 30
    assert len(_held_out(module)) == 6


def test_unlabelled_images_have_no_validation(tmp_path: Path) -> None:
    for number in range(5):
        write_picture(tmp_path / f'{number}.png')
    module = _module(tmp_path)
    assert module.val_dataloader() == [] and module.test_dataloader() == []
    assert module.classes is None
    assert 'label' not in next(iter(module.train_dataloader()))


def test_sub_folders_are_splits(tmp_path: Path) -> None:
    write_classes(tmp_path / 'train', count=5)
    write_classes(tmp_path / 'validation', classes=('b', 'c'), count=2)
    write_classes(tmp_path / 'test', classes=('c',), count=3)
    module = _module(tmp_path)
    sizes = [len(d) for d in (module.train_dataset, module.val_dataset, module.test_dataset)]  # type: ignore[arg-type]
    assert sizes == [15, 4, 3]
    test = module.test_dataloader()
    assert isinstance(test, DataLoader)
    assert next(iter(test))['label'].tolist() == [2, 2, 2]


def test_unlabelled_training_with_a_labelled_folder(tmp_path: Path) -> None:
    for number in range(5):
        write_picture(tmp_path / 'images' / f'{number}.png')
    module = _module(tmp_path / 'images', val_root=write_classes(tmp_path / 'labelled'))
    assert module.classes == ['a', 'b', 'c']
    assert isinstance(module.val_dataset, ImageFolder) and len(module.val_dataset) == 12
    with pytest.raises(ImageError, match='no class folders'):
        _module(tmp_path / 'images', val_root=tmp_path / 'images')


def test_validation_is_scaled_like_training(tmp_path: Path) -> None:
    for split, top in (('train', 1000), ('val', 4000)):
        for name in ('a', 'b'):
            ramp = np.linspace(0, top, 256).reshape(1, 16, 16).astype(np.uint16)
            write_raster(tmp_path / split / name / 'x.tif', ramp)
    module = _module(tmp_path)
    assert isinstance(module.train_dataset, ImageFolder)
    assert isinstance(module.val_dataset, ImageFolder)
    assert module.val_dataset.scale.high == module.train_dataset.scale.high
    for name in ('a', 'b'):
        write_picture(tmp_path / 'train' / name / 'x.tif', bands=1)
    with pytest.raises(ImageError, match='one type'):
        _module(tmp_path)


def test_windows_of_a_raster_stay_together() -> None:
    files = torch.arange(20).repeat_interleave(6)
    labels = files % 2
    held_out = stratified(labels, files, fraction=0.3, seed=0)
    per_file = held_out.view(20, 6)
    assert bool((per_file.all(1) == per_file.any(1)).all())
    assert labels[held_out].bincount().tolist() == [18, 18]


def test_a_class_of_one_image_trains() -> None:
    labels = torch.tensor([0, 1, 1])
    assert stratified(labels, torch.arange(3), 0.5, 0).sum() == 1


def test_batches_are_full_and_neither_normalised_nor_augmented(tmp_path: Path) -> None:
    write_picture(tmp_path / '0.png')
    module = _module(tmp_path)
    (batch,) = list(module.train_dataloader())  # one image fills a batch of four
    image = ImageFolder(tmp_path)[0]['image']
    assert torch.equal(batch['image'], image.expand(4, -1, -1, -1))
    assert module.on_after_batch_transfer(batch, 0) is batch


def test_bands_of_files_that_do_not_name_theirs(tmp_path: Path) -> None:
    """The same names give the same channels, whatever the order in the files."""
    values = np.random.default_rng(0).integers(0, 4000, (4, 16, 16)).astype(np.uint16)
    orders = {'a': ('B2', 'B03', 'B8A', 'B08'), 'b': ('B8A', 'B8', 'B02', 'B3')}
    wanted = ['B08', 'B2', 'B3']
    images = []
    for name, order in orders.items():
        places = [0, 1, 2, 3] if name == 'a' else [2, 3, 0, 1]
        write_raster(tmp_path / name / 'x.tif', values[places])
        module = _module(tmp_path / name, bands=wanted, band_names=order, scale=(0, 4000))
        images.append(next(iter(module.train_dataloader()))['image'])
        assert [canonical_band(band) for band in module.bands] == ['B8', 'B2', 'B3']
    assert torch.equal(images[0], images[1])
    expected = torch.from_numpy(values[[3, 0, 1]].astype(np.float32)).div(4000)
    torch.testing.assert_close(images[0][0], expected)


def test_band_names_have_to_name_every_band(tmp_path: Path) -> None:
    write_raster(tmp_path / 'x.tif', np.ones((4, 16, 16), dtype=np.uint16))
    with pytest.raises(ImageError, match=r'x\.tif has 4 bands, but band_names has 2'):
        _module(tmp_path, band_names=['B2', 'B3'])
    with pytest.raises(ImageError, match=r"no band 'B9'.*'B2'"):
        _module(tmp_path, band_names=['B2', 'B3', 'B4', 'B8'], bands=['B9'])
    assert _module(tmp_path, band_names=['r', 'g', 'b', 'nir']).bands == ['r', 'g', 'b', 'nir']
    assert _module(tmp_path).bands == ['1', '2', '3', '4']


def test_a_fourth_band_with_a_name_is_no_alpha_channel(tmp_path: Path) -> None:
    write_raster(tmp_path / 'x.tif', np.ones((4, 16, 16), dtype=np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert _module(tmp_path, band_names=['r', 'g', 'b', 'nir']).num_channels == 4


def test_unlabelled_images_are_held_out_where_that_is_asked_for(tmp_path: Path) -> None:
    for number in range(10):
        write_picture(tmp_path / 'flat' / f'{number}.png')
        for split in ('train', 'val', 'test'):
            write_picture(tmp_path / 'split' / split / f'{number}.png')
    share = _module(tmp_path / 'flat', unlabelled_val=True, with_labels=False)
    assert len(_held_out(share)) == 2 and isinstance(share.train_dataset, Subset)
    assert not set(_held_out(share)) & set(share.train_dataset.indices)
    assert _held_out(share) != _held_out(_module(tmp_path / 'flat', unlabelled_val=True, seed=1))
    module = _module(tmp_path / 'split', unlabelled_val=True, with_labels=False)
    for loader in (module.val_dataloader(), module.test_dataloader(), module.predict_dataloader()):
        assert isinstance(loader, DataLoader)
        assert len(loader.dataset) == 10 and 'label' not in next(iter(loader))  # type: ignore[arg-type]
    asked_not = _module(tmp_path / 'split')
    assert asked_not.val_dataset is None and asked_not.test_dataset is None


@pytest.mark.parametrize('splits', [('train', 'val', 'test'), ('train', 'val'), ('train',)])
def test_predictions_take_the_last_split_there_is(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for count, split in enumerate(splits, start=2):
        write_classes(tmp_path / split, count=count)
    module = _module(tmp_path)
    module.setup('predict')
    expected = {'train': module.val_dataset, 'val': module.val_dataset, 'test': module.test_dataset}
    loader = module.predict_dataloader()
    assert loader.dataset is expected[splits[-1]] and 'label' in next(iter(loader))


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ({'batch_size': 0}, 'batch_size'),
        ({'steps_per_epoch': 0}, 'steps_per_epoch'),
        ({'num_workers': -1}, 'num_workers'),
        ({'seed': -1}, 'seed'),
        ({'val_fraction': 1.0}, 'val_fraction'),
    ],
)
def test_impossible_arguments(tmp_path: Path, arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        FolderDataModule(tmp_path, **arguments)  # type: ignore[arg-type]
