"""Augmentation of any bands: identity, geometry, gains, dates, seeds, bad input."""

import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.transforms import SpectralAugmentation
from torchgeo_explora.transforms.spectral import SpectralDraw, apply_spectral

OFF = {'flip_p': 0.0, 'turn_p': 0.0, 'gain': 0.0, 'offset': 0.0, 'blur_p': 0.0}


def _images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def _only(**arguments: float) -> SpectralAugmentation:
    return SpectralAugmentation(**(OFF | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize('shape', [(4, 10, 8, 8), (4, 3, 10, 8, 8)])
def test_nothing_is_done_where_nothing_is_asked_for(shape: tuple[int, ...]) -> None:
    images = _images(*shape)
    assert torch.equal(_only()(images, 0), images)


@pytest.mark.parametrize('shape', [(64, 5, 6, 6), (64, 2, 5, 6, 6)])
def test_geometry_is_the_eight_symmetries_of_a_square(shape: tuple[int, ...]) -> None:
    images = _images(*shape)
    turned = SpectralAugmentation(gain=0, offset=0, blur_p=0)(images, 1)
    seen = set()
    for before, after in zip(images, turned, strict=True):
        symmetries = [
            torch.rot90(before.flip(-1) if mirrored else before, turns, (-2, -1))
            for mirrored in (False, True)
            for turns in range(4)
        ]
        (which,) = [k for k, one in enumerate(symmetries) if torch.equal(one, after)]
        seen.add(which)
    assert seen == set(range(8))


def test_gain_and_offset_are_each_bands_and_dates_own() -> None:
    images = torch.full((200, 2, 3, 4, 4), 0.5)
    out = _only(gain=0.2, offset=0.1)(images, 0)
    values = out[..., 0, 0]
    assert torch.equal(out, values[..., None, None].expand_as(out))
    assert values.unique().numel() > 1150  # 1200 values, none of them shared
    assert float(values.min()) > 0.5 * 0.8 - 0.1 and float(values.max()) < 0.5 * 1.2 + 0.1
    assert abs(float(values.mean()) - 0.5) < 0.01
    bright = _only(gain=0.5)(torch.full((50, 1, 2, 2), 0.9), 0)
    assert float(bright.max()) == 1  # clipped


def test_blur_equals_torchvisions() -> None:
    images = _images(3, 2, 4, 12, 12)
    draw = SpectralDraw(
        horizontal=torch.zeros(3, dtype=torch.bool),
        vertical=torch.zeros(3, dtype=torch.bool),
        turns=torch.zeros(3, dtype=torch.int64),
        gain=torch.ones(3, 2, 4),
        offset=torch.zeros(3, 2, 4),
        blurred=torch.tensor([True, False, True]),
        sigma=torch.tensor([0.5, 0.7, 0.9]),
    )
    out = apply_spectral(images, draw, 5)
    assert torch.equal(out[1], images[1])
    for row, sigma in ((0, 0.5), (2, 0.9)):
        torch.testing.assert_close(out[row], gaussian_blur(images[row], [5, 5], [sigma, sigma]))


def test_the_seed_decides_and_nothing_else() -> None:
    images, module = _images(8, 10, 8, 8), SpectralAugmentation()
    before = images.clone()
    state = torch.random.get_rng_state()
    first = module(images, 5)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.equal(images, before)
    torch.manual_seed(9)
    assert torch.equal(module(images, 5), first) and not torch.equal(module(images, 6), first)


@pytest.mark.parametrize(
    'images',
    [
        torch.zeros(10, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 8, 9),
        torch.zeros(2, 3, 2, 2),
    ],
)
def test_images_that_do_not_fit(images: torch.Tensor) -> None:
    with pytest.raises(ImageError, match='give'):
        SpectralAugmentation()(images, 0)
    assert _only()(torch.zeros(2, 3, 8, 9), 0).shape == (2, 3, 8, 9)  # nothing is turned


@pytest.mark.parametrize(
    'wrong',
    [{'flip_p': 1.1}, {'gain': -0.1}, {'offset': 2}, {'blur_sigma': (0, 1)}, {'blur_kernel': 4}],
)
def test_impossible_arguments(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match='give'):
        SpectralAugmentation(**wrong)  # type: ignore[arg-type]
