"""The training order: a pure function of seed and position, which a resumed run takes up."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from torchgeo_explora.datamodules import FolderDataModule, ResumableSampler
from torchgeo_explora.datamodules._sampler import Passes, shuffled
from torchgeo_explora.errors import ConfigError

IMAGES, BATCH = 23, 4


def test_every_pass_holds_every_sample_once() -> None:
    order = list(shuffled(7, seed=1, start=0, stop=28))
    passes = [order[k : k + 7] for k in range(0, 28, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert order != list(shuffled(7, seed=2, start=0, stop=28))


@pytest.mark.parametrize('start', [0, 1, 6, 7, 20])
def test_any_position_can_be_taken_up(start: int) -> None:
    whole = list(shuffled(7, 3, 0, 30))
    assert list(shuffled(7, 3, start, 30)) == whole[start:]


class _Drawn:
    """Samples that say where and when they were drawn."""

    def __len__(self) -> int:
        return 7

    def draw(self, index: int, epoch: int) -> dict[str, Tensor]:
        return {'drawn': torch.tensor([index, epoch])}


def test_keys_carry_the_pass() -> None:
    passes = Passes(_Drawn())
    keys = list(ResumableSampler(7, seed=3, total=30, keys=True))
    drawn = [passes[key]['drawn'].tolist() for key in keys]
    assert [index for index, _ in drawn] == list(shuffled(7, 3, 0, 30))
    assert [epoch for _, epoch in drawn] == [position // 7 for position in range(30)]
    assert len(passes) == 7


@pytest.mark.parametrize('total', [3, 7, 16])
def test_epochs_follow_without_a_gap(total: int) -> None:
    position = 0
    sampler = ResumableSampler(7, seed=0, total=total, start=lambda: position)
    seen: list[int] = []
    for stop in (2, total, 2 * total, 3 * total):  # resumed after two samples, then whole epochs
        part = list(sampler)[: stop - position]
        seen, position = seen + part, position + len(part)
    assert len(sampler) == total
    assert seen == list(shuffled(7, 0, 0, 3 * total))


def test_ranks_share_the_sequence() -> None:
    ranks = [list(ResumableSampler(10, 0, total=6, rank=r, world_size=2)) for r in range(2)]
    merged = [index for pair in zip(*ranks, strict=True) for index in pair]
    assert merged == list(shuffled(10, 0, 0, 12))


@pytest.mark.parametrize(
    ('length', 'seed', 'total', 'rank'), [(0, 0, 1, 0), (1, -1, 1, 0), (1, 0, 0, 0), (1, 0, 1, 2)]
)
def test_impossible_numbers(length: int, seed: int, total: int, rank: int) -> None:
    with pytest.raises(ConfigError, match='give'):
        ResumableSampler(length, seed, total, rank=rank, world_size=2)


class Recorder(LightningModule):
    """Remembers which images it was shown, in which epoch and at which index."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[int, int, list[int]]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        numbers = batch['image'][:, 0, 0, 0].mul(25.5).round().int().tolist()
        self.seen.append((self.current_epoch, batch_idx, numbers))
        loss: Tensor = self.layer(batch['image'].mean((1, 2, 3))[:, None]).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('images')
    for number in range(IMAGES):
        values = np.full((8, 8, 3), 10 * number, dtype=np.uint8)
        Image.fromarray(values).save(root / f'{number:02d}.png')
    return root


def _fit(
    folder: Path,
    accumulate: int = 1,
    checkpoints: Path | None = None,
    resume: Path | None = None,
    workers: int = 0,
    steps_per_epoch: int | None = None,
    seed: int = 3,
) -> list[tuple[int, int, list[int]]]:
    module = Recorder()
    data = FolderDataModule(
        folder, image_size=8, batch_size=BATCH, num_workers=workers, seed=seed,
        steps_per_epoch=steps_per_epoch,
    )  # fmt: skip
    saver = ModelCheckpoint(checkpoints, '{step}', every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        max_steps=8, max_epochs=-1, accelerator='cpu', accumulate_grad_batches=accumulate,
        callbacks=None if checkpoints is None else [saver],
        enable_checkpointing=checkpoints is not None, enable_progress_bar=False,
        enable_model_summary=False, logger=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else os.fspath(resume))
    return module.seen


@pytest.mark.filterwarnings(
    'ignore:.*does not have many workers.*', 'ignore:.*smaller than the log.*'
)
@pytest.mark.parametrize(
    ('accumulate', 'steps_per_epoch', 'workers', 'steps'),
    [(1, None, 0, (1, 4, 5, 6, 7)), (2, 3, 0, (1, 2, 3, 5)), (1, 8, 0, (3,)), (1, 3, 2, (2, 3))],
)
def test_a_resumed_run_sees_the_batches_of_the_unbroken_one(
    folder: Path,
    tmp_path: Path,
    accumulate: int,
    steps_per_epoch: int | None,
    workers: int,
    steps: tuple[int, ...],
) -> None:
    whole = _fit(folder, accumulate, tmp_path, steps_per_epoch=steps_per_epoch)
    images = [number for _, _, numbers in whole for number in numbers]
    assert images == list(shuffled(IMAGES, 3, 0, len(images)))
    for step in steps:
        path = tmp_path / f'step={step}.ckpt'
        loops = torch.load(path, weights_only=False)['loops']['fit_loop']
        done = loops['epoch_loop.batch_progress']['total']['processed']
        rest = _fit(folder, accumulate, None, path, workers, steps_per_epoch)
        assert rest == whole[done:]


def test_another_order_cannot_be_resumed(folder: Path, tmp_path: Path) -> None:
    _fit(folder, checkpoints=tmp_path)
    with pytest.raises(ConfigError, match='seed was 3 and is 4'):
        _fit(folder, resume=tmp_path / 'step=2.ckpt', seed=4)
