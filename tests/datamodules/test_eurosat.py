"""EuroSAT in RGB: bands by name, the published images' brightness, both layouts."""

import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.io import MemoryFile
from torch.utils.data import DataLoader
from torchgeo.datasets import EuroSAT

from tests.data.eurosat.data import CLASSES, write_eurosat
from tests.data.fmow_sentinel.data import write_sentinel
from tests.data.folder.data import write_classes, write_raster
from torchgeo_explora.datamodules import (
    EuroSATDataModule,
    EuroSATRGBDataModule,
    FMoWSentinelDataModule,
)
from torchgeo_explora.datamodules.eurosat import RGB_BANDS, RGB_MAXIMUM
from torchgeo_explora.datasets import SATMAE_BANDS, SENTINEL2_BANDS, canonical_band, satmae_scale
from torchgeo_explora.errors import ConfigError, ImageError


@pytest.mark.parametrize('split', ['spatial', 'random'])
def test_torchgeos_layout(tmp_path: Path, split: str) -> None:
    write_eurosat(tmp_path)
    module = EuroSATRGBDataModule(tmp_path, split, batch_size=2)  # type: ignore[arg-type]
    module.prepare_data()
    module.setup('fit')
    assert module.classes == list(CLASSES) and module.num_channels == 3
    sizes = [len(d) for d in (module.train_dataset, module.val_dataset, module.test_dataset)]  # type: ignore[arg-type]
    assert sizes == [6, 2, 4]
    loader = module.val_dataloader()
    assert isinstance(loader, DataLoader)
    batch = next(iter(loader))
    path = tmp_path / EuroSAT.base_dir / 'Forest' / 'Forest_4.tif'
    with rasterio.open(path) as source:
        red, green, blue = source.read([4, 3, 2]).astype(np.float32)
    expected = torch.from_numpy(np.stack([red, green, blue])).div(2750).clamp(0, 1)
    assert batch['label'].tolist() == [0, 1]
    torch.testing.assert_close(batch['image'][1], expected)


def test_size(tmp_path: Path) -> None:
    module = EuroSATRGBDataModule(write_eurosat(tmp_path), image_size=32, batch_size=2)
    module.setup('fit')
    assert next(iter(module.train_dataloader()))['image'].shape == (2, 3, 32, 32)


def test_layout_of_rgb_images(tmp_path: Path) -> None:
    write_classes(tmp_path / 'train', count=5)
    write_classes(tmp_path / 'test', count=2)
    module = EuroSATRGBDataModule(tmp_path, image_size=16, batch_size=3)
    module.setup('fit')
    sizes = [len(d) for d in (module.train_dataset, module.val_dataset, module.test_dataset)]  # type: ignore[arg-type]
    assert sizes == [12, 3, 6] and module.classes == ['a', 'b', 'c']
    assert float(next(iter(module.train_dataloader()))['image'].max()) <= 1


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match='holds no EuroSAT'):
        EuroSATRGBDataModule(tmp_path).setup('fit')
    with pytest.raises(ConfigError, match='split'):
        EuroSATRGBDataModule(tmp_path, split='temporal')  # type: ignore[arg-type]


def test_brightness_is_the_published_images(data_dir: Path) -> None:
    """Of several divisors, RGB_MAXIMUM comes closest to the JPEGs of the same places."""
    error: dict[float, list[float]] = {2500: [], 2700: [], RGB_MAXIMUM: [], 2800: [], 3000: []}
    bands = [EuroSAT.all_band_names.index(name) + 1 for name in RGB_BANDS]
    with zipfile.ZipFile(data_dir / 'eurosat_rgb.zip') as pictures:
        members = {Path(name).stem: name for name in pictures.namelist()}
        with tarfile.open(data_dir / 'eurosat_ms.tar.xz') as rasters:
            for raster in rasters:
                name = members.get(Path(raster.name).stem)
                handle = rasters.extractfile(raster) if raster.isfile() else None
                if name is None or handle is None:
                    continue
                with MemoryFile(handle.read()) as memory, memory.open() as source:
                    values = source.read(bands).astype(np.float64)
                picture = np.asarray(Image.open(BytesIO(pictures.read(name)))).transpose(2, 0, 1)
                for divisor, errors in error.items():
                    errors.append(np.abs(255 * (values / divisor).clip(0, 1) - picture).mean())
    mean = {divisor: float(np.mean(errors)) for divisor, errors in error.items()}
    assert len(error[RGB_MAXIMUM]) >= 10
    assert min(mean, key=lambda divisor: mean[divisor]) == RGB_MAXIMUM
    assert mean[RGB_MAXIMUM] < 2


