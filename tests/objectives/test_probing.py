"""Probes against slow references: independent optimizers, loops over images, scikit-learn."""

import copy
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError, ImageError, WeightsError
from torchgeo_explora.layers.tokens import encode
from torchgeo_explora.objectives.probing import (
    Features,
    LinearProbeConfig,
    ProbeBank,
    Progress,
    batches_hash,
    cosine_to_zero,
    extract_features,
    knn,
    linear_probe,
    load_features,
    logistic_regression,
    sample_stream,
    save_features,
    weights_hash,
)
from torchgeo_explora.objectives.probing.features import Batch
from torchgeo_explora.objectives.probing.linear import PAPER_LEARNING_RATES
from torchgeo_explora.objectives.probing.logistic import fit_logistic, objective


def vit(**kwargs: Any) -> VisionTransformer:  # noqa: ANN401
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        'img_size': 16,
        'patch_size': 4,
        'embed_dim': 24,
        'depth': 5,
        'num_heads': 2,
    }
    model = VisionTransformer(**{**sizes, 'num_classes': 0, 'drop_rate': 0.5, **kwargs})
    return model.train()


def blobs(count: int, seed: int, classes: int = 5, dim: int = 16, noise: float = 1.0) -> Features:
    """Gaussian classes whose centres do not depend on the seed."""
    centres = torch.randn(classes, 5, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    x = centres[labels] + noise * torch.randn(count, 5, dim, generator=generator)
    return Features(x[:, :4], x[:, 4], labels)


# ---------------------------------------------------------------------------- extraction


@pytest.mark.parametrize(
    'kwargs',
    [{}, {'reg_tokens': 3}, {'class_token': False, 'global_pool': 'avg', 'fc_norm': False}],
)
def test_features_equal_a_plain_forward_for_any_batching(kwargs: dict[str, object]) -> None:
    model = vit(**kwargs)
    images = torch.rand(7, 3, 16, 16)
    labels = torch.arange(7)
    batches = [{'image': images[i : i + 3], 'label': labels[i : i + 3]} for i in (0, 3, 6)]
    features = extract_features(model, batches, transform=lambda x: x * 2 - 1)
    model.eval()
    with torch.no_grad():
        tokens = encode(model, images * 2 - 1)
        blocks = [
            model.norm(x)
            for x in model.get_intermediate_layers(images * 2 - 1, 4, return_prefix_tokens=False)
        ]
    patches = tokens[:, model.num_prefix_tokens :]
    torch.testing.assert_close(features.patch_mean, patches.mean(dim=1))
    torch.testing.assert_close(
        features.last, tokens[:, 0] if not kwargs.get('global_pool') else patches.mean(1)
    )
    if kwargs.get('global_pool'):
        means = torch.stack([block.mean(dim=1) for block in blocks], dim=1)
        torch.testing.assert_close(features.cls, means)
    assert features.labels is not None
    assert features.labels.tolist() == labels.tolist()


def test_class_tokens_stand_in_block_order_after_the_final_norm() -> None:
    model = vit()
    images = torch.rand(2, 3, 16, 16)
    features = extract_features(model, [images])
    model.eval()
    with torch.no_grad():
        x = model.norm_pre(model.pos_drop(model._pos_embed(model.patch_embed(images))))
        for depth, block in enumerate(model.blocks):
            x = block(x)
            if depth > 0:
                torch.testing.assert_close(features.cls[:, depth - 1], model.norm(x)[:, 0])
    assert features.labels is None


def test_extraction_leaves_modes_gradients_and_random_state_alone() -> None:
    model = vit()
    model.blocks[1].eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    features = extract_features(model, [torch.rand(2, 3, 16, 16, generator=torch.Generator())])
    assert [module.training for module in model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    (features.last @ torch.ones(24, requires_grad=True)).sum().backward()  # no inference tensors


def test_modes_are_restored_after_an_error() -> None:
    model = vit()
    with pytest.raises(ImageError, match='do not divide'):
        extract_features(model, [torch.rand(1, 3, 15, 16)])
    assert all(module.training for module in model.modules())


def test_half_precision_is_close_to_float32() -> None:
    model, images = vit(), torch.rand(4, 3, 16, 16)
    full = extract_features(model, [images])
    half = extract_features(model, [images], dtype=torch.bfloat16)
    assert half.cls.dtype == torch.float32
    assert not torch.equal(half.cls, full.cls)
    torch.testing.assert_close(half.cls, full.cls, rtol=0.05, atol=0.05)


def test_progress_counts_images_and_predicts_the_rest() -> None:
    seen: list[Progress] = []
    extract_features(vit(), [torch.rand(3, 3, 16, 16)] * 2, progress=seen.append, total=6)
    assert [state.done for state in seen] == [3, 6]
    assert seen[-1].remaining == 0
    assert Progress(30, 90, 15.0).rate == 2
    assert Progress(30, 90, 15.0).remaining == 30
    assert Progress(30, None, 15.0).remaining is None


def test_bad_requests_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match='last 6 blocks and 5 are there'):
        extract_features(vit(), [torch.rand(1, 3, 16, 16)], n_last_blocks=6)
    with pytest.raises(ImageError, match='no image'):
        extract_features(vit(), [])
    unlabelled = Features(torch.rand(2, 4, 3), torch.rand(2, 3))
    with pytest.raises(ConfigError, match='no labels'):
        knn(unlabelled, unlabelled)
    with pytest.raises(ConfigError, match='no labels'):
        linear_probe(unlabelled, unlabelled)
    with pytest.raises(ConfigError, match='last 5 blocks and 4 are there'):
        linear_probe(blobs(9, 0), blobs(9, 1), config=LinearProbeConfig(blocks=(5,)))


def test_stock_pretrained_architectures_are_accepted() -> None:
    model = timm.create_model('vit_tiny_patch16_224', num_classes=0)
    assert isinstance(model, VisionTransformer)
    features = extract_features(model, [torch.rand(1, 3, 48, 64)])
    assert features.cls.shape == (1, 4, 192)


def test_inputs_concatenate_the_last_blocks_and_the_mean_patch() -> None:
    features = blobs(3, 0, dim=2)
    assert torch.equal(features.inputs(1, False), features.cls[:, 3])
    expected = torch.cat([*features.cls.unbind(1), features.patch_mean], dim=1)
    assert torch.equal(features.inputs(4, True), expected)


def test_selection_and_concatenation_are_inverse() -> None:
    features = blobs(6, 0)
    halves = [features.select(torch.arange(3)), features.select(torch.arange(3, 6))]
    joined = Features.concatenate(halves)
    for name in ('cls', 'patch_mean', 'labels'):
        assert torch.equal(getattr(joined, name), getattr(features, name))
    bare = Features(features.cls, features.patch_mean)
    assert Features.concatenate([features, bare]).labels is None


# ---------------------------------------------------------------------------- neighbours


def slow_knn(train: Features, test: Features, k: int, temperature: float) -> float:
    assert train.labels is not None
    assert test.labels is not None
    correct = 0
    for row, truth in zip(test.cls[:, -1], test.labels.tolist(), strict=True):
        cosines = [F.cosine_similarity(row, other, dim=0).item() for other in train.cls[:, -1]]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        votes: dict[int, float] = {}
        for i in nearest:
            label = int(train.labels[i])
            votes[label] = votes.get(label, 0.0) + math.exp(cosines[i] / temperature)
        correct += max(votes, key=lambda label: votes[label]) == truth
    return correct / len(test)


@pytest.mark.parametrize('temperature', [0.07, 1.0])
@pytest.mark.parametrize('chunk', [7, 512])
def test_neighbours_vote_as_in_a_slow_loop(temperature: float, chunk: int) -> None:
    train, test = blobs(120, 0, noise=2.5), blobs(50, 1, noise=2.5)
    result = knn(train, test, (1, 10, 20), temperature, chunk)
    expected = {k: slow_knn(train, test, k, temperature) for k in (1, 10, 20)}
    assert result.accuracy == expected
    assert len(set(expected.values())) > 1 or max(expected.values()) < 1
    assert result.note is None


def test_more_neighbours_than_images_are_clipped_and_said() -> None:
    train, test = blobs(15, 0), blobs(20, 1)
    result = knn(train, test, (10, 20, 100))
    assert result.used == {10: 10, 20: 15, 100: 15}
    assert result.accuracy[20] == result.accuracy[100] == knn(train, test, (15,)).accuracy[15]
    assert result.note is not None
    assert 'k = 20, 100' in result.note


def test_a_class_absent_from_training_is_never_found() -> None:
    train, test = blobs(40, 0, classes=5), blobs(10, 1, classes=5)
    strangers = Features(test.cls, test.patch_mean, torch.full((10,), 7))
    assert knn(train, strangers, (3,)).accuracy == {3: 0.0}


@pytest.mark.parametrize(('k', 'temperature'), [((), 0.07), ((0, 5), 0.07), ((5,), 0.0)])
def test_impossible_neighbours_are_refused(k: tuple[int, ...], temperature: float) -> None:
    with pytest.raises(ConfigError):
        knn(blobs(5, 0), blobs(5, 1), k, temperature)


# ---------------------------------------------------------------------------- linear probe


def reference_probe(
    config: LinearProbeConfig, bank: ProbeBank, train: Features, val: Features
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Each classifier by itself: nn.Linear, torch's SGD and cosine schedule."""
    assert train.labels is not None
    assert val.labels is not None
    out = {}
    for blocks, pooled in config.inputs:
        weights = bank.weights[f'{blocks}{"_avg" if pooled else ""}'].detach()
        for row, rate in enumerate(config.learning_rates):
            layer = nn.Linear(weights.shape[2], weights.shape[1])
            layer.weight.data.copy_(weights[row])
            layer.bias.data.zero_()
            scaled = rate * config.batch_size / 256
            sgd = torch.optim.SGD(layer.parameters(), scaled, momentum=config.momentum)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, config.iterations)
            stream = sample_stream(len(train), config.batch_size, config.seed)
            for _, index in zip(range(config.iterations), stream, strict=False):
                x = train.inputs(blocks, pooled)[index]
                sgd.zero_grad()
                F.cross_entropy(layer(x), train.labels[index]).backward()
                sgd.step()
                cosine.step()
            predicted = layer(val.inputs(blocks, pooled)).argmax(dim=1)
            accuracy = (predicted == val.labels).double().mean().item()
            name = f'{blocks}_blocks{"_avg" if pooled else ""}_lr_{rate:g}'
            out[name] = (layer.weight.detach(), layer.bias.detach(), accuracy)
    return out


def test_all_28_classifiers_equal_28_independent_torch_optimizers() -> None:
    train, val = blobs(70, 0, noise=3.0), blobs(60, 1, noise=3.0)
    config = LinearProbeConfig(batch_size=32, iterations=30, seed=3)
    initial = ProbeBank(config, 16, 5, 4)
    result = linear_probe(train, val, config=config)
    reference = reference_probe(config, initial, train, val)
    assert [score.name for score in result.scores] == list(reference)
    assert len(reference) == 28
    for place, score in enumerate(result.scores):
        weight, bias, accuracy = reference[score.name]
        key = f'{score.blocks}{"_avg" if score.average_pool else ""}'
        row = place % 7
        torch.testing.assert_close(
            result.bank.weights[key][row].detach(), weight, rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(
            result.bank.biases[key][row].detach(), bias, rtol=1e-4, atol=1e-6
        )
        assert score.accuracy == pytest.approx(accuracy, abs=1e-9)


def test_the_schedule_is_a_cosine_to_zero_scaled_with_the_batch() -> None:
    bank = ProbeBank(LinearProbeConfig(batch_size=64), 3, 2, 4)
    optimizer = bank.optimizer()
    assert optimizer.param_groups[0]['rates'] == tuple(rate / 4 for rate in PAPER_LEARNING_RATES)
    schedule = cosine_to_zero(optimizer, 10)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    expected = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)]
    assert rates == pytest.approx(expected, abs=1e-9)
    assert LinearProbeConfig.paper().iterations == 15_000


