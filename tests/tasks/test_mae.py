"""The M-ExPLoRA task: what trains, bookkeeping, exact resumption, what is written, two ranks."""

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import fork, run, run_ranks
from tests.tasks import mae_runs
from tests.tasks.dinov2_runs import BATCH, SaveEveryBatch, make_trainer, weights
from tests.tasks.mae_runs import (
    BATCHES,
    GROUPS,
    KINDS,
    make_data,
    make_root,
    make_task,
    write_natural_mae,
)
from tests.tasks.test_dinov2 import assert_equal, kill_after, lines_of
from torchgeo_explora.adapters import load_adapter, merge_lora
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.layers.tokens import encode
from torchgeo_explora.models import (
    SATMAE_BANDS,
    GroupChannelViT,
    build_decoder,
    create_backbone,
    load_decoder,
    read_metadata,
)
from torchgeo_explora.objectives import mae_learning_rate
from torchgeo_explora.objectives.mae_presets import ViewConfig
from torchgeo_explora.objectives.mae_steps import (
    clip_mae_gradients,
    mae_micro_batch,
    make_mae_optimizer,
    random_views,
    set_mae_rates,
)
from torchgeo_explora.objectives.steps import step_seed
from torchgeo_explora.tasks import CollapseGuard, ExPLoRAMAE, FeatureHealth
from torchgeo_explora.transforms import SpectralAugmentation

EPOCHS = 5
STEPS = EPOCHS * BATCHES
FILES = {'explora.safetensors', 'adapter.safetensors', 'decoder.safetensors'}


@pytest.fixture(scope='module')
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images for every kind of model."""
    return {kind: make_root(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def _fit(
    kind: str, root: Path, out: Path, resume: Path | None = None, *,
    task: dict[str, Any] | None = None, **trainer: Any,  # noqa: ANN401
) -> ExPLoRAMAE:  # fmt: skip
    made = make_task(kind, **({} if task is None else task))
    ckpt = None if resume is None else str(resume)
    options = {'max_epochs': EPOCHS, 'limit_val_batches': 0, **trainer}
    make_trainer(out, **options).fit(made, make_data(kind, root), ckpt_path=ckpt)
    return made


class Watch(Callback):
    """Keep the networks and the logged values of every micro-batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, *arguments: object) -> None:
        task = arguments[0]
        assert isinstance(task, ExPLoRAMAE)
        self.states.append(weights(task))

    def on_train_batch_end(self, trainer: Trainer, *arguments: object) -> None:
        task = arguments[0]
        assert isinstance(task, ExPLoRAMAE)
        self.states.append(weights(task))
        self.logged.append({k: v.item() for k, v in trainer.callback_metrics.items()})


@pytest.fixture(scope='module', params=KINDS)
def watched(
    request: pytest.FixtureRequest, roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExPLoRAMAE, Watch]:
    """A whole run of every kind, step by step."""
    watch, kind = Watch(), str(request.param)
    return _fit(kind, roots[kind], tmp_path_factory.mktemp('watched'), callbacks=[watch]), watch


def test_schedule_stands_still_within_a_window(watched: tuple[ExPLoRAMAE, Watch]) -> None:
    task, watch = watched
    assert task.total_steps == task.micro_step == len(watch.logged) == STEPS
    assert task.trainer.global_step == STEPS // 3  # optimizer steps
    curve = mae_learning_rate(task.recipe.optimization, STEPS, 3 * BATCH)
    found = [logged['lr'] for logged in watch.logged]
    assert found == pytest.approx([curve(step - step % 3) for step in range(STEPS)])
    groups = task.trainer.optimizers[0].param_groups
    assert {group['lr'] for group in groups} == {curve(STEPS - 3)}
    assert groups[0]['betas'] == (0.9, 0.95)


