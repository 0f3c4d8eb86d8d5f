"""Tasks and data for the tests of reports, and a process that tests and predicts on two ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.tasks import Classification, SemanticSegmentation

from tests.tasks.toy import CLASSES, ColourDataModule, Colours
from torchgeo_explora.tasks import PredictionWriter, TestReport

COUNT = 21  # no multiple of two ranks' batches


class ColourTask(Classification):
    """Tells colours apart by their mean, without training."""

    def configure_models(self) -> None:
        linear = nn.Linear(3, 3)
        nn.init.eye_(linear.weight)
        nn.init.constant_(linear.bias, 0)
        linear.weight.data[0] /= 3  # the tint is three times as bright: some are wrong
        self.model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


class MaskTask(SemanticSegmentation):
    """A class a pixel: its brightest colour."""

    def configure_models(self) -> None:
        self.model = nn.Identity()


class OddColours(ColourDataModule):
    """Test images whose number the ranks cannot share evenly."""

    def setup(self, stage: str) -> None:
        if stage in ('test', 'predict'):
            self.test_dataset = self.predict_dataset = Colours(COUNT, 3)


class Masks(Dataset[dict[str, Tensor]]):
    """Noise whose classes are its brightest colours, apart from a corner and a stripe."""

    def __init__(self, size: int = 24, value: int = 255) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(5, 3, size, size, generator=generator)
        self.masks = self.images.argmax(dim=1)
        self.masks[:, :, :4] = 1
        self.masks[:, :3, :3] = value

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'image': self.images[index], 'mask': self.masks[index]}


class MaskDataModule(NonGeoDataModule):
    """Masks in TorchGeo's form."""

    classes = ('a', 'b', 'c')

    def __init__(self, dataset: Dataset[Any] | None = None, **options: Any) -> None:  # noqa: ANN401
        super().__init__(Masks, 2, 0)  # type: ignore[arg-type]
        self.samples = Masks(**options) if dataset is None else dataset

    def setup(self, stage: str) -> None:
        self.test_dataset = self.predict_dataset = self.samples

    def on_after_batch_transfer(
        self, batch: dict[str, Tensor], dataloader_idx: int
    ) -> dict[str, Tensor]:
        return batch


def colours(**arguments: Any) -> ColourTask:  # noqa: ANN401
    return ColourTask(**{'num_classes': len(CLASSES), 'labels': CLASSES, **arguments})


def main(arguments: Sequence[str]) -> None:
    """Test and predict on two ranks, in the folder that the only argument names."""
    (folder,) = map(Path, arguments)
    trainer = pl.Trainer(
        accelerator='cpu', devices=2, strategy='ddp', logger=False, enable_progress_bar=False,
        default_root_dir=folder, callbacks=[TestReport(), PredictionWriter()],
        enable_model_summary=False,
    )  # fmt: skip
    trainer.test(colours(), datamodule=OddColours(batch_size=4), verbose=False)
    trainer.predict(colours(), datamodule=OddColours(batch_size=4), return_predictions=False)
