"""The D-ExPLoRA task: bookkeeping, exact resumption, what is written, and two ranks."""

import copy
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.main import main

from tests.processes import Fork, fork, run, run_ranks
from tests.tasks import dinov2_runs
from tests.tasks.dinov2_runs import (
    BATCH,
    SaveEveryBatch,
    make_data,
    make_task,
    make_trainer,
    weights,
)
from tests.tasks.toy import CONF, images
from torchgeo_explora.adapters import load_adapter, merge_lora
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.layers.tokens import encode
from torchgeo_explora.models import create_backbone, read_input, read_metadata
from torchgeo_explora.objectives import make_schedules
from torchgeo_explora.objectives.steps import (
    clip_gradients,
    make_optimizer,
    micro_batch,
    set_rates,
    step_seed,
)
from torchgeo_explora.tasks import ExPLoRADINOv2

BATCHES = 5  # of an epoch: 21 images, 4 a batch
STEPS = 3 * BATCHES
FILES = {'explora.safetensors', 'adapter.safetensors'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 images."""
    return images(tmp_path_factory.mktemp('images'), ('train',), 7)


def _fit(
    root: Path, out: Path, resume: Path | None = None, *, task: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None, **trainer: Any,  # noqa: ANN401
) -> ExPLoRADINOv2:  # fmt: skip
    made = make_task(**({} if task is None else task))
    ckpt = None if resume is None else str(resume)
    make_trainer(out, **trainer).fit(
        made, make_data(root, **({} if data is None else data)), ckpt_path=ckpt
    )
    return made


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert different == []


class Watch(Callback):
    """Keep the networks, the logged values and the gradients' norms of every micro-batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.logged: list[dict[str, float]] = []
        self.norms: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, *arguments: object) -> None:
        task = arguments[0]
        assert isinstance(task, ExPLoRADINOv2)
        optimizer = trainer.optimizers[0]
        optimizer.register_step_post_hook(lambda *_: self.norms.append(gradient_norms(task)))

    def on_train_batch_start(self, trainer: Trainer, *arguments: object) -> None:
        task = arguments[0]
        assert isinstance(task, ExPLoRADINOv2)
        if len(self.states) == 0:  # by now the prototypes have started
            self.states.append(weights(task))

    def on_train_batch_end(self, trainer: Trainer, *arguments: object) -> None:
        task = arguments[0]
        assert isinstance(task, ExPLoRADINOv2)
        self.states.append(weights(task))
        self.logged.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def gradient_norms(task: ExPLoRADINOv2) -> dict[str, float]:
    """Norm of the gradient of every part that is clipped for itself."""
    parts = {name: [p.grad for p in part] for name, part in task.model.submodules()}
    return {
        name: torch.stack([g.norm() for g in part if g is not None]).norm().item()
        for name, part in parts.items()
    }


@pytest.fixture(scope='module')
def watched(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExPLoRADINOv2, Watch]:
    """A whole run, step by step."""
    watch = Watch()
    task = _fit(folder, tmp_path_factory.mktemp('watched'), callbacks=[watch], task={'clip': 0.05})
    return task, watch


def test_run_ends_where_its_schedules_do(watched: tuple[ExPLoRADINOv2, Watch]) -> None:
    task, watch = watched
    assert task.total_steps == task.micro_step == len(watch.logged) == STEPS
    assert task.trainer.global_step == STEPS // 3  # optimizer steps


def test_schedules_stand_still_within_a_window(watched: tuple[ExPLoRADINOv2, Watch]) -> None:
    task, watch = watched
    curves = make_schedules(task.recipe.optimization, STEPS, 3 * BATCH)
    for step, logged in enumerate(watch.logged):
        start = step - step % 3
        assert logged['lr'] == pytest.approx(curves.backbone_lr(start))
        assert logged['teacher_momentum'] == pytest.approx(curves.momentum(start))
        assert logged['teacher_temperature'] == pytest.approx(curves.teacher_temperature(start))
    last, scale = STEPS - 3, task.recipe.optimization.unfrozen_lr_scale
    rates = {group['part']: group['lr'] for group in task.trainer.optimizers[0].param_groups}
    assert rates == {
        'backbone': curves.backbone_lr(last),
        'unfrozen': scale * curves.backbone_lr(last),
        'head': curves.head_lr(last),
        'prototypes': curves.prototype_lr(last),
    }