def test_networks_move_once_a_window_and_only_where_they_train(
    watched: tuple[ExPLoRAMAE, Watch],
) -> None:
    task, watch = watched
    for step, (before, after) in enumerate(zip(watch.states, watch.states[1:], strict=False)):
        if (step + 1) % 3 != 0:
            assert_equal(after, before)
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert set(task.trainer.optimizers[0].state) == {
        p for p in task.parameters() if p.requires_grad
    }
    first, last = watch.states[0], watch.states[-1]
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved <= trained
    still = {name for name in trained - moved if not name.endswith('qkv.bias')}
    assert still == set()  # a key's bias has no influence


def test_loss_falls(watched: tuple[ExPLoRAMAE, Watch]) -> None:
    _, watch = watched
    losses = [logged['train_loss'] for logged in watch.logged]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    'plain': ('plain', {'drop_path': 0.4, 'weight_decay': 0.1, 'clip': 0.1}),
    'groups': ('groups', {'masking': 'shared', 'train_channel_embed': True}),
    'dates': ('dates', {'norm_pix_loss': False, 'flip_p': 0.5}),
    'augmented': ('groups', {'augmentation': SpectralAugmentation()}),
}


@pytest.mark.parametrize(('kind', 'task'), RESUMED.values(), ids=RESUMED)
def test_resumed_run_equals_the_unbroken_one(
    kind: str, task: dict[str, Any], roots: dict[str, Path], tmp_path: Path
) -> None:
    """Cut within a window, at its end, within an epoch, at its end, and at the very end."""
    torch.manual_seed(1)
    options: dict[str, Any] = {'task': {'accumulate': 4, **task}, 'max_epochs': 4}
    saver = SaveEveryBatch(tmp_path)
    whole = weights(_fit(kind, roots[kind], tmp_path, callbacks=[saver], **options))
    for cut in (1, 4, 6, 7, 12):
        torch.manual_seed(100 + cut)  # nothing hangs on the global generator
        out = tmp_path / 'again'
        resumed = _fit(kind, roots[kind], out, tmp_path / f'{cut}.ckpt', **options)
        assert resumed.micro_step == 12, cut
        assert_equal(weights(resumed), whole)
    assert {p.name for p in (tmp_path / 'again').iterdir()} == FILES | {'run.json'}


def test_resumed_run_says_that_it_keeps_its_length(roots: dict[str, Path], tmp_path: Path) -> None:
    saver = SaveEveryBatch(tmp_path)
    _fit('plain', roots['plain'], tmp_path, task={'steps': 3}, callbacks=[saver])
    with pytest.warns(UserWarning, match='steps is 5.*begun for 3: it ends there') as caught:
        resumed = _fit('plain', roots['plain'], tmp_path, tmp_path / '1.ckpt', task={'steps': 5})
    assert resumed.micro_step == 3
    with warnings.catch_warnings(record=True) as quiet:
        _fit('plain', roots['plain'], tmp_path, tmp_path / '1.ckpt', task={'steps': 3})
    assert len(caught) > 0
    assert not [item for item in quiet if 'steps is' in str(item.message)]


