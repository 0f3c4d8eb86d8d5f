"""Small models and images whose patches are known."""

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Dataset

from tests.vits import make_vit


class Drawn(Dataset[dict[str, Tensor]]):
    """Images drawn by their number; every class is brighter than the one before."""

    def __init__(
        self, count: int, classes: int = 3, labels: bool = True, side: int = 32, noise: float = 1.0
    ) -> None:
        self.count, self.classes, self.labels, self.side = count, classes, labels, side
        self.noise = noise
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.read.append(index)
        generator = torch.Generator().manual_seed(index)
        label = index % self.classes
        image = self.noise * torch.randn(3, self.side, self.side, generator=generator) + label
        sample = {'image': image}
        return sample | {'label': torch.tensor(label)} if self.labels else sample


@pytest.fixture
def drawn() -> Callable[..., Drawn]:
    return Drawn


@pytest.fixture(scope='module')
def vit() -> VisionTransformer:
    """Patches of 8 pixels, 4 x 4 in an image of 32; the features of some depth of training."""
    return make_vit('patch8', embed_dim=24, depth=3, num_heads=3)
