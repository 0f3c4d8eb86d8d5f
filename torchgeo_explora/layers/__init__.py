"""Building blocks: low-rank layers, tokens, position embeddings, heads and masks."""

from torchgeo_explora.layers.heads import DINOHead
from torchgeo_explora.layers.lora import LoRALinear, Segment
from torchgeo_explora.layers.masking import MaskSpec, block_masks
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.layers.tokens import (
    TokenSelection,
    embed_tokens,
    encode,
    encode_selected,
    global_token,
    intermediate_tokens,
    patch_grid,
    patch_tokens,
    select_tokens,
)

__all__ = [
    'DINOHead',
    'LoRALinear',
    'MaskSpec',
    'Segment',
    'TokenSelection',
    'block_masks',
    'embed_tokens',
    'encode',
    'encode_selected',
    'global_token',
    'intermediate_tokens',
    'patch_grid',
    'patch_tokens',
    'resample_pos_embed',
    'select_tokens',
]