def test_augmentation_changes_training_alone(roots: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {'steps': 3, 'augmentation': SpectralAugmentation()}
    augmented = _fit('groups', roots['groups'], tmp_path, task=options)
    plain = _fit('groups', roots['groups'], tmp_path, task={'steps': 3})
    name = 'model.encoder.patch_embed.0.proj.weight'
    assert not torch.equal(weights(augmented)[name], weights(plain)[name])
    batch = {'image': _noise(2, 10, 32, 32)}
    one, other = make_task('groups', **options), make_task('groups')
    assert torch.equal(one.evaluate(batch, 0)['loss'], other.evaluate(batch, 0)['loss'])


@pytest.mark.parametrize('augmentation', [None, SpectralAugmentation(blur_p=1.0)])
def test_views_are_not_rounded_in_half_precision(augmentation: SpectralAugmentation | None) -> None:
    task = make_task('plain', augmentation=augmentation)
    images = _noise(4, 3, 40, 40)
    expected = task.training_views(images, 1)
    with torch.autocast('cpu', torch.bfloat16):
        found = task.training_views(images, 1)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_every_trained_weight_has_a_gradient_where_a_group_is_hidden() -> None:
    """Ranks wait for all gradients, also for those of a group of which nothing was visible."""
    task, hidden = make_task('groups', image_size=16), 0
    for seed in range(30):
        task.zero_grad()
        output = task.masked(_noise(1, 10, 16, 16), seed)
        output.loss.backward()
        assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
        hidden += int(output.masked.unflatten(1, (3, -1)).all(dim=2).any())
    assert hidden > 3


def test_float16_is_clipped_at_its_true_scale(roots: dict[str, Path], tmp_path: Path) -> None:
    """The loss scale of float16 is taken out before gradients are clipped, and only once."""
    norms: list[float] = []

    class Norms(Callback):
        def on_train_start(self, trainer: Trainer, *arguments: object) -> None:
            task = arguments[0]
            assert isinstance(task, ExPLoRAMAE)
            trainer.optimizers[0].register_step_post_hook(lambda *_: norms.append(_norm(task)))

    for clip in (0.0, 1e9, 1e-3):
        scaler = torch.amp.GradScaler('cpu', init_scale=2.0**8)
        plugins = [] if clip == 0 else [MixedPrecision('16-mixed', 'cpu', scaler)]
        options: dict[str, Any] = {'callbacks': [Norms()], 'plugins': plugins}
        _fit('plain', roots['plain'], tmp_path, task={'clip': clip, 'steps': 3}, **options)
    plain, half, clipped = norms
    assert half == pytest.approx(plain, rel=0.1)
    assert clipped == pytest.approx(1e-3, rel=1e-3) and plain > 2e-3


def _norm(task: ExPLoRAMAE) -> float:
    gradients = [p.grad for p in task.parameters() if p.grad is not None]
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


@pytest.mark.parametrize('kind', ['plain', 'groups'])
def test_features_are_watched(kind: str, roots: dict[str, Path], tmp_path: Path) -> None:
    """Callbacks of the other task serve this one, and change nothing."""
    health = FeatureHealth(2, images=8, networks=['encoder'])
    task = _fit(kind, roots[kind], tmp_path, callbacks=[health, CollapseGuard()])
    assert_equal(weights(task), weights(_fit(kind, roots[kind], tmp_path)))
    last = health.records[-1][1]['encoder']
    assert last['drift'] > 1e-6 and 1 <= last['rank'] <= 8


def test_validation_changes_nothing(roots: dict[str, Path], tmp_path: Path) -> None:
    without = _fit('groups', roots['groups'], tmp_path)
    validated = _fit('groups', roots['groups'], tmp_path, limit_val_batches=2)
    assert_equal(weights(validated), weights(without))
    assert {'val_loss', 'val_pixel_error'} <= set(validated.trainer.callback_metrics)


def test_natural_mae_starts_a_group_channel_model(tmp_path: Path) -> None:
    """What fits is loaded; patch embeddings and predictions are new and train; nothing else new."""
    path = write_natural_mae(tmp_path / 'mae.pth')
    task = make_task('groups', weights=str(path), preset='sentinel', image_size=32, rank=4,
                     train_decoder_all=None, train_decoder_pred=None, decoder_rank=4)  # fmt: skip
    source = torch.load(path, weights_only=True)['model']
    encoder, decoder = task.encoder.state_dict(), task.model.decoder.state_dict()
    for name in ('cls_token', 'blocks.1.mlp.fc1.weight', 'norm.bias', 'blocks.0.attn.qkv.weight'):
        assert torch.equal(encoder[name], source[name])
    for name in ('mask_token', 'decoder_embed.weight', 'decoder_blocks.1.mlp.fc2.weight'):
        assert torch.equal(decoder[name], source[name])
    parts = task.parts
    new = {f'patch_embed.{g}.proj.{part}' for g in range(3) for part in ('weight', 'bias')}
    assert new <= set(parts.encoder_report.trained) & set(parts.encoder_source.added)
    heads = {f'decoder_pred.{g}.{part}' for g in range(3) for part in ('weight', 'bias')}
    assert heads <= set(parts.decoder_report.trained) & set(parts.decoder_source.added)
    assert {'decoder_embed.weight', 'mask_token'} <= set(parts.decoder_report.frozen)
    assert len(parts.decoder_report.wrapped) == 2
    text = '\n'.join(task.summaries())
    assert 'patch_embed.0.proj.weight' in text and 'decoder_pred.0.weight' in text


@pytest.mark.parametrize(('bands', 'new'), [(3, False), (5, True)])
def test_patches_train_where_the_file_has_other_bands(
    bands: int, new: bool, tmp_path: Path
) -> None:
    path = str(write_natural_mae(tmp_path / 'mae.pth'))
    options: dict[str, Any] = {
        'weights': path, 'in_channels': bands, 'mean': [0.0] * bands, 'std': [1.0] * bands,
        'image_size': 64, 'train_decoder_all': None, 'train_decoder_pred': None,
    }  # fmt: skip
    parts = make_task('plain', **options).parts
    assert ('patch_embed.proj.weight' in parts.encoder_report.trained) == new
    assert ('decoder_pred.weight' in parts.decoder_report.trained) == new
    fixed = make_task('plain', **{**options, 'train_patch_embed': False}).parts
    assert 'patch_embed.proj.weight' in fixed.encoder_report.frozen


def test_a_decoder_that_the_file_does_not_have_trains_whole(tmp_path: Path) -> None:
    encoder, _ = create_backbone('tiny_plain_vit', None, seed=0)
    torch.save(encoder.state_dict(), tmp_path / 'encoder.pth')
    path = str(tmp_path / 'encoder.pth')
    options: dict[str, Any] = {'weights': path, 'image_size': 64, 'train_decoder_all': None}
    report = make_task('plain', **options).parts.decoder_report
    assert report.frozen == ('decoder_pos_embed',) and report.wrapped == ()
    mae = str(write_natural_mae(tmp_path / 'mae.pth'))
    task = make_task('plain', **options, decoder_weights=mae, train_decoder_pred=None)
    assert 'decoder_pred.weight' in task.parts.decoder_report.frozen
    embed = torch.load(mae, weights_only=True)['model']['decoder_embed.weight']
    assert torch.equal(task.model.decoder.state_dict()['decoder_embed.weight'], embed)


def test_new_plain_models_have_fixed_positions() -> None:
    one, other = (make_task('plain', seed=seed).encoder for seed in (0, 1))
    assert one.pos_embed is not None and other.pos_embed is not None
    assert torch.equal(one.pos_embed, other.pos_embed)
    assert not one.pos_embed.requires_grad
    assert torch.equal(one.pos_embed[:, 0], torch.zeros(1, one.embed_dim))


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_published_files(kind: str, roots: dict[str, Path], tmp_path: Path) -> None:
    task = _fit(kind, roots[kind], tmp_path, max_epochs=2, task={'accumulate': 1}).eval()
    assert {path.name for path in tmp_path.iterdir()} == FILES | {'run.json'}
    batch = next(iter(_loader(kind, roots[kind], task)))
    images, dates = task.prepare(batch['image']), batch.get('timestamps')
    expected = encode(task.encoder, images, timestamps=dates)
    assert torch.equal(task(images, dates), expected)
    name = KINDS[kind]['model']
    merged, report = create_backbone(name, tmp_path / 'explora.safetensors')
    assert report.dropped == () and set(report.added) <= {'mask_token'}
    found = encode(merged, images, timestamps=dates)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    base = make_task(kind).encoder  # adapted already, and back to the start
    plain = merge_lora(base).eval()
    assert not torch.allclose(encode(plain, images, timestamps=dates), expected, atol=1e-3)
    plain.requires_grad_(False)
    load_adapter(plain, tmp_path / 'adapter.safetensors')
    torch.testing.assert_close(encode(plain, images, timestamps=dates), expected)
    decoder = build_decoder(merged, 32, 2, 2)
    loaded = load_decoder(decoder, tmp_path / 'decoder.safetensors')
    assert (loaded.added, loaded.dropped, loaded.changed) == ((), (), {})
    assert_equal(decoder.state_dict(), merge_lora(task.model.decoder).state_dict())
    metadata = read_metadata(tmp_path / 'explora.safetensors')
    assert (metadata['base'], metadata['method']) == (name, 'M-ExPLoRA')
    assert json.loads(metadata['size']) == 32
    assert json.loads(metadata['std']) == pytest.approx(task.std)
    if kind == 'groups':
        assert json.loads(metadata['bands']) == list(SATMAE_BANDS)
        assert json.loads(metadata['groups']) == GROUPS
        assert isinstance(merged, GroupChannelViT)
        assert merged.channel_groups == ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))


