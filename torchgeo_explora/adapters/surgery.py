"""Turn a timm vision transformer into an ExPLoRA one, in place.

Spec section A.1 states the official rule by substrings of parameter names; the rule here
works on modules and gives the same parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.layers.norm import RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from torchgeo_explora.adapters.config import ExPLoRAConfig
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.lora import LoRALinear, Segment

NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm)


@dataclass(frozen=True)
class AdapterReport:
    """What :func:`apply_explora` did, by parameter and module names.

    Args:
        config: The configuration, block indices made non-negative.
        trainable_parameters: Number of weights of the encoder that train; heads excluded.
        total_parameters: Number of weights of the encoder, low-rank factors included.
        wrapped: Linear layers that got low-rank updates.
        unfrozen: Blocks trained in full.
        trained: Names of the parameters that train.
        frozen: Names of the parameters that do not.
        part: What was adapted, for people: ``encoder`` or ``decoder``.
    """

    config: ExPLoRAConfig
    trainable_parameters: int
    total_parameters: int
    wrapped: tuple[str, ...]
    unfrozen: tuple[str, ...]
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    part: str = 'encoder'

    def summary(self) -> str:
        """Return one line for people."""
        share = 100 * self.trainable_parameters / self.total_parameters
        unfrozen = ', '.join(self.unfrozen) if self.unfrozen else 'no block'
        return (
            f'{self.trainable_parameters:,} of {self.total_parameters:,} {self.part} weights train '
            f'({share:.1f} %): {unfrozen} in full, LoRA rank {self.config.rank} on '
            f'{len(self.wrapped)} layers'
        )


def apply_explora(
    model: VisionTransformer, config: ExPLoRAConfig, generator: torch.Generator | None = None
) -> AdapterReport:
    """Freeze an encoder, unfreeze some blocks and add low-rank updates to the others.

    The model's output does not change: the up-projections start at zero.

    Args:
        model: Any timm ``VisionTransformer`` with fused ``qkv``; changed in place.
        config: What trains.
        generator: Source of the down-projections' random values.

    Returns:
        What was wrapped, unfrozen and frozen, with exact counts.

    Raises:
        ConfigError: If the model cannot be adapted or the configuration does not fit it. The
            model is unchanged then.
    """
    _check_model(model)
    blocks = _block_indices(len(model.blocks), config)
    _check_rank(model, config)
    _check_channels(model, config)
    model.requires_grad_(False)
    wrapped: list[str] = []
    for index, block in enumerate(model.blocks):
        if index in blocks or config.train_all:
            block.requires_grad_(True)
        elif config.rank > 0:
            wrapped += [f'blocks.{index}.{n}' for n in wrap_block(block, config, generator)]
    for part in _parts_in_full(model, config):
        part.requires_grad_(True)
    unfrozen = range(len(model.blocks)) if config.train_all else blocks
    return _report(model, config, tuple(wrapped), tuple(f'blocks.{i}' for i in unfrozen))


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, VisionTransformer):
        raise ConfigError(
            f'{type(model).__name__} cannot be adapted: ExPLoRA needs a timm VisionTransformer, '
            'for instance vit_small_patch14_dinov2.'
        )
    check_unadapted(model)
    for index, block in enumerate(model.blocks):
        if not isinstance(getattr(getattr(block, 'attn', None), 'qkv', None), nn.Linear):
            raise ConfigError(
                f'Block {index} of the model has no fused attn.qkv linear layer: use a plain '
                'timm VisionTransformer (vit_*), not a parallel or rotary variant.'
            )


def check_unadapted(model: nn.Module) -> None:
    """Check that a model has no low-rank updates yet.

    Raises:
        ConfigError: If it has.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ConfigError(
            'The model has low-rank updates already: merge them with merge_lora before adapting '
            'it again.'
        )


def _block_indices(depth: int, config: ExPLoRAConfig) -> tuple[int, ...]:
    wrong = [index for index in config.unfreeze_blocks if not -depth <= index < depth]
    if wrong:
        raise ConfigError(
            f'unfreeze_blocks names {wrong}, but the model has {depth} blocks: use 0 to '
            f'{depth - 1}, or -{depth} to -1 from the end.'
        )
    return tuple(sorted({index % depth for index in config.unfreeze_blocks}))


