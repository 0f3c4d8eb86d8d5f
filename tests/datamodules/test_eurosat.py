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
from tests.data.folder.data import write_classes
from torchgeo_explora.datamodules import EuroSATRGBDataModule
from torchgeo_explora.datamodules.eurosat import RGB_BANDS, RGB_MAXIMUM
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
