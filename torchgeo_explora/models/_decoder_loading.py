"""Load the decoder of a masked autoencoder from the file that its encoder comes from."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.models._architecture import WRAPPERS, preference
from torchgeo_explora.models._checkpoint import Checkpoint, flatten_tensors
from torchgeo_explora.models._draft import Draft, fuse_qkv, refuse_unmerged
from torchgeo_explora.models._loading import by_reason
from torchgeo_explora.models._sources import open_weights
from torchgeo_explora.models._stored import stored_groups
from torchgeo_explora.models._token_decoder import TokenDecoder
from torchgeo_explora.models.mae_decoder import GroupChannelMAEDecoder
from torchgeo_explora.models.trained import TRAINED

_ANCHOR = 'decoder_embed.weight'
_ORDER = 'prediction_order'
_FIXED = ('decoder_pos_embed', 'decoder_channel_embed')


@dataclass(frozen=True, eq=False)
class DecoderReport:
    """What loading did with every key of a decoder.

    Args:
        source: Where the weights came from; None if there were none.
        loaded: Keys of the decoder that were loaded.
        added: Keys of the decoder that keep its own values.
        dropped: Keys of the source's decoder that nothing was taken from.
        changed: Key of the decoder -> what was done to its values.
        reasons: Key -> why it was added or dropped.
    """

    source: str | None
    loaded: tuple[str, ...]
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    changed: dict[str, str]
    reasons: dict[str, str]

    def summary(self) -> str:
        """Describe the outcome, one line a point."""
        if not self.loaded:
            return 'Decoder: initialised at random; ' + '; '.join(
                dict.fromkeys(self.reasons.values())
            )
        lines = [f'Decoder: {len(self.loaded)} tensors from {self.source}.']
        lines += [f'Changed: {key} {what}.' for key, what in self.changed.items()]
        for what, keys in (('Dropped', self.dropped), ('New', self.added)):
            lines += [f'{what}: {line}.' for line in by_reason(keys, self.reasons)]
        return '\n'.join(lines)


def load_decoder(
    decoder: nn.Module,
    weights: str | Path | WeightsEnum | Checkpoint | Mapping[str, Any] | bool | None,
) -> DecoderReport:
    """Load what fits of a masked autoencoder's decoder, and say what does not.

    Tensors of the same name and shape are loaded, positions of another grid resampled as the
    encoder's are. Predictions of other bands or patches, and positions and encodings of another
    length, keep the decoder's own values, as does everything where the file holds no decoder.
    So do predictions that the file says to be in another ``prediction_order`` than the decoder's,
    as their outputs mean other bands.

    Args:
        decoder: Any module with MAE's names (``decoder_embed``, ``mask_token``,
            ``decoder_blocks`` ...); left as it is if loading fails.
        weights: As for :func:`create_backbone`, or what was read from a file, or a state dict.
            timm's own weights (True) have no decoder.

    Returns:
        A report of every key.

    Raises:
        ConfigError: If there are no such weights.
        WeightsError: If the file cannot be read, or its decoder holds unmerged low-rank factors or
            values that are not finite.
    """
    checkpoint = _told(_opened(weights))
    state = decoder.state_dict()
    draft = Draft({}, {}) if checkpoint is None else _decoder_in(checkpoint)
    if not draft.tensors:
        why = 'no weights were given' if checkpoint is None else 'the source has no decoder'
        source = None if checkpoint is None else checkpoint.source
        return DecoderReport(source, (), tuple(state), (), {}, dict.fromkeys(state, why))
    assert checkpoint is not None, 'a draft has tensors'
    refuse_unmerged(draft, checkpoint.source)
    fuse_qkv(draft)
    _resample_positions(draft, decoder, state)
    _drop_unfit(draft, state, _changed_heads(decoder, checkpoint))
    broken = [key for key, tensor in draft.tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(
            f'{checkpoint.source} holds values that are not finite in its decoder (first: '
            f'{broken[0]}): use an earlier checkpoint.'
        )
    decoder.load_state_dict(draft.tensors, strict=False)
    added = tuple(key for key in state if key not in draft.tensors)
    dropped = tuple(draft.dropped)
    return DecoderReport(
        checkpoint.source, tuple(draft.tensors), added, dropped, draft.changed, draft.reasons
    )


def _opened(
    weights: str | Path | WeightsEnum | Checkpoint | Mapping[str, Any] | bool | None,
) -> Checkpoint | None:
    if isinstance(weights, Checkpoint):
        return weights
    if isinstance(weights, Mapping):
        return Checkpoint(flatten_tensors(weights))
    # timm's own weights are encoders: they need not be had to know that
    return None if isinstance(weights, bool) else open_weights('', weights)


def _decoder_in(checkpoint: Checkpoint) -> Draft:
    """The decoder's tensors under MAE's names; empty without one."""
    names = checkpoint.tensors
    roots = [name.removesuffix(_ANCHOR) for name in names if name.endswith(_ANCHOR)]
    known = [root for root in roots if set(root.split('.')[:-1]) <= WRAPPERS | {'decoder'}]
    if not known:
        return Draft({}, {})
    root = min(known, key=preference)
    found = {key: tensor for key, tensor in names.items() if _is_decoders(key, root)}
    return Draft.under(found, root)


def _is_decoders(key: str, root: str) -> bool:
    inner = key.removeprefix(root)
    return key.startswith(root) and inner.startswith(('decoder_', 'mask_token'))


def _changed_heads(decoder: nn.Module, checkpoint: Checkpoint) -> dict[int, str]:
    """Groups of the decoder whose predictions mean other bands in the source -> the reason."""
    if not isinstance(decoder, GroupChannelMAEDecoder):
        return {}
    groups = range(len(decoder.channel_groups))
    order, own = checkpoint.metadata.get(_ORDER), decoder.prediction_order
    if order not in (None, own):
        why = f"the source's predictions are in the order {order}, the model's in the order {own}"
        return dict.fromkeys(groups, why)
    theirs = stored_groups(checkpoint)
    if theirs is None:
        return {}
    return {
        index: f"the source's groups are of bands {[list(g) for g in theirs]}, group {index} of "
        f'the model of {list(group)}'
        for index, group in enumerate(decoder.channel_groups)
        if index >= len(theirs) or list(theirs[index]) != list(group)
    }


def decoder_texts(decoder: nn.Module) -> dict[str, str]:
    """Return the metadata that tells what a decoder's predictions mean.

    Args:
        decoder: Any decoder; only those of groups of bands have something to tell.
    """
    if not isinstance(decoder, GroupChannelMAEDecoder):
        return {}
    groups = json.dumps(decoder.channel_groups)
    return {'channel_groups': groups, _ORDER: decoder.prediction_order}


def _told(checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Lay what a training checkpoint tells of itself out as metadata."""
    if checkpoint is None or TRAINED not in checkpoint.metadata:
        return checkpoint
    told = json.loads(checkpoint.metadata[TRAINED])
    facts = {k: v for k, v in told['facts'].items() if isinstance(v, str)}
    return replace(checkpoint, metadata={**checkpoint.metadata, **told['texts'], **facts})


