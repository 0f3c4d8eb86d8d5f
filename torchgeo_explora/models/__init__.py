"""Vision transformers, their weights, and strict loading.

Importing this sub-package registers the models with timm and, where it is installed, TorchGeo.
"""

from torchgeo_explora.models._decoder_loading import DecoderReport, load_decoder
from torchgeo_explora.models._describe import describe_file, describe_peft
from torchgeo_explora.models._loading import (
    Checkpoint,
    Conversion,
    LoadReport,
    convert_state_dict,
    create_backbone,
    load_backbone,
    read_checkpoint,
    read_metadata,
    save_backbone,
)
from torchgeo_explora.models.builders import (
    ENTRIES as _ENTRIES,
)
from torchgeo_explora.models.builders import (
    explora_group_channel_vit_base,
    explora_group_channel_vit_large,
    explora_group_channel_vit_small,
    explora_temporal_vit_base,
    explora_temporal_vit_large,
    explora_temporal_vit_small,
    explora_vit_base,
    explora_vit_large,
    explora_vit_small,
)
from torchgeo_explora.models.classifier import Classifier, build_classifier
from torchgeo_explora.models.explora_vit import DINOv2VisionTransformer
from torchgeo_explora.models.feature_reference import (
    FeatureOrigin,
    FeatureReference,
    backbone_fingerprint,
    fit_feature_reference,
    pooled_features,
)
from torchgeo_explora.models.finetuned import load_finetuned, save_finetuned
from torchgeo_explora.models.fitted import FittedModel, load_model, save_model
from torchgeo_explora.models.group_channel_vit import GroupChannelViT
from torchgeo_explora.models.groups import SATMAE_BANDS, SENTINEL2_GROUPS, resolve_groups
from torchgeo_explora.models.input_spec import InputSpec, read_input
from torchgeo_explora.models.mae_decoder import (
    DecoderSizes,
    GroupChannelMAEDecoder,
    MAEDecoder,
    TemporalMAEDecoder,
    TokenDecoder,
    build_decoder,
)
from torchgeo_explora.models.registry import find_weights, register_with_torchgeo
from torchgeo_explora.models.spec import ModelSpec
from torchgeo_explora.models.temporal_vit import TemporalViT
from torchgeo_explora.models.weights import (
    ViTBase8_GroupChannel_SatMAE_Weights,
    ViTBase14_DINOv2_ExPLoRA_Weights,
    ViTBase14_DINOv2_Natural_Weights,
    ViTBase16_MAE_Natural_Weights,
    ViTLarge8_GroupChannel_ExPLoRA_Weights,
    ViTLarge8_GroupChannel_SatMAE_Weights,
    ViTLarge14_DINOv2_ExPLoRA_Weights,
    ViTLarge14_DINOv2_Natural_Weights,
    ViTLarge16_MAE_Natural_Weights,
    ViTLarge16_Temporal_SatMAE_Weights,
    ViTSmall14_DINOv2_Natural_Weights,
)

__all__ = [
    'SATMAE_BANDS',
    'SENTINEL2_GROUPS',
    'Checkpoint',
    'Classifier',
    'Conversion',
    'DINOv2VisionTransformer',
    'DecoderReport',
    'DecoderSizes',
    'FeatureOrigin',
    'FeatureReference',
    'FittedModel',
    'GroupChannelMAEDecoder',
    'GroupChannelViT',
    'InputSpec',
    'LoadReport',
    'MAEDecoder',
    'ModelSpec',
    'TemporalMAEDecoder',
    'TemporalViT',
    'TokenDecoder',
    'ViTBase8_GroupChannel_SatMAE_Weights',
    'ViTBase14_DINOv2_ExPLoRA_Weights',
    'ViTBase14_DINOv2_Natural_Weights',
    'ViTBase16_MAE_Natural_Weights',
    'ViTLarge8_GroupChannel_ExPLoRA_Weights',
    'ViTLarge8_GroupChannel_SatMAE_Weights',
    'ViTLarge14_DINOv2_ExPLoRA_Weights',
    'ViTLarge14_DINOv2_Natural_Weights',
    'ViTLarge16_MAE_Natural_Weights',
    'ViTLarge16_Temporal_SatMAE_Weights',
    'ViTSmall14_DINOv2_Natural_Weights',
    'backbone_fingerprint',
    'build_classifier',
    'build_decoder',
    'convert_state_dict',
    'create_backbone',
    'describe_file',
    'describe_peft',
    'explora_group_channel_vit_base',
    'explora_group_channel_vit_large',
    'explora_group_channel_vit_small',
    'explora_temporal_vit_base',
    'explora_temporal_vit_large',
    'explora_temporal_vit_small',
    'explora_vit_base',
    'explora_vit_large',
    'explora_vit_small',
    'find_weights',
    'fit_feature_reference',
    'load_backbone',
    'load_decoder',
    'load_finetuned',
    'load_model',
    'pooled_features',
    'read_checkpoint',
    'read_input',
    'read_metadata',
    'register_with_torchgeo',
    'resolve_groups',
    'save_backbone',
    'save_finetuned',
    'save_model',
]

register_with_torchgeo(_ENTRIES)