def test_initial_weights_have_the_papers_spread() -> None:
    bank = ProbeBank(LinearProbeConfig(), 384, 10, 4)
    assert bank.weights['4_avg'].std().item() == pytest.approx(0.01, rel=0.01)
    assert bank.weights['4_avg'].shape == (7, 10, 5 * 384)
    assert not bank.biases['4_avg'].any()


def test_batches_pass_through_all_images_before_any_comes_again() -> None:
    stream = sample_stream(10, 4, seed=0)
    drawn = torch.cat([next(stream) for _ in range(5)])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    again = sample_stream(10, 4, seed=0)
    assert torch.equal(drawn, torch.cat([next(again) for _ in range(5)]))


def test_the_best_is_chosen_on_validation_and_scored_on_test() -> None:
    train, val, test = (blobs(80, seed, noise=4.0) for seed in range(3))
    config = LinearProbeConfig(batch_size=32, iterations=60)
    result = linear_probe(train, val, test, config)
    assert result.best.accuracy == max(score.accuracy for score in result.scores)
    alone = {score.name: score for score in linear_probe(train, test, config=config).scores}
    for score in result.scores:
        assert score.test_accuracy == alone[score.name].accuracy
    assert linear_probe(train, val, config=config).best.test_accuracy is None


def test_a_probe_separates_what_is_separable() -> None:
    result = linear_probe(
        blobs(200, 0, noise=0.3), blobs(100, 1, noise=0.3), config=LinearProbeConfig(iterations=200)
    )
    assert result.best.accuracy == 1.0


