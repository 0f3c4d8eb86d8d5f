"""Files that the official MAE and SatMAE printed, and the models that they are of."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora.layers.sincos import sincos_grid
from torchgeo_explora.models._token_decoder import TokenDecoder
from torchgeo_explora.models.group_channel_vit import GroupChannelViT
from torchgeo_explora.models.mae_decoder import build_decoder
from torchgeo_explora.models.temporal_vit import TemporalViT
from torchgeo_explora.objectives.mae import MAEConfig, MAEObjective, MAEOutput

# Length of a date's encoding in encoder and decoder, whatever their widths (SatMAE, spec E.4)
TIME_DIMS = (384, 192)
# Of all official models; a file may name another
NORM_EPS = 1e-6


class Reference(NamedTuple):
    """One file: state dict, inputs and outputs, constructor's arguments."""

    name: str
    state: dict[str, Tensor]
    values: dict[str, Tensor]
    config: dict[str, Any]

    @property
    def shared(self) -> bool:
        """Whether groups or dates are masked at the same places."""
        return bool(self.config.get('spatial_mask', self.config.get('same_mask', False)))


def read(folder: Path, pattern: str) -> list[Reference]:
    """Read every file of a form; skip where there is none."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        pytest.skip(f'{folder} has no {pattern}')
    return [_read(path) for path in paths]


def _read(path: Path) -> Reference:
    with np.load(path) as file:
        numbers = {key: torch.from_numpy(file[key]) for key in file.files if key != 'config'}
        config = json.loads(str(file['config']))
    state = {k.removeprefix('param/'): v for k, v in numbers.items() if k.startswith('param/')}
    values = {key: value for key, value in numbers.items() if not key.startswith('param/')}
    return Reference(path.stem, state, values, config)


def make_encoder(config: dict[str, Any]) -> VisionTransformer:
    """Build the encoder of a file."""
    norm = partial(nn.LayerNorm, eps=config.get('layer_norm_eps', NORM_EPS))
    shared = {key: config[key] for key in ('img_size', 'patch_size', 'in_chans', 'embed_dim')}
    shared |= {key: config[key] for key in ('depth', 'num_heads', 'mlp_ratio')}
    shared |= {'num_classes': 0, 'norm_layer': norm}
    if 'channel_groups' in config:
        return GroupChannelViT(config['channel_groups'], config['channel_embed'], **shared)
    if 'timestamps' in config:
        return TemporalViT(time_embed_dim=TIME_DIMS[0], **shared)
    return VisionTransformer(**shared)


def make_decoder(config: dict[str, Any], encoder: VisionTransformer) -> TokenDecoder:
    """Build the decoder of a file, with the official reading of the heads' outputs."""
    return build_decoder(
        encoder,
        config['decoder_embed_dim'],
        config['decoder_depth'],
        config['decoder_num_heads'],
        config['mlp_ratio'],
        config.get('layer_norm_eps', NORM_EPS),
        channel_embed_dim=config.get('decoder_channel_embed'),
        time_embed_dim=TIME_DIMS[1] if 'timestamps' in config else None,
        prediction_order='satmae',
    )


def load(encoder: nn.Module, decoder: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a file's parameters, strictly; none is left over."""
    names = decoder.state_dict().keys()
    decoder.load_state_dict({key: value for key, value in state.items() if key in names})
    own = {key: value for key, value in state.items() if key not in names}
    if isinstance(encoder, GroupChannelViT):  # of the fine-tuning model only
        own.setdefault('channel_cls_embed', torch.zeros_like(encoder.channel_cls_embed))
    encoder.load_state_dict(own)


def make_objective(reference: Reference) -> MAEObjective:
    """Build a file's model with its weights, every one trainable."""
    config = reference.config
    encoder = make_encoder(config)
    decoder = make_decoder(config, encoder)
    load(encoder, decoder, reference.state)
    settings = MAEConfig(
        config['mask_ratio'],
        config['norm_pix_loss'],
        'shared' if reference.shared else 'independent',
    )
    return MAEObjective(encoder, decoder, settings)


def step(reference: Reference, objective: MAEObjective) -> MAEOutput:
    """Compute the loss of a file's images and noise."""
    values = reference.values
    output: MAEOutput = objective(values['image'], values['noise'], values.get('timestamps'))
    return output


def assert_close(found: Tensor, expected: Tensor, what: str, limit: float = 1e-5) -> None:
    """Compare the length of the difference with that of the values."""
    assert found.shape == expected.shape, what
    error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
    assert error <= limit, f'{what}: relative error {error:.1e}'


def place(objective: MAEObjective, name: str) -> nn.Parameter:
    """Return the parameter that ``grad_<name>`` of a file is of.

    ``qkv0`` is a block's fused weight, ``patch_embed1`` and ``decoder_pred1`` are of a group;
    other names are those of parameters, the end ``.weight`` left out.
    """
    parameters = dict(objective.encoder.named_parameters())
    parameters |= dict(objective.decoder.named_parameters())
    stem, number = re.fullmatch(r'(.*?)(\d*)', name).groups()  # type: ignore[union-attr]
    part = f'.{number}' if number != '' else ''
    candidates = (
        name,
        f'{name}.weight',
        f'{stem}_token',
        f'blocks{part}.attn.{stem}.weight',
        f'{stem}{part}.proj.weight',
        f'{stem}{part}.weight',
    )
    found = [parameters[key] for key in dict.fromkeys(candidates) if key in parameters]
    assert len(found) == 1, f'grad_{name} of a file fits {len(found)} parameters'
    return found[0]


def assert_positions_are_fixed(reference: Reference) -> None:
    """The encodings of new models are those that the official code makes."""
    encoder = make_encoder(reference.config)
    decoder = make_decoder(reference.config, encoder)
    new = {**dict(encoder.named_parameters()), **dict(decoder.named_parameters())}
    if type(encoder) is VisionTransformer:  # timm's positions are learned
        new['pos_embed'] = nn.Parameter(sincos_grid(decoder.sizes.grid, encoder.embed_dim, 1))
    for key, value in reference.state.items():
        if key.endswith(('pos_embed', 'channel_embed')):
            torch.testing.assert_close(new[key].detach(), value, rtol=1e-5, atol=1e-6, msg=key)
