"""Multi-crop augmentation: parts against torchvision, probabilities, seeds, devices."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional

from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.transforms import IMAGENET_MEAN, IMAGENET_STD, MultiCrop
from torchgeo_explora.transforms.photometric import (
    PhotometricDraw,
    PhotometricSpec,
    apply_photometric,
    draw_photometric,
)

STEPS: list[Callable[[Tensor, float], Tensor]] = [
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
]


def _images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _draw(batch: int, **chosen: Tensor) -> PhotometricDraw:
    """A draw of nothing but what is given."""
    none = torch.zeros(batch, dtype=torch.bool)
    plain = {
        'order': torch.arange(4), 'factors': torch.tensor([[1.0], [1.0], [1.0], [0.0]]).repeat(1, batch),
        'jitter': none, 'grayscale': none, 'blur': none, 'sigma': torch.ones(batch), 'solarize': none,
    }  # fmt: skip
    return PhotometricDraw(**(plain | chosen))


@pytest.mark.parametrize('seed', range(4))
def test_jitter_equals_torchvision(seed: int) -> None:
    images, spec = _images(5, 3, 12, 10), PhotometricSpec(jitter_p=1.0)
    draw = draw_photometric(5, spec, torch.Generator().manual_seed(seed))
    only = _draw(5, jitter=draw.jitter, order=draw.order, factors=draw.factors)
    ours = apply_photometric(images.clone(), only, spec, rgb=True)
    for index in range(5):
        expected = images[index]
        for step in draw.order.tolist():
            expected = STEPS[step](expected, float(draw.factors[step, index]))
        # Kornia's luminance weights have three digits where torchvision's have four
        torch.testing.assert_close(ours[index], expected, atol=3e-4, rtol=0)


def test_blur_equals_torchvision() -> None:
    images, sigma = _images(3, 3, 20, 16), torch.tensor([0.3, 1.0, 2.0])
    draw = _draw(3, blur=torch.ones(3, dtype=torch.bool), sigma=sigma)
    ours = apply_photometric(images.clone(), draw, PhotometricSpec(), rgb=True)
    for image, result, value in zip(images, ours, sigma.tolist(), strict=True):
        expected = functional.gaussian_blur(image, [9, 9], [value, value])
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_solarize_and_grayscale_equal_pil() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(255).repeat(2, 1, 1, 1)
    draw = _draw(2, solarize=torch.tensor([True, False]), grayscale=torch.tensor([False, True]))
    ours = apply_photometric(images, draw, PhotometricSpec(), rgb=True) * 255
    inverted = np.asarray(ImageOps.solarize(picture, 128), dtype=np.float32)
    gray = np.asarray(picture.convert('L').convert('RGB'), dtype=np.float32)
    np.testing.assert_allclose(ours[0].permute(1, 2, 0), inverted, atol=1e-3)
    np.testing.assert_allclose(ours[1].permute(1, 2, 0), gray, atol=0.6)  # PIL rounds


def test_only_the_drawn_images_change() -> None:
    images = _images(4, 3, 16, 16)
    mask = torch.tensor([False, True, False, True])
    factors = torch.tensor([[0.7], [1.3], [0.8], [0.1]]).repeat(1, 4)
    draw = _draw(4, jitter=mask, factors=factors)
    ours = apply_photometric(images.clone(), draw, PhotometricSpec(), rgb=True)
    changed = (ours != images).flatten(1).any(1)
    assert changed.tolist() == mask.tolist()


def test_draws_follow_the_probabilities_and_ranges() -> None:
    spec = PhotometricSpec(blur_p=0.9, solarize_p=0.2)
    draw = draw_photometric(20000, spec, torch.Generator().manual_seed(0))
    shares = [
        m.float().mean().item() for m in (draw.jitter, draw.grayscale, draw.blur, draw.solarize)
    ]
    assert shares == pytest.approx([0.8, 0.2, 0.9, 0.2], abs=0.015)
    low, high = draw.factors.amin(1).tolist(), draw.factors.amax(1).tolist()
    assert low == pytest.approx([0.6, 0.6, 0.8, -0.1], abs=0.005)
    assert high == pytest.approx([1.4, 1.4, 1.2, 0.1], abs=0.005)
    assert 0.1 <= float(draw.sigma.min()) < 0.11 and 1.99 < float(draw.sigma.max()) <= 2.0


def test_orders_of_the_jitter_differ_between_crops() -> None:
    generator = torch.Generator().manual_seed(0)
    orders = {
        tuple(draw_photometric(1, PhotometricSpec(), generator).order.tolist()) for _ in range(400)
    }
    assert len(orders) == math.factorial(4)


def test_default_probabilities_are_the_effective_ones() -> None:
    specs = MultiCrop().specs
    assert [spec.blur_p for spec in specs] == [0.0, 0.9, 0.5]
    assert [spec.solarize_p for spec in specs] == [0.0, 0.2, 0.0]


def test_shapes_and_crop_major_order() -> None:
    transform = MultiCrop(
        28, 14, 3, global_scale=(1.0, 1.0), local_scale=(1.0, 1.0), jitter_p=0.0, grayscale_p=0.0,
        blur_p=(0, 0, 0), solarize_p=(0, 0, 0), mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    levels = torch.linspace(0.1, 0.9, 4)
    crops = transform(levels[:, None, None, None].expand(4, 3, 32, 32), seed=0)
    assert crops.global_.shape == (8, 3, 28, 28)
    assert crops.local.shape == (12, 3, 14, 14)
    torch.testing.assert_close(crops.global_.mean((1, 2, 3)), levels.repeat(2))
    torch.testing.assert_close(crops.local.mean((1, 2, 3)), levels.repeat(3))


def test_the_seed_decides_and_global_state_is_untouched() -> None:
    transform, images = MultiCrop(28, 14, 2), _images(3, 3, 40, 40)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = transform(images, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = transform(images, seed=7), transform(images, seed=8)
    assert torch.equal(first.global_, again.global_) and torch.equal(first.local, again.local)
    assert not torch.equal(first.global_, other.global_)


def test_views_of_an_image_differ() -> None:
    crops = MultiCrop(28, 14, 4)(_images(2, 3, 40, 40), seed=0)
    views = crops.local.view(4, 2, -1)
    distances = torch.cdist(views.transpose(0, 1), views.transpose(0, 1))
    assert bool((distances + torch.eye(4) > 0.1).all())


def test_input_is_unchanged_and_output_is_float32_under_autocast() -> None:
    images = _images(2, 3, 32, 32)
    copy = images.clone()
    plain = MultiCrop(28, 14, 2)(images, seed=0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = MultiCrop(28, 14, 2)(images, seed=0)
    assert torch.equal(images, copy)
    assert mixed.global_.dtype == torch.float32
    assert torch.equal(plain.global_, mixed.global_)


def test_normalisation_is_the_last_step() -> None:
    images = _images(2, 3, 32, 32)
    plain = MultiCrop(28, 14, 1, mean=(0, 0, 0), std=(1, 1, 1))(images, seed=3).global_
    assert float(plain.min()) >= -1e-6 and float(plain.max()) <= 1 + 1e-6
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    expected = (plain - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(MultiCrop(28, 14, 1)(images, seed=3).global_, expected)


def test_other_bands_change_together() -> None:
    transform = MultiCrop(
        28, 14, 2, bands='any', mean=(0.0,) * 5, std=(1.0,) * 5, jitter_p=1.0, grayscale_p=1.0
    )
    grey = _images(2, 1, 32, 32).expand(2, 5, 32, 32)
    crops = transform(grey, seed=0)
    assert crops.global_.shape == (4, 5, 28, 28)
    torch.testing.assert_close(crops.global_, crops.global_[:, :1].expand(-1, 5, -1, -1))
    bands = _images(2, 5, 32, 32)
    assert float(transform(bands, seed=0).global_.std(dim=1).mean()) > 0.05  # no grayscale


def test_contrast_of_other_bands_keeps_their_common_mean() -> None:
    images = 0.4 + 0.1 * _images(3, 6, 16, 16)
    factors = torch.tensor([[1.0], [1.3], [1.0], [0.0]]).repeat(1, 3)
    draw = _draw(3, jitter=torch.ones(3, dtype=torch.bool), factors=factors)
    ours = apply_photometric(images.clone(), draw, PhotometricSpec(), rgb=False)
    torch.testing.assert_close(ours.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(ours.std((1, 2, 3)), 1.3 * images.std((1, 2, 3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda_equals_cpu() -> None:
    transform, images = MultiCrop(28, 14, 3), _images(4, 3, 40, 40)
    cpu, cuda = transform(images, seed=1), transform.cuda()(images.cuda(), seed=1)
    torch.testing.assert_close(cuda.global_.cpu(), cpu.global_, atol=2e-3, rtol=0)
    torch.testing.assert_close(cuda.local.cpu(), cpu.local, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ({'global_size': 3}, 'global_size'),
        ({'n_local': -1}, 'n_local'),
        ({'local_scale': (0.4, 0.1)}, 'local_scale'),
        ({'blur_p': (0.0, 1.2, 0.5)}, 'blur_p'),
        ({'blur_kernel': 4}, 'blur_kernel'),
        ({'blur_sigma': (0.0, 1.0)}, 'blur_sigma'),
        ({'color_jitter': (0.4, 0.4, 0.2, 0.6)}, 'hue'),
        ({'bands': 'rgbn'}, 'bands'),
        ({'bands': 'any'}, 'mean'),
        ({'mean': (0.5,) * 4, 'std': (0.5,) * 4}, 'mean'),
        ({'std': (0.2, 0.0, 0.2)}, 'std'),
    ],
)
def test_impossible_arguments_are_named(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        MultiCrop(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    'images', [torch.rand(2, 4, 32, 32), torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.rand(3, 32, 32)]
)  # fmt: skip
def test_wrong_images_are_refused(images: Tensor) -> None:
    with pytest.raises(ImageError, match='give'):
        MultiCrop(28, 14, 2)(images, seed=0)


def test_no_local_crops() -> None:
    assert MultiCrop(28, 14, 0)(_images(2, 3, 32, 32), seed=0).local.shape == (0, 3, 14, 14)
