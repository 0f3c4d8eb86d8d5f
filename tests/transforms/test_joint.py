import pytest
import torch
from torch import Tensor

from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.transforms import JointTransform


def _pairs(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images whose every pixel has a value of its own, and masks of the same values."""
    masks = torch.arange(batch * height * width).reshape(batch, height, width)
    return torch.stack([masks.float(), -masks.float()], dim=1), masks


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('crop', [None, 4])
@pytest.mark.parametrize('size', [(6, 6), (6, 9)])
def test_masks_follow_their_images(size: tuple[int, int], crop: int | None) -> None:
    images, masks = _pairs(16, *size)
    kept = images.clone(), masks.clone()
    found, mask = JointTransform(crop)(images, masks, _generator())
    assert mask.shape == (16, *((crop, crop) if crop is not None else size))
    assert torch.equal(found[:, 0], mask.float()) and torch.equal(found[:, 1], -mask.float())
    for row in range(16):  # each shows pixels of its own image, each once
        values = mask[row].flatten().tolist()
        assert len(set(values)) == len(values)
        assert set(values) <= set(masks[row].flatten().tolist())
    assert torch.equal(images, kept[0]) and torch.equal(masks, kept[1])


@pytest.mark.parametrize(
    ('transform', 'size', 'positions'),
    [
        (JointTransform(), (3, 3), 8),
        (JointTransform(rotate=False), (3, 3), 2),
        (JointTransform(flip=False), (3, 3), 4),
        (JointTransform(), (3, 4), 4),
        (JointTransform(flip=False, rotate=False), (3, 3), 1),
    ],
)
def test_all_positions_are_as_likely(
    transform: JointTransform, size: tuple[int, int], positions: int
) -> None:
    count = 400
    image, mask = _pairs(1, *size)
    images, masks = image.expand(count, -1, -1, -1), mask.expand(count, -1, -1)
    _, found = transform(images, masks, _generator())
    seen = torch.unique(found.flatten(1), dim=0, return_counts=True)[1]
    assert len(seen) == positions
    expected = count / positions
    assert ((seen - expected).abs() < 5 * expected**0.5).all()


def test_crops_reach_every_corner() -> None:
    image, mask = _pairs(1, 5, 4)
    images, masks = image.expand(300, -1, -1, -1), mask.expand(300, -1, -1)
    _, found = JointTransform(3, flip=False, rotate=False)(images, masks, _generator())
    assert set(found[:, 0, 0].tolist()) == {0, 1, 4, 5, 8, 9}


def test_the_generator_alone_decides() -> None:
    images, masks = _pairs(8, 5, 5)
    transform = JointTransform(3)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again = (transform(images, masks, _generator(1))[1] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, transform(images, masks, _generator(2))[1])


def test_dates_move_together() -> None:
    images, masks = _pairs(4, 5, 5)
    dated = torch.stack([images, images + 100], dim=1)
    found, mask = JointTransform()(dated, masks, _generator())
    assert torch.equal(found[:, 0, 0], mask.float())
    assert torch.equal(found[:, 1], found[:, 0] + 100)


def test_what_does_not_fit_is_refused() -> None:
    images, masks = _pairs(2, 5, 5)
    with pytest.raises(ImageError, match='crop of 6'):
        JointTransform(6)(images, masks, _generator())
    with pytest.raises(ImageError, match='masks'):
        JointTransform()(images, masks[:, :4], _generator())
    with pytest.raises(ConfigError, match='crop_size'):
        JointTransform(0)