def _check_rank(model: VisionTransformer, config: ExPLoRAConfig) -> None:
    if config.rank > model.embed_dim or (
        'mlp' in config.targets and config.rank_in_mlp > model.embed_dim
    ):
        raise ConfigError(
            f'rank {config.rank} (in the MLP {config.rank_in_mlp}) exceeds the model width '
            f'{model.embed_dim}: use a rank from 1 to {model.embed_dim}.'
        )


def _check_channels(model: VisionTransformer, config: ExPLoRAConfig) -> None:
    if config.train_channel_embed and not list(_channel_encodings(model)):
        raise ConfigError(
            f'train_channel_embed is on, but {type(model).__name__} has no encodings of groups of '
            'bands: switch it off, or use a group-channel model.'
        )


def _channel_encodings(model: VisionTransformer) -> Iterator[nn.Parameter]:
    """Yield what encodes groups of bands, under SatMAE's name for it."""
    yield from (p for n, p in model.named_parameters(recurse=False) if n == 'channel_embed')


def wrap_block(
    block: nn.Module, config: ExPLoRAConfig, generator: torch.Generator | None
) -> Iterator[str]:
    """Replace the targeted linear layers of a block, one for each name that is asked for.

    Args:
        block: A block with a fused ``attn.qkv``.
        config: What gets low-rank updates, of what rank.
        generator: Source of the down-projections' random values.

    Yields:
        Names of the layers that were replaced.
    """
    attn, mlp = block.get_submodule('attn'), block.get_submodule('mlp')
    qkv, proj = attn.get_submodule('qkv'), attn.get_submodule('proj')
    assert isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)
    width = qkv.out_features // 3
    rows = {'q': (0, width), 'k': (width, 2 * width), 'v': (2 * width, 3 * width)}
    parts = [Segment(name, *rows[name]) for name in ('q', 'k', 'v') if name in config.targets]
    if parts:
        attn.qkv = LoRALinear(qkv, parts, config.rank, config.alpha, generator)
        yield 'attn.qkv'
    if 'proj' in config.targets:
        attn.proj = _wrap_whole(proj, 'proj', config.rank, config.alpha, generator)
        yield 'attn.proj'
    if 'mlp' in config.targets:
        rank = config.rank_in_mlp
        for name, layer in list(mlp.named_children()):
            if isinstance(layer, nn.Linear):
                # the scale follows the layer's own rank, as in the official code
                setattr(mlp, name, _wrap_whole(layer, name, rank, config.alpha, generator))
                yield f'mlp.{name}'


def _wrap_whole(
    layer: nn.Linear, name: str, rank: int, alpha: float, generator: torch.Generator | None
) -> LoRALinear:
    return LoRALinear(layer, [Segment(name, 0, layer.out_features)], rank, alpha, generator)


def _parts_in_full(
    model: VisionTransformer, config: ExPLoRAConfig
) -> Iterator[nn.Module | nn.Parameter]:
    """Yield everything outside the unfrozen blocks that trains besides low-rank factors."""
    if config.train_norms or config.train_all:
        for root in (model.patch_embed, model.norm_pre, *model.blocks, model.norm):
            yield from (module for module in root.modules() if isinstance(module, NORMS))
    if (config.train_cls_token or config.train_all) and model.cls_token is not None:
        yield model.cls_token
    if (config.train_registers or config.train_all) and model.reg_token is not None:
        yield model.reg_token
    if config.train_patch_embed or config.train_all:
        yield model.patch_embed
    if config.train_all and model.pos_embed is not None:
        yield model.pos_embed
    if config.train_channel_embed:
        yield from _channel_encodings(model)


def _report(
    model: VisionTransformer,
    config: ExPLoRAConfig,
    wrapped: tuple[str, ...],
    unfrozen: tuple[str, ...],
) -> AdapterReport:
    encoder = dict(encoder_parameters(model))
    trained = {name: p for name, p in encoder.items() if p.requires_grad}
    return AdapterReport(
        config=config,
        trainable_parameters=sum(p.numel() for p in trained.values()),
        total_parameters=sum(p.numel() for p in encoder.values()),
        wrapped=wrapped,
        unfrozen=unfrozen,
        trained=tuple(trained),
        frozen=tuple(name for name in encoder if name not in trained),
    )


def encoder_parameters(model: VisionTransformer) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the encoder: everything but pooling and classification heads."""
    heads = {id(p) for part in (model.fc_norm, model.head) for p in part.parameters()}
    if model.attn_pool is not None:
        heads |= {id(p) for p in model.attn_pool.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in heads:
            yield name, parameter
