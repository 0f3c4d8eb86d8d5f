"""Quarter turns: an image from above has no top."""

import torch
from jaxtyping import Float
from torch import Tensor


def quarter_turns(images: Float[Tensor, 'B ... S S'], seed: int) -> Float[Tensor, 'B ... S S']:
    """Turn every image by 0, 90, 180 or 270 degrees, each as likely; all bands and dates alike.

    Args:
        images: Square images.
        seed: Seed of the draw; the global random state is left alone.
    """
    drawn = torch.randint(4, (len(images),), generator=torch.Generator().manual_seed(seed))
    turned = images.clone()
    for count in (1, 2, 3):
        rows = (drawn == count).nonzero()[:, 0].to(images.device)
        turned[rows] = torch.rot90(images[rows], count, (-2, -1))
    return turned