def _loader(kind: str, root: Path, task: ExPLoRAMAE) -> Any:  # noqa: ANN401
    data = make_data(kind, root)
    data.setup('predict')
    return data.predict_dataloader()


@pytest.mark.parametrize('kind', KINDS)
def test_published_files_are_a_start(kind: str, roots: dict[str, Path], tmp_path: Path) -> None:
    task = _fit(kind, roots[kind], tmp_path, max_epochs=1)
    again = make_task(
        kind,
        weights=str(tmp_path / 'explora.safetensors'),
        decoder_weights=str(tmp_path / 'decoder.safetensors'),
        seed=5,
        train_decoder_pred=None,
        train_decoder_all=None,
    )
    assert again.parts.decoder_report.wrapped != ()
    assert not any('pred' in name for name in again.parts.decoder_report.trained)
    merged = merge_lora(task.encoder).state_dict()
    assert_equal(merge_lora(again.encoder).state_dict(), merged)


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('pool', ['mean', 'token'])
def test_predictions(kind: str, pool: str, roots: dict[str, Path], tmp_path: Path) -> None:
    task = make_task(kind, pool=pool)
    trainer = make_trainer(tmp_path)
    batches = trainer.predict(task, make_data(kind, roots[kind]))
    assert batches is not None
    rows = torch.cat([batch['embedding'] for batch in batches])  # type: ignore[call-overload]
    saved = load_file(tmp_path / 'embeddings.safetensors')
    assert torch.equal(saved['embedding'], rows)
    assert len(saved['label']) == len(rows)
    first = next(iter(_loader(kind, roots[kind], task)))
    tokens = encode(task.eval().encoder, task.prepare(first['image']),
                    timestamps=first.get('timestamps'))  # fmt: skip
    expected = tokens[:, 0] if pool == 'token' else tokens[:, 1:].mean(dim=1)
    torch.testing.assert_close(rows[: len(expected)], expected)
    assert torch.equal(saved['label'][: len(expected)], first['label'])


