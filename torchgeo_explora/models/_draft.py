"""A conversion of a state dict in the making."""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchgeo_explora.errors import WeightsError

# Separate q, k and v of an encoder's or a decoder's block
_SEPARATE = re.compile(r'^((?:decoder_)?blocks\.\d+\.attn\.)([qkv])(?:_proj)?\.(weight|bias)$')
_LORA = re.compile(r'(^|[._])lora_')


@dataclass
class Draft:
    """Tensors under new keys, with the keys that they came from.

    Args:
        tensors: What is there now.
        origin: New key -> keys of the source.
        dropped: Keys of the source that nothing was taken from.
        changed: New key -> what was done to its values.
        reasons: Key of the model or of the source -> why it was added or dropped, where that is
            not plain from its name.
    """

    tensors: dict[str, Tensor]
    origin: dict[str, tuple[str, ...]]
    dropped: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def under(cls, tensors: dict[str, Tensor], root: str) -> 'Draft':
        """Take the tensors under a prefix, without it; drop the others."""
        draft = cls({}, {})
        for key, tensor in tensors.items():
            if key.startswith(root):
                draft.put(key.removeprefix(root), tensor, (key,))
            else:
                draft.dropped.append(key)
        return draft

    def pop(self, key: str) -> tuple[Tensor, tuple[str, ...]]:
        """Take a tensor out, with the keys it came from."""
        return self.tensors.pop(key), self.origin.pop(key)

    def drop(self, key: str, reason: str | None = None) -> None:
        """Drop a tensor."""
        origin = self.pop(key)[1]
        self.dropped.extend(origin)
        self.changed.pop(key, None)
        if reason is not None:
            self.reasons.update(dict.fromkeys(origin, reason))

    def put(self, key: str, tensor: Tensor, origin: tuple[str, ...]) -> None:
        """Put a tensor under a key."""
        self.tensors[key], self.origin[key] = tensor, origin

    def change(self, key: str, tensor: Tensor, what: str) -> None:
        """Replace the values of a tensor."""
        self.tensors[key], self.changed[key] = tensor, what

    def renamed(self) -> dict[str, str]:
        """Key of the source -> new key, where they differ; a fused tensor has several origins."""
        return {old: new for new, origin in self.origin.items() for old in origin if old != new}


def refuse_unmerged(draft: Draft, source: str) -> None:
    """Drop low-rank factors that are part of the weights already.

    The official code merges before it rebuilds the fused qkv that it saves beside q, k and v:
    with both present the factors are already part of the weights.

    Raises:
        WeightsError: If they are not.
    """
    lora = [key for key in draft.tensors if _LORA.search(key)]
    merged = any(_fused_key(key) in draft.tensors for key in draft.tensors)
    if lora and not merged:
        raise WeightsError(
            f'{source} holds LoRA factors that are not merged ({lora[0]} and {len(lora) - 1} more): '
            'merge them first, for instance with `torchgeo-explora export`.'
        )
    for key in lora:
        draft.drop(key)


def _fused_key(key: str) -> str | None:
    match = _SEPARATE.match(key)
    return None if match is None else f'{match[1]}qkv.{match[3]}'


def fuse_qkv(draft: Draft) -> None:
    """Fuse separate q, k and v where no fused ``qkv`` exists; drop them where one does."""
    groups: dict[str, dict[str, str]] = {}
    for key in draft.tensors:
        match = _SEPARATE.match(key)
        if match is not None:
            groups.setdefault(f'{match[1]}qkv.{match[3]}', {})[match[2]] = key
    for fused, parts in groups.items():
        if fused in draft.tensors or len(parts) < 3:
            for key in parts.values():
                draft.drop(key)
        else:
            taken = [draft.pop(parts[name]) for name in 'qkv']
            origin = tuple(key for _, keys in taken for key in keys)
            draft.put(fused, torch.cat([tensor for tensor, _ in taken]), origin)
            draft.changed[fused] = 'fused from separate q, k and v'
