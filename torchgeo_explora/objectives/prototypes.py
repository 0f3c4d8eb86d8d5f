"""Start the heads' prototypes at features of the new domain instead of at random.

DINOv2's heads were never released, so continued pre-training starts with random ones. Their
targets are noise for thousands of steps, and on a few thousand images the encoder is damaged
before they mean anything. Prototypes that are bottleneck features of real crops, taken relative to
their mean, are meaningful from the first step. The official code does not do this; the presets
``paper`` and ``workshop`` leave it off.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from torchgeo_explora.layers.heads import DINOHead
from torchgeo_explora.layers.tokens import encode, fast_attention, global_token, patch_grid
from torchgeo_explora.objectives.dinov2 import DINOv2Objective
from torchgeo_explora.objectives.steps import step_seed
from torchgeo_explora.transforms.multicrop import MultiCrop


@torch.no_grad()
def prototypes_from_images(
    objective: DINOv2Objective,
    multicrop: MultiCrop,
    batches: Iterable[Float[Tensor, 'b c h w']],
    seed: int,
) -> int:
    """Set the directions of both networks' DINO prototypes to features of global crops.

    With a head of its own, iBOT keeps random prototypes. Prototypes beyond the number of crops
    stay random too. Every process ends up with the prototypes of the first.

    Args:
        objective: Student, teacher and heads; changed in place.
        multicrop: Augmentation; two global crops of each image are used.
        batches: Images in [0, 1]; no more are taken than there are prototypes.
        seed: Source of the crops.

    Returns:
        How many prototypes were set.
    """
    head = objective.teacher_heads['dino']
    assert isinstance(head, DINOHead)
    count = len(head.last_layer.weight_v)
    rows: list[Tensor] = []
    for index, images in enumerate(batches):
        crops = multicrop(images, step_seed(seed, -1 - index)).global_
        grid = patch_grid(objective.teacher, crops)
        with fast_attention(crops.device, grid.area):
            tokens = encode(objective.teacher, crops)
        rows.append(head.bottleneck(global_token(objective.teacher, tokens)).float())
        if sum(map(len, rows)) >= count:
            break
    found = _directions(torch.cat(rows)[:count])
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(found, src=0)
    for heads in (objective.student_heads, objective.teacher_heads):
        layer = heads['dino'].get_submodule('last_layer')
        layer.get_parameter('weight_v')[: len(found)].copy_(found)
    return len(found)


def _directions(rows: Float[Tensor, 'n bottleneck']) -> Float[Tensor, 'n bottleneck']:
    """Bottleneck features share a large mean; what tells images apart is the rest."""
    return F.normalize(rows - rows.mean(dim=0, keepdim=True), dim=1).contiguous()
