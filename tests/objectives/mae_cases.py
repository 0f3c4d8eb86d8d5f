"""Small masked autoencoders of every kind, for table tests."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora, apply_explora_to_decoder
from torchgeo_explora.models import GroupChannelViT, TemporalViT, TokenDecoder, build_decoder
from torchgeo_explora.objectives import MAEConfig, MAEObjective

ENCODER: dict[str, Any] = {
    'embed_dim': 24, 'depth': 2, 'num_heads': 3, 'num_classes': 0, 'mlp_ratio': 2.0,
    'img_size': 16, 'patch_size': 4,
}  # fmt: skip
DECODER: dict[str, Any] = {'width': 20, 'depth': 2, 'heads': 2, 'mlp_ratio': 3.0}
OVERLAPPING = ((0, 3, 1), (3, 2), (5,))  # of six: band 3 is in two groups, band 4 in none
SCATTERED = ((0, 3), (2, 1, 4))

Plain = partial(VisionTransformer, **ENCODER)
Groups = partial(GroupChannelViT, channel_embed_dim=8, **ENCODER)
Dates = partial(TemporalViT, time_embed_dim=12, **ENCODER)


class Case(NamedTuple):
    """How to build a model, and the shape of an image."""

    encoder: Callable[[], VisionTransformer]
    shape: tuple[int, ...]
    config: MAEConfig
    decoder: dict[str, Any]


def _case(
    encoder: Callable[[], VisionTransformer],
    *shape: int,
    ratio: float = 0.75,
    norm: bool = True,
    shared: bool = False,
    **decoder: Any,  # noqa: ANN401
) -> Case:
    config = MAEConfig(ratio, norm, 'shared' if shared else 'independent')
    return Case(encoder, shape, config, {**DECODER, **decoder})


CASES: dict[str, Case] = {
    'plain': _case(Plain, 3, 16, 16),
    'pixels': _case(Plain, 3, 16, 16, norm=False, ratio=0.5),
    'plain_shared': _case(Plain, 3, 16, 16, shared=True),
    'five_bands_not_square': _case(partial(Plain, in_chans=5, img_size=(8, 24)), 5, 8, 24),
    'oblong_patches': _case(partial(Plain, img_size=(8, 24), patch_size=(4, 8)), 3, 8, 24),
    'registers': _case(partial(Plain, reg_tokens=2), 3, 16, 16),
    'no_class_token': _case(partial(Plain, class_token=False, global_pool='avg', fc_norm=False), 3, 16, 16),
    'shallow_decoder': _case(Plain, 3, 16, 16, depth=1),
    'groups': _case(partial(Groups, ((0, 1), (2, 3))), 4, 16, 16, channel_embed_dim=4),
    'groups_shared': _case(partial(Groups, SCATTERED), 5, 16, 16, shared=True, channel_embed_dim=8),
    'groups_overlapping': _case(partial(Groups, OVERLAPPING, in_chans=6), 6, 16, 16, channel_embed_dim=4),
    'groups_pixels': _case(partial(Groups, OVERLAPPING, in_chans=6), 6, 16, 16, norm=False, channel_embed_dim=4),
    'one_group_not_square': _case(partial(Groups, ((2, 0),), img_size=(8, 16)), 3, 8, 16, channel_embed_dim=4),
    'groups_as_satmae': _case(partial(Groups, SCATTERED), 5, 16, 16, prediction_order='satmae', channel_embed_dim=4),
    'overlapping_as_satmae': _case(partial(Groups, OVERLAPPING, in_chans=6), 6, 16, 16, prediction_order='satmae', channel_embed_dim=4),
    'dates': _case(Dates, 3, 3, 16, 16, time_embed_dim=12),
    'two_dates_shared': _case(Dates, 2, 3, 16, 16, shared=True, norm=False, time_embed_dim=12),
}  # fmt: skip


def make_objective(case: Case, seed: int = 0) -> MAEObjective:
    """Build a case in double precision, random values in all that is not a fixed encoding."""
    encoder = case.encoder()
    decoder = build_decoder(encoder, **case.decoder)
    objective = MAEObjective(encoder, decoder, case.config).double()
    shake(objective, torch.Generator().manual_seed(seed))
    return objective


@torch.no_grad()
def shake(objective: MAEObjective, generator: torch.Generator) -> None:
    """Draw every trainable parameter anew, so that each of them matters."""
    for parameter in objective.parameters():
        if parameter.requires_grad:
            offset = 1.0 if parameter.ndim == 1 else 0.0  # norms and biases are near 1
            parameter.normal_(offset, 0.2, generator=generator)


def adapt(objective: MAEObjective, seed: int = 1) -> None:
    """Apply M-ExPLoRA to encoder and decoder, with random low-rank factors."""
    generator = torch.Generator().manual_seed(seed)
    vit, decoder = objective.encoder, objective.decoder
    assert isinstance(decoder, TokenDecoder)
    apply_explora(vit, ExPLoRAConfig(rank=2, train_patch_embed=True), generator)
    apply_explora_to_decoder(decoder, 3, train_pred=True, generator=generator)
    shake(objective, generator)


def images_of(case: Case, batch: int = 3, seed: int = 2) -> tuple[Tensor, Tensor | None]:
    """Return images, and timestamps where the case has dates."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, *case.shape, generator=generator, dtype=torch.float64)
    if images.ndim == 4:
        return images, None
    dates = torch.rand(batch, case.shape[0], 3, generator=generator) * 12
    return images, dates.floor().double()
