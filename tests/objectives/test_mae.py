"""The objective of masked autoencoders against the equations, written out in the test."""

import pytest
import torch
from torch import Tensor

from tests.objectives import mae_textbook as book
from tests.objectives.mae_cases import CASES, ENCODER, Case, adapt, images_of, make_objective
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.layers import token_count
from torchgeo_explora.models import GroupChannelMAEDecoder, GroupChannelViT
from torchgeo_explora.objectives import MAEConfig, MAEObjective, MAEOutput

TABLE = pytest.mark.parametrize('case', CASES.values(), ids=CASES)


def _run(objective: MAEObjective, case: Case) -> tuple[MAEOutput, Tensor, Tensor | None]:
    images, timestamps = images_of(case)
    noise = objective.draw_noise(images, torch.Generator().manual_seed(3))
    output: MAEOutput = objective(images, noise, timestamps)
    return output, images, timestamps


def _textbook(
    objective: MAEObjective, output: MAEOutput, images: Tensor, timestamps: Tensor | None
) -> Tensor:
    """Compute the loss token by token."""
    encoder, decoder = objective.encoder, objective.decoder
    own, other = book.weights(encoder), book.weights(decoder)
    patch = encoder.patch_embed.patch_size
    groups = encoder.channel_groups if isinstance(encoder, GroupChannelViT) else ()
    official = isinstance(decoder, GroupChannelMAEDecoder) and decoder.prediction_order == 'satmae'
    count = token_count(encoder, images)
    heads = ENCODER['num_heads'], decoder.sizes.heads
    found = []
    for i, image in enumerate(images):
        shown, hidden = ((output.masked[i] == flag).nonzero()[:, 0].tolist() for flag in (0, 1))
        dates = None if timestamps is None else timestamps[i]
        latent = book.encode(image, shown, own, heads[0], patch, groups, dates)
        area = len(book.cut(image[0] if image.ndim == 4 else image, patch))
        tokens = book.decode(latent, shown, count, area, other, heads[1], dates)
        norm_pix = objective.config.norm_pix_loss
        found += book.errors(image, tokens, hidden, other, patch, groups, norm_pix, official)
    return torch.stack(found).mean()


def _assert_same_gradients(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for ours, true in zip(found, expected, strict=True):
        assert (ours is None or not ours.any()) == (true is None or not true.any())
        if ours is not None and true is not None:
            torch.testing.assert_close(ours, true, rtol=1e-7, atol=1e-9)


@TABLE
@pytest.mark.parametrize('adapted', [False, True])
def test_loss_and_gradients(case: Case, adapted: bool) -> None:
    objective = make_objective(case)
    if adapted:
        adapt(objective)
    output, images, timestamps = _run(objective, case)
    expected = _textbook(objective, output, images, timestamps)
    torch.testing.assert_close(output.loss, expected, rtol=1e-8, atol=0)
    trained = [p for p in objective.parameters() if p.requires_grad]
    found = torch.autograd.grad(output.loss, trained, allow_unused=True)
    true = torch.autograd.grad(expected, trained, allow_unused=True)
    _assert_same_gradients(list(found), list(true))


@TABLE
def test_share_of_masked_tokens(case: Case) -> None:
    output, images, _ = _run(make_objective(case), case)
    count = token_count(make_objective(case).encoder, images)
    copies = count // output.masked.shape[1] if case.config.masking == 'shared' else 1
    assert copies == 1  # the mask is one of all tokens, however it was drawn
    hidden = output.masked.sum(dim=1)
    assert (hidden == count - int(count * (1 - case.config.mask_ratio))).all()
    assert sum(len(rows) for rows in output.prediction) == hidden.sum()


@TABLE
def test_reconstruction(case: Case) -> None:
    objective = make_objective(case)
    output, images, _ = _run(objective, case)
    shown = objective.reconstruct(images, output)
    hidden = objective.hidden_pixels(images, output)
    assert shown.shape == hidden.shape == images.shape
    assert torch.equal(shown[~hidden], images[~hidden])
    assert hidden.any() and (~hidden).any()
    assert (shown[hidden] != images[hidden]).all()


@TABLE
def test_perfect_predictions_give_the_image_back(case: Case) -> None:
    objective = make_objective(case)
    output, images, _ = _run(objective, case)
    mask = objective.mask(images, objective.draw_noise(images, torch.Generator().manual_seed(3)))
    perfect = MAEOutput(
        output.loss, tuple(objective._targets(images, mask)), output.masked, output.ids_restore
    )
    torch.testing.assert_close(objective.reconstruct(images, perfect), images)


def test_a_band_of_two_groups_is_hidden_only_in_both() -> None:
    case = CASES['groups_overlapping']
    objective = make_objective(case)
    output, images, _ = _run(objective, case)
    places = output.masked.unflatten(1, (3, 16))  # (b, groups, places)
    hidden = objective.hidden_pixels(images, output)[:, :, ::4, ::4].flatten(
        2
    )  # (b, bands, places)
    first, second, third = places.unbind(1)
    expected = [first, first, second, first & second, torch.zeros_like(first), third]
    assert torch.equal(hidden, torch.stack(expected, dim=1))


@TABLE
def test_noise_decides_and_nothing_changes(case: Case) -> None:
    objective = make_objective(case).train()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    first, second = _run(objective, case)[0], _run(objective, case)[0]
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.ids_restore, second.ids_restore)
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_masked_pixels_are_never_read() -> None:
    for name in ('plain', 'groups', 'dates'):
        case = CASES[name]
        objective = make_objective(case)
        output, images, timestamps = _run(objective, case)
        noise = objective.draw_noise(images, torch.Generator().manual_seed(3))
        hidden = objective.hidden_pixels(images, output)
        changed: MAEOutput = objective(torch.where(hidden, images + 5, images), noise, timestamps)
        for a, b in zip(output.prediction, changed.prediction, strict=True):
            assert torch.equal(a, b)


