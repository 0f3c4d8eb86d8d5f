"""Every measure equals a slow reference that is written from its definition."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.vits import images_for, make_vit
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora
from torchgeo_explora.analysis import (
    TokenProbeConfig,
    block_patches,
    cka_matrix,
    class_attention,
    covariance_eigenvalues,
    enlarge,
    has_class_attention,
    patch_eigenvalues,
    patch_features,
    pca_maps,
    spectral_rank,
    token_probe,
)
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.models import create_backbone
from torchgeo_explora.objectives.diagnostics import effective_rank, linear_cka


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(('n', 'd'), [(9, 4), (4, 9), (2, 5), (6, 6)])
def test_eigenvalues_are_those_of_a_principal_component_analysis(n: int, d: int) -> None:
    tokens = random(3, n, d) * torch.arange(1, d + 1) + 5
    found = patch_eigenvalues(tokens)
    for image, values in zip(tokens.double().numpy(), found.numpy(), strict=True):
        expected = PCA(svd_solver='full').fit(image).explained_variance_
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9 * expected[0])
        everything = np.linalg.eigvalsh(np.cov(image.T))[::-1]
        np.testing.assert_allclose(values, everything[: len(values)], atol=1e-9 * expected[0])


def test_what_all_patches_share_has_no_eigenvalue() -> None:
    tokens = random(2, 5, 3)
    shifted = patch_eigenvalues(tokens + 100 * random(2, 1, 3, seed=1))
    assert torch.allclose(patch_eigenvalues(tokens), shifted, atol=1e-4)
    assert patch_eigenvalues(torch.full((1, 4, 3), 0.7)).max() == 0


@pytest.mark.parametrize(('n', 'd'), [(30, 5), (5, 30)])
def test_spectral_rank_is_the_effective_rank_of_the_rows(n: int, d: int) -> None:
    features = random(n, d) * torch.logspace(0, -2, d)
    found = float(spectral_rank(covariance_eigenvalues(features)))
    assert found == pytest.approx(effective_rank(features), rel=1e-5)


def test_spectral_rank_at_its_ends() -> None:
    ranks = spectral_rank(torch.tensor([[4.0, 4, 4], [9, 0, 0], [0, 0, 0]]))
    assert ranks.tolist() == pytest.approx([3, 1, 0])


def test_cka_of_every_pair_is_that_of_feature_space() -> None:
    x = [random(20, 6), random(20, 4, seed=1), random(20, 40, seed=2)]
    y = [x[0] @ torch.linalg.qr(random(6, 6, seed=3)).Q * 3 + 1, random(20, 5, seed=4)]
    found = cka_matrix(x, y)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            assert found[i, j] == pytest.approx(linear_cka(a, b), abs=1e-5)
    assert found[0, 0] == pytest.approx(1, abs=1e-6)


def test_cka_wants_the_same_images() -> None:
    with pytest.raises(ConfigError, match='Representations of 4, 5 images'):
        cka_matrix([random(4, 2)], [random(5, 2)])


def test_blocks_are_those_of_timm_without_the_final_norm(vit: VisionTransformer) -> None:
    images = images_for(vit)
    with torch.no_grad():
        found = list(block_patches(vit, images))
        expected = vit.get_intermediate_layers(images, n=3, norm=False)
    assert len(found) == 3
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_patch_features_lie_where_their_patches_do(vit: VisionTransformer) -> None:
    images = images_for(vit)
    with torch.no_grad():
        found = patch_features(vit, images)
        tokens = vit.forward_features(images)[:, vit.num_prefix_tokens :]
    assert found.shape == (2, 4, 4, 24)
    torch.testing.assert_close(found[:, 2, 3], tokens[:, 2 * 4 + 3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('variant', ['patch8', 'registers', 'qk_norm', 'mean_pooled', 'not_square'])
@pytest.mark.parametrize('block', [-1, 0, 1])
def test_attention_is_what_timms_plain_attention_computes(
    variant: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = make_vit(variant)
    images = images_for(vit)
    attention = vit.blocks[block].get_submodule('attn')
    assert isinstance(attention, Attention)
    monkeypatch.setattr(attention, 'fused_attn', False)
    seen: list[Tensor] = []
    attention.attn_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        vit.forward_features(images)
        found = class_attention(vit, images, block)
    height, width = vit.patch_embed.grid_size
    expected = seen[0][:, :, 0, vit.num_prefix_tokens :].unflatten(2, (height, width))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found.sum(dim=(2, 3)).max() <= 1


def test_attention_of_an_adapted_model_is_that_of_its_low_rank_updates(
    vit: VisionTransformer,
) -> None:
    model = make_vit('patch8', embed_dim=24, depth=3, num_heads=3)
    images = images_for(model)
    with torch.no_grad():
        before = class_attention(model, images)
        apply_explora(model, ExPLoRAConfig(rank=2, unfreeze_blocks=(0,)))
        torch.testing.assert_close(class_attention(model, images), before)
        for name, parameter in model.named_parameters():
            if 'lora_B' in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        assert not torch.allclose(class_attention(model, images), before, atol=1e-3)


def test_attention_sums_over_groups_of_bands() -> None:
    model, _ = create_backbone(
        'explora_group_channel_vit_small_patch8_96', img_size=16, in_chans=3,
        channel_groups=[[0, 1], [2]], seed=0, depth=2, embed_dim=48, num_heads=2, channel_embed_dim=16,
    )  # fmt: skip
    with torch.no_grad():
        found = class_attention(model, random(2, 3, 16, 16))
    assert found.shape == (2, 2, 2, 2)
    assert (found.sum(dim=(2, 3)) < 1).all()
    assert (found.sum(dim=(2, 3)) > 0.5).all()  # of 1 + 2 x 4 tokens, one is the class token


def test_attention_that_cannot_be_drawn_is_refused() -> None:
    vit = make_vit('no_class_token')
    assert not has_class_attention(vit)
    with pytest.raises(ConfigError, match='no class token'):
        class_attention(vit, images_for(vit))
    plain = make_vit()
    assert has_class_attention(plain)
    with pytest.raises(ConfigError, match='Block 3 was asked for and the model has 3'):
        class_attention(plain, images_for(plain), 3)


def test_enlarged_maps_keep_constants_and_bounds() -> None:
    maps = random(2, 3, 4, 5)
    found = enlarge(maps, 16, 20)
    assert found.shape == (2, 3, 16, 20)
    assert found.min() >= maps.min() - 1e-5
    assert found.max() <= maps.max() + 1e-5
    assert torch.allclose(enlarge(torch.full((1, 2, 2), 0.3), 7, 9), torch.tensor(0.3))


def test_one_basis_gives_equal_features_equal_colours() -> None:
    first = random(2, 3, 3, 6)
    found = pca_maps({'a': first, 'b': first[:1], 'c': 3 * random(1, 5, 4, 6, seed=1)})
    assert torch.equal(found.maps['a'][0], found.maps['b'][0])
    assert found.maps['c'].shape == (1, 5, 4, 3)
    again = pca_maps({'a': first[1:]}, found.basis)
    assert torch.equal(again.maps['a'][0], found.maps['a'][1])


def test_features_of_different_widths_share_no_basis() -> None:
    with pytest.raises(ConfigError, match='a 6, b 5'):
        pca_maps({'a': random(1, 2, 2, 6), 'b': random(1, 2, 2, 5)})


def clusters(count: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Points around three centres, in dimensions of very different scale."""
    labels = torch.arange(count) % 3
    centres = random(3, 5, seed=9)
    points = centres[labels] + noise * random(count, 5, seed=seed)
    return points * torch.tensor([1.0, 100, 0.01, 1, 10]) + 50, labels


