"""How models with groups or dates are built, configured and loaded by timm."""

import logging
from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg
from torch import Tensor

from torchgeo_explora.models._convert import convert_state_dict
from torchgeo_explora.models._token_vit import TokenViT

_logger = logging.getLogger(__name__)

EXPLORA = 'https://huggingface.co/samarkhanna/ExPLoRA/resolve/main/'
ZENODO = 'https://zenodo.org/records/'
SIZES: dict[str, dict[str, Any]] = {
    'small': {'embed_dim': 384, 'depth': 12, 'num_heads': 6},
    'base': {'embed_dim': 768, 'depth': 12, 'num_heads': 12},
    'large': {'embed_dim': 1024, 'depth': 24, 'num_heads': 16},
}


def checkpoint_filter(state_dict: Mapping[str, Any], model: TokenViT) -> dict[str, Tensor]:
    """Convert a published file for timm; what it does not have stays the model's own.

    Args:
        state_dict: Content of the file, with its wrappers.
        model: The model to fit.
    """
    found = convert_state_dict(state_dict, model)
    own = {k: t for k, t in model.state_dict().items() if k in found.reasons}
    for key in own:
        _logger.info('%s: %s', key, found.reasons[key])
    _logger.info('Dropped: %s. Changed: %s.', found.dropped, found.changed)
    return {**found.state, **own}


def token_cfg(
    url: str,
    input_size: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    explora: bool = False,
) -> dict[str, Any]:
    """Return timm's configuration of a model.

    Args:
        url: Weights; empty where there are none.
        input_size: Bands, height and width.
        mean: Mean of each band of the images in [0, 1].
        std: Standard deviation of each band.
        explora: Whether the weights are ExPLoRA's, otherwise SatMAE's.
    """
    paper = {
        'license': 'unknown',
        'paper_ids': 'arXiv:2406.10973',
        'paper_name': 'ExPLoRA: Parameter-Efficient Extended Pre-Training to Adapt Vision '
        'Transformers under Domain Shifts',
        'origin_url': 'https://github.com/samar-khanna/ExPLoRA',
    }
    satmae = {
        'license': 'cc-by-nc-4.0',
        'paper_ids': 'arXiv:2207.08051',
        'paper_name': 'SatMAE: Pre-training Transformers for Temporal and Multi-Spectral '
        'Satellite Imagery',
        'origin_url': 'https://github.com/sustainlab-group/SatMAE',
    }
    return {
        'url': url,
        'num_classes': 0,
        'input_size': input_size,
        'pool_size': None,
        'crop_pct': 0.875,  # SatMAE's evaluation: 96 of 109, 224 of 256
        'interpolation': 'bicubic',
        'fixed_input_size': True,
        'mean': mean,
        'std': std,
        'first_conv': None,  # patch embeddings are adapted with the rest of the file
        'classifier': 'head',
        **(paper if explora else satmae),
    }


def build_token_vit(
    kind: type[TokenViT],
    name: str,
    pretrained: bool,
    defaults: Mapping[str, Any],
    given: Mapping[str, Any],
) -> TokenViT:
    """Build a model as timm does, with its weights where asked for.

    Args:
        kind: Class of the model.
        name: Name of the model.
        pretrained: Whether to download weights.
        defaults: Its own arguments.
        given: The caller's, which count more.
    """
    arguments = {'dynamic_img_size': True, **defaults, **given}
    out_indices = arguments.pop('out_indices', 3)
    model: TokenViT = build_model_with_cfg(
        kind,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter,
        feature_cfg={'out_indices': out_indices, 'feature_cls': 'getter'},
        **arguments,
    )
    return model
