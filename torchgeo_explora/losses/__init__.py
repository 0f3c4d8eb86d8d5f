"""Objectives of self-supervised learning, as functions with thin module forms."""

from torchgeo_explora.losses.centering import SoftmaxCentering, sinkhorn_knopp, softmax_centering
from torchgeo_explora.losses.dino import DINOLoss, dino_loss
from torchgeo_explora.losses.ibot import IBOTPatchLoss, ibot_patch_loss, mask_weights
from torchgeo_explora.losses.koleo import KoLeoLoss, koleo_loss
from torchgeo_explora.losses.mae import (
    group_mae_loss,
    mae_loss,
    masked_patch_loss,
    normalize_patches,
    patchify,
    unpatchify,
)
from torchgeo_explora.losses.prototypes import prototype_cross_entropy

__all__ = [
    'DINOLoss',
    'IBOTPatchLoss',
    'KoLeoLoss',
    'SoftmaxCentering',
    'dino_loss',
    'group_mae_loss',
    'ibot_patch_loss',
    'koleo_loss',
    'mae_loss',
    'mask_weights',
    'masked_patch_loss',
    'normalize_patches',
    'patchify',
    'prototype_cross_entropy',
    'sinkhorn_knopp',
    'softmax_centering',
    'unpatchify',
]
