"""Probes of group-channel encoders, which need no more than their name and their file."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torchgeo.datamodules import NonGeoDataModule

from tests.tasks.toy import CLASSES, trainer
from tests.token_vits import make_groups
from torchgeo_explora.layers.tokens import encode, global_token
from torchgeo_explora.models import save_backbone
from torchgeo_explora.objectives.probing import Features, knn
from torchgeo_explora.tasks import KNN, LinearProbe
from torchgeo_explora.transforms import EvalTransform

BANDS = 6


class Spectra(Dataset[dict[str, Tensor]]):
    """Noisy images of six bands, of which one is bright for each class."""

    def __init__(self, count: int = 72, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(len(CLASSES), (count,), generator=generator)
        noise = torch.rand(count, BANDS, 32, 32, generator=generator)
        bright = nn.functional.one_hot(self.labels + 1, BANDS)[:, :, None, None]
        self.images = 0.3 * noise + 0.7 * bright

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': self.images[index], 'label': self.labels[index]}


class SpectraDataModule(NonGeoDataModule):
    """Those images in TorchGeo's form, not normalised."""

    def __init__(self) -> None:
        super().__init__(Spectra, 8, 0)  # type: ignore[arg-type]

    def setup(self, stage: str) -> None:
        pool = Spectra()
        self.train_dataset, self.val_dataset = (
            Subset(pool, list(part)) for part in (range(48), range(48, 72))
        )

    def on_after_batch_transfer(
        self, batch: dict[str, Tensor], dataloader_idx: int
    ) -> dict[str, Tensor]:
        return batch


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of a model for six bands, with their statistics."""
    metadata = {'mean': [0.4] * BANDS, 'std': [0.3] * BANDS}
    return save_backbone(make_groups(), tmp_path / 'w.safetensors', metadata)


@torch.no_grad()
def test_neighbours_are_those_of_the_class_tokens(weights: Path, tmp_path: Path) -> None:
    task = KNN('tiny_group_channel_vit', str(weights), in_channels=BANDS, eval_size=32, k=(1, 5))
    (metrics,) = trainer(tmp_path).validate(task, datamodule=SpectraDataModule(), verbose=False)
    model, pool = make_groups(), Spectra()
    images = EvalTransform(32, (0.4,) * BANDS, (0.3,) * BANDS)(pool.images)
    cls = global_token(model, encode(model, images))
    train, val = (
        Features(cls[part][:, None], cls[part], pool.labels[part])
        for part in (slice(48), slice(48, None))
    )
    for count, accuracy in knn(train, val, k=(1, 5)).accuracy.items():
        assert metrics[f'val/knn_{count}'] == pytest.approx(accuracy, abs=1e-6)
    written = json.loads((tmp_path / 'knn_val.json').read_text(encoding='utf-8'))
    assert written['weights'] == str(weights)


def test_a_linear_probe_tells_the_bright_band(weights: Path, tmp_path: Path) -> None:
    task = LinearProbe(
        'tiny_group_channel_vit', str(weights), in_channels=BANDS, eval_size=32, iterations=60,
        batch_size=16, blocks=(1, 2), learning_rates=(0.1, 1.0), logistic=False,
    )  # fmt: skip
    (metrics,) = trainer(tmp_path).validate(task, datamodule=SpectraDataModule(), verbose=False)
    assert metrics['val/linear_acc_best'] > 0.9
