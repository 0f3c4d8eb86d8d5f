"""A model that is given images of the size on the ground that it was fitted on."""

from typing import final

from torch import Tensor, nn

from torchgeo_explora.transforms.normalize import resize_and_centre


@final
class Resized(nn.Module):
    """A classifier of images that were enlarged or shrunk before it saw them, as in its fitting.

    Args:
        model: Takes images in [0, 1], gives logits (b, classes).
        side: Side of the images that it is given, in pixels.
    """

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model, self.side = model, side

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, classes).

        Args:
            images: Square images in [0, 1] (b, c, h, h), as they are in the raster.
        """
        logits: Tensor = self.model(resize_and_centre(images, self.side, self.side))
        return logits
