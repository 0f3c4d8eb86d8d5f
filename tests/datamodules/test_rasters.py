"""Data modules of polygons, NAIP and SpaceNet: batches, orders that can be resumed, bad input."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.chesapeake.data import CODES, write_chesapeake, write_naip
from tests.data.polygons.data import write_fields
from tests.data.spacenet1.data import write_spacenet1
from torchgeo_explora.datamodules import (
    NAIPChesapeakeDataModule,
    NAIPDataModule,
    SpaceNet1DataModule,
    VectorSegmentationDataModule,
)
from torchgeo_explora.datamodules._sampler import ResumableSampler
from torchgeo_explora.errors import ConfigError, ImageError, LabelError

pytestmark = pytest.mark.filterwarnings('ignore:The inplace keyword')


def keys(loader: Any, start: int, stop: int) -> list[int]:  # noqa: ANN401
    """Positions of a run's samples, from the sampler that a resumed run would have."""
    sampler = loader.sampler
    assert isinstance(sampler, ResumableSampler) and sampler.keys
    again = ResumableSampler(sampler.length, sampler.seed, stop, start, keys=True)
    return list(again)


def test_batches_of_polygons(tmp_path: Path) -> None:
    root = write_fields(tmp_path)
    data = VectorSegmentationDataModule(
        root / 'images', root / 'labels.gpkg', 'kind', image_size=32, batch_size=4
    )
    data.setup('fit')
    assert data.classes == ['background', 'crop', 'forest'] and data.num_channels == 3
    assert data.scale == ((0.0, 255.0),) * 3 and data.resolution == pytest.approx(10, rel=0.01)
    batch = next(iter(data.train_dataloader()))
    assert batch['image'].shape == (4, 3, 32, 32) and batch['mask'].dtype == torch.int64
    assert batch['image'].min() >= 0 and batch['image'].max() <= 1
    assert torch.equal(data.on_after_batch_transfer(batch, 0)['image'], batch['image'])
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        sample: Any = next(iter(loader))
        assert len(sample['file']) > 0
    other = VectorSegmentationDataModule(root / 'images', root / 'labels.gpkg', 'kind',
                                         image_size=32, test_fraction=0)  # fmt: skip
    other.setup('fit')
    assert other.test_dataloader() == [] and other.val_dataset is not None
    assert len(other.predict_dataloader().dataset) == len(other.val_dataset)  # type: ignore[arg-type]


def test_a_resumed_run_sees_the_same_patches(tmp_path: Path) -> None:
    root = write_naip(tmp_path) / 'naip'
    whole, later = (NAIPDataModule(root, 64, 6, batch_size=2, seed=4) for _ in range(2))
    for data in (whole, later):
        data.setup('fit')
    loader = whole.train_dataloader()
    unbroken = keys(loader, 0, 18)
    assert unbroken[8:] == keys(loader, 8, 18)
    samples = [loader.dataset[key]['image'] for key in unbroken]
    resumed = [later.train_dataloader().dataset[key]['image'] for key in unbroken[8:]]
    assert all(torch.equal(a, b) for a, b in zip(samples[8:], resumed, strict=True))
    assert len({image.numpy().tobytes() for image in samples}) == 18  # other places in each pass
    assert all((image > 0).all() for image in samples)  # and none beyond the rasters


def test_prediction_covers_the_rasters(tmp_path: Path) -> None:
    data = NAIPDataModule(write_naip(tmp_path) / 'naip', 64, bands=['NIR', 'R'])
    data.setup('predict')
    images = torch.cat([batch['image'] for batch in data.predict_dataloader()])
    assert images.shape == (4 * 8, 2, 64, 64) and data.resolution == 1.0
    sums = np.concatenate([
        np.random.default_rng(number).integers(1, 256, (4, 256, 256), dtype=np.uint8)[[3, 0]]
        for number in range(2)
    ]).reshape(2, 2, -1).sum(axis=(0, 2))  # fmt: skip
    assert images.mul(255).double().sum(dim=(0, 2, 3)).round().tolist() == sums.tolist()
    assert data.val_dataloader() == [] and len(data.test_dataloader()) == len(
        data.predict_dataloader()
    )