def _resample_positions(draft: Draft, decoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fit the positions of a square grid to the decoder's grid (bicubic, as MAE does it)."""
    key = 'decoder_pos_embed'
    if not isinstance(decoder, TokenDecoder) or key not in draft.tensors:
        return
    found, grid, prefix = draft.tensors[key], decoder.sizes.grid, decoder.sizes.prefix
    side = math.isqrt(max(found.shape[1] - prefix, 0))
    square = GridSize(side, side)
    fits = found.shape[-1] == state[key].shape[-1] and square.area == found.shape[1] - prefix
    if fits and side > 0 and square != grid:
        new = resample_pos_embed(found.float(), grid, prefix, square, offset=0)
        what = f'resampled from {side} x {side} to {grid.height} x {grid.width} patches'
        draft.change(key, new, what)


def _drop_unfit(draft: Draft, state: Mapping[str, Tensor], groups: Mapping[int, str]) -> None:
    for key in list(draft.tensors):
        if key not in state:
            draft.drop(key, 'the model has no such part')
    reasons = {key: reason for key in state if (reason := _misfit(key, draft, state, groups))}
    for key in state:  # a bias belongs to its weight
        reason = reasons.get(key, reasons.get(f'{key.removesuffix(".bias")}.weight'))
        if reason is not None:
            if key in draft.tensors:
                draft.drop(key, reason)
            draft.reasons[key] = reason


def _misfit(
    key: str, draft: Draft, state: Mapping[str, Tensor], groups: Mapping[int, str]
) -> str | None:
    """Why a tensor of the decoder is not the source's, or None if it is."""
    found = draft.tensors.get(key)
    if found is None:
        return 'the source has none'
    if found.shape != state[key].shape:
        shapes = f"the source's is of shape {tuple(found.shape)}, not {tuple(state[key].shape)}"
        return f'fixed sines and cosines: {shapes}' if key in _FIXED else shapes
    part, index, *_ = f'{key}..'.split('.')
    return groups.get(int(index)) if part == 'decoder_pred' and index.isdigit() else None
