"""LoRA fine-tuning: what trains, that it learns, resumes exactly, and that its files say the same."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torchgeo.main import main

import tests.tasks.mae_runs  # noqa: F401  # registers a group-channel model
from tests.data.eurosat.data import write_eurosat
from tests.tasks.dinov2_runs import make_trainer
from tests.tasks.toy import CONF, images
from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.layers import DropPathBlock
from torchgeo_explora.models import (
    Classifier,
    FittedModel,
    create_backbone,
    load_finetuned,
    load_model,
    save_backbone,
)
from torchgeo_explora.tasks import LoRAClassification
from torchgeo_explora.transforms import quarter_turns

SMALL: dict[str, Any] = {
    'model': 'test_vit', 'image_size': 32, 'rank': 2, 'base_lr': 0.5, 'warmup_epochs': 0.5,
    'drop_path': 0.3, 'label_smoothing': 0.0,
}  # fmt: skip


def make_task(**arguments: Any) -> LoRAClassification:  # noqa: ANN401
    return LoRAClassification(**{**SMALL, **arguments})


def make_data(root: Path, **arguments: Any) -> FolderDataModule:  # noqa: ANN401
    return FolderDataModule(root, **{'image_size': 32, 'batch_size': 6, **arguments})


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from."""
    vit, _ = create_backbone('test_vit', seed=4)
    return save_backbone(vit, tmp_path_factory.mktemp('base') / 'base.safetensors')


@pytest.fixture(scope='module')
def fitted(
    root: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoRAClassification, Path]:
    """A task after three epochs, and the folder of its files."""
    folder = tmp_path_factory.mktemp('fitted')
    task = make_task(weights=str(base))
    trainer = make_trainer(folder, max_epochs=3)
    trainer.fit(task, make_data(root))
    return task, folder


def state(task: LoRAClassification) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def test_exact_counts() -> None:
    """Spec section A.5; the model is built without its tensors."""
    with torch.device('meta'):
        for name, size in (('large', 786_432), ('base', 294_912), ('small', 147_456)):
            task = LoRAClassification(f'vit_{name}_patch14_dinov2', num_classes=62, mean=[0] * 3)
            width = task.model.backbone.embed_dim
            head = 62 * (width + 1)
            trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
            assert task.adapter_report.trainable_parameters == size
            assert trained == size + head


def test_defaults_are_the_papers() -> None:
    with torch.device('meta'):
        task = LoRAClassification(num_classes=62)
    blocks = [b for b in task.model.backbone.blocks if isinstance(b, DropPathBlock)]
    assert blocks[-1].rate == 0.2 and blocks[0].rate == 0.0 and len(blocks) == 24
    assert task.adapter_report.config.rank == 8 and task.adapter_report.config.alpha == 1.0
    assert task.criterion.label_smoothing == 0.1
    assert not any(p.requires_grad for p in task.model.fc_norm.parameters())
    head = make_task(num_classes=500).model.head.weight
    assert 1e-5 < head.std().item() < 3e-5


def test_it_learns_and_changes_nothing_else(
    fitted: tuple[LoRAClassification, Path], base: Path, root: Path
) -> None:
    task, folder = fitted
    metrics = make_trainer(folder).test(task, make_data(root), verbose=False)[0]
    assert metrics['test_OverallAccuracy'] > 0.9
    start = load_file(base)
    for name, value in task.model.backbone.state_dict().items():
        if 'lora_' not in name and name != 'pos_embed':  # resampled to the size
            assert torch.equal(value, start[name]), name
    assert all(p.abs().sum() > 0 for n, p in task.model.named_parameters() if 'lora_B' in n)


def test_learning_rate_follows_the_steps(root: Path, tmp_path: Path) -> None:
    rates: list[list[float]] = []

    class Watch(ModelCheckpoint):
        def on_train_batch_start(self, trainer: Trainer, *arguments: object) -> None:
            rates.append([group['lr'] for group in trainer.optimizers[0].param_groups])

    task = make_task(base_lr=0.256, min_lr=1e-4, warmup_epochs=1, layer_decay=0.5)
    trainer = make_trainer(
        tmp_path, max_epochs=3, callbacks=[Watch(tmp_path)], accumulate_grad_batches=2,
        enable_checkpointing=True,
    )  # fmt: skip
    trainer.fit(task, make_data(root))
    head = [max(row) for row in rates][::2]
    peak = 0.256 * 6 * 2 / 256
    assert len(head) == 9 and trainer.global_step == 9
    assert head[:4] == pytest.approx([0, peak / 3, 2 * peak / 3, peak])
    cosine = 1e-4 + 0.5 * (peak - 1e-4) * (1 + torch.tensor(torch.pi * 3 / 6).cos().item())
    assert head[6] == pytest.approx(cosine)
    groups = {g['layer']: g['lr'] for g in trainer.optimizers[0].param_groups}
    depth = len(task.model.backbone.blocks)
    assert groups[depth + 1] == pytest.approx(2**depth * groups[1])


