"""Adapt the decoder of a masked autoencoder: low-rank updates with a rank of their own.

Spec section A.2: LoRA on Q and V of every decoder block and all norms train; the predictions
only where the pixels are new ones, everything else stays as it was.
"""

import torch
from torch import nn

from torchgeo_explora.adapters.config import ExPLoRAConfig
from torchgeo_explora.adapters.surgery import NORMS, AdapterReport, check_unadapted, wrap_block
from torchgeo_explora.errors import ConfigError

# Fixed sines and cosines, which no training changes.
FIXED = ('decoder_pos_embed', 'decoder_channel_embed')
_PARTS = ('decoder_blocks', 'decoder_norm', 'decoder_pred')


def apply_explora_to_decoder(
    decoder: nn.Module,
    rank: int,
    alpha: float = 1.0,
    train_norms: bool = True,
    train_pred: bool = False,
    train_all: bool = False,
    generator: torch.Generator | None = None,
) -> AdapterReport:
    """Freeze a decoder, add low-rank updates to Q and V of every block, and let norms train.

    The output does not change: the up-projections start at zero.

    Args:
        decoder: A decoder with MAE's module names; changed in place.
        rank: Rank of the updates; 0 for none.
        alpha: Numerator of the scale ``alpha / rank``.
        train_norms: Whether all norms train.
        train_pred: Whether the prediction heads train (for bands the decoder never saw).
        train_all: Train every weight but the fixed encodings: for a decoder without weights, and
            for full pre-training. Excludes low-rank updates, so ``rank`` must be 0.
        generator: Source of the down-projections' random values.

    Returns:
        What was wrapped, unfrozen and frozen, with exact counts.

    Raises:
        ConfigError: If the decoder cannot be adapted so; it is unchanged then.
    """
    config = ExPLoRAConfig(
        rank=rank,
        unfreeze_blocks=(),
        alpha=alpha,
        train_norms=train_norms,
        train_cls_token=False,
        train_registers=False,
        train_all=train_all,
    )
    _check(decoder, rank)
    decoder.requires_grad_(False)
    wrapped: list[str] = []
    for index, block in enumerate(_children(decoder, 'decoder_blocks')):
        if rank > 0:
            names = wrap_block(block, config, generator)
            wrapped += [f'decoder_blocks.{index}.{name}' for name in names]
    for module in decoder.modules():
        if train_norms and isinstance(module, NORMS):
            module.requires_grad_(True)
    if train_pred:
        decoder.get_submodule('decoder_pred').requires_grad_(True)
    if train_all:
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(name not in FIXED)
    return _report(decoder, config, tuple(wrapped))


def _children(decoder: nn.Module, name: str) -> list[nn.Module]:
    return list(decoder.get_submodule(name).children())


def _check(decoder: nn.Module, rank: int) -> None:
    names = dict(decoder.named_children())
    missing = [name for name in _PARTS if name not in names]
    if missing:
        raise ConfigError(
            f'{type(decoder).__name__} has no {", ".join(missing)}: give the decoder of a masked '
            'autoencoder, as build_decoder makes it.'
        )
    check_unadapted(decoder)
    width = decoder.get_submodule('decoder_norm').get_parameter('weight').numel()
    if rank > width:
        raise ConfigError(
            f"rank {rank} exceeds the decoder's width {width}: use a rank from 0 to {width}."
        )


def _report(decoder: nn.Module, config: ExPLoRAConfig, wrapped: tuple[str, ...]) -> AdapterReport:
    every = dict(decoder.named_parameters())
    trained = {name: p for name, p in every.items() if p.requires_grad}
    depth = len(_children(decoder, 'decoder_blocks')) if config.train_all else 0
    return AdapterReport(
        config=config,
        trainable_parameters=sum(p.numel() for p in trained.values()),
        total_parameters=sum(p.numel() for p in every.values()),
        wrapped=wrapped,
        unfrozen=tuple(f'decoder_blocks.{index}' for index in range(depth)),
        trained=tuple(trained),
        frozen=tuple(name for name in every if name not in trained),
        part='decoder',
    )