def test_networks_move_once_a_window(watched: tuple[ExPLoRADINOv2, Watch]) -> None:
    task, watch = watched
    curves = make_schedules(task.recipe.optimization, STEPS, 3 * BATCH)
    trained = {n for n, p in task.named_parameters() if p.requires_grad}
    for step, (before, after) in enumerate(zip(watch.states, watch.states[1:], strict=False)):
        if (step + 1) % 3 != 0:
            assert_equal(after, before)
            continue
        momentum = curves.momentum(step - 2)
        for name in trained:
            teacher = name.replace('student', 'teacher')
            expected = before[teacher].lerp(after[name], 1 - momentum)
            torch.testing.assert_close(after[teacher], expected, rtol=1e-5, atol=1e-7)


def test_frozen_tensors_stay(watched: tuple[ExPLoRADINOv2, Watch]) -> None:
    task, watch = watched
    first, last = watch.states[0], watch.states[-1]
    networks = {'model.student.', 'model.teacher.'}
    trained = {n for n, p in task.named_parameters() if p.requires_grad}
    trained |= {name.replace('student', 'teacher') for name in trained}
    names = [n for n in first if any(n.startswith(network) for network in networks)]
    moved = {n for n in names if not torch.equal(first[n], last[n])}
    assert moved <= trained
    assert {n for n in moved if 'lora_' in n or 'blocks.5' in n}
    teacher = dict(task.model.teacher.named_parameters())
    for name, parameter in task.model.student.named_parameters():
        assert (teacher[name] is parameter) == (not parameter.requires_grad)


def test_optimizer_holds_what_trains(watched: tuple[ExPLoRADINOv2, Watch]) -> None:
    task, _ = watched
    state = task.trainer.optimizers[0].state
    assert set(state) == {p for p in task.parameters() if p.requires_grad}


def test_every_part_is_clipped(watched: tuple[ExPLoRADINOv2, Watch]) -> None:
    _, watch = watched
    assert len(watch.norms) == STEPS // 3
    assert all(set(norms) == {'backbone', 'dino'} for norms in watch.norms)
    found = [norm for norms in watch.norms for norm in norms.values()]
    assert max(found) <= 0.05 * (1 + 1e-4)
    assert sum(norm == pytest.approx(0.05, rel=1e-3) for norm in found) > 2  # it was needed


def test_float16_is_clipped_at_its_true_scale(folder: Path, tmp_path: Path) -> None:
    """The loss scale of float16 is taken out before gradients are clipped, and only once."""
    plain, half = Watch(), Watch()
    _fit(folder, tmp_path, callbacks=[plain], task={'steps': 3, 'clip': 0.0})
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**8)
    plugin = MixedPrecision('16-mixed', 'cpu', scaler)
    task = _fit(
        folder, tmp_path, callbacks=[half], plugins=[plugin], task={'steps': 3, 'clip': 1e9}
    )
    (expected,), (found,) = plain.norms, half.norms
    for name, norm in found.items():
        assert norm == pytest.approx(expected[name], rel=0.1)
    limit = 0.5 * min(expected.values())
    half = Watch()
    _fit(folder, tmp_path, callbacks=[half], plugins=[
        MixedPrecision('16-mixed', 'cpu', torch.amp.GradScaler('cpu', init_scale=2.0**8))
    ], task={'steps': 3, 'clip': limit})  # fmt: skip
    assert all(norm == pytest.approx(limit, rel=1e-3) for norm in half.norms[0].values())
    assert all(value.isfinite().all() for value in weights(task).values())


@pytest.mark.parametrize(
    ('task', 'trainer', 'expected'),
    [
        ({}, {'max_epochs': 2}, 10),
        ({}, {'max_epochs': -1, 'max_steps': 2}, 6),
        ({}, {'max_epochs': 1, 'max_steps': 2}, 5),
        ({}, {'max_epochs': 2, 'limit_train_batches': 2}, 4),
        ({'steps': 7}, {'max_epochs': 9}, 7),
        ({'steps': 2, 'accumulate': 1}, {'max_epochs': 1}, 2),
    ],
)
def test_length_of_a_run(
    task: dict[str, Any], trainer: dict[str, Any], expected: int, folder: Path, tmp_path: Path
) -> None:
    found = _fit(folder, tmp_path, task=task, **trainer)
    assert found.micro_step == found.total_steps == expected
    assert found.trainer.global_step == expected // found.recipe.optimization.accumulate