@pytest.mark.parametrize('arguments', [
    {'method': 'full'}, {'method': 'frozen'}, {'pooling': 'token', 'train_norms': True},
    {'grad_checkpointing': True, 'turns': True, 'class_weights': [1.0, 2.0, 3.0]},
    {'crop_scale': None, 'loss': 'focal', 'unfreeze_blocks': [-1]},
])  # fmt: skip
def test_every_trained_parameter_has_a_gradient(
    arguments: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    """As a distributed run asks for."""
    task = make_task(drop_path=0.9, **arguments)
    before = state(task)
    make_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(task, make_data(root))
    trained = {n: p for n, p in task.model.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None for p in trained.values())
    head_only = arguments.get('method') == 'frozen'
    assert all(n.startswith('head.') for n in trained) is head_only
    frozen = {n for n, p in task.model.named_parameters() if not p.requires_grad}
    assert all(torch.equal(before[n], task.model.state_dict()[n]) for n in frozen)
    full = arguments.get('method') == 'full'
    assert (tmp_path / 'model.safetensors').is_file()
    assert (tmp_path / 'peft').is_dir() is not (full or head_only)


@pytest.mark.parametrize('stop', [2, 6, 9])
def test_a_resumed_run_equals_an_unbroken_one(stop: int, root: Path, tmp_path: Path) -> None:
    """Within an epoch and at its end; dropout, crops, turns and order hang on the step alone."""
    arguments: dict[str, Any] = {'turns': True, 'seed': 3, 'grad_checkpointing': stop == 6}

    def run(folder: Path, resume: str | None = None, noise: int = 0) -> dict[str, Tensor]:
        torch.manual_seed(noise)
        task = make_task(**arguments)
        saver = ModelCheckpoint(
            tmp_path / 'saved', filename='{step}', every_n_train_steps=1, save_top_k=-1
        )
        trainer = make_trainer(folder, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
        trainer.fit(task, make_data(root), ckpt_path=resume)
        return state(task)

    whole = run(tmp_path / 'a')
    resumed = run(tmp_path / 'b', str(tmp_path / 'saved' / f'step={stop}.ckpt'), noise=9)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_files_say_what_the_task_says(fitted: tuple[LoRAClassification, Path], base: Path) -> None:
    task, folder = fitted
    pictures = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = task.eval()(pictures)
        merged, spec = load_model(folder / 'model.safetensors')
        torch.testing.assert_close(merged(pictures), expected, atol=1e-5, rtol=0)
        light, second = load_finetuned(folder / 'peft', base)
        torch.testing.assert_close(light(pictures), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1
    assert spec.classes == second.classes == ('blue', 'green', 'red')
    assert spec.image_size == 32 and spec.options == {'pooling': 'avg'}
    assert spec.mean == tuple(task.normalize.mean.tolist())
    assert sum(path.stat().st_size for path in (folder / 'peft').iterdir()) < 200_000


def test_plain_peft_and_timm_read_it(fitted: tuple[LoRAClassification, Path], base: Path) -> None:
    """The snippet of docs/finetune.md, with a small model and its weights from a file."""
    task, folder = fitted
    peft = folder / 'peft'
    with safe_open(peft / 'head.safetensors', 'pt') as file:
        spec = json.loads(file.metadata()['spec'])
    size, pooling = spec['image_size'], spec['options']['pooling']
    model = timm.create_model(
        spec['model'], img_size=size, num_classes=len(spec['classes']), global_pool=pooling,
        fc_norm=pooling == 'avg',
    )  # fmt: skip
    stock = {k: v for k, v in load_file(base).items() if k in model.state_dict()}
    stock.pop('pos_embed')
    stock |= load_file(peft / 'head.safetensors')
    model.load_state_dict(stock)
    model = PeftModel.from_pretrained(model, peft).eval()
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(spec[name])[:, None, None] for name in ('mean', 'std'))
    with torch.no_grad():
        expected = task.eval()(pictures)
        torch.testing.assert_close(model((pictures - mean) / std), expected, atol=1e-5, rtol=0)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged((pictures - mean) / std), expected, atol=1e-5, rtol=0)


def test_finetuned_files_are_checked(
    fitted: tuple[LoRAClassification, Path], base: Path, tmp_path: Path
) -> None:
    _, folder = fitted
    other, _ = create_backbone('test_vit', seed=5)
    wrong = save_backbone(other, tmp_path / 'other.safetensors')
    with pytest.raises(WeightsError, match='fingerprints differ'):
        load_finetuned(folder / 'peft', wrong)
    with pytest.raises(ConfigError, match=r'head in .* is of 3 classes'):
        load_finetuned(folder / 'peft', base, classes=['blue', 'green'])
    with pytest.raises(WeightsError, match='no weights file'):
        load_finetuned(folder, base)


def test_norms_travel_with_the_adapter(root: Path, base: Path, tmp_path: Path) -> None:
    """What PEFT would drop silently is kept beside it."""
    task = make_task(weights=str(base), train_norms=True, unfreeze_blocks=[0], pooling='token')
    make_trainer(tmp_path, max_epochs=1).fit(task, make_data(root))
    pictures = torch.rand(3, 3, 32, 32)
    light, _ = load_finetuned(tmp_path / 'peft', base)
    with torch.no_grad():
        expected = task.eval()(pictures)
        torch.testing.assert_close(light(pictures), expected, atol=1e-5, rtol=0)


def test_checkpoint_serves_test_and_further_training(root: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_last=True)
    task = make_task()
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(task, make_data(root))
    last = str(tmp_path / 'last.ckpt')
    fresh = make_task()
    trainer = make_trainer(tmp_path)
    trainer.test(fresh, make_data(root), ckpt_path=last, verbose=False)
    assert all(torch.equal(value, state(fresh)[name]) for name, value in state(task).items())
    loaded = LoRAClassification.load_from_checkpoint(last)
    assert loaded.hparams['num_classes'] == 3
    merged, _ = load_model(tmp_path / 'model.safetensors')
    start, report = create_backbone('test_vit', last)
    assert isinstance(merged, FittedModel) and isinstance(merged.network, Classifier)
    expected = merged.network.backbone.state_dict()
    for name, value in start.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
    assert json.loads(report.metadata['mean']) == task.normalize.mean.tolist()


def test_other_classes_are_refused(root: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_last=True)
    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(make_task(), make_data(root))
    last = str(tmp_path / 'last.ckpt')
    more = images(tmp_path / 'more', count=2)
    for split in ('train', 'val', 'test'):
        (more / split / 'red').rename(more / split / 'violet')
    with pytest.raises(ConfigError, match='not trained on: violet'):
        make_trainer(tmp_path).test(make_task(), make_data(more), ckpt_path=last)
    with pytest.raises(ConfigError, match='numbers its classes'):
        make_trainer(tmp_path).test(
            make_task(labels=['green', 'blue', 'red']), make_data(root), verbose=False
        )
    with pytest.raises(ConfigError, match='num_classes is 5'):
        make_trainer(tmp_path).test(make_task(num_classes=5), make_data(root))
    unnamed = make_task(num_classes=5)
    with pytest.raises(ConfigError, match='head of 3 classes'):
        unnamed.on_load_checkpoint(torch.load(last, weights_only=False))


def test_labels_out_of_range_are_refused() -> None:
    task = make_task(num_classes=2)
    batch = {'image': torch.rand(2, 3, 32, 32), 'label': torch.tensor([0, 2])}
    with pytest.raises(ConfigError, match=r'labels hold 2.* 0 to 1'):
        task.validation_step(batch, 0)


def test_an_empty_class_is_reported(root: Path, tmp_path: Path) -> None:
    task = make_task(labels=['blue', 'green', 'red', 'violet'])
    with pytest.warns(UserWarning, match='No training image has the class violet'):
        make_trainer(tmp_path, max_epochs=1).fit(task, make_data(root))
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'No training image')
        make_trainer(tmp_path, max_epochs=1).fit(make_task(), make_data(root))


