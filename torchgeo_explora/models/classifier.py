"""A vision transformer with a linear classifier, on the mean patch token or the class token.

Spec section F.1: fine-tuning pools the mean of the patch tokens *before* the encoder's final norm,
which is not used then, through a new norm that starts as the identity; or takes the class token
after the final norm.
"""

import copy
from typing import Literal, final

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.tokens import embed_tokens, patch_tokens, run_blocks

Pooling = Literal['avg', 'token']
POOLINGS: tuple[Pooling, ...] = ('avg', 'token')
HEAD_STD = 2e-5
"""Spread of the head's initial weights: all classes start equally likely."""


@final
class Classifier(nn.Module):
    """A backbone and a linear classifier; takes normalised images.

    The backbone keeps its final norm under its own name although ``avg`` does not use it, so that
    the weights stay those of a whole backbone.

    Args:
        backbone: The vision transformer, plain, group-channel or temporal.
        num_classes: Number of outputs.
        pooling: ``avg`` or ``token``.
        generator: Draws the head's weights; the global one when not given.

    Raises:
        ConfigError: If ``pooling`` is unknown or impossible, or there is no class.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        pooling: Pooling = 'avg',
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check(backbone, num_classes, pooling)
        self.backbone = backbone
        self.pooling = pooling
        self.fc_norm = identity_norm(backbone) if pooling == 'avg' else nn.Identity()
        self.head = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.to(next(backbone.parameters()).device)

    def features(self, images: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Return what the head sees (b, width).

        Args:
            images: Normalised images (b, c, h, w), or (b, dates, c, h, w) of a temporal backbone.
            timestamps: Of the dates (b, dates, 3), for a temporal backbone.
        """
        vit = self.backbone
        tokens = run_blocks(vit, list(vit.blocks), embed_tokens(vit, images, timestamps=timestamps))
        if self.pooling == 'token':
            pooled: Tensor = vit.norm(tokens[:, 0])
        else:
            pooled = self.fc_norm(patch_tokens(vit, tokens).mean(dim=1))
        return pooled

    def forward(self, images: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Return logits (b, classes). Arguments as in :meth:`features`."""
        logits: Tensor = self.head(self.features(images, timestamps))
        return logits


def build_classifier(
    backbone: VisionTransformer,
    num_classes: int,
    pooling: Pooling = 'avg',
    generator: torch.Generator | None = None,
) -> Classifier:
    """Put a linear classifier on a vision transformer. Arguments as for :class:`Classifier`."""
    return Classifier(backbone, num_classes, pooling, generator)


def identity_norm(backbone: VisionTransformer) -> nn.Module:
    """Return a new norm of the kind of the backbone's final one, with weights 1 and biases 0."""
    if isinstance(backbone.norm, nn.Identity):
        return nn.LayerNorm(backbone.embed_dim, eps=1e-6)
    norm: nn.Module = copy.deepcopy(backbone.norm)
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            parameter.fill_(0.0 if name == 'bias' else 1.0)
    return norm


def _check(backbone: VisionTransformer, num_classes: int, pooling: str) -> None:
    if pooling not in POOLINGS:
        raise ConfigError(f'pooling is {pooling!r}: give {" or ".join(POOLINGS)}.')
    if pooling == 'token' and backbone.cls_token is None:
        raise ConfigError('pooling is token, but the model has no class token: use avg.')
    if num_classes < 1:
        raise ConfigError(f'num_classes is {num_classes}: a classifier needs at least one class.')
