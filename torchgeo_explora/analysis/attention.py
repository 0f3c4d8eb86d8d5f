"""Where the class token looks: attention from it to the patches, head by head."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from torchgeo_explora.analysis.features import check_single_date
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.tokens import embed_tokens, patch_grid, run_blocks


def class_attention(
    model: VisionTransformer, images: Float[Tensor, 'b c h w'], block: int = -1
) -> Float[Tensor, 'b heads gh gw']:
    """Return the attention of the class token to every patch, for each head of a block.

    Softmax runs over all tokens, so the maps of a head sum to at most 1; the rest is attention to
    the class token itself and to registers. timm's fused attention does not give its weights away:
    they are computed here from the block's own queries and keys. Groups of a group-channel model
    are summed.

    Args:
        model: A timm vision transformer with a class token, with or without low-rank updates.
        images: Normalised images.
        block: 0-based, negative ones from the end; the last one by default.

    Raises:
        ConfigError: If there is no class token, no such block, or the block computes its attention
            in another way than timm's standard one.

    Source: the attention maps of ExPLoRA's figures; Caron et al. 2021 (DINO), section 4.2.2.
    """
    check_single_date(model)
    chosen = _standard_block(model, block)
    grid = patch_grid(model, images)
    before = list(model.blocks)[: block % len(model.blocks)]
    x = chosen.norm1(run_blocks(model, before, embed_tokens(model, images)))
    weights: Tensor = _first_row(chosen.get_submodule('attn'), x)[..., model.num_prefix_tokens :]
    groups: Tensor = weights.unflatten(2, (-1, grid.height, grid.width))  # (b, heads, g, gh, gw)
    return groups.sum(dim=2)


def has_class_attention(model: VisionTransformer) -> bool:
    """Whether :func:`class_attention` can be computed for the last block of a model."""
    try:
        _standard_block(model, -1)
    except ConfigError:
        return False
    return True


def _standard_block(model: VisionTransformer, index: int) -> Block:
    if model.cls_token is None:
        raise ConfigError(
            'The model has no class token, whose attention could be drawn: choose a model with one.'
        )
    if not -len(model.blocks) <= index < len(model.blocks):
        raise ConfigError(
            f'Block {index} was asked for and the model has {len(model.blocks)}: choose '
            f'{-len(model.blocks)} to {len(model.blocks) - 1}.'
        )
    block = model.blocks[index]
    if not isinstance(block, Block) or type(block.attn) is not Attention:
        kind = type(block.attn if isinstance(block, Block) else block).__name__
        raise ConfigError(
            f'Block {index} computes its attention with {kind}: maps can be drawn of '
            "timm's standard attention."
        )
    return block


def _first_row(attention: torch.nn.Module, x: Float[Tensor, 'b n d']) -> Tensor:
    """Attention weights of the first token (b, heads, n), as ``Attention.forward`` computes them."""
    assert isinstance(attention, Attention)
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))  # (b, n, 3, heads, d)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)  # 3 x (b, heads, n, d)
    q, k = attention.q_norm(q[:, :, :1]), attention.k_norm(k)
    scores: Tensor = (q * attention.scale) @ k.mT  # (b, heads, 1, n)
    return scores[:, :, 0].softmax(dim=-1)


def enlarge(
    maps: Float[Tensor, '*axes gh gw'], height: int, width: int
) -> Float[Tensor, '*axes h w']:
    """Resize maps to an image, bilinearly; values stay within those of their neighbours.

    Args:
        maps: One value a patch.
        height: Of the image.
        width: Of the image.
    """
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    out = F.interpolate(flat, (height, width), mode='bilinear', align_corners=False)
    return out.reshape(*maps.shape[:-2], height, width)
