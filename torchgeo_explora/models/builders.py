"""Functions that build the models in TorchGeo's form, with ``weights`` as their first argument."""

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torchvision.models._api import WeightsEnum

from torchgeo_explora.models._loading import create_backbone
from torchgeo_explora.models.registry import Entry
from torchgeo_explora.models.weights import (
    ViTBase8_GroupChannel_SatMAE_Weights,
    ViTBase14_DINOv2_ExPLoRA_Weights,
    ViTLarge8_GroupChannel_ExPLoRA_Weights,
    ViTLarge14_DINOv2_ExPLoRA_Weights,
    ViTLarge16_Temporal_SatMAE_Weights,
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


def explora_group_channel_vit_small(
    weights: WeightsEnum | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> VisionTransformer:
    """Build group-channel ViT-S/8 of SatMAE's kind.

    Args:
        weights: Weights to load; random ones when not given.
        **kwargs: Further arguments of :func:`create_backbone`.
    """
    return create_backbone('explora_group_channel_vit_small_patch8_96', weights, **kwargs)[0]


def explora_group_channel_vit_base(
    weights: WeightsEnum | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> VisionTransformer:
    """Build group-channel ViT-B/8 of SatMAE's kind.

    Arguments as in :func:`explora_group_channel_vit_small`.
    """
    return create_backbone('explora_group_channel_vit_base_patch8_96', weights, **kwargs)[0]


def explora_group_channel_vit_large(
    weights: WeightsEnum | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> VisionTransformer:
    """Build group-channel ViT-L/8 of SatMAE's kind.

    Arguments as in :func:`explora_group_channel_vit_small`.
    """
    return create_backbone('explora_group_channel_vit_large_patch8_96', weights, **kwargs)[0]


def explora_temporal_vit_small(
    weights: WeightsEnum | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> VisionTransformer:
    """Build temporal ViT-S/16 of SatMAE's kind.

    Args:
        weights: Weights to load; random ones when not given.
        **kwargs: Further arguments of :func:`create_backbone`.
    """
    return create_backbone('explora_temporal_vit_small_patch16_224', weights, **kwargs)[0]


def explora_temporal_vit_base(
    weights: WeightsEnum | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> VisionTransformer:
    """Build temporal ViT-B/16 of SatMAE's kind.

    Arguments as in :func:`explora_temporal_vit_small`.
    """
    return create_backbone('explora_temporal_vit_base_patch16_224', weights, **kwargs)[0]


def explora_temporal_vit_large(
    weights: WeightsEnum | None = None,
    **kwargs: Any,  # noqa: ANN401  # those of create_backbone
) -> VisionTransformer:
    """Build temporal ViT-L/16 of SatMAE's kind.

    Arguments as in :func:`explora_temporal_vit_small`.
    """
    return create_backbone('explora_temporal_vit_large_patch16_224', weights, **kwargs)[0]


ENTRIES = {
    'explora_vit_small_patch14_dinov2': Entry(explora_vit_small, ViTSmall14_DINOv2_Natural_Weights),
    'explora_vit_base_patch14_dinov2': Entry(explora_vit_base, ViTBase14_DINOv2_ExPLoRA_Weights),
    'explora_vit_large_patch14_dinov2': Entry(explora_vit_large, ViTLarge14_DINOv2_ExPLoRA_Weights),
    'explora_group_channel_vit_small_patch8_96': Entry(explora_group_channel_vit_small, None),
    'explora_group_channel_vit_base_patch8_96': Entry(
        explora_group_channel_vit_base, ViTBase8_GroupChannel_SatMAE_Weights
    ),
    'explora_group_channel_vit_large_patch8_96': Entry(
        explora_group_channel_vit_large, ViTLarge8_GroupChannel_ExPLoRA_Weights
    ),
    'explora_temporal_vit_small_patch16_224': Entry(explora_temporal_vit_small, None),
    'explora_temporal_vit_base_patch16_224': Entry(explora_temporal_vit_base, None),
    'explora_temporal_vit_large_patch16_224': Entry(
        explora_temporal_vit_large, ViTLarge16_Temporal_SatMAE_Weights
    ),
}
