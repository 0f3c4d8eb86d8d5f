"""A small pre-training task and data module for the tests of callbacks and probes."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.tasks import BaseTask

from torchgeo_explora.transforms import EvalTransform

CONF = Path(__file__).resolve().parent.parent / 'conf'
TINY: dict[str, Any] = {'model': 'vit_tiny_patch16_224', 'eval_size': 16}
HALVES = EvalTransform(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # timm's statistics of the model
CLASSES = ['a', 'b', 'c']


class Colours(Dataset[dict[str, Tensor]]):
    """Noisy images whose mean colour is their class."""

    def __init__(self, count: int, seed: int, labelled: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(len(CLASSES), (count,), generator=generator)
        noise = torch.rand(count, 3, 16, 16, generator=generator)
        tint = nn.functional.one_hot(self.labels, 3)[:, :, None, None]
        self.images = 0.5 * noise + 0.5 * tint
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = {'image': self.images[index]}
        return {**sample, 'label': self.labels[index]} if self.labelled else sample


class ColourDataModule(NonGeoDataModule):
    """Coloured images in TorchGeo's form, not normalised."""

    def __init__(
        self,
        count: int = 48,
        labelled: bool = True,
        leak: bool = False,
        named: bool = True,
        batch_size: int = 8,
    ) -> None:
        super().__init__(Colours, batch_size, 0)  # type: ignore[arg-type]
        self.count, self.labelled, self.leak = count, labelled, leak
        self.classes = CLASSES if named else None

    def setup(self, stage: str) -> None:
        if stage in ('fit', 'validate'):
            pool = Colours(self.count + 24, 1, self.labelled)
            held = range(self.count, self.count + 24)
            self.val_dataset = Subset(pool, list(held)) if self.labelled else None
            if stage == 'fit':
                self.train_dataset = pool if self.leak else Subset(pool, list(range(self.count)))
        if stage == 'test':
            self.test_dataset = Colours(24, 3)

    def on_after_batch_transfer(
        self, batch: dict[str, Tensor], dataloader_idx: int
    ) -> dict[str, Tensor]:
        return batch

    def val_dataloader(self) -> Any:  # noqa: ANN401
        return [] if self.val_dataset is None else super().val_dataloader()


def encoder(depth: int = 4, drop: float = 0.1) -> VisionTransformer:
    torch.manual_seed(7)
    return VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=depth, num_heads=2, num_classes=0,
        proj_drop_rate=drop,
    )  # fmt: skip


class ToyTask(BaseTask):
    """Student follows its own targets, teacher follows the student; dropout makes it random."""

    def __init__(self, lr: float = 1e-3, spoil: str = 'none') -> None:
        super().__init__()

    def configure_models(self) -> None:
        self.student, self.teacher = encoder(), encoder()
        self.teacher.requires_grad_(False)
        self.teacher.eval()
        self.eval_transform = EvalTransform(16)
        self.collapse_reason: str | None = None

    def backbones(self) -> dict[str, VisionTransformer]:
        return {'student': self.student, 'teacher': self.teacher}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), self.hparams['lr'], momentum=0.9)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images = self.eval_transform(batch['image'])
        noisy = images + 0.1 * torch.randn_like(images)
        loss: Tensor = (self.student(noisy) - self.teacher(images) - 1).square().mean()
        if self.hparams['spoil'] == 'loss' and self.trainer.global_step >= 4:
            loss = loss * torch.nan
        self.log('train_loss', loss)
        return loss

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Move the teacher, or spoil the networks as a collapse would."""
        with torch.no_grad():
            if self.hparams['spoil'] == 'constant' and self.trainer.global_step >= 4:
                for network in (self.student, self.teacher):
                    network.get_parameter('norm.weight').mul_(1e-3)
                    network.get_parameter('norm.bias').fill_(1.0)
            pairs = zip(self.student.parameters(), self.teacher.parameters(), strict=True)
            for mine, theirs in pairs:
                theirs.lerp_(mine, 0.1)


def trainer(folder: Path, **options: Any) -> pl.Trainer:  # noqa: ANN401
    defaults = {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    return pl.Trainer(
        accelerator='cpu',
        devices=1,
        default_root_dir=folder,
        enable_model_summary=False,
        **{**defaults, **options},
    )


def images(root: Path, splits: tuple[str, ...] = ('train', 'val', 'test'), count: int = 12) -> Path:
    """A folder of noisy images of three colours."""
    generator = torch.Generator().manual_seed(0)
    for split in splits:
        for label, name in enumerate(('blue', 'green', 'red')):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 130, (32, 32, 3), generator=generator)
                pixels[..., label] += 100
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f'{index}.png')
    return root