def test_a_diverged_classifier_scores_nothing() -> None:
    config = LinearProbeConfig(learning_rates=(1e-2, 1e38), iterations=20)
    result = linear_probe(blobs(50, 0), blobs(50, 1), config=config)
    assert [score.diverged for score in result.scores] == [False, True] * 4
    assert all(score.accuracy == 0 for score in result.scores if score.diverged)
    assert not result.best.diverged


def test_a_bank_resumes_from_its_state_dicts() -> None:
    train = blobs(64, 0)
    config = LinearProbeConfig(batch_size=16, iterations=8)
    bank = ProbeBank(config, 16, 5, 4)
    unbroken = ProbeBank(config, 16, 5, 4)
    sgd, other = bank.optimizer(), unbroken.optimizer()
    for step, index in zip(range(8), sample_stream(64, 16, 0), strict=False):
        if step == 3:
            states = copy.deepcopy((bank.state_dict(), sgd.state_dict()))
            bank = ProbeBank(replace(config, seed=9), 16, 5, 4)
            sgd = bank.optimizer()
            bank.load_state_dict(states[0])
            sgd.load_state_dict(states[1])
        for heads, optimizer in ((bank, sgd), (unbroken, other)):
            optimizer.zero_grad()
            heads(heads.stack(train)[index], train.require_labels()[index]).backward()
            optimizer.step()
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, bank.state_dict()[name]), name