@pytest.mark.parametrize('kind', KINDS)
def test_test_is_repeatable(kind: str, roots: dict[str, Path], tmp_path: Path) -> None:
    task, found = make_task(kind), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = make_trainer(tmp_path)
        (losses,) = trainer.test(task, make_data(kind, roots[kind]), verbose=False)
        found.append(losses)
    assert found[0] == found[1]
    assert found[0]['test_loss'] > 0.1 and found[0]['test_pixel_error'] > 0


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_hidden_pixels_are_those_that_are_predicted(kind: str, roots: dict[str, Path]) -> None:
    task = make_task(kind).eval()
    batch = next(iter(_loader(kind, roots[kind], task)))
    images, dates = task.prepare(batch['image']), batch.get('timestamps')
    output = task.masked(images, 3, dates)
    hidden = task.model.hidden_pixels(images, output)
    made = task.model.reconstruct(images, output)
    assert torch.equal(made[~hidden], images[~hidden])
    assert (made[hidden] != images[hidden]).double().mean() > 0.99
    share = output.masked.double().mean()
    groups = {'groups': [4 / 10, 4 / 10, 2 / 10]}.get(kind, [1.0])
    parts = output.masked.double().unflatten(1, (len(groups), -1)).mean(dim=(0, 2)).tolist()
    weighted = sum(part * size for part, size in zip(parts, groups, strict=True))
    assert hidden.double().mean().item() == pytest.approx(weighted, abs=1e-6)
    assert share.item() == pytest.approx(0.75)
    other = task.masked(images, 4, dates)
    assert not torch.equal(other.masked, output.masked)


