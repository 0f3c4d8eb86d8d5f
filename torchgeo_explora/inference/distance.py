"""A model whose outputs include how far each window is from the images that it was fitted on."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from torchgeo_explora.models import FeatureReference
from torchgeo_explora.models.feature_reference import scaled_distance, tapped_features
from torchgeo_explora.models.fitted import find_backbone


@final
class WithDistance(nn.Module):
    """A fitted model that gives the distance of an image behind its logits, in one pass.

    Args:
        model: Takes images in [0, 1], gives logits; holds one vision transformer.
        reference: Of the features of its backbone.

    Raises:
        ConfigError: If there is no single vision transformer inside.
    """

    def __init__(self, model: nn.Module, reference: FeatureReference) -> None:
        super().__init__()
        find_backbone(model)
        self.model = model
        self.register_buffer('mean', reference.mean)
        self.register_buffer('whitening', reference.whitening)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits and distance (b, classes + 1) or (b, classes + 1, h, w).

        Args:
            images: Images in [0, 1] (b, c, h, w).
        """
        with tapped_features(find_backbone(self.model)[1]) as kept:
            logits: Tensor = self.model(images)
        with torch.autocast(images.device.type, enabled=False):
            mean, whitening = self.get_buffer('mean'), self.get_buffer('whitening')
            distance = scaled_distance(kept[0].float(), mean, whitening)
        shape = (len(logits), 1, *logits.shape[2:])
        expanded = distance.reshape(-1, 1, *[1] * (logits.ndim - 2)).expand(shape)
        return torch.cat([logits.float(), expanded], dim=1)


@final
class DistanceBehind:
    """Turns logits to what is averaged, and leaves the distance behind them as it is.

    Args:
        to_planes: Does it to the logits of one image, classes first.
    """

    def __init__(self, to_planes: Callable[[Tensor], Tensor]) -> None:
        self.to_planes = to_planes

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return planes (classes + 1, ...).

        Args:
            outputs: Of one image (classes + 1, ...).
        """
        return torch.cat([self.to_planes(outputs[:-1]), outputs[-1:]])