def test_other_image_size_than_the_positions_are_for() -> None:
    case = CASES['plain']._replace(encoder=lambda: CASES['plain'].encoder(dynamic_img_size=True))  # type: ignore[call-arg]
    objective = make_objective(case)
    images = images_of(case._replace(shape=(3, 8, 32)))[0]
    output: MAEOutput = objective(images, objective.draw_noise(images, torch.Generator()))
    assert output.masked.shape == (3, 16)
    assert objective.reconstruct(images, output).shape == images.shape


def test_bfloat16_is_near_full_precision() -> None:
    for name in ('plain', 'groups', 'dates'):
        case = CASES[name]
        objective = make_objective(case).float()
        images, timestamps = images_of(case)
        noise = objective.draw_noise(images, torch.Generator())
        dates = None if timestamps is None else timestamps.float()
        exact: MAEOutput = objective(images.float(), noise, dates)
        with torch.autocast('cpu', torch.bfloat16):
            rough: MAEOutput = objective(images.float(), noise, dates)
        assert rough.loss.dtype == torch.float32
        torch.testing.assert_close(rough.loss, exact.loss, rtol=2e-2, atol=0)


def test_noise_of_another_length() -> None:
    case = CASES['groups']
    objective = make_objective(case)
    images, _ = images_of(case)
    with pytest.raises(ConfigError, match=r'noise has 16 values .* drawn from 32'):
        objective(images, torch.rand(3, 16))


def test_images_with_other_bands() -> None:
    objective = make_objective(CASES['groups'])
    with pytest.raises(ImageError, match='5 bands'):
        objective(torch.zeros(1, 5, 16, 16), torch.rand(1, 32))


@pytest.mark.parametrize('ratio', [0, 1, 1.2, -1])
def test_impossible_ratio(ratio: float) -> None:
    with pytest.raises(ConfigError, match='mask ratio'):
        MAEConfig(mask_ratio=ratio)


def test_impossible_masking() -> None:
    config = MAEConfig()
    object.__setattr__(config, 'masking', 'spatial')  # tests check the annotations before
    with pytest.raises(ConfigError, match="masking is 'spatial': use independent or shared"):
        config.__post_init__()
