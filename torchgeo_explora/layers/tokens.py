"""Run any timm ``VisionTransformer`` token by token, at any image size, the way DINOv2 does.

The functions use the model's own modules and change nothing in it. Position embeddings are
resampled as DINOv2 does it, patches can be replaced by a mask token, and the last block can
be evaluated only at the tokens whose output is used.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ImageError
from torchgeo_explora.layers.embedder import TokenEmbedder, embed_patches
from torchgeo_explora.layers.lora import LoRALinear, linear_rows
from torchgeo_explora.layers.pos_embed import resample_pos_embed

# Up to this many tokens plain matrix products beat the fused kernel on a CPU in bf16: 1.4 to 4.5
# times at 5 to 50 tokens, even at 257 (tests/benchmarks/attention.py; EPYC, torch 2.15, 1 thread)
SHORT_SEQUENCE = 128


@dataclass(frozen=True)
class TokenSelection:
    """Tokens of each image at which the last block is evaluated: the class token and the masked.

    Args:
        index: Token positions (batch, slots), the class token first; unused slots hold 0.
        rows: Positions of the used slots in ``index.flatten()`` (selected,).
        cls: Positions of the class tokens among the selected (batch,).
        patches: Positions of the masked patches among the selected (masked,), image by image.
    """

    index: Int[Tensor, 'batch slots']
    rows: Int[Tensor, ' selected']
    cls: Int[Tensor, ' batch']
    patches: Int[Tensor, ' masked']

    def to(self, device: torch.device) -> 'TokenSelection':
        """Return the same selection on another device."""
        parts = (self.index, self.rows, self.cls, self.patches)
        return TokenSelection(*(part.to(device, non_blocking=True) for part in parts))


def select_tokens(mask: Bool[Tensor, 'batch patches'], num_prefix: int) -> TokenSelection:
    """Select the class token and the masked patches of every image.

    Args:
        mask: True at the masked patches.
        num_prefix: Number of class and register tokens before the patches; at least 1.
    """
    counts = mask.sum(dim=1)  # (batch,)
    slots = 1 + (int(counts.max()) if len(counts) else 0)
    # a stable sort puts the masked patches first, in row-major order
    order = torch.sort(mask.logical_not().to(torch.uint8), dim=1, stable=True).indices
    index = F.pad(order[:, : slots - 1] + num_prefix, (1, 0))  # (batch, slots)
    used = torch.arange(slots, device=mask.device) <= counts[:, None]
    index = index.masked_fill(used.logical_not(), 0)
    rows = used.flatten().nonzero()[:, 0]
    is_class = rows % slots == 0
    cls, patches = is_class.nonzero()[:, 0], is_class.logical_not().nonzero()[:, 0]
    return TokenSelection(index, rows, cls, patches)


def patch_grid(vit: VisionTransformer, images: Float[Tensor, 'b *axes h w']) -> GridSize:
    """Return the patch grid of a batch of images; of one group of bands, of one date.

    Raises:
        ImageError: If the images do not have the model's bands or do not divide into patches.
    """
    if isinstance(vit, TokenEmbedder):
        return vit.token_grid(images)
    check_bands(images.shape, vit.patch_embed.proj.in_channels)
    return divide(images.shape, vit.patch_embed.patch_size)


def check_bands(shape: Sequence[int], bands: int) -> None:
    """Check the number of bands of images (..., bands, height, width).

    Raises:
        ImageError: If it is not the model's.
    """
    if shape[-3] != bands:
        raise ImageError(
            f'The images have {shape[-3]} bands, the model takes {bands}: '
            'select bands, or build the model with in_chans set to the number of bands.'
        )


def divide(shape: Sequence[int], patch: tuple[int, int]) -> GridSize:
    """Divide images (..., height, width) into patches.

    Raises:
        ImageError: If a part would be left over.
    """
    (height, width), (h, w) = shape[-2:], patch
    if height % h or width % w or 0 in (height, width):
        raise ImageError(
            f'Images of {height} x {width} pixels do not divide into patches of '
            f'{h} x {w}: choose an image size that is a multiple of the patch size.'
        )
    return GridSize(height // h, width // w)


def token_count(vit: VisionTransformer, images: Float[Tensor, 'b *axes h w']) -> int:
    """Return the number of tokens of each image besides class and register tokens.

    Patches; for group-channel models patches x groups (group by group), for temporal models
    patches x dates (date by date).

    Raises:
        ImageError: If the model cannot take the images.
    """
    copies = vit.token_copies(images) if isinstance(vit, TokenEmbedder) else 1
    return patch_grid(vit, images).area * copies


def native_grid(vit: VisionTransformer) -> GridSize | None:
    """Return the grid that a model's position embeddings are stored for."""
    grid = vit.patch_embed.grid_size
    return None if grid is None else GridSize(*grid)


