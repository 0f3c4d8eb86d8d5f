"""Patches and their loss against loops written from the definitions."""

import pytest
import torch
from torch import Tensor

from torchgeo_explora._typing import GridSize, PatchSize
from torchgeo_explora.errors import ImageError
from torchgeo_explora.losses import (
    group_mae_loss,
    mae_loss,
    masked_patch_loss,
    normalize_patches,
    patchify,
    unpatchify,
)
from torchgeo_explora.losses.mae import patch_statistics

SIZES = [
    (GridSize(2, 2), PatchSize(4, 4), 3),
    (GridSize(3, 2), PatchSize(2, 2), 10),
    (GridSize(1, 4), PatchSize(3, 2), 1),
    (GridSize(2, 1), PatchSize(1, 5), 4),
]


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _images(grid: GridSize, patch: PatchSize, bands: int) -> Tensor:
    return _random(2, bands, grid.height * patch.height, grid.width * patch.width)


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize(('grid', 'patch', 'bands'), SIZES)
def test_patches_against_slices(
    grid: GridSize, patch: PatchSize, bands: int, channels_last: bool
) -> None:
    images = _images(grid, patch, bands)
    patches = patchify(images, patch, channels_last)
    for row in range(grid.height):
        for column in range(grid.width):
            top, left = row * patch.height, column * patch.width
            piece = images[:, :, top : top + patch.height, left : left + patch.width]
            expected = piece.permute(0, 2, 3, 1) if channels_last else piece
            assert torch.equal(patches[:, row * grid.width + column], expected.flatten(1))
    assert torch.equal(unpatchify(patches, grid, patch, channels_last), images)


@pytest.mark.parametrize('shape', [(8, 9), (9, 8)])
def test_images_that_do_not_divide(shape: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f'{shape[0]} x {shape[1]} pixels do not divide'):
        patchify(torch.zeros(1, 3, *shape), PatchSize(4, 4))


def test_normalised_patches() -> None:
    patches = 5 + 3 * _random(2, 4, 12)
    found = normalize_patches(patches)
    for patch, normal in zip(patches.flatten(0, 1), found.flatten(0, 1), strict=True):
        values = patch.tolist()
        mean = sum(values) / 12
        variance = sum((v - mean) ** 2 for v in values) / 11
        expected = torch.tensor([(v - mean) / (variance + 1e-6) ** 0.5 for v in values])
        torch.testing.assert_close(normal, expected.double(), rtol=1e-6, atol=1e-6)
    statistics = patch_statistics(patches)
    torch.testing.assert_close(found * statistics.std + statistics.mean, patches)


def test_constant_patches_become_zero() -> None:
    assert torch.equal(normalize_patches(torch.full((1, 2, 6), 7.0)), torch.zeros(1, 2, 6))


def test_loss_is_the_mean_over_masked_patches() -> None:
    prediction, target = _random(2, 5, 6), _random(2, 5, 6, seed=1)
    masked = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]]).bool()
    errors = [
        sum((prediction[b, n, v] - target[b, n, v]) ** 2 for v in range(6)) / 6
        for b in range(2)
        for n in range(5)
        if masked[b, n]
    ]
    expected = torch.stack([torch.as_tensor(e) for e in errors]).mean()
    torch.testing.assert_close(mae_loss(prediction, target, masked), expected)
    rows = masked_patch_loss([prediction[masked]], [target[masked]])
    torch.testing.assert_close(rows, expected)


def test_loss_of_groups_weighs_every_masked_token_alike() -> None:
    sizes = (8, 2)  # values of a token: groups of unequal size
    predictions = [_random(3, 4, size) for size in sizes]
    targets = [_random(3, 4, size, seed=1) for size in sizes]
    masked = _random(3, 2, 4, seed=2) > 0
    total, count = torch.zeros((), dtype=torch.float64), 0
    for group in range(2):
        for b in range(3):
            for n in range(4):
                if masked[b, group, n]:
                    total += (predictions[group][b, n] - targets[group][b, n]).square().mean()
                    count += 1
    torch.testing.assert_close(group_mae_loss(predictions, targets, masked), total / count)


def test_one_group_is_the_plain_loss() -> None:
    prediction, target, masked = _random(2, 5, 6), _random(2, 5, 6, seed=1), _random(2, 5) > 0
    one = group_mae_loss([prediction], [target], masked[:, None])
    torch.testing.assert_close(one, mae_loss(prediction, target, masked))


def test_a_group_without_masked_tokens_counts_nothing() -> None:
    prediction = _random(3, 6).requires_grad_()
    empty = _random(0, 4).requires_grad_()
    loss = masked_patch_loss([prediction, empty], [torch.zeros(3, 6), torch.zeros(0, 4)])
    torch.testing.assert_close(loss, prediction.square().mean().to(loss.dtype))
    loss.backward()
    assert empty.grad is not None  # it stays part of the graph


def test_half_precision_predictions_are_compared_in_full_precision() -> None:
    prediction = torch.full((4, 6), 1.0, dtype=torch.bfloat16)
    target = torch.full((4, 6), 1.001)
    loss = masked_patch_loss([prediction], [target])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(1e-6), rtol=1e-3, atol=0)