def test_land_use_splits_and_codes(tmp_path: Path) -> None:
    root = write_chesapeake(tmp_path)
    data = NAIPChesapeakeDataModule(root / 'naip', root / 'chesapeake', 64, batch_size=2, length=4)
    data.setup('fit')
    assert data.classes is not None and len(data.classes) == 128 == len(data.colors)
    parts = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    for loader in parts:
        assert not isinstance(loader, list)
        batch = next(iter(loader))
        assert batch['image'].shape == (2, 4, 64, 64) and batch['mask'].shape == (2, 64, 64)
        assert set(batch['mask'].unique().tolist()) <= set(CODES)
    sizes = [len(part) for part in (data.train_dataset, data.val_dataset, data.test_dataset)]  # type: ignore[arg-type]
    assert sizes == [4, 8, 8]


def test_chips_keep_pixels_and_masks_together(tmp_path: Path) -> None:
    root = write_spacenet1(tmp_path, train=6, test=2)
    data = SpaceNet1DataModule(root, 448, batch_size=2, val_fraction=0.2, test_fraction=0.2)
    data.setup('fit')
    val: Any = next(iter(data.val_dataloader()))
    assert (val['mask'][:, 406:] == 255).all() and (val['mask'][:, :, 439:] == 255).all()
    assert (val['image'][:, :, 406:] == 0).all() and set(val['mask'].unique().tolist()) == {
        0,
        1,
        255,
    }
    houses = (val['mask'] == 1).sum().item() / len(val['mask'])
    assert 0.5 * 4 * 80 * 60 < houses <= 4 * 81 * 61
    assert 'mask' not in next(iter(data.predict_dataloader()))  # the official test images
    cut = SpaceNet1DataModule(root, 64, batch_size=2)
    cut.setup('fit')
    train: Any = cut.train_dataset
    whole: Any = data.train_dataset
    one, two = train.draw(0, 0), train.draw(0, 1)
    assert one['image'].shape == (3, 64, 64) and not torch.equal(one['image'], two['image'])
    assert torch.equal(train.draw(0, 1)['image'], two['image'])
    source = train.dataset[train.positions[0]]
    places = source['image'].div(255).unfold(1, 64, 1).unfold(2, 64, 1)[0]
    row, column = (places == one['image'][0]).all(dim=(2, 3)).nonzero()[0].tolist()
    assert torch.equal(source['mask'][row : row + 64, column : column + 64], one['mask'])
    assert len(train) + len(cut.val_dataset) + len(cut.test_dataset) == 6 and len(whole) == 4  # type: ignore[arg-type]


def test_unlabelled_chips(tmp_path: Path) -> None:
    root = write_spacenet1(tmp_path, train=4, test=0)
    data = SpaceNet1DataModule(root, 64, batch_size=4, masks=False, train_on_all=True)
    data.setup('fit')
    assert next(iter(data.train_dataloader())).keys() == {'image'} and data.val_dataloader() == []
    assert len(next(iter(data.predict_dataloader()))['image']) == 1  # no official test images here


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match='holds no NAIP'):
        NAIPDataModule(tmp_path).setup('fit')
    root = write_chesapeake(tmp_path, side=64)
    with pytest.raises(ConfigError, match='choose from R, G, B, NIR'):
        NAIPDataModule(root / 'naip', bands=['red']).setup('fit')
    with pytest.raises(ImageError, match='No patch of 100 pixels fits'):
        NAIPDataModule(root / 'naip', 100).setup('fit')
    with pytest.raises(LabelError, match='holds no labels'):
        NAIPChesapeakeDataModule(root / 'naip', root / 'naip', 16).setup('fit')
    with pytest.raises(ImageError, match='holds no SN1_buildings/train/3band'):
        SpaceNet1DataModule(tmp_path / 'none').setup('fit')
    with pytest.raises(ConfigError, match='with a sum below 1'):
        SpaceNet1DataModule(val_fraction=0.5, test_fraction=0.5)
    data = VectorSegmentationDataModule(root / 'naip', 'none.gpkg')
    with warnings.catch_warnings(), pytest.raises(LabelError, match=r'none.gpkg is not there'):
        warnings.simplefilter('ignore')
        data.setup('fit')
