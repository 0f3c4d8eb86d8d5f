"""The small vision transformer of ``replay``, known to timm under a name like any other model."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora.models.explora_vit import DINOv2VisionTransformer

__all__ = ['default_cfgs']

NAME, SIDE = 'explora_replay_vit_patch8_48', 48

default_cfgs = generate_default_cfgs(
    {
        NAME: {
            'num_classes': 0,
            'input_size': (3, 48, 48),
            'crop_pct': 1.0,
            'interpolation': 'bicubic',
            'fixed_input_size': True,
            'mean': (0.485, 0.456, 0.406),
            'std': (0.229, 0.224, 0.225),
            'first_conv': 'patch_embed.proj',
            'classifier': 'head',
        }
    }
)


@register_model
def explora_replay_vit_patch8_48(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> VisionTransformer:
    """ViT of width 96, 6 blocks and patch 8, for images of 48 pixels. It has no weights."""
    sizes = {'img_size': 48, 'patch_size': 8, 'embed_dim': 96, 'depth': 6, 'num_heads': 3}
    arguments = {'init_values': 1e-1, 'dynamic_img_size': True, **sizes, **kwargs}
    out_indices = arguments.pop('out_indices', 3)
    model: VisionTransformer = build_model_with_cfg(
        DINOv2VisionTransformer,
        NAME,
        pretrained,
        feature_cfg={'out_indices': out_indices, 'feature_cls': 'getter'},
        **arguments,
    )
    return model