def _noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_views_are_one_draw_for_all_bands_and_dates() -> None:
    """Every band and date is cut like every other, and every image in a way of its own."""
    config = ViewConfig(image_size=16)
    one = _noise(6, 1, 24, 20)
    bands = one.repeat(1, 4, 1, 1)
    dates = one[:, None].repeat(1, 3, 2, 1, 1)
    expected = random_views(one, config, 5)
    assert torch.equal(random_views(bands, config, 5), expected.repeat(1, 4, 1, 1))
    assert torch.equal(random_views(dates, config, 5), expected[:, None].repeat(1, 3, 2, 1, 1))
    same = random_views(one[:1].repeat(6, 1, 1, 1), config, 5)
    assert len({view.sum().item() for view in same}) == 6
    assert not torch.equal(random_views(one, config, 6), expected)
    assert expected.min() >= 0 and expected.max() <= 1


@pytest.mark.parametrize('flip', [0.0, 1.0])
def test_views_without_cropping(flip: float) -> None:
    images = _noise(3, 2, 16, 16)
    found = random_views(images, ViewConfig(16, random_crop=False, flip_p=flip), 0)
    assert torch.equal(found, images.flip(-1) if flip else images)
    larger = _noise(2, 3, 40, 36)
    assert random_views(larger, ViewConfig(16, random_crop=False), 0).shape == (2, 3, 16, 16)


def test_fast_dev_run(roots: dict[str, Path], tmp_path: Path) -> None:
    task = _fit('plain', roots['plain'], tmp_path, fast_dev_run=True)
    assert task.micro_step == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('kind', 'arguments', 'error', 'words'),
    [
        ('plain', {'mask_ratio': 0.0}, ConfigError, 'above 0 and below 1'),
        ('plain', {'mask_ratio': 1.0}, ConfigError, 'above 0 and below 1'),
        ('plain', {'image_size': 40}, ConfigError, '40 x 40 does not divide'),
        ('plain', {'preset': 'large'}, ConfigError, 'no preset'),
        ('plain', {'pool': 'max'}, ConfigError, 'use mean or token'),
        ('plain', {'std': [1.0]}, ConfigError, 'std has 1 values for 3 bands'),
        ('plain', {'in_channels': 4}, ConfigError, 'mean has none values for 4 bands'),
        ('plain', {'decoder_rank': 40}, ConfigError, 'rank from 0 to 32'),
        ('plain', {'groups': {'a': ['B2']}}, ConfigError, 'order of the bands .* is not known'),
        ('groups', {'in_channels': 9}, ConfigError, 'bands names 10'),
        ('groups', {'groups': {'a': ['B2', 'B9']}}, ConfigError, 'names band B9, which the images'),
        ('groups', {'groups': {'a': ['B2'], 'b': []}}, ConfigError, 'Group b of bands is empty'),
        ('groups', {'groups': None, 'bands': list(reversed(SATMAE_BANDS))}, ConfigError,
         'not in the order of the groups'),
        ('groups', {'unfreeze_blocks': [3]}, ConfigError, 'has 3 blocks'),
    ],
)  # fmt: skip
def test_impossible_arguments(
    kind: str, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_task(kind, **arguments)


def test_a_band_in_two_groups_is_said() -> None:
    groups = {'a': ['B2', 'B3', 'B4'], 'b': ['B4', 'B8']}
    with pytest.warns(UserWarning, match='Band B4 is in the groups a and b'):
        task = make_task('groups', groups=groups)
    assert isinstance(task.encoder, GroupChannelViT)
    assert task.encoder.channel_groups == ((0, 1, 2), (2, 6))
    loss = task.evaluate({'image': _noise(2, 10, 32, 32)}, 0)['loss']
    assert loss.isfinite()


def test_other_bands_of_the_data_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    bands = [*SATMAE_BANDS[1:], SATMAE_BANDS[0]]
    data = make_data('groups', roots['groups'], bands=bands)
    with pytest.raises(ConfigError, match='delivers the bands B3, B4'):
        make_trainer(tmp_path).fit(make_task('groups'), data)
    spelled = [f'B{band[1:]:0>2}' if band != 'B8A' else band for band in SATMAE_BANDS]
    same = make_data('groups', roots['groups'], bands=spelled)
    make_trainer(tmp_path, fast_dev_run=True).fit(make_task('groups'), same)


def test_images_of_other_bands_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    task = make_task('plain', in_channels=4, mean=[0.5] * 4, std=[0.2] * 4)
    with pytest.raises(ImageError, match='those of 4 channels'):
        make_trainer(tmp_path).fit(task, make_data('plain', roots['plain']))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_run_is_resumed_exactly(roots: dict[str, Path], tmp_path: Path) -> None:
    """SIGKILL at a random step; a fresh process goes on from the last checkpoint."""
    root = roots['groups']
    mae_runs.main(['groups', str(root), str(tmp_path / 'whole')])
    step, out = random.randrange(4, STEPS - 1), tmp_path / 'killed'
    with fork(mae_runs, 'groups', root, out, output=tmp_path / 'first') as process:
        kill_after(step, process)
    assert not (out / 'rank0.pt').exists()
    last = out / 'checkpoints' / 'last.ckpt'
    run(mae_runs, 'groups', root, out, '--resume', last, output=tmp_path / 'second')
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
def test_two_ranks(roots: dict[str, Path], tmp_path: Path) -> None:
    """Both ranks end alike, and as one process does that averages their gradients."""
    arguments: dict[str, Any] = {'steps': 6}
    task = ['--devices', 2, '--task', json.dumps(arguments)]
    given = ['plain', roots['plain'], tmp_path, *task]
    shown = lines_of(run_ranks(mae_runs, *given, output=tmp_path / 'ranks'))
    assert len(shown) == arguments['steps'] and all(
        torch.tensor(line['loss']).isfinite() for line in shown
    )
    first, second = (torch.load(tmp_path / f'rank{r}.pt', weights_only=True) for r in range(2))
    assert_equal(first, second)
    expected = _two_ranks_in_one(roots['plain'], arguments)
    for name, value in expected.items():
        if not name.endswith('qkv.bias'):  # a key's has no influence: Adam follows its rounding
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=2e-4, msg=name)
    start = weights(make_task(**arguments))
    assert len([name for name in expected if not torch.equal(expected[name], start[name])]) > 30
    assert {path.name for path in tmp_path.iterdir()} >= FILES


