"""Callbacks see everything and disturb nothing."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Subset

from tests.tasks.toy import ColourDataModule, ToyTask
from torchgeo_explora.errors import CollapseError, ConfigError
from torchgeo_explora.objectives.diagnostics import CollapseLimits, effective_rank
from torchgeo_explora.objectives.probing import Features, extract_features, knn
from torchgeo_explora.tasks import ResumableCSVLogger, RunRecorder
from torchgeo_explora.tasks.callbacks import CollapseGuard, FeatureHealth, OnlineKNN
from torchgeo_explora.tasks.logger import read_metrics


class Modes(Callback):
    """Notes the mode of every module at each step."""

    def __init__(self) -> None:
        self.seen: list[list[bool]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        self.seen.append([module.training for module in pl_module.modules()])


def watchers(every: int = 2, **guard: Any) -> list[Callback]:  # noqa: ANN401
    common = {'every_n_steps': every, 'batch_size': 16}
    return [
        OnlineKNN(train_images=30, val_images=20, k=5, **common),  # type: ignore[arg-type]
        FeatureHealth(images=32, **common),  # type: ignore[arg-type]
        CollapseGuard(**guard),
    ]


def run(
    tmp_path: Path,
    callbacks: list[Callback],
    task: ToyTask | None = None,
    steps: int = 12,
    data: ColourDataModule | None = None,
    resume: Path | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[ToyTask, pl.Trainer]:
    pl.seed_everything(0, verbose=False)
    module = ToyTask() if task is None else task
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator='cpu',
        callbacks=callbacks,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{'logger': False, 'enable_checkpointing': False, **options},
    )
    trainer.fit(module, datamodule=ColourDataModule() if data is None else data, ckpt_path=resume)
    return module, trainer


def weights(task: ToyTask) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


def test_a_watched_run_equals_an_unwatched_one_bit_for_bit(tmp_path: Path) -> None:
    plain, watched = Modes(), Modes()
    alone, _ = run(tmp_path, [plain])
    seen, _ = run(tmp_path, [*watchers(), watched])
    assert plain.seen == watched.seen
    for name, value in weights(alone).items():
        assert torch.equal(value, weights(seen)[name]), name


def test_what_is_measured_is_what_the_networks_give(tmp_path: Path) -> None:
    callbacks = watchers(every=5)
    task, trainer = run(tmp_path, callbacks)
    neighbours, health, _ = callbacks
    assert isinstance(neighbours, OnlineKNN)
    assert isinstance(health, FeatureHealth)
    assert [step for step, _ in health.records] == [5, 10, 12]
    assert [step for step, _ in neighbours.records] == [5, 10, 12]
    for name, network in task.backbones().items():

        def of(subset: Subset[dict[str, Tensor]], network: VisionTransformer = network) -> Features:
            batch = torch.utils.data.default_collate([subset[i] for i in range(len(subset))])
            return extract_features(network, [batch], task.eval_transform, 1)

        values = health.records[-1][1][name]
        features = of(health.subset)
        assert values['rank'] == pytest.approx(effective_rank(features.last))
        assert 0 < values['drift'] < 1
        assert values['drift'] == pytest.approx(
            1 - torch.cosine_similarity(health.base_features[name], features.last).mean().item(),
            abs=1e-6,
        )
        accuracy = knn(of(neighbours.bank), of(neighbours.queries), (5,)).accuracy[5]
        assert neighbours.records[-1][1][name]['knn'] == accuracy
        assert health.base is not None
        assert health.base[name]['drift'] == pytest.approx(0, abs=1e-6)
        assert health.base[name]['cka'] == pytest.approx(1)
    assert trainer.callback_metrics['teacher/rank'].item() > 0  # a checkpoint can monitor it


def test_measurements_reach_the_logger_whatever_its_interval(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    run(tmp_path, watchers(every=4), steps=8, logger=logger, log_every_n_steps=50)
    text = (Path(logger.log_dir) / 'metrics.csv').read_text(encoding='utf-8')
    header, *rows = (line.split(',') for line in text.splitlines())
    column, step = header.index('teacher/knn'), header.index('step')
    assert [int(row[step]) for row in rows if row[column]] == [0, 4, 8]


def test_a_resumed_run_keeps_its_base_and_its_records(tmp_path: Path) -> None:
    whole = watchers()
    run(tmp_path, whole, steps=6, data=ColourDataModule(batch_size=48))
    first = watchers()
    saver = ModelCheckpoint(tmp_path / 'ckpt', every_n_train_steps=4, filename='half')
    run(
        tmp_path, [*first, saver], steps=4, data=ColourDataModule(batch_size=48),
        enable_checkpointing=True,
    )  # fmt: skip
    second = watchers()
    states: list[Any] = []

    class Peek(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            states.extend(copy.deepcopy([callback.state_dict() for callback in second]))

    run(
        tmp_path, [*second, Peek()], steps=6, data=ColourDataModule(batch_size=48),
        resume=tmp_path / 'ckpt' / 'half.ckpt',
    )  # fmt: skip
    assert states[0]['base'] == whole[0].base  # type: ignore[attr-defined]
    assert states[1]['base'] == whole[1].base  # type: ignore[attr-defined]
    assert states[1]['records'] == whole[1].records[:2]  # type: ignore[attr-defined]
    for network, base in states[1]['base_features'].items():
        assert torch.equal(base, whole[1].base_features[network])  # type: ignore[attr-defined]
    assert [s for s, _ in second[1].records] == [2, 4, 6]  # type: ignore[attr-defined]
    assert sorted(second[2].own) == sorted(whole[2].own)  # type: ignore[attr-defined]


def test_a_resumed_run_keeps_the_measurements_in_its_table(tmp_path: Path) -> None:
    def table(steps: int, resume: Path | None = None) -> list[tuple[int, set[str]]]:
        saver = ModelCheckpoint(tmp_path / 'ckpt', every_n_train_steps=4, save_top_k=-1)
        run(
            tmp_path, [*watchers(), saver, RunRecorder()], steps=steps, resume=resume,
            data=ColourDataModule(batch_size=12), enable_checkpointing=True, log_every_n_steps=3,
            logger=ResumableCSVLogger(tmp_path),
        )  # fmt: skip
        rows = read_metrics(tmp_path / 'metrics.csv')
        return [(step, set(row)) for step, row in rows.items()]

    whole = table(steps=10)
    measured = [step for step, names in whole if 'student/knn' in names]
    assert measured == [0, 2, 4, 6, 8, 10]
    assert table(steps=10, resume=tmp_path / 'ckpt' / 'epoch=0-step=4.ckpt') == whole


def test_a_healthy_run_is_not_stopped(tmp_path: Path) -> None:
    callbacks = watchers()
    task, trainer = run(tmp_path, callbacks, steps=20)
    assert trainer.global_step == 20
    assert task.collapse_reason is None
    assert callbacks[2].reason is None  # type: ignore[attr-defined]


@pytest.mark.filterwarnings('ignore:The .* collapsed')
def test_constant_features_stop_the_run_with_a_reason(tmp_path: Path) -> None:
    task, trainer = run(tmp_path, watchers(), ToyTask(spoil='constant'), steps=40)
    assert trainer.global_step == 8  # spoilt from step 4 on, seen at 6 and 8
    assert task.collapse_reason is not None
    assert 'collapsed. At step 8' in task.collapse_reason
    assert 'Lower the learning rate' in task.collapse_reason


def test_the_guard_can_raise_or_warn(tmp_path: Path) -> None:
    with pytest.raises(CollapseError, match=r'collapsed\. At step 8'):
        run(tmp_path, watchers(on_collapse='raise'), ToyTask(spoil='constant'), steps=40)
    with pytest.warns(UserWarning, match=r'collapsed\. At step 8') as caught:
        task, trainer = run(
            tmp_path, watchers(on_collapse='warn'), ToyTask(spoil='constant'), steps=14
        )
    assert trainer.global_step == 14
    assert task.collapse_reason is None
    assert sum('collapsed' in str(warning.message) for warning in caught) == 1


@pytest.mark.filterwarnings('ignore:The .* collapsed')
def test_a_loss_that_is_not_finite_stops_at_the_next_check(tmp_path: Path) -> None:
    task, trainer = run(tmp_path, watchers(every=3), ToyTask(spoil='loss'), steps=40)
    assert trainer.global_step == 6
    assert task.collapse_reason is not None
    assert 'no longer a finite number' in task.collapse_reason


@pytest.mark.filterwarnings('ignore:The .* collapsed')
def test_limits_reach_the_verdict(tmp_path: Path) -> None:
    limits = CollapseLimits(rank_fraction=1.0, checks=1)
    task, _ = run(tmp_path, watchers(limits=limits), ToyTask(lr=0.3), steps=40)
    assert task.collapse_reason is not None
    assert 'directions' in task.collapse_reason


def test_neighbours_are_never_the_images_themselves(tmp_path: Path) -> None:
    callbacks = watchers()
    run(tmp_path, callbacks, steps=2, data=ColourDataModule(leak=True))
    neighbours = callbacks[0]
    assert isinstance(neighbours, OnlineKNN)
    bank, queries = set(neighbours.bank.indices), set(neighbours.queries.indices)
    held = set(neighbours.queries.dataset.indices)  # type: ignore[attr-defined]
    assert len(bank) == 30
    assert len(queries) == 20
    assert not bank & held


def test_another_data_module_can_be_probed(tmp_path: Path) -> None:
    labelled = OnlineKNN(every_n_steps=2, data=ColourDataModule(), k=5)
    run(tmp_path, [labelled], steps=2, data=ColourDataModule(labelled=False))
    assert labelled.records[0][1]['teacher']['knn'] > 1 / 3


def test_impossible_uses_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='leave OnlineKNN out'):
        run(tmp_path, [OnlineKNN()], data=ColourDataModule(labelled=False))
    with pytest.raises(ConfigError, match='list FeatureHealth before it'):
        run(tmp_path, [CollapseGuard(), FeatureHealth()])
    with pytest.raises(ConfigError, match='name some of those'):
        run(tmp_path, [FeatureHealth(networks=('pupil',))])
    with pytest.raises(ConfigError, match='no backbones'):
        trainer = pl.Trainer(fast_dev_run=True, callbacks=[FeatureHealth()], logger=False)
        trainer.fit(BoringModel())
    for wrong in ({'every_n_steps': 0}, {'images': 1}, {'dtype': 'float64'}):
        with pytest.raises(ConfigError):
            FeatureHealth(**wrong)
    with pytest.raises(ConfigError):
        OnlineKNN(k=0)
    with pytest.raises(ConfigError):
        CollapseGuard(on_collapse='ignore')  # type: ignore[arg-type]
