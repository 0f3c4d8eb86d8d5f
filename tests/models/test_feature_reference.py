"""The distance to a model's images: against numpy and scikit-learn, and from known clouds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from tests.token_vits import inputs_for, make_groups, make_temporal
from tests.vits import VARIANTS, images_for, make_vit
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.layers.tokens import intermediate_tokens, patch_tokens
from torchgeo_explora.models.feature_reference import (
    FEWEST_IMAGES,
    FeatureOrigin,
    FeatureReference,
    backbone_fingerprint,
    check_reference,
    fit_feature_reference,
    pooled_features,
    reference_block,
    shrunk_covariance,
    tapped_features,
)

ORIGIN = FeatureOrigin('some_vit', 'abc', 28)


def cloud(count: int, seed: int, shift: float = 0.0, width: int = 12) -> Tensor:
    """Features around a common direction, with unequal spread, as a model's are."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-2, -0.5, width)
    away = torch.zeros(width)
    away[0] = shift  # along the direction of the least spread
    return torch.ones(width) + away + spread * torch.randn((count, width), generator=generator)


@pytest.mark.parametrize('count', [8, 40, 400])
def test_covariance_is_that_of_scikit_learn(count: int) -> None:
    x = cloud(count, 0).double()
    x = x - x.mean(dim=0)
    expected, share = ledoit_wolf(x.numpy(), assume_centered=True)
    torch.testing.assert_close(shrunk_covariance(x), torch.from_numpy(expected))
    assert 0 < share <= 1


def test_distance_is_mahalanobis_over_its_99th_percentile() -> None:
    train, held_out, others = cloud(200, 1), cloud(300, 2), cloud(7, 3, 0.1)
    reference = fit_feature_reference(train, ORIGIN, held_out)

    def slow(features: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        rows = [x / np.linalg.norm(x) for x in features.double().numpy()]
        base = np.stack([x / np.linalg.norm(x) for x in train.double().numpy()])
        mean = base.mean(axis=0)
        inverse = np.linalg.inv(ledoit_wolf(base - mean, assume_centered=True)[0])
        return np.array([np.sqrt((x - mean) @ inverse @ (x - mean)) for x in rows])

    expected = slow(others) / np.quantile(slow(held_out), 0.99)
    np.testing.assert_allclose(reference.distance(others).numpy(), expected, rtol=1e-4)
    torch.testing.assert_close(
        reference.held_out, reference.distance(held_out).sort().values, rtol=1e-4, atol=1e-5
    )


def test_length_of_features_does_not_matter() -> None:
    reference = fit_feature_reference(cloud(60, 1), ORIGIN)
    x = cloud(5, 4)
    torch.testing.assert_close(reference.distance(x), reference.distance(7 * x))


def test_other_images_are_farther_with_and_without_images_held_out() -> None:
    train = cloud(300, 1)
    for held_out in (None, cloud(200, 2), cloud(FEWEST_IMAGES - 1, 2)):
        reference = fit_feature_reference(train, ORIGIN, held_out)
        same, other = (reference.distance(cloud(300, 5, shift)) for shift in (0.0, 0.2))
        assert (same > 1).float().mean() < 0.05
        assert (other > 1).float().mean() > 0.95
        assert reference.held_out.quantile(0.99).item() == pytest.approx(1, abs=1e-5)


def test_fewer_images_than_features_give_a_distance() -> None:
    train = cloud(FEWEST_IMAGES, 1, width=64)
    reference = fit_feature_reference(train, ORIGIN)
    flat = torch.ones(FEWEST_IMAGES, 64) + torch.linspace(-1, 1, FEWEST_IMAGES)[:, None] * train[0]
    for fitted in (reference, fit_feature_reference(flat, ORIGIN)):
        assert fitted.distance(cloud(9, 2, width=64)).isfinite().all()


def test_seed_decides_the_parts_and_repeats() -> None:
    first, again, other = (fit_feature_reference(cloud(50, 1), ORIGIN, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.whitening, again.whitening)
    assert not torch.equal(first.held_out, other.held_out)
    assert torch.equal(first.mean, other.mean)


@pytest.mark.parametrize(
    ('features', 'reason'),
    [
        (cloud(FEWEST_IMAGES - 1, 0), 'at least 20 images'),
        (torch.ones(30, 8), 'are the same'),
        (torch.full((30, 8), float('nan')), 'not finite'),
        (torch.ones(30), 'a row for each'),
    ],
)
def test_impossible_features_are_refused(features: Tensor, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        fit_feature_reference(features, ORIGIN)


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigError, match='of width 12'):
        fit_feature_reference(cloud(30, 0), ORIGIN).distance(torch.ones(2, 11))


def test_file_gives_the_same_distances_back(tmp_path: Path) -> None:
    reference = fit_feature_reference(cloud(40, 0), ORIGIN)
    read = FeatureReference.load(reference.save(tmp_path / 'features.safetensors'))
    assert (read.origin, read.count) == (ORIGIN, 40)
    x = cloud(9, 3)
    assert torch.equal(read.distance(x), reference.distance(x))
    assert torch.equal(read.held_out, reference.held_out)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    good = fit_feature_reference(cloud(40, 0), ORIGIN)
    broken = FeatureReference(good.mean * torch.nan, good.whitening, good.held_out, 40, ORIGIN)
    narrow = FeatureReference(good.mean[1:], good.whitening, good.held_out, 40, ORIGIN)
    for reference in (broken, narrow):
        with pytest.raises(WeightsError, match='is damaged'):
            FeatureReference.load(reference.save(tmp_path / 'broken.safetensors'))
    path = good.save(tmp_path / 'cut.safetensors')
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match=r'cut\.safetensors'):
        FeatureReference.load(path)
    with pytest.raises(WeightsError, match='no weights file'):
        FeatureReference.load(tmp_path / 'absent.safetensors')


@pytest.mark.parametrize('name', VARIANTS)
def test_features_are_mean_tokens_of_the_middle_block(name: str) -> None:
    vit = make_vit(name, depth=4)
    images = images_for(vit)
    tokens = intermediate_tokens(vit, images, [1])[0]
    expected = patch_tokens(vit, tokens).mean(dim=1)
    torch.testing.assert_close(pooled_features(vit, images), expected)
    assert reference_block(vit) == 1
    with tapped_features(vit) as kept:
        vit(images)
        vit.forward_features(2 * images)
    torch.testing.assert_close(kept[0], expected)
    torch.testing.assert_close(kept[1], pooled_features(vit, 2 * images))
    vit(images)
    assert len(kept) == 2, 'the hook is gone'


def test_features_of_models_with_several_tokens_a_patch() -> None:
    for vit in (make_groups(), make_temporal()):
        images, timestamps = inputs_for(vit)
        with tapped_features(vit) as kept:
            intermediate_tokens(vit, images, [-1], timestamps=timestamps)
        torch.testing.assert_close(kept[0], pooled_features(vit, images, timestamps))


def test_reference_belongs_to_its_backbone_whatever_the_image_size() -> None:
    vit, larger, other = make_vit(), make_vit(), make_vit(seed=1)
    larger.set_input_size((96, 96))
    origin = FeatureOrigin('vit', backbone_fingerprint(vit), 64)
    reference = fit_feature_reference(cloud(30, 0), origin)
    check_reference(reference, vit, 'here')
    check_reference(reference, larger, 'here')
    with pytest.raises(WeightsError, match='here is of the features of other weights'):
        check_reference(reference, other, 'here')
