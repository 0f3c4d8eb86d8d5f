"""Group-channel and temporal masked autoencoders against what the official SatMAE printed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference.mae_files import (
    Reference,
    assert_close,
    assert_positions_are_fixed,
    make_objective,
    place,
    read,
    step,
)
from torchgeo_explora.layers.token_masks import TokenMask, mask_from_noise
from torchgeo_explora.layers.tokens import encode_visible, patch_grid


@pytest.fixture(scope='module')
def references(reference_dir: Path) -> list[Reference]:
    """Every pre-training file of this form in the folder of references."""
    found = read(reference_dir, 'satmae_*.npz')
    return [reference for reference in found if 'mask_ratio' in reference.config]


def _restore(reference: Reference, mask: TokenMask) -> Tensor:
    """Where a mask is shared, the official code may restore the places alone."""
    values = reference.values
    if values['ids_restore'].shape == mask.restore.shape:
        return mask.restore
    return mask_from_noise(values['noise'], reference.config['mask_ratio']).restore


def _official_layout(parts: list[Tensor], reference: Reference) -> Tensor:
    """Predictions as in the files: (b, tokens, values), or (b, outputs, places, area) of groups."""
    if 'channel_groups' not in reference.config:
        (prediction,) = parts
        return prediction
    area = reference.config['patch_size'] ** 2
    return torch.cat([part.unflatten(2, (-1, area)).transpose(1, 2) for part in parts], dim=1)


@torch.no_grad()
def test_mask_latent_and_prediction(references: list[Reference]) -> None:
    for reference in references:
        name, values = reference.name, reference.values
        objective = make_objective(reference)
        image, timestamps = values['image'], values.get('timestamps')
        mask = objective.mask(image, values['noise'])
        assert torch.equal(_restore(reference, mask), values['ids_restore'])
        assert torch.equal(mask.masked, values['mask'].bool().flatten(1))
        latent = encode_visible(objective.encoder, image, mask.keep, timestamps)
        assert_close(latent, values['latent'], f'{name} latent')
        parts = objective.decoder(latent, mask, patch_grid(objective.encoder, image), timestamps)
        assert_close(_official_layout(parts, reference), values['pred'], f'{name} pred')


def test_loss_and_gradients(references: list[Reference]) -> None:
    for reference in references:
        objective = make_objective(reference)
        output = step(reference, objective)
        assert_close(output.loss.detach(), reference.values['loss'], f'{reference.name} loss')
        output.loss.backward()
        wanted = {key for key in reference.values if key.startswith('grad_')}
        for key in wanted:
            gradient = place(objective, key.removeprefix('grad_')).grad
            assert gradient is not None, key
            assert_close(gradient, reference.values[key], f'{reference.name} {key}')


def test_positions(references: list[Reference]) -> None:
    for reference in references:
        assert_positions_are_fixed(reference)
