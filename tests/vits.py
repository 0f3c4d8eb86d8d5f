"""Small vision transformers with every feature that timm's models have, for table tests."""

from functools import partial
from typing import Any

import torch
from timm.layers.mlp import SwiGLU, SwiGLUPacked
from timm.layers.norm import RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

RMS = partial(RmsNorm, eps=1e-6)
VARIANTS: dict[str, dict[str, Any]] = {
    'patch16': {},
    'patch14_layerscale': {'patch_size': 14, 'img_size': 56, 'init_values': 1e-5},
    'patch8': {'patch_size': 8, 'img_size': 32},
    'not_square': {'img_size': (32, 64)},
    'fixed_size': {'dynamic_img_size': False},
    'registers': {'reg_tokens': 3, 'init_values': 0.1},
    'registers_without_positions': {'reg_tokens': 3, 'no_embed_class': True},
    'no_class_token': {'class_token': False, 'global_pool': 'avg', 'fc_norm': False},
    'no_class_but_registers': {
        'class_token': False, 'reg_tokens': 2, 'global_pool': 'avg', 'fc_norm': False,
    },
    'no_positions': {'pos_embed': 'none'},
    'mean_pooled': {'global_pool': 'avg', 'num_classes': 5},
    'swiglu_packed': {'mlp_layer': SwiGLUPacked, 'mlp_ratio': 2.5},
    'swiglu': {'mlp_layer': SwiGLU, 'norm_layer': RMS},
    'qk_norm': {'qk_norm': True, 'qkv_bias': False},
    'inner_norms': {'scale_attn_norm': True, 'scale_mlp_norm': True},
    'norm_before': {'pre_norm': True},
    'embedding_norm': {'embed_norm_layer': nn.LayerNorm},
    'no_biases': {'qkv_bias': False, 'proj_bias': False},
}  # fmt: skip


def make_vit(name: str = 'patch16', seed: int = 0, **arguments: Any) -> VisionTransformer:  # noqa: ANN401
    """Build a variant with random values in every parameter, so that each of them matters."""
    options: dict[str, Any] = {
        'img_size': 64, 'patch_size': 16, 'embed_dim': 24, 'depth': 3, 'num_heads': 3,
        'num_classes': 0, 'dynamic_img_size': True,
    } | VARIANTS[name] | arguments  # fmt: skip
    vit = VisionTransformer(**options).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0  # norms and scales are near 1
            parameter.normal_(offset, 0.2, generator=generator)
    return vit


def images_for(vit: VisionTransformer, batch: int = 2, seed: int = 1) -> Tensor:
    """Random images of a model's native size."""
    height, width = vit.patch_embed.img_size
    shape = (batch, vit.patch_embed.proj.in_channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shake_factors(vit: nn.Module, seed: int = 2, scale: float = 0.3) -> None:
    """Give random values to every low-rank factor and to everything else that trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