def _plain_positions(vit: VisionTransformer, grid: GridSize) -> tuple[Tensor | None, Tensor | None]:
    """Positions of the prefix tokens and of the patches, where the model has them."""
    if vit.pos_embed is None:
        return None, None
    count = 0 if vit.no_embed_class else vit.num_prefix_tokens
    table = resample_pos_embed(vit.pos_embed, grid, count, native_grid(vit))
    return (table[:, :count] if count > 0 else None), table[:, count:]


def _join(
    vit: VisionTransformer, patches: Float[Tensor, 'b n dim'], position: Tensor | None
) -> Float[Tensor, 'b tokens dim']:
    """Put class and register tokens, with their position, before the patches."""
    prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    x = patches
    if prefix:
        first = torch.cat(tuple(prefix), dim=1)
        first = first if position is None else first + position
        x = torch.cat([first.expand(x.shape[0], -1, -1), x], dim=1)
    out: Tensor = vit.norm_pre(vit.pos_drop(x))
    return out


def embed_tokens(
    vit: VisionTransformer,
    images: Float[Tensor, 'b *axes h w'],
    mask: Bool[Tensor, 'b patches'] | None = None,
    mask_token: Float[Tensor, '1 dim'] | None = None,
    timestamps: Float[Tensor, 'b dates 3'] | None = None,
) -> Float[Tensor, 'b tokens dim']:
    """Embed images: patches, mask token, class and register tokens, positions.

    Args:
        vit: The model.
        images: Normalised images; with dates (b, dates, c, h, w) for a temporal model.
        mask: True where a patch is replaced by ``mask_token`` before positions are added.
        mask_token: The replacement; needed with ``mask``.
        timestamps: (year - 2002, month - 1, hour) of every date, for a temporal model.

    Returns:
        Prefix tokens (class, registers) followed by the patches in row-major order; group by
        group or date by date where the model has several tokens a patch.
    """
    grid = patch_grid(vit, images)
    if isinstance(vit, TokenEmbedder):
        x = vit.embed_all(images)
        index = torch.arange(x.shape[1], device=x.device)[None]
        prefix: Tensor | None = vit.class_position()
        position: Tensor | None = vit.token_positions(grid, index, timestamps)
    else:
        x = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)  # (b, d, h, w) -> (b, h*w, d)
        x = vit.patch_embed.norm(x)
        prefix, position = _plain_positions(vit, grid)
    if mask is not None:
        assert mask_token is not None, 'a mask needs a mask token'
        x = torch.where(mask[..., None], mask_token.to(x.dtype), x)
    return _join(vit, x if position is None else x + position, prefix)


def embed_visible(
    vit: VisionTransformer,
    images: Float[Tensor, 'b *axes h w'],
    keep: Int[Tensor, 'b kept'],
    timestamps: Float[Tensor, 'b dates 3'] | None = None,
) -> Float[Tensor, 'b tokens dim']:
    """Embed some patches only. Arguments as in :func:`encode_visible`."""
    grid = patch_grid(vit, images)
    if isinstance(vit, TokenEmbedder):
        x = vit.embed_kept(images, keep)
        return _join(vit, x + vit.token_positions(grid, keep, timestamps), None)
    rows = torch.arange(len(keep), device=keep.device).repeat_interleave(keep.shape[1])
    x = embed_patches(vit.patch_embed.proj, images, rows, keep.flatten(), len(keep))
    x = vit.patch_embed.norm(x.unflatten(0, keep.shape))  # (b*kept, d) -> (b, kept, d)
    prefix, position = _plain_positions(vit, grid)
    return _join(vit, x if position is None else x + F.embedding(keep, position[0]), prefix)