class TestAllBands:
    @pytest.mark.parametrize('split', ['spatial', 'random'])
    def test_values_by_name(self, tmp_path: Path, split: str) -> None:
        module = EuroSATDataModule(write_eurosat(tmp_path), split=split, batch_size=2)  # type: ignore[arg-type]
        module.prepare_data()
        module.setup('fit')
        assert module.num_channels == 10 and module.bands == list(SATMAE_BANDS)
        for loader, number in ((module.val_dataloader(), 4), (module.test_dataloader(), 5)):
            assert isinstance(loader, DataLoader)
            image = next(iter(loader))['image'][0]
            with rasterio.open(
                tmp_path / EuroSAT.base_dir / f'AnnualCrop/AnnualCrop_{number}.tif'
            ) as source:
                values = source.read()
            # where the file has B2 to B8, B8A, B11 and B12
            chosen = values[[1, 2, 3, 4, 5, 6, 7, 12, 10, 11]]
            expected = torch.from_numpy(satmae_scale(chosen, SATMAE_BANDS)).float() / 255
            assert torch.equal(image, expected)

    def test_same_tensor_as_from_fmow_sentinel(self, tmp_path: Path) -> None:
        """One chip in both data sets' files and orders."""
        write_eurosat(tmp_path / 'eurosat')
        write_sentinel(tmp_path / 'fmow')
        path = tmp_path / 'eurosat' / EuroSAT.base_dir / 'AnnualCrop' / 'AnnualCrop_4.tif'
        with rasterio.open(path) as source:
            values = source.read()
        order = [
            [canonical_band(name) for name in EuroSAT.all_band_names].index(name)
            for name in SENTINEL2_BANDS
        ]
        chip = tmp_path / 'fmow/fmow-sentinel/val/airport/airport_0/airport_0_3.tif'
        write_raster(chip, values[order])
        images = []
        for module in (
            EuroSATDataModule(tmp_path / 'eurosat', batch_size=1),
            FMoWSentinelDataModule(tmp_path / 'fmow', image_size=64, batch_size=1),
        ):
            module.setup('fit')
            loader = module.val_dataloader()
            assert isinstance(loader, DataLoader)
            images.append(next(iter(loader))['image'])
        assert torch.equal(*images)

    def test_official_order_takes_positions(self, tmp_path: Path) -> None:
        write_eurosat(tmp_path)
        module = EuroSATDataModule(tmp_path, official_order=True)
        assert [canonical_band(name) for name in module.file_bands] == [
            'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B9', 'B12', 'B8A',
        ]  # fmt: skip
        module.setup('fit')
        named = EuroSATDataModule(tmp_path)
        named.setup('fit')
        first, second = (one.val_dataset for one in (module, named))
        assert first is not None and second is not None
        assert torch.equal(first[0]['image'][:7], second[0]['image'][:7])
        assert not torch.equal(first[0]['image'][7], second[0]['image'][7])

    def test_size_and_predictions(self, tmp_path: Path) -> None:
        module = EuroSATDataModule(
            write_eurosat(tmp_path), bands=['B04', 'B8A'], image_size=32, batch_size=2
        )
        module.setup('predict')
        assert next(iter(module.predict_dataloader()))['image'].shape == (2, 2, 32, 32)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match='no EuroSAT of 13 bands'):
            EuroSATDataModule(tmp_path).setup('fit')
        for wrong in ({'split': 'east'}, {'bands': ['B13']}, {'image_size': 0}):
            with pytest.raises(ConfigError):
                EuroSATDataModule(tmp_path, **wrong)

    def test_real_chips_spread_over_the_range(self, data_dir: Path, tmp_path: Path) -> None:
        """Sixty real chips, in TorchGeo's layout: no band is black, white or flat."""
        folder = tmp_path / EuroSAT.base_dir
        folder.mkdir(parents=True)
        with tarfile.open(data_dir / 'eurosat_ms.tar.xz') as archive:
            archive.extractall(folder, filter='data')
        paths = sorted(folder.rglob('*.tif'))
        for split in ('train', 'val', 'test'):
            listing = ''.join(f'{path.stem}.jpg\n' for path in paths)
            (tmp_path / f'eurosat-{split}.txt').write_text(listing)
        module = EuroSATDataModule(tmp_path, SENTINEL2_BANDS, split='random', batch_size=len(paths))
        module.setup('fit')
        loader = module.val_dataloader()
        assert isinstance(loader, DataLoader)
        images = next(iter(loader))['image']
        assert images.shape == (len(paths), 13, 64, 64) and len(module.classes or ()) == 10
        mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
        assert 0.2 < float(mean.min()) < float(mean.max()) < 0.85
        assert float(std.min()) > 0.01
