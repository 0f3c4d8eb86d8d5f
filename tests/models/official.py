"""State dicts in the layout of facebookresearch/dinov2 and of the published ExPLoRA files."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.models import Conversion, create_backbone

TINY = {'embed_dim': 48, 'depth': 3, 'num_heads': 4}
NAME = 'vit_small_patch14_dinov2'


def tiny(
    size: int | tuple[int, int] = 56, name: str = NAME, **kwargs: float | str
) -> VisionTransformer:
    """A ViT/14 of width 48 and depth 3."""
    arguments: dict[str, Any] = {**TINY, **kwargs}
    return create_backbone(name, img_size=size, seed=1, **arguments)[0]


def shapes(width: int = 48, depth: int = 3, positions: int = 17) -> dict[str, list[int]]:
    """Key names and shapes of a DINOv2 ViT/14 with its mask token."""
    block = {
        'norm1.weight': [width], 'norm1.bias': [width],
        'attn.qkv.weight': [3 * width, width], 'attn.qkv.bias': [3 * width],
        'attn.proj.weight': [width, width], 'attn.proj.bias': [width],
        'ls1.gamma': [width], 'norm2.weight': [width], 'norm2.bias': [width],
        'mlp.fc1.weight': [4 * width, width], 'mlp.fc1.bias': [4 * width],
        'mlp.fc2.weight': [width, 4 * width], 'mlp.fc2.bias': [width], 'ls2.gamma': [width],
    }  # fmt: skip
    return {
        'cls_token': [1, 1, width],
        'pos_embed': [1, positions, width],
        'mask_token': [1, width],
        'patch_embed.proj.weight': [width, 3, 14, 14],
        'patch_embed.proj.bias': [width],
        **{f'blocks.{i}.{key}': shape for i in range(depth) for key, shape in block.items()},
        'norm.weight': [width],
        'norm.bias': [width],
    }


def tensors(layout: Mapping[str, list[int]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in layout.items()}


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors under longer keys."""
    return {f'{prefix}{key}': tensor for key, tensor in state.items()}


def separate(state: Mapping[str, Tensor], keep_fused: bool) -> dict[str, Tensor]:
    """Add q_proj, k_proj and v_proj to each block, as ExPLoRA's training does."""
    result = dict(state)
    for key, tensor in state.items():
        if '.attn.qkv.' in key:
            for name, part in zip('qkv', tensor.chunk(3), strict=True):
                result[key.replace('.qkv.', f'.{name}_proj.')] = part.clone()
            if not keep_fused:
                del result[key]
    return result


def published_encoder(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The layout of ``*_encoder_only.pth``: key ``model``, no mask token."""
    return {'model': {key: tensor for key, tensor in state.items() if key != 'mask_token'}}


def published_teacher(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The layout of the full file: key ``teacher``, q, k and v beside the fused, and the head."""
    head = {
        'dino_head.mlp.0.weight': torch.ones(8, 48),
        'dino_head.last_layer.weight_g': torch.ones(4, 1),
    }
    return {'teacher': {**prefixed(separate(state, keep_fused=True), 'backbone.'), **head}}


def assert_accounted(source: Iterable[str], found: Conversion, model: VisionTransformer) -> None:
    """Every key of the source is taken, renamed or dropped; every key of the model is there."""
    source = set(source)
    ends = {*found.state, *({'mask_token'} - set(found.added))}
    taken = {key for key in source & ends if key not in {*found.renamed, *found.dropped}}
    lists = [taken, set(found.renamed), set(found.dropped)]
    assert set.union(*lists) == source
    assert sum(map(len, lists)) == len(source), 'a key is in two lists'
    reached = taken | set(found.renamed.values()) | set(found.added)
    assert reached | {'mask_token'} == set(model.state_dict()) | {'mask_token'}
    assert set(found.state) <= set(model.state_dict())