def run_blocks(vit: VisionTransformer, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run blocks of a model, with gradient checkpointing where it is switched on."""
    for block in blocks:
        if vit.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = block(x)
    return x


def encode(
    vit: VisionTransformer,
    images: Float[Tensor, 'b *axes h w'],
    mask: Bool[Tensor, 'b patches'] | None = None,
    mask_token: Float[Tensor, '1 dim'] | None = None,
    timestamps: Float[Tensor, 'b dates 3'] | None = None,
) -> Float[Tensor, 'b tokens dim']:
    """Return all tokens after the final norm. Arguments as in :func:`embed_tokens`."""
    x = embed_tokens(vit, images, mask, mask_token, timestamps)
    out: Tensor = vit.norm(run_blocks(vit, list(vit.blocks), x))
    return out


def encode_visible(
    vit: VisionTransformer,
    images: Float[Tensor, 'b *axes h w'],
    keep: Int[Tensor, 'b kept'],
    timestamps: Float[Tensor, 'b dates 3'] | None = None,
) -> Float[Tensor, 'b tokens dim']:
    """Return the tokens of some patches, encoded without the others (He et al. 2022, section 3).

    Only the patches kept are read and embedded. As in MAE the class token of a plain model has
    its position; as in SatMAE that of a group-channel or temporal model has none.

    Args:
        vit: The model.
        images: Normalised images, as in :func:`embed_tokens`.
        keep: Numbers of the tokens kept, from 0 to :func:`token_count` - 1, in any order.
        timestamps: (year - 2002, month - 1, hour) of every date, for a temporal model.

    Returns:
        Prefix tokens, then the tokens kept in the order of ``keep``, after the final norm.
    """
    x = embed_visible(vit, images, keep, timestamps)
    out: Tensor = vit.norm(run_blocks(vit, list(vit.blocks), x))
    return out


def encode_selected(
    vit: VisionTransformer,
    images: Float[Tensor, 'b c h w'],
    selection: TokenSelection,
    mask: Bool[Tensor, 'b patches'] | None = None,
    mask_token: Float[Tensor, '1 dim'] | None = None,
) -> Float[Tensor, 'selected dim']:
    """Return only selected tokens after the final norm, with no more work than they need.

    Equal to gathering from :func:`encode`; the last block computes keys and values for all
    tokens but queries, projection and MLP only for the selected ones.
    """
    x = run_blocks(vit, list(vit.blocks)[:-1], embed_tokens(vit, images, mask, mask_token))
    out: Tensor = vit.norm(block_rows(vit.blocks[-1], x, selection))
    return out


def block_rows(
    block: nn.Module, x: Float[Tensor, 'b tokens dim'], selection: TokenSelection
) -> Float[Tensor, 'selected dim']:
    """Evaluate a pre-norm block at selected tokens only.

    A block that is not timm's standard one is evaluated in full and gathered from.
    """
    if not _prunable(block) or _dropping(block.get_submodule('drop_path2')):
        rows: Tensor = block_slots(block, x, selection.index)
        return rows.flatten(0, 1)[selection.rows]
    assert isinstance(block, Block)
    rows = _attend_slots(block, x, selection.index).flatten(0, 1)[selection.rows]
    out: Tensor = rows + block.ls2(block.mlp(block.norm2(rows)))  # (selected, d)
    return out


def block_slots(
    block: nn.Module, x: Float[Tensor, 'b tokens dim'], index: Int[Tensor, 'b slots']
) -> Float[Tensor, 'b slots dim']:
    """Evaluate a pre-norm block at as many tokens of every image.

    A block that is not timm's standard one is evaluated in full and gathered from.

    Args:
        block: The block.
        x: All tokens: keys and values are of all of them.
        index: Positions of the tokens wanted.
    """
    if not _prunable(block):
        full: Tensor = block(x)
        return full.gather(1, index[..., None].expand(-1, -1, full.shape[-1]))
    assert isinstance(block, Block)
    rows = _attend_slots(block, x, index)
    out: Tensor = rows + block.drop_path2(block.ls2(block.mlp(block.norm2(rows))))
    return out


def _attend_slots(block: Block, x: Tensor, index: Tensor) -> Float[Tensor, 'b slots dim']:
    """Do the first half of timm's ``Block.forward`` at some tokens."""
    assert isinstance(block.attn, Attention)
    gather = index[..., None].expand(-1, -1, x.shape[-1])  # (b, slots, d)
    y = block.norm1(x)
    rows = _attend(block.attn, y, y.gather(1, gather))
    out: Tensor = x.gather(1, gather) + block.drop_path1(block.ls1(rows))
    return out


def _dropping(path: nn.Module) -> bool:
    return path.training and not isinstance(path, nn.Identity)


def _prunable(block: nn.Module) -> bool:
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    return block.attn.gate is None and isinstance(block.attn.qkv, nn.Linear | LoRALinear)


def _attend(
    attn: Attention, y: Float[Tensor, 'b tokens dim'], queries: Float[Tensor, 'b slots dim']
) -> Float[Tensor, 'b slots dim']:
    """Do what timm's ``Attention.forward`` does, with queries of some tokens only."""
    width, heads = attn.attn_dim, attn.num_heads
    q = linear_rows(attn.qkv, queries, 0, width).unflatten(-1, (heads, -1)).transpose(1, 2)
    kv = linear_rows(attn.qkv, y, width, 3 * width).unflatten(-1, (2, heads, -1))
    k, v = kv.permute(2, 0, 3, 1, 4)  # (b, tokens, 2, heads, d) -> 2 x (b, heads, tokens, d)
    drop = attn.attn_drop.p if attn.training else 0.0
    q, k = attn.q_norm(q), attn.k_norm(k)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
    out = attn.norm(out.transpose(1, 2).flatten(2))  # (b, heads, slots, d) -> (b, slots, d)
    result: Tensor = attn.proj_drop(attn.proj(out))
    return result


def intermediate_tokens(
    vit: VisionTransformer,
    images: Float[Tensor, 'b *axes h w'],
    blocks: Sequence[int],
    norm: bool = True,
    timestamps: Float[Tensor, 'b dates 3'] | None = None,
) -> list[Float[Tensor, 'b tokens dim']]:
    """Return the tokens after each of some blocks.

    Args:
        vit: The model.
        images: Normalised images.
        blocks: 0-based block indices, negative ones from the end.
        norm: Whether the model's final norm is applied to each output, as DINOv2 does.
        timestamps: As in :func:`embed_tokens`.
    """
    wanted = [index % len(vit.blocks) for index in blocks]
    outputs: dict[int, Tensor] = {}
    x = embed_tokens(vit, images, timestamps=timestamps)
    for index, block in enumerate(vit.blocks):
        x = run_blocks(vit, [block], x)
        if index in wanted:
            outputs[index] = vit.norm(x) if norm else x
    return [outputs[index] for index in wanted]


def patch_tokens(
    vit: VisionTransformer, tokens: Float[Tensor, 'b tokens dim']
) -> Float[Tensor, 'b patches dim']:
    """Return the patch tokens without class and register tokens."""
    return tokens[:, vit.num_prefix_tokens :]


def global_token(
    vit: VisionTransformer, tokens: Float[Tensor, 'b tokens dim']
) -> Float[Tensor, 'b dim']:
    """Return one vector an image: the class token, or the mean patch where there is none."""
    if vit.cls_token is None:
        return patch_tokens(vit, tokens).mean(dim=1)
    return tokens[:, 0]


def fast_attention(device: torch.device, tokens: int) -> AbstractContextManager[object]:
    """Choose the faster attention for short sequences in bf16 on a CPU; elsewhere torch's own.

    Args:
        device: Where the model runs.
        tokens: Length of the longest sequence.
    """
    if device.type == 'cpu' and torch.is_autocast_enabled('cpu') and tokens <= SHORT_SEQUENCE:
        context: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH)
        return context
    return nullcontext()
