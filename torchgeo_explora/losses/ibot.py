"""The iBOT loss: cross entropy of the student's masked patches with the teacher's targets."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from torchgeo_explora.losses.dino import soft_cross_entropy


def mask_weights(mask: Bool[Tensor, 'crops patches']) -> Float[Tensor, ' masked']:
    """Return the weight of every masked patch: one over the masked patches of its crop.

    Args:
        mask: True at the masked patches.

    Returns:
        Weights in the order of ``mask.flatten().nonzero()``, crop by crop.
    """
    count = mask.sum(dim=1, keepdim=True)  # (crops, 1)
    return (1 / count.clamp(min=1)).expand_as(mask)[mask]


def ibot_patch_loss(
    student_logits: Float[Tensor, 'masked prototypes'],
    teacher_probs: Float[Tensor, 'masked prototypes'],
    weights: Float[Tensor, ' masked'],
    n_crops: int,
    student_temp: float = 0.1,
) -> Float[Tensor, '']:
    """Return the weighted cross entropy of masked patches, divided by the number of crops.

    With the weights of :func:`mask_weights` this is the mean over masked patches, averaged
    over **all** crops, also those without a mask: where half of the crops are masked, the
    value is half of the mean over masked crops, as the official loss does it.

    Args:
        student_logits: The student's logits of the masked patches.
        teacher_probs: The teacher's assignments of the same patches, without gradient.
        weights: Weight of each patch.
        n_crops: Number of crops that the patches come from, masked or not.
        student_temp: The student's temperature, above 0.

    Returns:
        The loss, a scalar; 0 without any masked patch.

    Source: Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer" (2022),
    equation 2; :func:`~torchgeo_explora.losses.prototypes.prototype_cross_entropy` is the
    same without the logits in memory.
    """
    loss = soft_cross_entropy(student_logits, teacher_probs, student_temp)
    return (loss * weights).sum() / n_crops


class IBOTPatchLoss(nn.Module):
    """Module form of :func:`ibot_patch_loss` for a mask.

    Args:
        student_temp: The student's temperature, above 0.
    """

    def __init__(self, student_temp: float = 0.1) -> None:
        super().__init__()
        self.student_temp = student_temp

    def forward(
        self,
        student_logits: Float[Tensor, 'masked prototypes'],
        teacher_probs: Float[Tensor, 'masked prototypes'],
        mask: Bool[Tensor, 'crops patches'],
    ) -> Float[Tensor, '']:
        """Return the loss of the patches that the mask is True at, crop by crop."""
        weights = mask_weights(mask)
        return ibot_patch_loss(student_logits, teacher_probs, weights, len(mask), self.student_temp)
