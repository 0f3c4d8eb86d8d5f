"""Recognise the vision transformer that a set of tensors belongs to.

Plain ones have one token a patch. Those of SatMAE have several: a group-channel one has a patch
embedding for each group of bands, a temporal one positions that leave room for a time.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import WeightsError

# The one tensor that every plain ViT has and nothing else in a checkpoint is called.
ANCHOR = 'patch_embed.proj.weight'
# That of the first group of a group-channel ViT.
GROUP_ANCHOR = 'patch_embed.0.proj.weight'
# Segments under which checkpoints wrap an encoder, in any order and depth.
WRAPPERS = frozenset(
    ['backbone', 'encoder', 'model', 'module', 'state_dict', 'student', 'teacher', '_orig_mod']
)
# (width, depth) -> the usual name of the size (Dosovitskiy et al. 2021; Zhai et al. 2022)
_SIZES = {
    (192, 12): 'tiny',
    (384, 12): 'small',
    (768, 12): 'base',
    (1024, 24): 'large',
    (1280, 32): 'huge',
    (1536, 40): 'giant',
}
# Side in pixels of the images of SatMAE's models (Cong et al. 2022, section 5)
_SIDES = {'group-channel': 96, 'temporal': 224}


@dataclass(frozen=True)
class Architecture:
    """Sizes of a vision transformer, plain, group-channel or temporal.

    Args:
        width: Dimension of a token.
        depth: Number of blocks.
        patch: Height and width of a patch in pixels.
        bands: Bands of an image; of all groups together where there are groups.
        hidden: Output width of the first MLP layer.
        layer_scale: Whether the blocks have LayerScale.
        class_token: Whether there is a class token.
        registers: Number of register tokens.
        positions: Number of position embeddings; None without any.
        groups: Number of bands of each group; empty where all bands are embedded together.
        space: Length of a position embedding: less than the width where the rest encodes a group
            or a time; 0 without positions.
    """

    width: int
    depth: int
    patch: tuple[int, int]
    bands: int
    hidden: int
    layer_scale: bool
    class_token: bool
    registers: int
    positions: int | None
    groups: tuple[int, ...] = ()
    space: int = 0

    @property
    def kind(self) -> str:
        """``plain``, ``group-channel`` or ``temporal``."""
        if self.groups:
            return 'group-channel'
        return 'temporal' if 0 < self.space < self.width else 'plain'

    @property
    def size(self) -> str | None:
        """Name of the size, for instance ``base``; None if it is no usual one."""
        return _SIZES.get((self.width, self.depth))

    def describe(self) -> str:
        """Describe the sizes that tell models apart."""
        height, width = self.patch
        patch = str(height) if height == width else f'{height} x {width}'
        parts = [f'width {self.width}', f'depth {self.depth}', f'patch {patch}']
        parts.append(f'MLP width {self.hidden}')
        parts.append('LayerScale' if self.layer_scale else 'no LayerScale')
        parts.append(f'{self.registers} registers' if self.registers else 'no registers')
        if not self.class_token:
            parts.append('no class token')
        if self.groups:
            parts.append(f'groups of {", ".join(map(str, self.groups))} bands')
        if self.kind == 'temporal':
            parts.append('dates')
        name = '' if self.size is None else f'ViT-{self.size}/{patch}: '
        return name + ', '.join(parts)

    def timm_name(self) -> str | None:
        """Name of a timm model of these sizes, or None if there is none of a usual name."""
        stem = f'vit_{self.size}_patch{self.patch[0]}'
        if self.kind != 'plain':
            name = f'explora_{self.kind.replace("-", "_")}_{stem}_{_SIDES[self.kind]}'
            return name if timm.is_model(name) else None
        dinov2 = f'{stem}_reg{self.registers}_dinov2' if self.registers else f'{stem}_dinov2'
        names = [dinov2] if self.layer_scale else [f'{stem}_224']
        return next((name for name in names if timm.is_model(name)), None)

    def native_grid(self) -> GridSize | None:
        """The square grid of the position embeddings; None if they make none."""
        if self.positions is None:
            return None
        for prefix in (1, 0, 1 + self.registers):
            side = math.isqrt(max(self.positions - prefix, 0))
            if side > 0 and side * side == self.positions - prefix:
                return GridSize(side, side)
        return None

    def fits(self, other: 'Architecture') -> bool:
        """Whether all sizes agree but the bands and positions, which can be converted.

        Of plain models: for one with groups or dates :meth:`can_start` asks for less.
        """
        own = (self.patch, self.class_token, self.registers, self.groups, self.kind)
        theirs = (other.patch, other.class_token, other.registers, other.groups, other.kind)
        return self.can_start(other) and own == theirs

    def can_start(self, other: 'Architecture') -> bool:
        """Whether the blocks agree, so that training of the other can start from these."""
        own = (self.width, self.depth, self.hidden, self.layer_scale)
        return own == (other.width, other.depth, other.hidden, other.layer_scale)


def architecture_of(vit: VisionTransformer) -> Architecture:
    """Return the sizes of a model.

    Args:
        vit: Any timm vision transformer whose blocks have stock keys, or one of this package's.
    """
    return architecture_of_tensors(vit.state_dict())


def architecture_of_tensors(tensors: Mapping[str, Tensor]) -> Architecture:
    """Return the sizes that tensors under stock keys (no prefix) tell.

    Args:
        tensors: State dict of one encoder, keys as in timm or in DINOv2.
    """
    anchor = tensors[ANCHOR if ANCHOR in tensors else GROUP_ANCHOR]
    width, bands, *patch = anchor.shape
    groups = _group_sizes(tensors)
    registers = _first(tensors, r'reg(ister)?_tokens?$')
    positions = tensors.get('pos_embed')
    hidden = _first(tensors, r'blocks\.(\d+\.)+mlp\.(fc1|w12)\.weight$')
    return Architecture(
        width=width,
        depth=_depth(tensors),
        patch=(patch[0], patch[1]),
        bands=sum(groups) if groups else bands,
        hidden=0 if hidden is None else hidden.shape[0],
        layer_scale=_first(tensors, r'blocks\.(\d+\.)+ls1\.gamma$') is not None,
        class_token='cls_token' in tensors,
        registers=0 if registers is None else registers.shape[-2],
        positions=None if positions is None else positions.shape[-2],
        groups=groups,
        space=0 if positions is None else positions.shape[-1],
    )


def _group_sizes(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Bands of each group of a group-channel ViT, in order."""
    names = (GROUP_ANCHOR.replace('0', str(index), 1) for index in count())
    return tuple(tensors[name].shape[1] for name in takewhile(tensors.__contains__, names))


