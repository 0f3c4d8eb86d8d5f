"""Small M-ExPLoRA runs, in this process or in one that can be killed, or on two ranks.

Arguments of a process: ``KIND ROOT OUT [--resume CHECKPOINT] [--devices N] [--task JSON]``.
It prints a line after every micro-batch and writes the weights of every rank at the end.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from torchgeo.datamodules import BaseDataModule

from tests.data.fmow_sentinel.data import write_sentinel
from tests.data.fmow_temporal.data import write_temporal
from tests.tasks.dinov2_runs import BATCH, Report, make_trainer, weights
from tests.tasks.toy import images
from torchgeo_explora._typing import GridSize
from torchgeo_explora.datamodules import (
    FMoWSentinelDataModule,
    FMoWTemporalDataModule,
    FolderDataModule,
)
from torchgeo_explora.layers.sincos import sincos_grid
from torchgeo_explora.models import SATMAE_BANDS, GroupChannelViT, TemporalViT, build_decoder
from torchgeo_explora.models._token_entry import build_token_vit
from torchgeo_explora.tasks import ExPLoRAMAE

TINY: dict[str, Any] = {
    'img_size': 32, 'patch_size': 8, 'embed_dim': 32, 'depth': 3, 'num_heads': 2, 'num_classes': 0,
}  # fmt: skip


@register_model
def tiny_mae_group_vit(pretrained: bool = False, **kwargs: Any) -> GroupChannelViT:  # noqa: ANN401
    """SatMAE's groups in a small model."""
    options = {**TINY, 'channel_embed_dim': 8, 'in_chans': 10}
    model = build_token_vit(GroupChannelViT, 'tiny_mae_group_vit', pretrained, options, kwargs)
    assert isinstance(model, GroupChannelViT)
    return model


@register_model
def tiny_plain_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:  # noqa: ANN401
    """A stock model of the same size, with MAE's patches."""
    options = {**TINY, 'img_size': 64, 'patch_size': 16, 'dynamic_img_size': True, **kwargs}
    return _create_vision_transformer('vit_tiny_patch16_224', pretrained, **options)


@register_model
def tiny_mae_temporal_vit(pretrained: bool = False, **kwargs: Any) -> TemporalViT:  # noqa: ANN401
    """Dates in a small model."""
    options = {**TINY, 'time_embed_dim': 12}
    model = build_token_vit(TemporalViT, 'tiny_mae_temporal_vit', pretrained, options, kwargs)
    assert isinstance(model, TemporalViT)
    return model


GROUPS = {
    'visible_nir': ['B2', 'B3', 'B4', 'B8'],
    'red_edge': ['B5', 'B6', 'B7', 'B8A'],
    'swir': ['B11', 'B12'],
}
SMALL: dict[str, Any] = {
    'preset': 'small', 'rank': 4, 'decoder_width': 32, 'decoder_depth': 2, 'decoder_heads': 2,
    'decoder_rank': 2, 'image_size': 32, 'accumulate': 3, 'base_lr': 0.5, 'train_decoder_all': False,
    'train_decoder_pred': True,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    'plain': {'model': 'tiny_plain_vit'},
    'groups': {
        'model': 'tiny_mae_group_vit', 'bands': list(SATMAE_BANDS), 'groups': GROUPS,
        'mean': [0.0] * 10, 'std': [1.0] * 10, 'random_crop': False,
    },
    'dates': {'model': 'tiny_mae_temporal_vit', 'random_crop': False},
}  # fmt: skip
BATCHES = 3  # of an epoch


def write_natural_mae(path: Path, width: int = 32, bands: int = 3) -> Path:
    """Write a checkpoint in the layout of natural-image MAE, encoder and decoder.

    Args:
        path: The file.
        width: Of the encoder, which has the depth of the small models.
        bands: Bands of its patch embedding.
    """
    torch.manual_seed(7)
    encoder = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=width, depth=3, num_heads=2, in_chans=bands,
        num_classes=0,
    )  # fmt: skip
    decoder = build_decoder(encoder, 32, 2, 2)
    state = {**encoder.state_dict(), **decoder.state_dict()}
    drawn = {key: torch.randn_like(value) / 8 for key, value in state.items()}
    drawn |= {'pos_embed': sincos_grid(GridSize(4, 4), width, num_prefix=1)}
    torch.save({'model': drawn}, path)
    return path


def make_root(kind: str, folder: Path) -> Path:
    """Images for a kind of model: at least 12 for training."""
    if kind == 'plain':
        return images(folder, ('train', 'test'), 5)
    if kind == 'groups':
        return write_sentinel(folder)
    return write_temporal(folder)


def make_task(kind: str = 'plain', **arguments: Any) -> ExPLoRAMAE:  # noqa: ANN401
    """A task that takes a fraction of a second a step."""
    return ExPLoRAMAE(**{**SMALL, **KINDS[kind], **arguments})


def make_data(kind: str, root: Path, **arguments: Any) -> BaseDataModule:  # noqa: ANN401
    """Images without labels, three batches an epoch."""
    options = {'image_size': 32, 'batch_size': BATCH, 'steps_per_epoch': BATCHES, **arguments}
    if kind == 'plain':
        return FolderDataModule(root, with_labels=False, **options)
    if kind == 'groups':
        return FMoWSentinelDataModule(root, train_scale=(0.2, 1.0), **options)
    return FMoWTemporalDataModule(root, **options)


def main(arguments: Sequence[str]) -> None:
    """Run as its own process.

    Args:
        arguments: As above.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('kind', choices=KINDS)
    parser.add_argument('root', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--resume', type=Path)
    parser.add_argument('--devices', type=int, default=1)
    parser.add_argument('--task', type=json.loads, default={})
    options = parser.parse_args(arguments)
    saver = ModelCheckpoint(
        options.out / 'checkpoints', every_n_train_steps=1, save_top_k=-1, save_last=True
    )
    trainer = make_trainer(
        options.out,
        max_epochs=5,
        callbacks=[saver, Report()],
        enable_checkpointing=True,
        devices=options.devices,
        strategy='auto' if options.devices == 1 else 'ddp',
    )
    task = make_task(options.kind, **options.task)
    resume = None if options.resume is None else str(options.resume)
    trainer.fit(task, make_data(options.kind, options.root), ckpt_path=resume)
    torch.save(weights(task), options.out / f'rank{trainer.global_rank}.pt')
