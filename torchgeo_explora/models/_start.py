"""Start a model with groups or dates from weights of which not everything fits."""

from collections.abc import Sequence

from torch import Tensor

from torchgeo_explora.models._architecture import ANCHOR
from torchgeo_explora.models._draft import Draft
from torchgeo_explora.models._token_vit import TokenViT

_EMBED = 'patch_embed.'
_ENCODINGS = ('channel_embed', 'channel_cls_embed')


def start_anew(
    draft: Draft, model: TokenViT, source_groups: Sequence[Sequence[int]] | None
) -> None:
    """Drop what does not fit a model with groups or dates, and say what it keeps of its own.

    Args:
        draft: The source; patch embeddings, positions and encodings that do not fit are dropped.
        model: A model of this package with several tokens a patch.
        source_groups: 0-based bands of the source's groups; the model's when not given.
    """
    state = model.state_dict()
    _positions(draft, model)
    _encodings(draft, state)
    for part in sorted({key.rpartition('.')[0] for key in _embeddings([*state, *draft.tensors])}):
        reason = _misfit(draft, state, part) or _other_bands(model, part, source_groups)
        if reason is not None:
            _replace(draft, state, f'{part}.', reason)
    if 'cls_token' not in draft.tensors:
        draft.reasons['cls_token'] = 'the source has no class token'
    if 'reg_token' in draft.tensors:
        draft.drop('reg_token', 'the model has no register tokens')


def _embeddings(keys: Sequence[str]) -> list[str]:
    return [key for key in keys if key.startswith(_EMBED)]


def _replace(draft: Draft, state: dict[str, Tensor], prefix: str, reason: str) -> None:
    """Drop the source's tensors under a prefix; the model keeps its own."""
    for key in [key for key in draft.tensors if key.startswith(prefix)]:
        draft.drop(key, reason)
    draft.reasons.update({key: f'new: {reason}' for key in state if key.startswith(prefix)})


def _positions(draft: Draft, model: TokenViT) -> None:
    assert model.pos_embed is not None, 'made by the constructor'
    positions, space = draft.tensors.get('pos_embed'), model.pos_embed.shape[-1]
    if positions is None:
        draft.reasons['pos_embed'] = 'fixed sines and cosines: the source has none'
    elif positions.shape[-1] != space:
        _keep_class_position(draft, positions)
        reason = f'the source has {positions.shape[-1]} numbers a position, the model {space}'
        draft.drop('pos_embed', reason)
        draft.reasons['pos_embed'] = f'fixed sines and cosines: {reason}'


def _keep_class_position(draft: Draft, positions: Tensor) -> None:
    """Add the class token's learned position to the token: in the model it has none."""
    token = draft.tensors.get('cls_token')
    if token is None or positions.shape[-1] != token.shape[-1] or _is_square(positions.shape[-2]):
        return
    if positions.device.type != 'meta' and positions[:, :1].any():
        moved = token + positions[:, :1]
        draft.change('cls_token', moved, 'its position embedding was added')


def _is_square(count: int) -> bool:
    """Whether the positions are those of the patches alone."""
    return int(count**0.5 + 0.5) ** 2 == count


def _encodings(draft: Draft, state: dict[str, Tensor]) -> None:
    for key in _ENCODINGS:
        if key not in state:
            if key in draft.tensors:
                draft.drop(key, 'the model has no groups of bands')
        elif key not in draft.tensors:
            kind = 'zeros' if key == 'channel_cls_embed' else 'fixed sines and cosines'
            draft.reasons[key] = f'{kind}: the source has none'
        elif draft.tensors[key].shape != state[key].shape:
            shapes = f'{tuple(draft.tensors[key].shape)} instead of {tuple(state[key].shape)}'
            draft.drop(key, f'of shape {shapes}')
            draft.reasons[key] = f"fixed sines and cosines: the source's is of shape {shapes}"


def _misfit(draft: Draft, state: dict[str, Tensor], part: str) -> str | None:
    """Why a patch embedding of the source is not the model's, or None if it is."""
    name = f'{part}.weight'
    found, wanted = draft.tensors.get(name), state.get(name)
    if wanted is None:
        return 'the model embeds other groups of bands'
    if found is None:
        return 'the source has no such group of bands'
    adaptable = name == ANCHOR and found.shape[1] == 3  # as for plain models
    if found.shape != wanted.shape and not (adaptable and _same_patch(found, wanted)):
        return (
            f'the source embeds {found.shape[1]} bands in patches of {_size(found)}, '
            f'the model {wanted.shape[1]} in {_size(wanted)}'
        )
    return None


def _same_patch(found: Tensor, wanted: Tensor) -> bool:
    return found.shape[:1] + found.shape[2:] == wanted.shape[:1] + wanted.shape[2:]


def _size(weight: Tensor) -> str:
    return ' x '.join(str(side) for side in weight.shape[2:])


def _other_bands(
    model: TokenViT, part: str, source_groups: Sequence[Sequence[int]] | None
) -> str | None:
    """Why a group's patch embedding of the right shape is that of other bands."""
    groups = model.channel_groups
    if not groups or source_groups is None:
        return None
    index = int(part.split('.')[1])
    theirs = list(source_groups[index]) if index < len(source_groups) else None
    if theirs == list(groups[index]):
        return None
    return f"the source's group {index} is of bands {theirs}, the model's of {list(groups[index])}"