@pytest.mark.parametrize(
    'wrong',
    [
        {'learning_rates': ()},
        {'learning_rates': (0.1, 0.1)},
        {'learning_rates': (-1.0,)},
        {'blocks': (0,)},
        {'iterations': 0},
        {'momentum': 1.0},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError):
        LinearProbeConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_default_takes_less_than_fifteen_seconds_on_two_cores() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (5000,), generator=generator)
    cls = torch.randn(5000, 4, 384, generator=generator)
    features = Features(cls, cls[:, 3].clone(), labels)
    config = LinearProbeConfig()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        start = time.process_time()  # of one thread: what other programs do is not counted
        val = features.select(torch.arange(500))
        linear_probe(features, val, config=replace(config, iterations=config.iterations // 8))
        seconds = 8 * (time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert seconds < 2 * 15


# ---------------------------------------------------------------------------- logistic


def test_logistic_regression_is_at_its_minimum() -> None:
    train, test = blobs(200, 0, noise=4.0), blobs(100, 1, noise=4.0)
    result = logistic_regression(train, test)
    assert result.gradient < 1e-5
    assert logistic_regression(train, test).predictions.tolist() == result.predictions.tolist()
    assert test.labels is not None
    hits = (result.predictions == test.labels).double().mean().item()
    assert 0.3 < result.accuracy == pytest.approx(hits)


def test_the_minimum_is_lower_than_its_neighbourhood() -> None:
    x, labels = blobs(60, 0, noise=4.0).last.double(), blobs(60, 0, noise=4.0).require_labels()
    weight, bias = fit_logistic(x, labels, 5, strength=0.5)
    found = objective(weight, bias, x, labels, 0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = 1e-3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        assert objective(weight + step, bias, x, labels, 0.5) > found


def test_logistic_regression_equals_scikit_learn() -> None:
    linear_model = pytest.importorskip('sklearn.linear_model')
    train, test = blobs(150, 0, noise=4.0), blobs(200, 1, noise=4.0)
    x, y = (part.inputs(1, True).double() for part in (train, test))
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    peer = linear_model.LogisticRegression(C=0.3, max_iter=5000, tol=1e-8)
    peer.fit(((x - mean) / std).numpy(), train.require_labels().numpy())
    expected = peer.predict(((y - mean) / std).numpy())
    result = logistic_regression(train, test, strength=0.3)
    assert result.predictions.tolist() == expected.tolist()


def test_strength_is_chosen_on_a_hold_out_of_the_training_set() -> None:
    train, test = blobs(150, 0, noise=6.0), blobs(300, 1, noise=6.0)
    grid = (1e-4, 1e-2, 1.0, 1e4)
    result = logistic_regression(train, test, strength=grid)
    assert result.strength in grid
    alone = logistic_regression(train, test, strength=result.strength)
    assert result.accuracy == alone.accuracy
    other = Features(test.cls.flip(0), test.patch_mean.flip(0), test.labels)
    assert logistic_regression(train, other, strength=grid).strength == result.strength
    with pytest.raises(ConfigError, match='positive'):
        logistic_regression(train, test, strength=0.0)


def test_a_constant_feature_is_no_trouble() -> None:
    train, test = blobs(100, 0), blobs(50, 1)
    train.cls[..., 0] = test.cls[..., 0] = 5.0
    assert math.isfinite(logistic_regression(train, test).loss)


# ---------------------------------------------------------------------------- cache


def test_saved_features_come_back_and_leave_nothing_else(tmp_path: Path) -> None:
    for features in (blobs(4, 0), Features(torch.rand(2, 1, 3), torch.rand(2, 3))):
        save_features(tmp_path / 'a' / 'f.safetensors', features, {'model': 'x'})
        loaded = load_features(tmp_path / 'a' / 'f.safetensors')
        assert torch.equal(loaded.cls, features.cls)
        assert torch.equal(loaded.patch_mean, features.patch_mean)
        assert (loaded.labels is None) == (features.labels is None)
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['f.safetensors']


def test_a_broken_cache_is_a_sentence(tmp_path: Path) -> None:
    broken, foreign = tmp_path / 'broken.safetensors', tmp_path / 'foreign.safetensors'
    broken.write_bytes(b'\x08\x00')
    save_file({'x': torch.zeros(1)}, foreign)
    for path in (broken, foreign, tmp_path / 'absent.safetensors'):
        with pytest.raises(WeightsError, match='delete it'):
            load_features(path)


def test_the_hash_of_weights_sees_every_value() -> None:
    model = vit()
    first = weights_hash(model)
    assert weights_hash(vit()) == first
    with torch.no_grad():
        model.get_parameter('blocks.2.mlp.fc1.bias')[0] += 1e-6
    assert weights_hash(model) != first


def test_the_hash_of_images_sees_pixels_order_and_labels_but_not_batching() -> None:
    images, labels = torch.rand(4, 3, 2, 2), torch.arange(4)
    whole = batches_hash([{'image': images, 'label': labels}])
    halves = [{'image': images[i : i + 2], 'label': labels[i : i + 2]} for i in (0, 2)]
    assert batches_hash(halves) == whole
    changed = images.clone()
    changed[3, 0, 0, 0] += 1e-6
    others: list[list[Batch]] = [
        [{'image': changed, 'label': labels}],
        [{'image': images, 'label': labels.flip(0)}],
        [{'image': images.flip(0), 'label': labels}],
        [images],
    ]
    assert len({whole, *map(batches_hash, others)}) == 5
