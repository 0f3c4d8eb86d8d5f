"""Fine-tuning with labels: what trains, at which rate, and from which random numbers.

Spec section F.1: low-rank updates of rank 8 on Q and V of every block and a linear head; AdamW, a
linear warm-up and half a cosine, step by step; stochastic depth.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from torchgeo_explora.adapters.config import ExPLoRAConfig
from torchgeo_explora.adapters.surgery import AdapterReport, apply_explora
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.drop_path import apply_drop_path, seed_drop_path
from torchgeo_explora.objectives.param_groups import adamw, is_matrix

Method = Literal['lora', 'full', 'frozen']
METHODS: tuple[Method, ...] = ('lora', 'full', 'frozen')
_BLOCK = re.compile(r'^blocks\.(\d+)\.')
# parts of a backbone that stand after its blocks
_AFTER = ('norm.', 'fc_norm.', 'head.')


@dataclass(frozen=True)
class FineTuningConfig:
    """What of a backbone trains, and how it is regularised.

    The defaults are the paper's.

    Args:
        method: ``lora`` for low-rank updates, ``full`` for every weight, ``frozen`` for none.
        rank: Rank of the updates.
        alpha: Numerator of their scale ``alpha / rank``.
        targets: What gets updates, out of ``q``, ``k``, ``v``, ``proj`` and ``mlp``.
        unfreeze_blocks: Blocks trained in full beside the updates of the others.
        train_norms: Whether all norms train too.
        train_patch_embed: Whether the patch embedding trains too, for bands the start never saw.
        drop_path: Probability of stochastic depth in the last block, increasing linearly to it.
        grad_checkpointing: Whether activations are computed again in the backward pass: less
            memory, a third more time.

    Raises:
        ConfigError: If a value is not possible.
    """

    method: str = 'lora'
    rank: int = 8
    alpha: float = 1.0
    targets: Sequence[str] = ('q', 'v')
    unfreeze_blocks: Sequence[int] = ()
    train_norms: bool = False
    train_patch_embed: bool = False
    drop_path: float = 0.2
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Check the values that no other part checks."""
        if self.method not in METHODS:
            raise ConfigError(f'method is {self.method!r}: give {", ".join(METHODS)}.')
        if self.method == 'lora' and self.rank < 1:
            raise ConfigError(
                f'rank is {self.rank}: give at least 1, or method frozen to train no backbone.'
            )

    @property
    def adapter(self) -> ExPLoRAConfig:
        """The surgery that it amounts to."""
        if self.method == 'full':
            return ExPLoRAConfig(rank=0, unfreeze_blocks=(), train_all=True)
        lora = self.method == 'lora'
        return ExPLoRAConfig(
            rank=self.rank if lora else 0,
            alpha=self.alpha,
            targets=self.targets,
            unfreeze_blocks=self.unfreeze_blocks if lora else (),
            train_norms=lora and self.train_norms,
            train_cls_token=False,
            train_registers=False,
            train_patch_embed=lora and self.train_patch_embed,
        )


def prepare_backbone(
    vit: VisionTransformer, config: FineTuningConfig, generator: torch.Generator | None = None
) -> AdapterReport:
    """Freeze, adapt and regularise a backbone, in place; its output in evaluation does not change.

    Args:
        vit: The backbone.
        config: What trains.
        generator: Source of the down-projections' random values.

    Returns:
        What trains, with exact counts.

    Raises:
        ConfigError: If the model cannot be prepared so.
    """
    frozen = config.method == 'frozen'
    apply_drop_path(vit, 0.0 if frozen else config.drop_path)
    report = apply_explora(vit, config.adapter, generator)
    vit.set_grad_checkpointing(config.grad_checkpointing and not frozen)
    return report


def finetuning_groups(
    network: nn.Module, root: str, depth: int, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, object]]:
    """Group what trains by learning rate and by whether it decays.

    The rate of a layer is ``lr`` times ``layer_decay`` for each layer above it, heads and decoders
    being on top (Bao et al. 2022, BEiT; Clark et al. 2020); biases, norms and scales do not decay.

    Args:
        network: Backbone and head.
        root: Prefix of the backbone's parameter names.
        depth: Number of the backbone's blocks.
        lr: Rate of the topmost layer.
        weight_decay: Of matrices.
        layer_decay: Factor from a layer to the one below, above 0; 1 for equal rates.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``layer``.
    """
    if not 0 < layer_decay <= 1 or lr <= 0 or weight_decay < 0:
        raise ConfigError(
            f'lr {lr:g}, weight_decay {weight_decay:g}, layer_decay {layer_decay:g}: give a positive '
            'rate, a decay of at least 0 and a layer_decay above 0 and up to 1.'
        )
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = layer_of(name, root, depth), is_matrix(parameter)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ConfigError('Nothing trains: choose another method.')
    return [
        {
            'params': groups[layer, decays],
            'lr': lr * layer_decay ** (depth + 1 - layer),
            'weight_decay': weight_decay if decays else 0.0,
            'layer': layer,
        }
        for layer, decays in sorted(groups)
    ]


def layer_of(name: str, root: str, depth: int) -> int:
    """Return the layer of a parameter: 0 for embeddings, 1 to depth for blocks, above for heads.

    Args:
        name: Of the parameter.
        root: Prefix of the backbone's parameter names.
        depth: Number of the backbone's blocks.
    """
    if not name.startswith(root):
        return depth + 1
    inner = name.removeprefix(root)
    match = _BLOCK.match(inner)
    if match is not None:
        return int(match[1]) + 1
    return depth + 1 if inner.startswith(_AFTER) else 0


def finetuning_optimizer(
    groups: list[dict[str, object]], betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Return AdamW over groups of parameters, each with the rate that it names."""
    named = [float(str(group['lr'])) for group in groups]
    optimizer = adamw(groups, betas)
    for group, rate in zip(optimizer.param_groups, named, strict=True):
        group['lr'] = rate
    return optimizer


@contextmanager
def step_randomness(network: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Let all that is random in a forward pass hang on the step's seed: dropout, stochastic depth.

    The global random state is as before afterwards.

    Args:
        network: Backbone and head.
        seed: See :func:`torchgeo_explora.objectives.steps.step_seed`.
        device: Where the network is.
    """
    seed_drop_path(network, seed)
    devices = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
