"""Squares out of images, against torchvision and plain slicing."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional

from torchgeo_explora.datasets import Cropping
from torchgeo_explora.datasets._crops import Draw, draw_crop
from torchgeo_explora.errors import ConfigError


def _image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def _draw(seed: int) -> Draw:
    return draw_crop(np.random.default_rng(seed))


@pytest.mark.parametrize(('height', 'width'), [(20, 31), (31, 20), (16, 16)])
def test_centre_equals_torchvision(height: int, width: int) -> None:
    image = _image(height, width)
    expected = functional.center_crop(
        functional.resize(image, [18], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1), [16]
    )
    ours = Cropping(16, 'centre', resize=18).cut(image, _draw(0))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_resized_crop_covers_what_torchvisions_does() -> None:
    """Same shares of area, aspect ratios and places, over many draws."""
    cropping = Cropping(8, 'resized', (0.2, 1.0))
    ours = np.array(
        [
            (box.height, box.width, box.top, box.left)
            for box in (cropping._box(40, 60, _draw(seed)) for seed in range(4000))
        ]
    )
    torch.manual_seed(0)
    image = torch.empty(1, 40, 60)
    theirs = np.array(
        [
            (height, width, top, left)
            for top, left, height, width in (
                RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)
            )
        ]
    )
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.6
    assert np.abs(ours.std(0) - theirs.std(0)).max() < 0.6
    assert (ours[:, 0] + ours[:, 2]).max() <= 40 and (ours[:, 1] + ours[:, 3]).max() <= 60


def test_resized_crop_is_the_box_resampled() -> None:
    image, draw = _image(30, 50), _draw(3)
    cropping = Cropping(12, 'resized', (0.2, 0.9))
    box = cropping._box(30, 50, draw)
    expected = functional.resized_crop(
        image, box.top, box.left, box.height, box.width, [12, 12], InterpolationMode.BICUBIC, True
    ).clamp(0, 1)
    torch.testing.assert_close(cropping.cut(image, draw), expected, atol=1e-6, rtol=0)


def test_square_is_the_largest_at_any_place() -> None:
    image = _image(10, 14)
    seen = set()
    for seed in range(60):
        square = Cropping(10, 'square').cut(image, _draw(seed))
        places = [left for left in range(5) if torch.equal(square, image[:, :, left : left + 10])]
        seen.update(places)
        assert len(places) == 1
    assert seen == {0, 1, 2, 3, 4}


def test_one_draw_cuts_two_sizes_alike() -> None:
    """The same picture at twice the size gives the same square."""
    small = torch.linspace(0, 1, 32).expand(1, 24, 32).contiguous()
    large = torch.linspace(0, 1, 64).expand(1, 48, 64).contiguous()
    for mode in ('square', 'resized', 'centre'):
        cropping = Cropping(12, mode)
        for seed in range(5):
            difference = cropping.cut(small, _draw(seed)) - cropping.cut(large, _draw(seed))
            assert difference.abs().max() < 0.05  # a pixel of 32 is 0.03


def test_no_size_leaves_images_as_they_are() -> None:
    image = _image(7, 9)
    assert torch.equal(Cropping().cut(image, _draw(0)), image)


def test_extreme_shapes_give_squares() -> None:
    for mode in ('square', 'resized', 'centre'):
        for height, width in ((1, 90), (90, 1), (1, 1), (2, 3)):
            cut = Cropping(8, mode).cut(_image(height, width), _draw(1))
            assert cut.shape == (3, 8, 8) and 0 <= float(cut.min()) <= float(cut.max()) <= 1


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ({'size': 0}, 'image_size'),
        ({'size': 8, 'mode': 'random'}, 'crop'),
        ({'size': 8, 'scale': (0.0, 1.0)}, 'scale'),
        ({'size': 8, 'scale': (0.9, 0.2)}, 'scale'),
        ({'size': 8, 'resize': 7}, 'resize'),
        ({'resize': 7}, 'resize'),
    ],
)
def test_impossible_arguments(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Cropping(**arguments)  # type: ignore[arg-type]
