"""Which tokens the losses of self-distillation look at, and how an encoder yields them."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.layers.tokens import (
    TokenSelection,
    encode,
    encode_selected,
    global_token,
    patch_grid,
    patch_tokens,
    select_tokens,
)


@dataclass(frozen=True)
class View:
    """Which tokens of a batch of crops the losses look at.

    Args:
        mask: Masked patches (crops, patches).
        selection: Class tokens and masked patches.
    """

    mask: Tensor
    selection: TokenSelection

    @classmethod
    def of(cls, vit: VisionTransformer, mask: Tensor, device: torch.device) -> 'View':
        """Look at class tokens and masked patches; best with the mask on the CPU."""
        selection = select_tokens(mask, max(vit.num_prefix_tokens, 1))
        return cls(mask.to(device), selection.to(device))

    @classmethod
    def plain(cls, vit: VisionTransformer, crops: Tensor) -> 'View':
        """No patch is masked: only class tokens are looked at."""
        mask = torch.zeros(len(crops), patch_grid(vit, crops).area, dtype=torch.bool)
        return cls.of(vit, mask, crops.device)

    def features(
        self, vit: VisionTransformer, crops: Tensor, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return class features (b, d) and features of the masked patches (masked, d).

        With a mask token the patches are masked in the input, without one they are not.
        """
        hidden = None if mask_token is None else self.mask
        if vit.cls_token is None:  # the mean patch stands for the image: all tokens are needed
            tokens = encode(vit, crops, hidden, mask_token)
            return global_token(vit, tokens), patch_tokens(vit, tokens)[self.mask]
        rows = encode_selected(vit, crops, self.selection, hidden, mask_token)
        return rows[self.selection.cls], rows[self.selection.patches]