@pytest.mark.parametrize(('arguments', 'words'), [
    ({'method': 'dora'}, 'method'), ({'rank': 0}, 'rank'), ({'drop_path': 1.0}, 'drop_path'),
    ({'resize': 16}, 'resize'), ({'label_smoothing': 1.0}, 'label_smoothing'),
    ({'image_size': 30}, 'multiple'), ({'mean': [0.5]}, 'mean has 1 values for 3 bands'),
    ({'class_weights': [1.0], 'num_classes': 3}, 'class_weights'), ({'pooling': 'max'}, 'pooling'),
    ({'bands': ['R', 'G', 'B'], 'in_channels': 4}, 'in_channels'),
])  # fmt: skip
def test_impossible_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_task(**arguments)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks(root: Path, tmp_path: Path) -> None:
    """No rank waits for the gradients of a branch that the other dropped whole."""
    command = [sys.executable, '-m', 'tests.tasks.classification_runs', str(root), str(tmp_path)]
    run = subprocess.run(
        [*command, '--devices', '2'], capture_output=True, text=True, timeout=800, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    first, second = (torch.load(tmp_path / f'rank{r}.pt', weights_only=True) for r in range(2))
    start = state(make_task(drop_path=0.95, train_norms=True, num_classes=3, base_lr=0.5))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    moved = [
        name for name, value in start.items() if not torch.equal(value, first[f'model.{name}'])
    ]
    assert len(moved) > 20
    assert (tmp_path / 'model.safetensors').is_file()


def test_quarter_turns() -> None:
    pictures = torch.rand(64, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    turned = quarter_turns(pictures, 1)
    assert torch.equal(turned, quarter_turns(pictures, 1))
    choices = torch.stack([torch.rot90(pictures, k, (-2, -1)) for k in range(4)])
    same = (choices == turned).flatten(2).all(dim=2)  # (turns, images)
    assert (same.sum(dim=0) == 1).all() and (same.sum(dim=1) > 6).all()


def test_bands_that_are_new_train(tmp_path: Path) -> None:
    vit, _ = create_backbone('test_vit', seed=4)
    path = save_backbone(vit, tmp_path / 'base.safetensors')
    options = {'num_classes': 2, 'mean': [0.5] * 5, 'std': [0.2] * 5}
    task = make_task(weights=str(path), in_channels=5, **options)
    assert task.model.backbone.patch_embed.proj.weight.requires_grad
    task = make_task(weights=str(path), in_channels=5, train_patch_embed=False, **options)
    assert not task.model.backbone.patch_embed.proj.weight.requires_grad


def test_command(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit, validate, test and predict through the real command, resumed once."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((CONF.parents[1] / 'conf' / 'finetune_eurosat.yaml').read_text())
    config['data']['init_args'] |= {'root': str(root)}
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(config, sort_keys=False))
    given = ['--config', 'mine.yaml', '--config', str(CONF / 'finetune_eurosat.yaml')]
    main(['fit', *given])
    out = tmp_path / 'output' / 'finetune_eurosat'
    assert (out / 'model.safetensors').is_file() and (out / 'peft' / 'head.safetensors').is_file()
    last = str(out / 'checkpoints' / 'last.ckpt')
    main(['fit', *given, '--trainer.max_epochs', '3', '--ckpt_path', last])
    for command in ('validate', 'test', 'predict'):
        main([command, *given, '--ckpt_path', last])
    assert list(out.rglob('*.csv'))


def test_command_with_all_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirteen bands in four groups, on both splits."""
    monkeypatch.chdir(tmp_path)
    root = write_eurosat(tmp_path / 'data')
    config = yaml.safe_load((CONF.parents[1] / 'conf' / 'finetune_eurosat_ms.yaml').read_text())
    config['data']['init_args'] |= {'root': str(root)}
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(config, sort_keys=False))
    given = ['--config', 'mine.yaml', '--config', str(CONF / 'finetune_eurosat_ms.yaml')]
    given += ['--data.init_args.image_size', '64']
    main(['fit', *given])
    out = tmp_path / 'output' / 'finetune_eurosat_ms'
    model, spec = load_model(out / 'model.safetensors')
    assert len(spec.bands) == 13 and spec.bands[8] == 'B8A'
    # chips of 64 pixels, seen at 32: a map takes windows of 64 pixels of 10 metres
    assert (spec.window, spec.resolution, spec.seen_resolution) == (64, 10.0, 20.0)
    assert model(torch.rand(2, 13, 32, 32)).shape == (2, 2)
    last = str(out / 'checkpoints' / 'last.ckpt')
    main(['fit', *given, '--trainer.max_epochs', '2', '--ckpt_path', last])
    for command in ('validate', 'test', 'predict'):
        main([command, *given, '--ckpt_path', last, '--data.init_args.split', 'random'])


DRIVEN_CONFIGS = {'finetune_eurosat', 'finetune_eurosat_ms'}
