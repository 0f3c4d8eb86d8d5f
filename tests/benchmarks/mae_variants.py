"""The training steps that ``mae_step.py`` compares, all on the same weights, images and noise.

``ObjectiveStep`` is this package's objective, with low-rank updates or with every weight training.
``PlainStep`` is full training written straight from the equations (He et al. 2022, section 3):
every patch embedded before most are dropped, every block at every token, every token predicted,
the loss masked at the end.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tests.benchmarks.mae_flops import Sizes, Stack, Training
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora, apply_explora_to_decoder
from torchgeo_explora.layers import TokenEmbedder, TokenMask, patch_grid, sincos_grid, token_count
from torchgeo_explora.losses import normalize_patches
from torchgeo_explora.models import GroupChannelViT, TemporalViT, TokenDecoder, build_decoder
from torchgeo_explora.objectives.mae import MAEConfig, MAEObjective
from torchgeo_explora.objectives.param_groups import adamw

Kind = Literal['rgb', 'groups', 'dates']
# Width, depth and heads of the encoders; XS is for trying the benchmark out
ENCODERS = {'XS': (96, 2, 3), 'S': (384, 12, 6), 'B': (768, 12, 12), 'L': (1024, 24, 16)}
DECODERS = {'XS': (64, 2, 2), 'S': (512, 8, 16), 'B': (512, 8, 16), 'L': (512, 8, 16)}
# Side of the images, of a patch, and what comes before height and width (MAE, SatMAE)
SHAPES: dict[Kind, tuple[int, int, tuple[int, ...]]] = {
    'rgb': (224, 16, (3,)),
    'groups': (96, 8, (10,)),
    'dates': (224, 16, (3, 3)),
}
# Of the encoder's width: a quarter for groups; for dates three eighths (SatMAE's, of 1,024)
GROUP_SHARE, DATE_SHARE = 4, 16
RATE = 1e-5
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Setting:
    """What a step is measured on.

    Args:
        model: Size of the encoder.
        kind: Plain images, groups of bands or dates.
        batch: Images of a step.
        device: ``cpu`` or ``cuda``.
        dtype: ``fp32``, or ``bf16`` for autocast.
        seed: Source of weights, images and noise.
    """

    model: str
    kind: Kind
    batch: int
    device: str
    dtype: str
    seed: int

    def autocast(self) -> AbstractContextManager[object]:
        """Return the precision's context."""
        if self.dtype == 'bf16':
            return torch.autocast(self.device, torch.bfloat16)
        return nullcontext()


@dataclass(frozen=True)
class Batch:
    """Images, dates where there are some, and the noise of the masks (on the CPU)."""

    images: Tensor
    timestamps: Tensor | None
    noise: Tensor


