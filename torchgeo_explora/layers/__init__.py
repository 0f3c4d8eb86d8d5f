"""Building blocks: low-rank layers, tokens, position embeddings, heads and masks."""

from torchgeo_explora.layers.drop_path import (
    DropPathBlock,
    add_branch,
    apply_drop_path,
    draw_kept,
    drop_path_rates,
    seed_drop_path,
)
from torchgeo_explora.layers.embedder import TokenEmbedder
from torchgeo_explora.layers.heads import DINOHead
from torchgeo_explora.layers.lora import LoRALinear, Segment
from torchgeo_explora.layers.masking import MaskSpec, block_masks
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.layers.sincos import encode_times, sincos, sincos_grid, sincos_index
from torchgeo_explora.layers.token_masks import (
    TokenMask,
    draw_noise,
    mask_from_noise,
    mask_from_shared_noise,
)
from torchgeo_explora.layers.tokens import (
    TokenSelection,
    embed_tokens,
    encode,
    encode_selected,
    encode_visible,
    global_token,
    intermediate_tokens,
    patch_grid,
    patch_tokens,
    select_tokens,
    token_count,
)

__all__ = [
    'DINOHead',
    'DropPathBlock',
    'LoRALinear',
    'MaskSpec',
    'Segment',
    'TokenEmbedder',
    'TokenMask',
    'TokenSelection',
    'add_branch',
    'apply_drop_path',
    'block_masks',
    'draw_kept',
    'draw_noise',
    'drop_path_rates',
    'embed_tokens',
    'encode',
    'encode_selected',
    'encode_times',
    'encode_visible',
    'global_token',
    'intermediate_tokens',
    'mask_from_noise',
    'mask_from_shared_noise',
    'patch_grid',
    'patch_tokens',
    'resample_pos_embed',
    'seed_drop_path',
    'select_tokens',
    'sincos',
    'sincos_grid',
    'sincos_index',
    'token_count',
]