def test_a_probe_of_tokens_scores_as_logistic_regression_does() -> None:
    train, labels = clusters(600, 0)
    test, truth = clusters(300, 1)
    found = token_probe(train, labels, test, truth, 3)
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    reference = LogisticRegression(max_iter=1000).fit(((train - mean) / std).numpy(), labels)
    expected = reference.score(((test - mean) / std).numpy(), truth)
    assert 0.5 < expected < 0.95
    assert found.accuracy == pytest.approx(expected, abs=0.015)
    assert (found.trained, found.scored, found.chance) == (600, 300, 1 / 3)


def test_a_probe_of_tokens_is_deterministic_and_learns_nothing_from_noise() -> None:
    config = TokenProbeConfig(steps=50, batch_size=64)
    train, labels = random(500, 4), torch.arange(500) % 4
    test, truth = random(400, 4, seed=1), torch.arange(400) % 4
    scores = [token_probe(train, labels, test, truth, 4, config) for _ in range(2)]
    assert scores[0] == scores[1]
    assert scores[0].accuracy == pytest.approx(0.25, abs=0.08)


def test_a_constant_dimension_does_no_harm() -> None:
    train, labels = clusters(90, 0, noise=0.01)
    train[:, 0] = 7
    score = token_probe(train, labels, train, labels, 3, TokenProbeConfig(steps=200))
    assert score.accuracy == 1


def test_a_probe_needs_tokens() -> None:
    empty = torch.zeros(0, 4)
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ConfigError, match='0 to score'):
        token_probe(random(5, 4), torch.zeros(5, dtype=torch.int64), empty, none, 2)
    with pytest.raises(ConfigError, match='must be'):
        TokenProbeConfig(steps=0)


def test_images_that_do_not_fit_are_refused(vit: VisionTransformer) -> None:
    with pytest.raises(ImageError, match='4 bands'):
        list(block_patches(vit, random(1, 4, 32, 32)))
