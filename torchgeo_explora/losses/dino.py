"""The DINO loss: cross entropy of the student's class tokens with the teacher's targets."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def soft_cross_entropy(
    logits: Float[Tensor, '*batch prototypes'],
    targets: Float[Tensor, '*batch prototypes'],
    temperature: float,
) -> Float[Tensor, '*batch']:
    """Return the cross entropy of each row of logits with its soft target.

    Args:
        logits: The student's logits.
        targets: The teacher's assignments; they need not sum to 1.
        temperature: The student's temperature, above 0.

    Returns:
        One value per row, in float32 at least.

    Source: Caron et al. (2021), equation 2.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p = torch.log_softmax(logits.to(dtype) / temperature, dim=-1)
    return -(targets * log_p).sum(dim=-1)


def dino_loss(
    student_logits: Float[Tensor, 'student_crops images prototypes'],
    teacher_probs: Float[Tensor, 'teacher_crops images prototypes'],
    student_temp: float = 0.1,
) -> Float[Tensor, '']:
    """Return the cross entropies of every student crop with every teacher crop, summed.

    Each pair of crops gives the mean over the images; the pairs are summed, not averaged, as
    the official loss does it. A training step divides by the number of its pairs. For two
    global crops that are compared crosswise, give the student's as one crop of all images
    and the teacher's likewise, swapped.

    Args:
        student_logits: The student's logits of each crop.
        teacher_probs: The teacher's assignments of each crop, without gradient.
        student_temp: The student's temperature, above 0.

    Returns:
        The loss, a scalar.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021),
    equation 3; :func:`~torchgeo_explora.losses.prototypes.prototype_cross_entropy` is the
    same without the logits in memory.
    """
    # the cross entropy is linear in its target, so the teacher's crops can be added up first
    target = teacher_probs.sum(dim=0, keepdim=True)  # (1, images, prototypes)
    loss = soft_cross_entropy(student_logits, target.expand_as(student_logits), student_temp)
    return loss.mean(dim=1).sum()


class DINOLoss(nn.Module):
    """Module form of :func:`dino_loss`.

    Args:
        student_temp: The student's temperature, above 0.
    """

    def __init__(self, student_temp: float = 0.1) -> None:
        super().__init__()
        self.student_temp = student_temp

    def forward(
        self,
        student_logits: Float[Tensor, 'student_crops images prototypes'],
        teacher_probs: Float[Tensor, 'teacher_crops images prototypes'],
    ) -> Float[Tensor, '']:
        """Return the loss of the student's logits against the teacher's assignments."""
        return dino_loss(student_logits, teacher_probs, self.student_temp)
