"""Masks of semantic segmentation: whether they fit, and losses over the pixels that count."""

from collections.abc import Sequence

import torch
from segmentation_models_pytorch.losses import JaccardLoss
from torch import Tensor, nn

from torchgeo_explora.errors import ImageError, LabelError


class ValidPixels(nn.Module):
    """A loss over the pixels that count, and zero where there are none.

    A batch of nothing but padding would otherwise be 0 / 0, and end the training. SMP's Jaccard
    loss knows no value to ignore, and gets the others alone.

    Args:
        loss: Of logits (B, classes, H, W) and masks (B, H, W).
        ignore_index: Mask value that does not count.
        weights: Weight of each class; pixels of a class of weight 0 do not count either.
    """

    def __init__(
        self, loss: nn.Module, ignore_index: int | None, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.ignored = [] if ignore_index is None else [ignore_index]
        if weights is not None:
            self.ignored += [index for index, weight in enumerate(weights) if weight == 0]

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: (B, classes, H, W).
            masks: (B, H, W).
        """
        logits = logits.float()
        valid = torch.ones_like(masks, dtype=torch.bool)
        for value in self.ignored:
            valid &= masks != value
        if not bool(valid.any()):
            return logits.sum() * 0  # a gradient of zero for every weight
        if isinstance(self.loss, JaccardLoss):
            logits = logits.movedim(1, -1)[valid].T[None]  # -> (1, classes, pixels)
            masks = masks[valid][None]
        out: Tensor = self.loss(logits, masks)
        return out


def check_masks(images: Tensor, masks: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Check that masks belong to images and hold classes alone.

    Args:
        images: (B, ..., H, W).
        masks: (B, H, W), whole numbers.
        num_classes: Number of classes.
        ignore_index: Value that is allowed beside.

    Raises:
        ImageError: If the sizes differ.
        LabelError: If a mask holds another value.
    """
    if masks.shape != (len(images), *images.shape[-2:]):
        raise ImageError(
            f'The images are of shape {tuple(images.shape)} and the masks of {tuple(masks.shape)}: '
            'give one mask an image, of its height and width.'
        )
    wrong = (masks < 0) | (masks >= num_classes) | (masks != masks.long())
    if ignore_index is not None:
        wrong &= masks != ignore_index
    if bool(wrong.any()):
        values = masks[wrong].unique().tolist()
        more = ' and more' if len(values) > 5 else ''
        allowed = f'0 to {num_classes - 1}' + (
            '' if ignore_index is None else f' and {ignore_index}'
        )
        raise LabelError(
            f'The masks hold {", ".join(map(str, values[:5]))}{more}, and {allowed} are known: '
            'correct the masks, set num_classes, or set ignore_index to a value that is no class.'
        )
