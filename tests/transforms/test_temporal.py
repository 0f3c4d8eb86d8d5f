"""Random-resized crops that all dates share."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.transforms import RandomResizedCrop
from torchgeo_explora.transforms._resample import draw_boxes


def _images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_dates_share_the_window_and_the_flip() -> None:
    images = _images(6, 4, 3, 20, 24)
    module = RandomResizedCrop(12)
    crops = module(images, 3)
    assert crops.shape == (6, 4, 3, 12, 12)
    for date in range(4):  # each date alone, with the same seed
        assert torch.allclose(module(images[:, date], 3), crops[:, date], atol=1e-6)
    same = images[:, :1].expand(-1, 4, -1, -1, -1)
    assert torch.allclose(module(same, 3)[:, 0], module(same, 3)[:, 3], atol=1e-6)


def test_equals_torchvision_on_the_drawn_windows() -> None:
    images, seed = _images(5, 10, 30, 26), 11
    crops = RandomResizedCrop(9, (0.2, 0.8))(images, seed)
    generator = torch.Generator().manual_seed(seed)
    boxes = draw_boxes((5, 1), 30, 26, (0.2, 0.8), generator)
    for row in range(5):
        top, left, height, width = (
            int(field[row, 0]) for field in (boxes.top, boxes.left, boxes.height, boxes.width)
        )
        expected = functional.resized_crop(
            images[row], top, left, height, width, [9, 9], InterpolationMode.BICUBIC, True
        ).clamp(0, 1)
        expected = expected.flip(-1) if bool(boxes.flip[row, 0]) else expected
        torch.testing.assert_close(crops[row], expected, atol=1e-5, rtol=0)


def test_samples_have_windows_of_their_own_and_the_seed_decides() -> None:
    images = _images(1, 2, 3, 20, 20).expand(8, -1, -1, -1, -1)
    module = RandomResizedCrop(8)
    state = torch.random.get_rng_state()
    crops = module(images, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(module(images, 0), crops) and not torch.equal(module(images, 1), crops)
    assert not any(torch.equal(crops[0], crops[row]) for row in range(1, 8))


def test_bad_input() -> None:
    for images in (torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ImageError, match='give'):
            RandomResizedCrop(4)(images, 0)
    for wrong in ({'size': 0}, {'size': 4, 'scale': (0.0, 1.0)}, {'size': 4, 'flip_p': 1.5}):
        with pytest.raises(ConfigError, match='give'):
            RandomResizedCrop(**wrong)
