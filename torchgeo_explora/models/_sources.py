"""Find the weights that a user names: a file, a member of a weights enum, or timm's own."""

import re
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

import timm
import torch
from torch.hub import download_url_to_file, get_dir
from torchvision.models._api import WeightsEnum

from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models._build import check_name, is_plain
from torchgeo_explora.models._checkpoint import Checkpoint, read_checkpoint
from torchgeo_explora.models._stored import own_texts
from torchgeo_explora.models.registry import find_weights

TIMM_SOURCE = 'timm weights of '
_ENUM_NAME = re.compile(r'^[A-Za-z]\w*_Weights\.[A-Z0-9_]+$')
_HASH = re.compile(r'-([a-f0-9]{8,})\.')  # as in the file names of torchvision's weights


def open_weights(name: str, weights: str | Path | WeightsEnum | bool | None) -> Checkpoint | None:
    """Read the weights that a user names.

    Args:
        name: Name of the timm model, for ``weights=True``.
        weights: As in :func:`create_backbone`.

    Returns:
        The tensors, or None for a random initialisation.

    Raises:
        ConfigError: If there are no such weights.
        WeightsError: If they cannot be downloaded or read.
    """
    if weights is None or weights is False:
        return None
    if weights is True:
        return _timm_weights(name)
    if isinstance(weights, str) and _ENUM_NAME.match(weights):
        weights = find_weights(weights)
    if isinstance(weights, WeightsEnum):
        return read_checkpoint(fetch(weights))
    return read_checkpoint(weights)


def fetch(weights: WeightsEnum) -> Path:
    """Return the path of an enum member's file, downloaded once to PyTorch's cache.

    A hash in the file name (``-1a2b3c4d.pth``) is checked.

    Args:
        weights: The member; its ``url`` may also be a path.

    Raises:
        WeightsError: If it cannot be downloaded.
    """
    url = str(weights.url)
    parts = urlsplit(url)
    if not parts.scheme:
        return Path(url)
    target = Path(get_dir()) / 'checkpoints' / Path(parts.path).name
    if target.is_file():
        return target
    match = _HASH.search(target.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(url, str(target), None if match is None else match[1], progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f'{weights!r} could not be downloaded from {url} ({error}): check the connection, or '
            f'put the file at {target} or pass its path.'
        ) from error
    return target


def _timm_weights(name: str) -> Checkpoint:
    check_name(name)
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        detail = str(error).strip().partition('\n')[0]
        raise WeightsError(
            f'The weights of {name} could not be had from timm ({detail}): check the connection and '
            'that the name has weights, or pass the path of a file.'
        ) from error
    if not is_plain(model):
        raise ConfigError(f'{name} is a {type(model).__name__}: use a plain vision transformer.')
    return Checkpoint(_stock_state(model), own_texts(model), f'{TIMM_SOURCE}{name}')


def _stock_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.detach() for key, tensor in model.state_dict().items()}
