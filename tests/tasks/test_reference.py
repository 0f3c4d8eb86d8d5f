"""What fine-tuning writes of its images: the features that the fitted file gives them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import tests.tasks.dinov2_runs  # noqa: F401  # registers the model
from tests.tasks.dinov2_runs import make_trainer
from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import FeatureReference, load_model, pooled_features
from torchgeo_explora.models.feature_reference import check_reference
from torchgeo_explora.models.fitted import find_backbone
from torchgeo_explora.tasks import LoRAClassification, LoRASemanticSegmentation
from torchgeo_explora.tasks._reference import centre

SIZE = 32
OPTIONS: dict[str, Any] = {'model': 'test_vit', 'rank': 2, 'warmup_epochs': 0.5}


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-six images of two classes, larger than what the model is fitted on."""
    root, rng = tmp_path_factory.mktemp('reference'), np.random.default_rng(0)
    for name, level in (('dark', 60), ('light', 160)):
        (root / name).mkdir()
        for index in range(18):
            pixels = level + rng.integers(0, 60, (40, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f'{index}.png')
    return root


class Masked(Dataset[dict[str, Tensor]]):
    """Images with masks, of a size that no patch divides."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = 0.4 + 0.2 * torch.rand((count, 3, 37, 37), generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index]
        return {'image': image, 'mask': (image[0] > 0.5).long()}


class MaskedModule(LightningDataModule):
    """A data module that gives loaders and no data set to draw from.

    Args:
        train: Training images.
        val: Images for validation.
    """

    batch_size = 6

    def __init__(self, train: int, val: int) -> None:
        super().__init__()
        self.train, self.val = train, val

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(Masked(self.train), self.batch_size)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(Masked(self.val), self.batch_size)


def _distances(folder: Path, images: Tensor) -> Tensor:
    """Distances of images to a fit, from its files alone."""
    (path,) = folder.rglob('features.safetensors')
    model, spec = load_model(path.with_name('model.safetensors'))
    vit = find_backbone(model)[1]
    reference = FeatureReference.load(path)
    check_reference(reference, vit, 'the file')
    assert reference.origin.image_size == spec.image_size == SIZE
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    with torch.inference_mode():
        return reference.distance(pooled_features(vit, (images - mean) / std))


def test_a_classifier_knows_its_images(root: Path, tmp_path: Path) -> None:
    """Whole images are seen, resized as in evaluation; those of validation give the unit."""
    data = FolderDataModule(root, image_size=40, batch_size=6, val_fraction=0.4)
    task = LoRAClassification(**OPTIONS, image_size=SIZE, drop_path=0.5)
    make_trainer(tmp_path, max_epochs=1).fit(task, data)
    (path,) = tmp_path.rglob('features.safetensors')
    assert FeatureReference.load(path).count == len(data.train_dataset) == 22  # type: ignore[arg-type]
    images = torch.stack([data.train_dataset[i]['image'] for i in range(22)])  # type: ignore[index]
    small = torch.nn.functional.interpolate(images, SIZE, mode='bilinear', antialias=True)
    near, far = _distances(tmp_path, small), _distances(tmp_path, torch.rand_like(small))
    assert near.median() < 1 < far.min()


def test_a_segmenter_knows_the_centres_of_its_images(tmp_path: Path) -> None:
    task = LoRASemanticSegmentation(**OPTIONS, num_classes=2, image_size=SIZE, decoder='fpn')
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, MaskedModule(24, 24))
    images = centre(Masked(24).images, SIZE)
    distances = _distances(tmp_path, images)
    (path,) = tmp_path.rglob('features.safetensors')
    # validation holds the same images here: the distances stored are those of the file
    stored = FeatureReference.load(path).held_out
    torch.testing.assert_close(distances.sort().values, stored, rtol=1e-3, atol=1e-4)


def test_only_so_many_images_as_asked_for(tmp_path: Path) -> None:
    for count, written in ((21, 21), (0, None), (10, None)):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / 'features.safetensors').write_bytes(b'of an earlier fit')
        task = LoRASemanticSegmentation(
            **OPTIONS, num_classes=2, image_size=SIZE, decoder='fpn', reference_images=count
        )
        make_trainer(folder, max_steps=1).fit(task, MaskedModule(40, 6))
        path = folder / 'features.safetensors'
        assert (folder / 'model.safetensors').is_file()
        if written is None:
            assert not path.exists()
        else:
            assert FeatureReference.load(path).count == written
    with pytest.raises(ConfigError, match='reference_images is -1'):
        LoRASemanticSegmentation(**OPTIONS, num_classes=2, reference_images=-1)


def test_the_weights_of_the_fit_do_not_hang_on_it(root: Path, tmp_path: Path) -> None:
    found = []
    for count in (0, 2000):
        data = FolderDataModule(root, image_size=SIZE, batch_size=6)
        task = LoRAClassification(**OPTIONS, image_size=SIZE, reference_images=count)
        make_trainer(tmp_path / str(count), max_epochs=1).fit(task, data)
        found.append(load_file(tmp_path / str(count) / 'model.safetensors'))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