def make_encoder(setting: Setting) -> VisionTransformer:
    """Build the encoder, with fixed positions and seeded weights."""
    torch.manual_seed(setting.seed)
    width, depth, heads = ENCODERS[setting.model]
    size, patch, _ = SHAPES[setting.kind]
    shared: dict[str, Any] = {'img_size': size, 'patch_size': patch, 'embed_dim': width}
    shared |= {'depth': depth, 'num_heads': heads, 'num_classes': 0}
    if setting.kind == 'groups':
        return GroupChannelViT(channel_embed_dim=width // GROUP_SHARE, **shared)
    if setting.kind == 'dates':
        return TemporalViT(time_embed_dim=6 * (width // DATE_SHARE), **shared)
    vit = VisionTransformer(**shared)
    assert vit.pos_embed is not None
    with torch.no_grad():
        grid = patch_grid(vit, torch.empty(1, 3, size, size, device='meta'))
        vit.pos_embed.copy_(sincos_grid(grid, width, 1))
    return vit


def make_objective(setting: Setting) -> tuple[MAEObjective, VisionTransformer, TokenDecoder]:
    """Build encoder, decoder and objective on the CPU."""
    encoder = make_encoder(setting)
    width, depth, heads = DECODERS[setting.model]
    generator = torch.Generator().manual_seed(setting.seed)
    decoder = build_decoder(encoder, width, depth, heads, generator=generator)
    return MAEObjective(encoder, decoder, MAEConfig()), encoder, decoder


def make_batch(setting: Setting) -> Batch:
    """Draw normalised noise for images, dates, and masks."""
    generator = torch.Generator().manual_seed(setting.seed)
    size, _, before = SHAPES[setting.kind]
    images = torch.randn(setting.batch, *before, size, size, generator=generator)
    dates = torch.rand(setting.batch, 3, 3, generator=generator).mul(12).floor()
    timestamps = dates.to(setting.device) if setting.kind == 'dates' else None
    with torch.device('meta'):  # shapes are all that is asked for
        encoder = make_encoder(setting)
    noise = torch.rand(setting.batch, token_count(encoder, images), generator=generator)
    return Batch(images.to(setting.device), timestamps, noise)


def make_sizes(setting: Setting, batch: Batch) -> Sizes:
    """Return the sizes that the arithmetic follows from."""
    width, depth, _ = ENCODERS[setting.model]
    inner, layers, _ = DECODERS[setting.model]
    size, patch, before = SHAPES[setting.kind]
    tokens = batch.noise.shape[1]
    kept = int(tokens * (1 - MAEConfig().mask_ratio))
    copies = tokens // (size // patch) ** 2
    bands = before[-1] if setting.kind != 'groups' else before[-1] / copies  # of a token
    return Sizes(
        batch=setting.batch,
        encoder=Stack(width, 4 * width, depth, 1 + kept),
        decoder=Stack(inner, 4 * inner, layers, 1 + tokens),
        tokens=tokens,
        masked=tokens - kept,
        values=bands * patch**2,
    )


class Step(Protocol):
    """One way to train: a loss, and the optimizer of what it trains."""

    optimizer: Optimizer

    def loss(self) -> Tensor:
        """Return the loss of the batch."""

    def parameters(self) -> Iterator[Tensor]:
        """Yield every weight."""


def make_training(name: str, setting: Setting) -> Training:
    """Say what a variant trains and saves.

    Args:
        name: ``full``, ``plain``, ``explora-r<rank>-d<rank of the decoder>``, or
            ``explora-r<rank>-full-decoder``.
        setting: What is measured.
    """
    if name in ('full', 'plain'):
        ours = name == 'full'
        return Training(None, visible_only=ours, pruned=ours)
    rank, _, decoder = name.removeprefix('explora-r').partition('-')
    decoder_rank = None if decoder == 'full-decoder' else int(decoder.removeprefix('d'))
    groups = setting.kind == 'groups'
    return Training(2 if groups else 1, int(rank), decoder_rank, new_bands=groups)


class ObjectiveStep:
    """This package's step.

    Args:
        setting: What is measured.
        batch: Images and noise.
        training: What trains.
    """

    def __init__(self, setting: Setting, batch: Batch, training: Training) -> None:
        self.setting, self.batch = setting, batch
        self.objective, encoder, decoder = make_objective(setting)
        self.objective.to(setting.device).train()
        fixed = encoder.pos_embed
        assert fixed is not None
        if training.unfrozen is None:
            apply_explora(encoder, ExPLoRAConfig(0, train_all=True))
        else:
            blocks = (0, -1) if training.unfrozen == 2 else (-1,)
            apply_explora(
                encoder,
                ExPLoRAConfig(training.rank, blocks, train_patch_embed=training.new_bands),
            )
        fixed.requires_grad_(False)  # sines and cosines in MAE, also where everything trains
        rank = training.decoder_rank
        in_full = rank is None
        pred = training.new_bands and not in_full
        apply_explora_to_decoder(
            decoder, 0 if rank is None else rank, train_pred=pred, train_all=in_full
        )
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer: Optimizer = adamw([{'params': trained}], BETAS)
        for group in self.optimizer.param_groups:
            group['lr'], group['weight_decay'] = RATE, 0.0

    def loss(self) -> Tensor:
        batch = self.batch
        with self.setting.autocast():
            loss: Tensor = self.objective(batch.images, batch.noise, batch.timestamps).loss
        return loss

    def parameters(self) -> Iterator[Tensor]:
        yield from self.objective.parameters()


class PlainStep:
    """Full training as the equations have it, without any of this package's savings.

    Args:
        setting: What is measured.
        batch: Images and noise.
    """

    def __init__(self, setting: Setting, batch: Batch) -> None:
        self.setting, self.batch = setting, batch
        objective, self.encoder, self.decoder = make_objective(setting)
        objective.to(setting.device).train()
        self.mask: TokenMask = objective.mask(batch.images, batch.noise)
        self.mask = self.mask.to(batch.images.device)
        for name, parameter in objective.named_parameters():
            # encodings are sines and cosines
            parameter.requires_grad_(not name.endswith('_embed'))
        self.model: nn.Module = objective
        trained = [p for p in objective.parameters() if p.requires_grad]
        self.optimizer: Optimizer = AdamW(trained, lr=RATE, betas=BETAS, weight_decay=0.0)

    def loss(self) -> Tensor:
        with self.setting.autocast():
            return self._loss()

    def _loss(self) -> Tensor:
        vit, batch = self.encoder, self.batch
        x = embed_and_drop(vit, batch, self.mask)
        for block in vit.blocks:
            x = block(x)
        parts = self.decoder.predict_all(self._decode(vit.norm(x)))
        targets = self.decoder.split(normalize_patches(self.decoder.patches(batch.images)))
        masks = self.mask.masked.unflatten(1, (len(parts), -1)).unbind(1)
        total = batch.images.new_zeros(())
        for part, target, hidden in zip(parts, targets, masks, strict=True):
            total = total + ((part - target).square().mean(dim=-1) * hidden).sum()
        return total / self.mask.masked.sum()

    def _decode(self, latent: Tensor) -> Tensor:
        decoder, batch, restore = self.decoder, self.batch, self.mask.restore
        x = decoder.decoder_embed(latent)
        missing = restore.shape[1] + 1 - x.shape[1]
        empty = decoder.mask_token.to(x.dtype).expand(len(x), missing, -1)
        tokens = torch.cat([x[:, 1:], empty], dim=1)
        tokens = tokens.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], tokens], dim=1)
        x = x + decoder.positions(patch_grid(self.encoder, batch.images), batch.timestamps)
        for block in decoder.decoder_blocks:
            x = block(x)
        out: Tensor = decoder.decoder_norm(x)[:, 1:]
        return out

    def parameters(self) -> Iterator[Tensor]:
        yield from self.model.parameters()


def embed_and_drop(vit: VisionTransformer, batch: Batch, mask: TokenMask) -> Tensor:
    """Embed every patch, add positions, and only then keep the visible ones."""
    assert vit.pos_embed is not None and vit.cls_token is not None
    if isinstance(vit, TokenEmbedder):
        x = vit.embed_all(batch.images)
        index = torch.arange(x.shape[1], device=x.device)[None]
        grid = patch_grid(vit, batch.images)
        x = x + vit.token_positions(grid, index, batch.timestamps)
        first: Tensor = vit.cls_token
    else:
        x = vit.patch_embed(batch.images) + vit.pos_embed[:, 1:]
        first = vit.cls_token + vit.pos_embed[:, :1]
    x = x.gather(1, mask.keep[..., None].expand(-1, -1, x.shape[-1]))
    return torch.cat([first.expand(len(x), -1, -1), x], dim=1)
