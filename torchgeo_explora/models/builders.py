"""Functions that build the models in TorchGeo's form, with ``weights`` as their first argument."""

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models._loading import create_backbone
from torchgeo_explora.models.registry import Entry
from torchgeo_explora.models.weights import (
    ViTBase14_DINOv2_ExPLoRA_Weights,
    ViTLarge14_DINOv2_ExPLoRA_Weights,
    ViTSmall14_DINOv2_Natural_Weights,
)


def explora_vit_small(
    weights: WeightsEnum | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> VisionTransformer:
    """Build ViT-S/14 of DINOv2.

    Args:
        weights: Weights to load; random ones when not given.
        **kwargs: Further arguments of :func:`create_backbone`.
    """
    return create_backbone('explora_vit_small_patch14_dinov2', weights, **kwargs)[0]


def explora_vit_base(
    weights: WeightsEnum | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> VisionTransformer:
    """Build ViT-B/14 of DINOv2. Arguments as in :func:`explora_vit_small`."""
    return create_backbone('explora_vit_base_patch14_dinov2', weights, **kwargs)[0]


def explora_vit_large(
    weights: WeightsEnum | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> VisionTransformer:
    """Build ViT-L/14 of DINOv2. Arguments as in :func:`explora_vit_small`."""
    return create_backbone('explora_vit_large_patch14_dinov2', weights, **kwargs)[0]


ENTRIES = {
    'explora_vit_small_patch14_dinov2': Entry(explora_vit_small, ViTSmall14_DINOv2_Natural_Weights),
    'explora_vit_base_patch14_dinov2': Entry(explora_vit_base, ViTBase14_DINOv2_ExPLoRA_Weights),
    'explora_vit_large_patch14_dinov2': Entry(explora_vit_large, ViTLarge14_DINOv2_ExPLoRA_Weights),
}
