"""Evaluation transform and normalisation, against torchvision's."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, Normalize


@pytest.mark.parametrize(('height', 'width'), [(64, 64), (256, 300), (71, 50), (97, 130), (57, 56)])
@pytest.mark.parametrize(('size', 'resize'), [(56, None), (56, 64), (57, 63), (64, None)])
def test_equals_torchvision(height: int, width: int, size: int, resize: int | None) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    side = size if resize is None else resize
    reference = transforms.Compose(
        [
            transforms.Resize(side, interpolation=InterpolationMode.BICUBIC, antialias=True),
            transforms.Lambda(lambda x: x.clamp(0, 1)),
            transforms.CenterCrop(size),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    ours = EvalTransform(size, resize=resize)(images)
    torch.testing.assert_close(ours, reference(images), atol=1e-5, rtol=1e-5)


def test_normalize_takes_any_leading_shape() -> None:
    transform = Normalize((0.5, 0.25), (0.5, 2.0))
    image = torch.rand(2, 4, 5)
    expected = torch.stack([(image[0] - 0.5) / 0.5, (image[1] - 0.25) / 2.0])
    torch.testing.assert_close(transform(image), expected)
    torch.testing.assert_close(transform(image[None, None])[0, 0], expected)


def test_constants_are_no_weights() -> None:
    assert not EvalTransform(56).state_dict()


@pytest.mark.parametrize(('size', 'resize'), [(0, None), (64, 32)])
def test_impossible_sizes(size: int, resize: int | None) -> None:
    with pytest.raises(ConfigError, match='size'):
        EvalTransform(size, resize=resize)


def test_wrong_statistics() -> None:
    with pytest.raises(ConfigError, match='one of each per channel'):
        Normalize((0.5, 0.5), (0.5,))


def test_wrong_channels() -> None:
    with pytest.raises(ImageError, match='3 channels'):
        EvalTransform(56)(torch.rand(2, 4, 64, 64))
