"""What of a vision transformer trains: ExPLoRA, its ablations and LoRA fine-tuning."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchgeo_explora.errors import ConfigError

TARGETS = ('q', 'k', 'v', 'proj', 'mlp')


@dataclass(frozen=True)
class ExPLoRAConfig:
    """Which parameters of an encoder train, and how.

    The defaults are the paper's ViT-L recipe for fMoW-RGB: the last block trained in full,
    LoRA of rank 64 on Q and V of every other block, all norms and the class token
    (Khanna et al. 2025, section 4; official ``pretrain_dino.sh``).

    Args:
        rank: Rank of the low-rank updates; 0 for none (unfreezing only).
        unfreeze_blocks: Blocks trained in full, 0-based, negative ones from the end. The
            paper's [L] is ``(-1,)``, its [1, L] is ``(0, -1)``; empty for LoRA only.
        alpha: Numerator of the scale ``alpha / rank``; 1 in the official code.
        targets: What gets LoRA in the other blocks, out of ``q``, ``k``, ``v``, ``proj``
            (attention output) and ``mlp`` (every linear layer of it).
        mlp_rank: Rank in the MLP; ``max(1, rank // 4)`` when not given (official code).
        train_norms: Whether all norms train (of blocks, before and after them).
        train_cls_token: Whether the class token trains.
        train_registers: Whether register tokens train.
        train_patch_embed: Whether the patch embedding trains (for bands the model never saw).
        train_all: Train every weight of the encoder: the full pre-training the paper compares
            with. Excludes LoRA, so ``rank`` must be 0. Encodings of groups of bands, which are
            fixed in SatMAE, stay as they are.
        train_channel_embed: Whether the encodings of groups of bands train (the
            paper trains them, SatMAE's code does not).

    Raises:
        ConfigError: If a value is not possible.
    """

    rank: int = 64
    unfreeze_blocks: Sequence[int] = (-1,)
    alpha: float = 1.0
    targets: Sequence[str] = ('q', 'v')
    mlp_rank: int | None = None
    train_norms: bool = True
    train_cls_token: bool = True
    train_registers: bool = True
    train_patch_embed: bool = False
    train_all: bool = False
    train_channel_embed: bool = False

    def __post_init__(self) -> None:
        """Check the values and turn lists, as YAML gives them, into tuples."""
        object.__setattr__(self, 'unfreeze_blocks', tuple(self.unfreeze_blocks))
        object.__setattr__(self, 'targets', tuple(self.targets))
        if self.rank < 0 or (self.mlp_rank is not None and self.mlp_rank < 1):
            raise ConfigError(
                f'rank {self.rank} and mlp_rank {self.mlp_rank} were given: rank is 0 or more, '
                'mlp_rank 1 or more. Use rank 0 to train without LoRA.'
            )
        if self.alpha <= 0:
            raise ConfigError(f'alpha is {self.alpha}: give a positive number (the paper has 1).')
        self._check_targets()

    def _check_targets(self) -> None:
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or len(set(self.targets)) != len(self.targets):
            raise ConfigError(
                f'targets are {list(self.targets)}: name each of {", ".join(TARGETS)} at most once.'
            )
        if self.rank > 0 and not self.targets:
            raise ConfigError(
                f'rank is {self.rank} but targets is empty: name some, or use rank 0.'
            )
        if self.train_all and self.rank > 0:
            raise ConfigError(
                f'train_all trains every weight, so rank {self.rank} has nothing to adapt: '
                'set rank to 0, or train_all to false.'
            )

    @property
    def rank_in_mlp(self) -> int:
        """Rank of the updates in the MLP."""
        return max(1, self.rank // 4) if self.mlp_rank is None else self.mlp_rank

    def to_json(self) -> str:
        """Return the configuration as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'ExPLoRAConfig':
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: If the text is no such object.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            return cls(**values)
        except (TypeError, json.JSONDecodeError) as error:
            raise ConfigError(
                f'{text[:80]!r} is no adapter configuration ({error}): '
                'use the JSON object that this package writes into adapter.safetensors.'
            ) from error


def lora_finetuning(rank: int = 8, alpha: float = 1.0) -> ExPLoRAConfig:
    """Return the paper's fine-tuning adapter: LoRA on Q and V of every block, nothing else.

    Args:
        rank: Rank of the updates; 8 in the paper.
        alpha: Numerator of the scale ``alpha / rank``.
    """
    return ExPLoRAConfig(
        rank=rank,
        alpha=alpha,
        unfreeze_blocks=(),
        train_norms=False,
        train_cls_token=False,
        train_registers=False,
    )
