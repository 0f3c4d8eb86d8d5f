"""Make the models and weights known to TorchGeo where it is installed.

TorchGeo has no public way to register a model: its two tables are filled. This file is the only
place below the tasks that looks for TorchGeo; everything works without it.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models.weights import ENUMS

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class Entry:
    """A model in TorchGeo's form.

    Args:
        builder: Function that takes ``weights`` and builds the model.
        weights: The enum of the model's weights; None where nobody published any.
    """

    builder: Builder
    weights: type[WeightsEnum] | None


def register_with_torchgeo(entries: Mapping[str, Entry]) -> bool:
    """Add models to TorchGeo's registry, so that its ``get_weight`` and ``get_model`` find them.

    Args:
        entries: Models by name.

    Returns:
        Whether TorchGeo is installed and its tables could be filled.
    """
    tables = _torchgeo_tables()
    if tables is None:
        return False
    models, enums = tables
    for name, entry in entries.items():
        models[name] = entry.builder
        if entry.weights is not None:
            enums[name] = enums[entry.builder] = entry.weights
    for enum in ENUMS:  # a model may have several, and get_weight looks through all
        enums[enum.__name__] = enum
    return True


def _torchgeo_tables() -> tuple[dict[Any, Any], dict[Any, Any]] | None:
    try:
        from torchgeo.models import api
    except ImportError:
        return None
    models, enums = vars(api).get('_model'), vars(api).get('_model_weights')
    if not isinstance(models, dict) or not isinstance(enums, dict):
        warnings.warn(
            'This TorchGeo keeps its models elsewhere: they are in timm only.', stacklevel=3
        )
        return None
    return models, enums


def find_weights(name: str) -> WeightsEnum:
    """Find a member of a weights enum, of this package or of TorchGeo, by its full name.

    Args:
        name: For instance ``'ViTBase14_DINOv2_ExPLoRA_Weights.FMOW_RGB'``.

    Raises:
        ConfigError: If there is none; those of this package are listed.
    """
    own: dict[str, WeightsEnum] = {str(m): m for enum in ENUMS for m in enum}
    if name in own:
        return own[name]
    tables = _torchgeo_tables()
    enums: set[type[WeightsEnum]] = set() if tables is None else set(tables[1].values())
    theirs = {str(member): member for enum in enums for member in enum}
    if name in theirs:
        return theirs[name]
    raise ConfigError(
        f'There are no weights named {name}: use one of {", ".join(sorted(own))}, one of '
        'TorchGeo, or the path of a file.'
    )
