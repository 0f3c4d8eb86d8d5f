"""fMoW's data modules: splits, crops, batches, resumption through the passes."""

import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from tests.data.fmow_rgb.data import write_raw
from tests.data.fmow_sentinel.data import write_sentinel
from tests.data.fmow_temporal.data import write_temporal
from torchgeo_explora.datamodules import (
    FMoWRGBDataModule,
    FMoWSentinelDataModule,
    FMoWTemporalDataModule,
)
from torchgeo_explora.datasets import Cropping, FMoWSentinel
from torchgeo_explora.errors import ConfigError, ImageError


@pytest.fixture(scope='module')
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentinel(tmp_path_factory.mktemp('sentinel'))


@pytest.fixture(scope='module')
def temporal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_temporal(tmp_path_factory.mktemp('temporal'))


def _batch(loader: object) -> dict[str, Tensor]:
    assert isinstance(loader, DataLoader)
    batch: dict[str, Tensor] = next(iter(loader))
    return batch


@pytest.mark.parametrize('stage', ['fit', 'validate', 'test', 'predict'])
def test_every_stage_has_its_batches(sentinel: Path, stage: str) -> None:
    module = FMoWSentinelDataModule(sentinel, image_size=24, batch_size=4)
    module.prepare_data()
    module.setup(stage)
    loaders = {
        'fit': module.train_dataloader, 'validate': module.val_dataloader,
        'test': module.test_dataloader, 'predict': module.predict_dataloader,
    }  # fmt: skip
    batch = _batch(loaders[stage]())
    assert batch['image'].shape == (4, 10, 24, 24) and batch['image'].dtype == torch.float32
    assert 0 <= float(batch['image'].min()) < float(batch['image'].max()) <= 1
    assert batch['label'].dtype == torch.int64
    assert (
        module.num_channels == 10 and module.bands[7] == 'B8A' and len(module.classes or ()) == 62
    )


def test_evaluation_resizes_and_cuts_the_centre(sentinel: Path) -> None:
    module = FMoWSentinelDataModule(sentinel, image_size=24, batch_size=12, eval_resize=30)
    module.setup('validate')
    dataset = FMoWSentinel(sentinel, 'val', cropping=Cropping(24, 'centre', resize=30))
    expected = torch.stack([dataset[index]['image'] for index in range(12)])
    assert torch.equal(_batch(module.val_dataloader())['image'], expected)


def test_bands_are_chosen_by_name(sentinel: Path) -> None:
    module = FMoWSentinelDataModule(sentinel, bands=['B08', 'B8A'], image_size=24, batch_size=12)
    module.setup('validate')
    every = FMoWSentinelDataModule(sentinel, image_size=24, batch_size=12)
    every.setup('validate')
    chosen, all_ten = (_batch(one.val_dataloader())['image'] for one in (module, every))
    assert module.bands == ['B08', 'B8A'] and torch.equal(chosen, all_ten[:, [6, 7]])


def test_test_images_are_the_validation_images_where_there_are_none(
    sentinel: Path, tmp_path: Path
) -> None:
    shutil.copytree(sentinel, tmp_path / 'copy')
    (tmp_path / 'copy' / 'test_gt.csv').unlink()
    module = FMoWSentinelDataModule(tmp_path / 'copy', image_size=24)
    module.setup('test')
    assert isinstance(module.test_dataset, FMoWSentinel) and module.test_dataset.split == 'val'
    module = FMoWSentinelDataModule(sentinel, image_size=24)
    module.setup('test')
    assert isinstance(module.test_dataset, FMoWSentinel) and module.test_dataset.split == 'test'


def test_temporal_batches(temporal: Path) -> None:
    module = FMoWTemporalDataModule(temporal, image_size=16, batch_size=5, train_scale=(0.2, 1.0))
    module.setup('fit')
    batch = _batch(module.train_dataloader())
    assert batch['image'].shape == (5, 3, 3, 16, 16) and batch['timestamps'].shape == (5, 3, 3)
    assert batch['timestamps'].dtype == torch.float32 and module.bands == ['red', 'green', 'blue']


@pytest.mark.parametrize('raw', [True, False])
def test_rgb_batches(temporal: Path, tmp_path: Path, raw: bool) -> None:
    root = write_raw(tmp_path) if raw else temporal
    module = FMoWRGBDataModule(root, image_size=16, batch_size=5)
    module.setup('fit')
    assert _batch(module.train_dataloader())['image'].shape == (5, 3, 16, 16)
    module.setup('test')
    assert _batch(module.test_dataloader())['image'].shape == (5, 3, 16, 16)


def test_random_crops_change_from_pass_to_pass(sentinel: Path) -> None:
    """Twelve images, three batches of four: every image is met once in each epoch."""
    module = FMoWSentinelDataModule(sentinel, image_size=24, batch_size=4, train_scale=(0.2, 0.5))
    module.setup('fit')
    epochs = []
    for taken in (0, 12, 0):
        module._samples_taken = lambda taken=taken: taken  # type: ignore[method-assign,misc]
        loader = module.train_dataloader()
        epochs.append(torch.cat([batch['image'] for batch in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert not any(torch.equal(one, other) for one in epochs[0] for other in epochs[1])


class Recorder(LightningModule):
    """Remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch['image'].clone())
        loss: Tensor = self.layer(batch['image'].mean((1, 2, 3))[:, None]).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings(
    'ignore:.*does not have many workers.*', 'ignore:.*smaller than the log'
)
@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_sees_the_crops_of_the_unbroken_one(
    sentinel: Path, tmp_path: Path, workers: int
) -> None:
    def fit(workers: int, resume: Path | None = None) -> list[Tensor]:
        module = Recorder()
        data = FMoWSentinelDataModule(
            sentinel, image_size=8, batch_size=5, num_workers=workers, seed=4,
            train_scale=(0.2, 1.0),
        )  # fmt: skip
        saver = ModelCheckpoint(tmp_path, '{step}', every_n_train_steps=1, save_top_k=-1)
        trainer = Trainer(
            max_steps=7, max_epochs=-1, accelerator='cpu', callbacks=[saver], logger=False,
            limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume))
        return module.seen

    whole = fit(0)
    rest = fit(workers, tmp_path / 'step=3.ckpt')
    assert len(whole) == 7 and len(rest) == 4
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    'module', [FMoWSentinelDataModule, FMoWRGBDataModule, FMoWTemporalDataModule]
)
def test_nothing_there(tmp_path: Path, module: type[FMoWSentinelDataModule]) -> None:
    with pytest.raises(ImageError, match=r'holds no train images of FMoW.*docs/datasets\.md'):
        module(tmp_path).setup('fit')


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ({'image_size': 0}, 'image_size'),
        ({'train_scale': (0.0, 1.0)}, 'scale'),
        ({'eval_resize': 20}, 'resize'),
        ({'batch_size': 0}, 'batch_size'),
    ],
)
def test_impossible_arguments(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        FMoWSentinelDataModule(**arguments)  # type: ignore[arg-type]


def test_unknown_bands_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="fMoW-Sentinel has no band 'B14'"):
        FMoWSentinelDataModule(bands=['B2', 'B14'])
