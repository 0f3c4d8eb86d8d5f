"""Turn the state dict of another code base into the one a timm vision transformer loads.

Every key of the source ends up in exactly one list: taken as it is, renamed, or dropped. Every
key of the model comes from the source or is listed as added. Nothing is passed over silently.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models import adapt_input_conv
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.models._architecture import (
    ANCHOR,
    Architecture,
    architecture_of,
    architecture_of_tensors,
    find_root,
)
from torchgeo_explora.models._checkpoint import flatten_tensors
from torchgeo_explora.models._draft import Draft, fuse_qkv, refuse_unmerged
from torchgeo_explora.models._start import start_anew
from torchgeo_explora.models._token_vit import TokenViT

MASK_TOKEN = 'mask_token'
_HEAD = 'head.'
_DECODER = 'decoder_embed.weight'
# Keys that belong to the encoder: one that the model lacks means another architecture.
_ENCODER = re.compile(
    r'(blocks|patch_embed|norm|norm_pre|fc_norm|attn_pool)\.|(cls|reg|dist)_token$|pos_embed$'
)
# Names of facebookresearch/dinov2 -> names of timm
_LAYOUT = (
    (re.compile(r'^blocks\.\d+\.(\d+)\.'), r'blocks.\1.'),  # FSDP block chunks
    (re.compile(r'\.mlp\.w12\.'), '.mlp.fc1.'),  # SwiGLU
    (re.compile(r'\.mlp\.w3\.'), '.mlp.fc2.'),
    (re.compile(r'^register_tokens$'), 'reg_token'),
)


@dataclass(frozen=True, eq=False)
class Conversion:
    """A state dict that fits a model, and what was done to get it.

    Args:
        state: Tensors under the model's keys; a classifier head is never among them.
        renamed: Key of the source -> key of the model, where they differ.
        dropped: Keys of the source that nothing was taken from.
        added: Keys of the model (and ``mask_token``) that the source does not have.
        changed: Key of the model -> what was done to its values.
        mask_token: The token (1, width) that replaces masked patches; zeros if it was added.
        reasons: Key -> why it was added or dropped, where its name alone does not tell.
    """

    state: dict[str, Tensor]
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    added: tuple[str, ...]
    changed: dict[str, str]
    mask_token: Tensor
    reasons: dict[str, str] = field(default_factory=dict)


def convert_state_dict(
    tensors: Mapping[str, Any],
    model: VisionTransformer,
    *,
    source: str = 'The state dict',
    source_grid: GridSize | None = None,
    source_groups: Sequence[Sequence[int]] | None = None,
    adapt_bands: bool = True,
) -> Conversion:
    """Convert a state dict to the keys and shapes of a timm vision transformer.

    Wrappers (``teacher``, ``student``, ``model``, ``state_dict``, ``module.``, ``backbone.``) are
    removed, the teacher being preferred; DINOv2's names become timm's; separate q, k and v are
    fused where no fused ``qkv`` exists, and dropped where one does; position embeddings are
    resampled as DINOv2 does it (bicubic, offset 0.1, no antialiasing); the mask token is kept
    apart, zeros where there is none; heads and decoders are dropped. A patch embedding of three
    bands is adapted to another number as timm does it: the bands are repeated in order and
    scaled by 3 / bands, or summed for a single band.

    A model with groups or dates starts from any of these whose blocks fit: patch embeddings,
    positions and encodings that do not are dropped, and the model keeps its own, with the reason.

    Args:
        tensors: The source, nested or flat, with or without wrappers.
        model: The model to fit; it is not changed.
        source: Name for messages.
        source_grid: Grid of the source's position embeddings; square when not given.
        source_groups: 0-based bands of the source's groups; those of the model when not given.
        adapt_bands: Whether a patch embedding of three bands is adapted to the model's bands.

    Raises:
        WeightsError: If the source is of another architecture or lacks a tensor.
    """
    flat = flatten_tensors(tensors)
    draft = Draft.under(flat, find_root(flat, source))
    _rename_layout(draft)
    refuse_unmerged(draft, source)
    fuse_qkv(draft)
    found, wanted = architecture_of_tensors(draft.tensors), architecture_of(model)
    several = isinstance(model, TokenViT)
    if not (found.can_start(wanted) if several else found.fits(wanted)):
        raise _mismatch(source, found, wanted)
    if isinstance(model, TokenViT):
        start_anew(draft, model, source_groups)
    _split_class_position(draft, model)
    mask_token = _take_mask_token(draft, wanted.width)
    _drop_foreign(draft, model.state_dict())
    _fit_positions(draft, model, source, source_grid)
    if adapt_bands:
        _fit_bands(draft, wanted.bands, source)
    added = _missing(draft, model, source, adapt_bands)
    return _finish(draft, added, mask_token, wanted.width)


def _rename_layout(draft: Draft) -> None:
    for key in list(draft.tensors):
        new = key
        for pattern, replacement in _LAYOUT:
            new = pattern.sub(replacement, new)
        if new != key:
            draft.put(new, *draft.pop(key))


def _split_class_position(draft: Draft, model: VisionTransformer) -> None:
    """Add the class token's position to the token itself, as models with registers need it.

    timm's models with ``no_embed_class`` have positions for patches only.
    """
    positions = draft.tensors.get('pos_embed')
    if positions is None or not model.no_embed_class or 'cls_token' not in draft.tensors:
        return
    if draft.origin.get('reg_token', ('',))[0].endswith('register_tokens'):
        token = draft.tensors['cls_token'] + positions[:, :1]
        draft.change('cls_token', token, 'its position embedding was added')
        draft.change('pos_embed', positions[:, 1:], 'the class position was moved to the token')


def _take_mask_token(draft: Draft, width: int) -> Tensor | None:
    token = draft.tensors.get(MASK_TOKEN)
    # that of an MAE decoder has the decoder's width, which may be the encoder's
    if token is None or token.numel() != width or _DECODER in draft.tensors:
        return None
    del draft.tensors[MASK_TOKEN]  # its origin stays: the key is renamed, not dropped
    return token.reshape(1, width).float()


def _drop_foreign(draft: Draft, model_state: Mapping[str, Tensor]) -> None:
    for key in list(draft.tensors):
        if key.startswith(_HEAD) or (key not in model_state and not _ENCODER.match(key)):
            draft.drop(key)


def _fit_positions(
    draft: Draft, model: VisionTransformer, source: str, source_grid: GridSize | None
) -> None:
    positions = draft.tensors.get('pos_embed')
    if positions is None or model.pos_embed is None:
        return
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    count = positions.shape[1] - prefix
    target = GridSize(*model.patch_embed.grid_size)
    grid = source_grid if source_grid is not None else _only_grid(count, target)
    if grid is None or grid.area != count:
        raise WeightsError(
            f'{source} has position embeddings of {count} patches and does not tell their grid, '
            f'the model has {target.height} x {target.width}: set img_size to the size of the '
            'images that the weights were trained on, or use weights of square images.'
        )
    if grid != target:
        # MAE's and SatMAE's own way has no offset
        offset = 0.0 if isinstance(model, TokenViT) else 0.1
        resampled = resample_pos_embed(positions.float(), target, prefix, grid, offset)
        what = f'resampled from {grid.height} x {grid.width} to {target.height} x {target.width}'
        draft.change('pos_embed', resampled, f'{what} patches')


def _only_grid(count: int, target: GridSize) -> GridSize | None:
    """The one grid of ``count`` patches that is square or the target; None if not exactly one."""
    side = math.isqrt(max(count, 0))
    square = GridSize(side, side) if side > 0 and side * side == count else None
    same = target if target.area == count else None
    if square is not None and same is not None and square != same:
        return None
    return square if same is None else same


def _fit_bands(draft: Draft, bands: int, source: str) -> None:
    weight = draft.tensors.get(ANCHOR)  # absent where there are groups, or another patch size
    if weight is None or weight.shape[1] == bands:
        return
    if weight.shape[1] != 3:
        raise WeightsError(
            f'{source} takes images of {weight.shape[1]} bands, the model has {bands}: build it '
            f'with in_chans={weight.shape[1]}, or start from weights of three bands.'
        )
    adapted = adapt_input_conv(bands, weight.float())
    draft.change(ANCHOR, adapted, f'adapted from 3 bands to {bands}')


def _missing(draft: Draft, model: VisionTransformer, source: str, adapted: bool) -> tuple[str, ...]:
    state = model.state_dict()
    missing = [key for key in state if key not in draft.tensors]
    wrong = [key for key in draft.tensors if key not in state]
    shapes = [
        f'{key} {tuple(tensor.shape)} instead of {tuple(state[key].shape)}'
        for key, tensor in draft.tensors.items()
        if key in state and tensor.shape != state[key].shape and (adapted or key != ANCHOR)
    ]
    heads = tuple(key for key in missing if key.startswith(_HEAD) or key in draft.reasons)
    problems = [
        f'{len(keys)} {what} ({_some(keys)})'
        for what, keys in (
            ('missing', [key for key in missing if key not in heads]),
            ('that the model does not have', wrong),
            ('of another shape', shapes),
        )
        if keys
    ]
    if problems:
        raise WeightsError(
            f'{source} does not fit the model, tensors are wrong: {"; ".join(problems)}. Choose '
            'the timm model that the weights belong to, or a complete file.'
        )
    return heads


def _some(keys: list[str]) -> str:
    return ', '.join(keys[:3]) + (', …' if len(keys) > 3 else '')


def _mismatch(source: str, found: Architecture, wanted: Architecture) -> WeightsError:
    name = found.timm_name()
    advice = 'the model that the weights belong to' if name is None else f'the model {name}'
    return WeightsError(
        f'{source} looks like {found.describe()}; the model asked for is {wanted.describe()}: '
        f'choose {advice}, or other weights.'
    )


def _finish(
    draft: Draft, heads: tuple[str, ...], mask_token: Tensor | None, width: int
) -> Conversion:
    added = heads if mask_token is not None else (*heads, MASK_TOKEN)
    return Conversion(
        state=draft.tensors,
        renamed=draft.renamed(),
        dropped=tuple(draft.dropped),
        added=added,
        changed=draft.changed,
        mask_token=torch.zeros(1, width) if mask_token is None else mask_token,
        reasons=draft.reasons,
    )