def _first(tensors: Mapping[str, Tensor], pattern: str) -> Tensor | None:
    return next((t for name, t in tensors.items() if re.match(pattern, name)), None)


def _depth(tensors: Iterable[str]) -> int:
    # the last number before the block's own parts: blocks.3.norm1, or blocks.0.3.norm1 in chunks
    found = (re.match(r'blocks\.(?:\d+\.)*?(\d+)\.[a-z]', name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match is not None), default=0)


def find_root(tensors: Iterable[str], source: str = 'The state dict') -> str:
    """Find the prefix under which a checkpoint keeps the encoder to use.

    A teacher is preferred to what is neither teacher nor student, and that to a student:
    published and evaluated weights are the teacher's.

    Args:
        tensors: Dotted names of a checkpoint's tensors.
        source: Name for messages.

    Returns:
        The prefix, empty or with its last dot.

    Raises:
        WeightsError: If no ViT is found under a known wrapper.
    """
    names = list(tensors)
    roots = [
        name.removesuffix(anchor)
        for anchor in (ANCHOR, GROUP_ANCHOR)
        for name in names
        if name.endswith(anchor)
    ]
    known = [root for root in roots if set(root.split('.')[:-1]) <= WRAPPERS]
    if not known and roots:
        raise WeightsError(
            f'{source} keeps its vision transformer under {roots[0]}, where it could be anything: '
            'pass a merged file, or a state dict of the encoder alone (known wrappers are '
            f'{", ".join(sorted(WRAPPERS))}).'
        )
    if not known:
        raise _no_encoder(names, source)
    return min(known, key=preference)


def preference(root: str) -> tuple[int, int]:
    """Rank a prefix: a teacher first, a student last, and short before long."""
    segments = root.split('.')
    rank = 0 if 'teacher' in segments else 2 if 'student' in segments else 1
    return rank, len(segments)


def _no_encoder(names: list[str], source: str) -> WeightsError:
    if any('lora_' in name for name in names):
        return WeightsError(
            f'{source} holds only an adapter (LoRA factors), no whole model: load the weights that '
            'it was trained from, then apply the adapter, or pass the merged file.'
        )
    shown = ', '.join(names[:3])
    return WeightsError(
        f'{source} holds no plain vision transformer: there is no {ANCHOR}, and its keys begin '
        f'with {shown}; pass weights of a timm, DINOv2, MAE or SatMAE ViT.'
    )
