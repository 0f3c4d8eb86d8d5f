"""The masked autoencoder of plain images against what the official MAE printed."""

from pathlib import Path

import pytest
import torch

from tests.reference.mae_files import (
    Reference,
    assert_close,
    assert_positions_are_fixed,
    make_objective,
    place,
    read,
    step,
)
from torchgeo_explora.layers.tokens import encode_visible, patch_grid


@pytest.fixture(scope='module')
def references(reference_dir: Path) -> list[Reference]:
    """Every file of this form in the folder of references."""
    return read(reference_dir, 'mae_*.npz')


@torch.no_grad()
def test_mask_latent_and_prediction(references: list[Reference]) -> None:
    for name, _, values, config in references:
        objective = make_objective(Reference(name, _, values, config))
        image = values['image']
        mask = objective.mask(image, values['noise'])
        assert torch.equal(mask.restore, values['ids_restore'])
        assert torch.equal(mask.masked, values['mask'].bool())
        latent = encode_visible(objective.encoder, image, mask.keep)
        assert_close(latent, values['latent'], f'{name} latent')
        grid = patch_grid(objective.encoder, image)
        (prediction,) = objective.decoder(latent, mask, grid)
        assert_close(prediction, values['pred'], f'{name} pred')
        # what the loss is computed from: the same values at masked patches
        (rows,) = objective.decoder.decode_masked(latent, mask, grid)
        assert_close(rows, values['pred'][mask.masked], f'{name} pred at masked patches')


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