def test_run_without_an_end(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='The run has no end'):
        _fit(folder, tmp_path, max_epochs=-1)


RESUMED: dict[str, dict[str, Any]] = {
    'sinkhorn': {},
    'softmax': {
        'centering': 'softmax', 'drop_path': 0.4, 'train_mask_token': True, 'separate_head': True,
        'prototype_init': 'random', 'weight_decay': 0.1,
    },
}  # fmt: skip


@pytest.mark.parametrize('task', RESUMED.values(), ids=RESUMED)
def test_resumed_run_equals_the_unbroken_one(
    task: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Cut within a window, at its end, within an epoch, at its end, and at the very end."""
    torch.manual_seed(1)
    whole = weights(_fit(folder, tmp_path, task=task, callbacks=[SaveEveryBatch(tmp_path)]))
    for cut in (1, 3, 5, 7, 15):
        torch.manual_seed(100 + cut)  # nothing hangs on the global generator
        resumed = _fit(folder, tmp_path / 'again', tmp_path / f'{cut}.ckpt', task=task)
        assert resumed.micro_step == STEPS, cut
        assert_equal(weights(resumed), whole)
    assert {p.name for p in (tmp_path / 'again').iterdir()} == FILES | {'run.json'}


def test_finished_run_trains_no_more(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {'task': {'steps': 6}, 'max_epochs': 9}
    saver = SaveEveryBatch(tmp_path)
    whole = _fit(folder, tmp_path, callbacks=[saver], **options)
    again = _fit(folder, tmp_path / 'again', tmp_path / '6.ckpt', **options)
    assert again.micro_step == 6
    assert_equal(weights(again), weights(whole))
    assert {p.name for p in (tmp_path / 'again').iterdir()} >= FILES  # killed before the export


def test_workers_change_nothing(folder: Path, tmp_path: Path) -> None:
    """Prototypes start at images' features, which takes nothing from the training order."""
    task: dict[str, Any] = {'prototype_init': 'images', 'steps': 6}
    alone = _fit(folder, tmp_path, task=task)
    saver = SaveEveryBatch(tmp_path)
    helped = _fit(folder, tmp_path, task=task, data={'num_workers': 2}, callbacks=[saver])
    assert helped.micro_step == 6
    assert_equal(weights(helped), weights(alone))
    data = {'num_workers': 2}
    resumed = _fit(folder, tmp_path, tmp_path / '4.ckpt', task=task, data=data)
    assert_equal(weights(resumed), weights(alone))


@torch.no_grad()
@pytest.mark.parametrize('publish', ['teacher', 'student'])
def test_published_files(publish: str, folder: Path, tmp_path: Path) -> None:
    task = _fit(
        folder, tmp_path, task={'publish': publish, 'accumulate': 1}, max_epochs=1,
        logger=CSVLogger(tmp_path, name='logs', version='run'),
    ).eval()  # fmt: skip
    found = tmp_path / 'logs' / 'run'
    assert {path.name for path in found.iterdir()} >= FILES
    inputs = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    network = {'teacher': task.model.teacher, 'student': task.model.student}[publish]
    expected = encode(network, inputs)
    assert torch.equal(task(inputs), expected)
    merged, report = create_backbone('test_vit', found / 'explora.safetensors')
    assert report.dropped == () and set(report.added) <= {'mask_token'}
    torch.testing.assert_close(encode(merged.eval(), inputs), expected, rtol=1e-5, atol=1e-5)
    base, _ = create_backbone('test_vit', None, seed=0)
    assert not torch.allclose(encode(base.eval(), inputs), expected, atol=1e-3)
    load_adapter(base, found / 'adapter.safetensors')
    torch.testing.assert_close(encode(base.eval(), inputs), expected)
    metadata = read_metadata(found / 'explora.safetensors')
    assert (metadata['base'], metadata['network']) == ('test_vit', publish)
    assert json.loads(metadata['config'])['rank'] == 4
    assert json.loads(metadata['size']) == 32
    told = read_input(found / 'explora.safetensors')
    assert (told.bands, told.scale) == (('red', 'green', 'blue'), ((0, 255),) * 3)
    assert read_input(found / 'adapter.safetensors').scale == told.scale


@torch.no_grad()
def test_published_weights_can_lie_part_of_the_way(folder: Path, tmp_path: Path) -> None:
    task = _fit(folder, tmp_path, task={'blend': 0.25, 'accumulate': 1, 'publish': 'student'},
                max_epochs=1)  # fmt: skip
    merged, _ = task.export(tmp_path / 'out')
    found, _ = create_backbone('test_vit', merged)
    base, _ = create_backbone('test_vit', None, seed=0)
    adapted = merge_lora(task.model.student).state_dict()
    for name, value in base.state_dict().items():
        wanted = torch.lerp(value, adapted[name], 0.25)
        torch.testing.assert_close(found.state_dict()[name], wanted, rtol=1e-5, atol=1e-6)


def test_collapsed_networks_are_not_published(folder: Path, tmp_path: Path) -> None:
    class Guard(Callback):
        def on_train_batch_end(self, trainer: Trainer, *arguments: object) -> None:
            task = arguments[0]
            assert isinstance(task, ExPLoRADINOv2)
            task.collapse_reason = 'All features are equal.'
            trainer.should_stop = True

    with pytest.warns(UserWarning, match='No weights were exported: All features are equal'):
        task = _fit(folder, tmp_path, callbacks=[Guard()])
    assert task.micro_step == 1
    assert [path.name for path in tmp_path.iterdir()] == ['run.json']
    record = json.loads((tmp_path / 'run.json').read_text())
    assert record['parts'][-1]['state'] == 'collapsed'


def test_fast_dev_run(folder: Path, tmp_path: Path) -> None:
    task = _fit(folder, tmp_path, fast_dev_run=True)
    assert task.micro_step == 1
    assert list(tmp_path.iterdir()) == []


def test_other_bands(tmp_path: Path) -> None:
    """Bands the model never saw: their embedding trains, and they need their own statistics."""
    with pytest.raises(ConfigError, match='mean has none values for 4 bands'):
        make_task(in_channels=4)
    statistics = {'mean': [0.4] * 4, 'std': [0.2] * 4}
    task = make_task(in_channels=4, steps=3, **statistics)
    assert 'patch_embed.proj.weight' in task.adapter_report.trained
    frozen = make_task(in_channels=4, train_patch_embed=False, **statistics)
    assert 'patch_embed.proj.weight' in frozen.adapter_report.frozen
    before = weights(task)['model.student.patch_embed.proj.weight']
    pixels = torch.rand(6, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    loader: Any = DataLoader([{'image': image} for image in pixels], 2)  # type: ignore[arg-type]
    make_trainer(tmp_path).fit(task, loader)
    assert not torch.equal(weights(task)['model.student.patch_embed.proj.weight'], before)


@pytest.mark.parametrize(
    ('arguments', 'error', 'words'),
    [
        ({'global_size': 40}, ImageError, '40 x 40 pixels do not divide'),
        ({'local_size': 24}, ImageError, '24 x 24 pixels do not divide'),
        ({'eval_size': 20}, ImageError, '20 x 20 pixels do not divide'),
        ({'rank': 65}, ConfigError, 'exceeds the model width 64'),
        ({'unfreeze_blocks': [6]}, ConfigError, 'has 6 blocks'),
        ({'preset': 'large'}, ConfigError, 'no preset'),
        ({'std': [1.0]}, ConfigError, 'std has 1 values for 3 bands'),
    ],
)
def test_impossible_arguments(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_task(**arguments)


def test_same_seed_same_start() -> None:
    assert_equal(weights(make_task(seed=3)), weights(make_task(seed=3)))
    one, other = weights(make_task(seed=3)), weights(make_task(seed=4))
    assert not torch.equal(one['model.student.norm.weight'] * 0, other['model.mask_token'] + 1)
    name = 'model.student.blocks.0.attn.qkv.lora_A'
    assert not torch.equal(one[name], other[name])


def test_command(folder: Path, tmp_path: Path) -> None:
    """The torchgeo command with a configuration file, on fake images."""
    main([
        'fit', '--config', str(CONF / 'explora_folder.yaml'),
        '--data.init_args.root', str(folder), '--trainer.default_root_dir', str(tmp_path),
    ])  # fmt: skip
    (merged,) = tmp_path.rglob('explora.safetensors')
    assert json.loads(read_metadata(merged)['config'])['unfreeze_blocks'] == [0, -1]
    assert (merged.parent / 'adapter.safetensors').is_file()


def lines_of(printed: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith('{')]


def kill_after(step: int, process: Fork) -> None:
    """SIGKILL as soon as it says that it has done a step."""
    said = (json.loads(line)['step'] for line in process.lines() if line.startswith('{'))
    reached = next(each for each in said if each >= step)
    process.kill()
    assert process.status == -signal.SIGKILL, f'it ended before step {reached}'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_run_is_resumed_exactly(folder: Path, tmp_path: Path) -> None:
    """SIGKILL at a random step; a fresh process goes on from the last checkpoint."""
    dinov2_runs.main([str(folder), str(tmp_path / 'whole')])
    step, out = random.randrange(4, STEPS - 1), tmp_path / 'killed'
    with fork(dinov2_runs, folder, out, output=tmp_path / 'first') as process:
        kill_after(step, process)
    assert not (out / 'rank0.pt').exists()
    last = out / 'checkpoints' / 'last.ckpt'
    run(dinov2_runs, folder, out, '--resume', last, output=tmp_path / 'second')
    expected, found = (
        torch.load(tmp_path / name / 'rank0.pt', weights_only=True) for name in ('whole', 'killed')
    )
    assert_equal(found, expected)
    for name in FILES:
        whole, killed = (tmp_path / each / name for each in ('whole', 'killed'))
        assert_equal(load_file(killed), load_file(whole))
        assert read_metadata(killed) == read_metadata(whole), f'killed after step {step}'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks(folder: Path, tmp_path: Path) -> None:
    """Both ranks end alike, and as one process does that averages their gradients."""
    arguments = {'centering': 'softmax', 'prototype_init': 'random', 'steps': 6}
    task = ['--devices', 2, '--task', json.dumps(arguments)]
    shown = lines_of(run_ranks(dinov2_runs, folder, tmp_path, *task, output=tmp_path / 'ranks'))
    assert len(shown) == arguments['steps'] and all(
        torch.tensor(line['loss']).isfinite() for line in shown
    )
    first, second = (torch.load(tmp_path / f'rank{r}.pt', weights_only=True) for r in range(2))
    assert_equal(first, second)
    expected = _two_ranks_in_one(folder, arguments)
    for name, value in expected.items():
        if not name.endswith('qkv.bias'):  # a key's has no influence: Adam follows its rounding
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=2e-4, msg=name)
    start = weights(make_task(**arguments))
    moved = [name for name in expected if not torch.equal(expected[name], start[name])]
    assert len(moved) > 50
    assert {path.name for path in tmp_path.iterdir()} >= FILES


def _two_ranks_in_one(folder: Path, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The run of two ranks, their gradients and centres averaged by hand."""
    task, data = make_task(**arguments), make_data(folder)
    data.setup('fit')
    recipe, steps = task.recipe, arguments['steps']
    accumulate = recipe.optimization.accumulate
    model = copy.copy(task.model).train()
    optimizer = make_optimizer(model, task.adapter_report.unfrozen, recipe.optimization)
    curves = make_schedules(recipe.optimization, steps, 2 * BATCH * accumulate)
    for step, batches in enumerate(_batches_of_two_ranks(data, steps)):
        start = step - step % accumulate
        means = []
        for rank, pixels in enumerate(batches):
            temperature = curves.teacher_temperature(start)
            losses = micro_batch(
                model, task.multicrop, recipe.crops, pixels, step_seed(0, step, rank), temperature
            )
            (losses.total / (2 * accumulate)).backward()
            means.append((losses.cls_mean, losses.patch_mean))
        for name, rows in zip(('cls', 'patch'), zip(*means, strict=True), strict=True):
            model.centers[name].update(torch.cat(rows))
        if (step + 1) % accumulate == 0:
            set_rates(optimizer, curves, recipe.optimization, start)
            clip_gradients(model, recipe.optimization.clip)
            optimizer.step()
            optimizer.zero_grad()
            model.update_teacher(curves.momentum(start))
    return weights(task)


def _batches_of_two_ranks(data: Any, steps: int) -> Iterator[list[Tensor]]:  # noqa: ANN401
    """What the ranks see: they take turns in one sequence of samples."""
    from torchgeo_explora.datamodules._sampler import shuffled

    order = list(shuffled(len(data.train_dataset), 0, 0, 2 * BATCH * steps))
    for step in range(steps):
        part = order[2 * BATCH * step : 2 * BATCH * (step + 1)]
        yield [
            torch.stack([data.train_dataset[index]['image'] for index in part[rank::2]])
            for rank in range(2)
        ]