def _two_ranks_in_one(root: Path, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The run of two ranks, their gradients averaged by hand."""
    task, steps = make_task(**arguments), arguments['steps']
    config = task.recipe.optimization
    model = task.model.train()
    optimizer = make_mae_optimizer(model, config)
    curve = mae_learning_rate(config, steps, 2 * BATCH * config.accumulate)
    for step, batches in enumerate(_batches_of_two_ranks(root, steps)):
        for rank, pixels in enumerate(batches):
            seed = step_seed(0, step, rank)
            views = task.eval_transform.normalize(random_views(pixels, task.recipe.views, seed))
            loss = mae_micro_batch(model, views, seed).loss
            (loss / (2 * config.accumulate)).backward()
        if (step + 1) % config.accumulate == 0:
            set_mae_rates(optimizer, config, curve(step - step % config.accumulate))
            clip_mae_gradients(model, config.clip)
            optimizer.step()
            optimizer.zero_grad()
    return weights(task)


def _batches_of_two_ranks(root: Path, steps: int) -> Iterator[list[Tensor]]:
    """What the ranks see: they take turns in one sequence of samples."""
    from torchgeo_explora.datamodules._sampler import shuffled

    data = make_data('plain', root)
    data.setup('fit')
    dataset: Any = data.train_dataset
    order = list(shuffled(len(dataset), 0, 0, 2 * BATCH * steps))
    for step in range(steps):
        part = order[2 * BATCH * step : 2 * BATCH * (step + 1)]
        yield [torch.stack([dataset[i]['image'] for i in part[rank::2]]) for rank in range(2)]
