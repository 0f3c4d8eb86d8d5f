"""What a weights file tells of the model that it belongs to."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models._architecture import (
    Architecture,
    architecture_of_tensors,
    find_root,
)
from torchgeo_explora.models._checkpoint import Checkpoint
from torchgeo_explora.models._token_vit import TokenViT
from torchgeo_explora.models.group_channel_vit import SATMAE_GROUPS, GroupChannelViT

# LayerScale of a model that is started from weights with it (DINOv2); loading replaces the values
_LAYER_SCALE = 1e-5


def own_texts(model: VisionTransformer) -> dict[str, str]:
    """Return the metadata that a model needs to be built again from its weights.

    Args:
        model: The model.
    """
    texts = {}
    if model.pos_embed is not None:
        texts['grid'] = json.dumps(list(model.patch_embed.grid_size))
    if isinstance(model, GroupChannelViT):
        texts['channel_groups'] = json.dumps(model.channel_groups)
        texts['in_chans'] = json.dumps(model.patch_embed.in_chans)
    return texts


def architecture_in(checkpoint: Checkpoint) -> Architecture:
    """Return the sizes of the encoder in a checkpoint.

    Raises:
        WeightsError: If there is none.
    """
    root = find_root(checkpoint.tensors, checkpoint.source)
    tensors = checkpoint.tensors.items()
    return architecture_of_tensors(
        {k.removeprefix(root): t for k, t in tensors if k.startswith(root)}
    )


def native_arguments(
    kind: type[VisionTransformer], checkpoint: Checkpoint, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return arguments with which a model is built as its weights need it.

    Args:
        kind: Class of the model.
        checkpoint: The weights.
        given: What the caller asks for, which counts more.

    Raises:
        ConfigError: If the weights have groups of bands that nothing names.
        WeightsError: If the weights are those of no vision transformer.
    """
    found = architecture_in(checkpoint)
    size = _native_size(found, checkpoint)
    if not issubclass(kind, TokenViT):
        return size
    own: dict[str, Any] = {'init_values': _LAYER_SCALE} if found.layer_scale else {}
    if found.kind != kind.kind:
        return own  # a start: grid, patches and bands are another model's
    own |= {**size, 'patch_size': found.patch, kind.extra_argument: found.width - found.space}
    if not found.groups:
        return own | {'in_chans': found.bands}
    return own if 'channel_groups' in given else own | _stored_bands(found, checkpoint)


def _native_size(found: Architecture, checkpoint: Checkpoint) -> dict[str, Any]:
    """Size of the images in pixels that the weights' position embeddings are stored for."""
    grid = stored_grid(checkpoint)
    if grid is None:
        grid = found.native_grid()
    if grid is None:
        return {}
    return {'img_size': (grid.height * found.patch[0], grid.width * found.patch[1])}


def _stored_bands(found: Architecture, checkpoint: Checkpoint) -> dict[str, Any]:
    groups = stored_groups(checkpoint)
    if groups is not None:
        bands = _parsed(checkpoint, 'in_chans', 'a number', int)
        return {'channel_groups': groups} | ({} if bands is None else {'in_chans': bands})
    usual = SATMAE_GROUPS  # files of SatMAE and ExPLoRA do not tell them
    if found.groups != tuple(map(len, usual)):
        raise ConfigError(
            f'{checkpoint.source} has groups of {", ".join(map(str, found.groups))} bands and does '
            'not tell which: set channel_groups.'
        )
    return {'channel_groups': usual}


def stored_grid(checkpoint: Checkpoint) -> GridSize | None:
    """Return the grid of position embeddings that a file names, if it does.

    Raises:
        WeightsError: If it cannot be understood.
    """
    return _parsed(checkpoint, 'grid', '[height, width] in patches', _as_grid)


def _as_grid(value: Any) -> GridSize:  # noqa: ANN401  # any JSON
    height, width = value
    return GridSize(int(height), int(width))


def stored_groups(checkpoint: Checkpoint) -> tuple[tuple[int, ...], ...] | None:
    """Return the groups of bands that a file names, if it does.

    Raises:
        WeightsError: If they cannot be understood.
    """
    form = 'lists of band indices'
    return _parsed(
        checkpoint, 'channel_groups', form, lambda v: tuple(tuple(map(int, g)) for g in v)
    )


def _parsed[T](checkpoint: Checkpoint, name: str, form: str, read: Callable[[Any], T]) -> T | None:
    text = checkpoint.metadata.get(name)
    if text is None:
        return None
    try:
        return read(json.loads(text))
    except (TypeError, ValueError):
        raise WeightsError(
            f'{checkpoint.source} names its {name} as {text}: it must be {form}; write the file '
            'again.'
        ) from None
