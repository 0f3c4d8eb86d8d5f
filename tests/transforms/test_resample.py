"""Crops as matrix products, against torchvision's and PIL's resized crops."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional

from torchgeo_explora.transforms._resample import (
    CropBoxes,
    crop_and_resize,
    draw_boxes,
    resample_weights,
)

SIZES = [(64, 64, 70), (64, 64, 28), (300, 200, 98), (37, 91, 112), (700, 801, 42), (9, 5, 14)]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _box(top: int, left: int, height: int, width: int) -> CropBoxes:
    """One window of one image."""
    one = [torch.tensor([[value]]) for value in (top, left, height, width)]
    return CropBoxes(one[0], one[1], one[2], one[3], torch.tensor([[False]]))


def _torchvision(image: Tensor, boxes: CropBoxes, size: int) -> Tensor:
    crop = functional.resized_crop(
        image,
        int(boxes.top),
        int(boxes.left),
        int(boxes.height),
        int(boxes.width),
        size=[size, size],
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    return (crop.flip(-1) if bool(boxes.flip) else crop).clamp(0, 1)


@pytest.mark.parametrize(('height', 'width', 'size'), SIZES)
def test_equals_torchvision(height: int, width: int, size: int) -> None:
    images = torch.rand(2, 4, height, width, generator=_generator())
    boxes = draw_boxes((2, 3), height, width, (0.05, 1.0), _generator(1))
    crops = crop_and_resize(images, boxes, size)
    for n in range(3):
        for b in range(2):
            one = boxes.column(n)
            one = CropBoxes(one.top[b], one.left[b], one.height[b], one.width[b], one.flip[b])
            expected = _torchvision(images[b], one, size)
            torch.testing.assert_close(crops[n, b], expected, atol=1e-5, rtol=0)


def test_equals_pil_up_to_its_rounding() -> None:
    pixels = np.random.default_rng(0).integers(70, 180, (50, 40, 3), dtype=np.uint8)
    reference = (
        Image.fromarray(pixels).crop((3, 5, 33, 45)).resize((24, 24), Image.Resampling.BICUBIC)
    )
    box = _box(5, 3, 40, 30)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    crop = crop_and_resize(image, box, 24)[0, 0].permute(1, 2, 0) * 255
    # PIL rounds, and clips at 0 and 255, after each of its two passes
    assert np.abs(crop.numpy() - np.asarray(reference, dtype=np.float32)).max() < 1.5


def test_weights_are_a_mean_inside_the_window() -> None:
    start, length = torch.tensor([0, 7, 90]), torch.tensor([100, 13, 10])
    weights = resample_weights(start, length, 17, 100)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 17))
    for row, first, count in zip(weights, start, length, strict=True):
        outside = torch.ones(100, dtype=torch.bool)
        outside[first : first + count] = False
        assert not row[:, outside].any()


def test_a_window_of_the_output_size_is_copied() -> None:
    images = torch.rand(1, 3, 20, 20, generator=_generator())
    box = _box(2, 4, 12, 12)
    crop = crop_and_resize(images, box, 12)[0, 0]
    torch.testing.assert_close(crop, images[0, :, 2:14, 4:16], atol=1e-6, rtol=0)


@pytest.mark.parametrize(('height', 'width'), [(64, 64), (64, 256), (300, 40)])
@pytest.mark.parametrize('scale', [(0.32, 1.0), (0.05, 0.32)])
def test_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    count = 3000
    boxes = draw_boxes((count,), height, width, scale, _generator())
    image = torch.empty(1, height, width)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
    ).double()
    ours = torch.stack([boxes.top, boxes.left, boxes.height, boxes.width], dim=1).double()
    standard_error = (ours.var(0) / count + theirs.var(0) / count).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= 4 * standard_error + 1e-9).all()
    levels = torch.tensor([0.1, 0.5, 0.9]).double()
    gap = (ours.quantile(levels, 0) - theirs.quantile(levels, 0)).abs()
    assert (gap <= 0.06 * max(height, width)).all()


def test_boxes_lie_inside_and_cover_their_share() -> None:
    boxes = draw_boxes((5000,), 64, 96, (0.2, 0.4), _generator())
    assert int(boxes.top.min()) == 0 and int(boxes.left.min()) == 0
    assert bool((boxes.top + boxes.height <= 64).all())
    assert bool((boxes.left + boxes.width <= 96).all())
    share = (boxes.height * boxes.width) / (64 * 96)
    assert float(share.min()) > 0.19 and float(share.max()) < 0.41
    assert 0.47 < float(boxes.flip.float().mean()) < 0.53


def test_a_shape_that_never_fits_gives_the_central_crop() -> None:
    boxes = draw_boxes((4,), 10, 1000, (0.9, 1.0), _generator())
    assert boxes.height.tolist() == [10] * 4
    assert boxes.width.tolist() == [13] * 4  # round(10 * 4 / 3)
    assert boxes.left.tolist() == [(1000 - 13) // 2] * 4
