"""Build a vision transformer and load weights into it, strictly and with a full report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapters.state import FORMAT as ADAPTER_FORMAT
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models._architecture import Architecture, architecture_of
from torchgeo_explora.models._build import (
    build_backbone,
    check_divides,
    image_size,
    model_class,
)
from torchgeo_explora.models._checkpoint import (
    Checkpoint,
    flatten_tensors,
    read_checkpoint,
    read_metadata,
)
from torchgeo_explora.models._convert import MASK_TOKEN, Conversion, convert_state_dict
from torchgeo_explora.models._saving import save_backbone
from torchgeo_explora.models._sources import open_weights
from torchgeo_explora.models._stored import native_arguments, stored_grid, stored_groups
from torchgeo_explora.models.trained import as_start

__all__ = [
    'Checkpoint',
    'Conversion',
    'LoadReport',
    'convert_state_dict',
    'create_backbone',
    'load_backbone',
    'read_checkpoint',
    'read_metadata',
    'save_backbone',
]


_LISTED = 12  # keys of one kind that a summary names


@dataclass(frozen=True, eq=False)
class LoadReport:
    """What loading did with every key.

    Args:
        source: Where the weights came from; None if the model was initialised at random.
        architecture: Sizes of the model.
        renamed: Key of the source -> key of the model, where they differ.
        dropped: Keys of the source that nothing was taken from.
        added: Keys that the source does not have; ``mask_token`` is then zeros, and all others
            keep the model's initial values.
        changed: Key of the model -> what was done to its values.
        dtypes: Number types of the source's tensors that were taken, for instance ``float16``.
        mask_token: The token (1, width) that replaces masked patches.
        metadata: Metadata of the file.
        reasons: Key -> why it was added or dropped, where its name alone does not tell.
    """

    source: str | None
    architecture: Architecture
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    added: tuple[str, ...]
    changed: dict[str, str]
    dtypes: tuple[str, ...]
    mask_token: Tensor
    metadata: dict[str, str]
    reasons: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Describe the outcome, one line a point."""
        if self.source is None:
            return f'Initialised at random: {self.architecture.describe()}.'
        lines = [f'{self.source}: {self.architecture.describe()}.']
        lines += [f'Changed: {key} {what}.' for key, what in self.changed.items()]
        for what, keys in (('Dropped', self.dropped), ('Added', self.added)):
            lines += [f'{what}: {line}.' for line in by_reason(keys, self.reasons)]
        lines += [f'Renamed: {len(self.renamed)} keys.'] if self.renamed else []
        return '\n'.join(lines)


def by_reason(keys: Iterable[str], reasons: Mapping[str, str]) -> list[str]:
    """List keys, those of one reason together, with the reason.

    Args:
        keys: What is listed.
        reasons: Key -> reason; keys without one come first, shortened where they are many.
    """
    groups: dict[str | None, list[str]] = {}
    for key in sorted(keys, key=lambda key: key in reasons):
        groups.setdefault(reasons.get(key), []).append(key)
    return [
        _shortened(found) if reason is None else f'{", ".join(found)} ({reason})'
        for reason, found in groups.items()
    ]


def _shortened(keys: list[str]) -> str:
    """Name the first of many: a decoder that is dropped has a hundred keys."""
    if len(keys) <= _LISTED:
        return ', '.join(keys)
    return f'{", ".join(keys[:_LISTED])} and {len(keys) - _LISTED} more'


def create_backbone(
    name: str,
    weights: str | Path | WeightsEnum | bool | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    *,
    seed: int | None = None,
    base_weights: str | Path | WeightsEnum | bool | None = None,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> tuple[VisionTransformer, LoadReport]:
    """Build a vision transformer, plain or of this package, and load weights into it.

    The model has no classifier, takes images of any size that divides into patches, and keeps
    the grid of position embeddings that the weights have, unless ``img_size`` asks for another:
    then they are resampled once, as DINOv2 does it.

    A model with groups or dates (``explora_group_channel_vit_*``, ``explora_temporal_vit_*``) is
    built with the groups, patches and bands that its own weights have, or starts from weights of
    any vision transformer of its width and depth; the report says what was new and why.

    Args:
        name: Name of a timm model, stock or of this package, with or without a tag.
        weights: None or False initialises at random; True downloads timm's own weights of the
            name; a path, or a member of a weights enum or its name
            (``'ViTBase14_DINOv2_ExPLoRA_Weights.FMOW_RGB'``), loads those. A path may also be that
            of a delta (``adapter.safetensors``), which is applied to ``base_weights``; of a fitted
            model (``model.safetensors``), whose backbone is taken; or of a checkpoint (``.ckpt``) of
            this package's tasks, of which the network is taken that they would publish, merged.
        img_size: Side, or height and width, in pixels, that position embeddings are stored for.
        in_chans: Bands of the images, by default those of the model (3 for plain ones); weights
            of three bands are adapted, see :func:`convert_state_dict`.
        seed: Seed of the random initialisation; the global generator is used when not given.
        base_weights: For a delta: the weights it was trained from, named like ``weights``; by
            default timm's own, where the delta says that it was trained from these. Their
            fingerprint is checked.
        **kwargs: Further arguments of the timm model, for instance ``drop_path_rate``, or
            ``channel_groups`` (see :func:`resolve_groups`).

    Returns:
        The model in float32 and evaluation mode, and a report of every key.

    Raises:
        ConfigError: If the name or an argument is not possible.
        WeightsError: If the weights cannot be read or do not fit.
    """
    checkpoint = open_weights(name, weights)
    if checkpoint is not None:

        def build(base: Any, bands: int | None) -> VisionTransformer:  # noqa: ANN401  # as weights
            return create_backbone(name, base, in_chans=bands, **kwargs)[0]

        checkpoint = as_start(checkpoint, base_weights, build)
    elif base_weights is not None:
        raise ConfigError(
            'There are no weights that base_weights would be the base of: give a delta '
            '(adapter.safetensors) as weights, or the base weights themselves.'
        )
    asked = None if img_size is None else image_size(img_size)
    native: dict[str, Any] = {}
    if checkpoint is not None:
        native = native_arguments(model_class(name), checkpoint, kwargs)
    model = build_backbone(name, asked, in_chans, seed, {**native, **kwargs})
    if asked is not None:
        check_divides(model, asked)
    report = _random_report(model) if checkpoint is None else load_backbone(model, checkpoint)
    return model.eval(), report


def load_backbone(
    model: VisionTransformer, source: str | Path | Checkpoint | Mapping[str, Any]
) -> LoadReport:
    """Load weights into a model, strictly: a tensor too few or too many is an error.

    Args:
        model: The model; left as it was if loading fails.
        source: A file, what was read from one, or a state dict (nested or flat).

    Returns:
        A report of every key.

    Raises:
        WeightsError: If the file cannot be read, or the weights are of another architecture,
            incomplete, or not finite.
    """
    if isinstance(source, str | Path):
        checkpoint = read_checkpoint(source)
    elif isinstance(source, Checkpoint):
        checkpoint = source
    else:
        checkpoint = Checkpoint(flatten_tensors(source))
    _refuse_adapter(checkpoint)
    found = convert_state_dict(
        checkpoint.tensors,
        model,
        source=checkpoint.source,
        source_grid=stored_grid(checkpoint),
        source_groups=stored_groups(checkpoint),
    )
    _check_finite(found, checkpoint.source)
    heads = [key for key in found.added if key != MASK_TOKEN]
    outcome = model.load_state_dict(found.state, strict=False)
    assert sorted(outcome.missing_keys) == sorted(heads), 'conversion and model disagree'
    assert not outcome.unexpected_keys, 'conversion and model disagree'
    return _report(model, checkpoint, found)


def _refuse_adapter(checkpoint: Checkpoint) -> None:
    if checkpoint.metadata.get('format') == ADAPTER_FORMAT:
        raise WeightsError(
            f'{checkpoint.source} holds only what an adaptation changed: load the base weights '
            'and apply it with load_adapter, or pass the merged file beside it.'
        )


def _report(model: VisionTransformer, checkpoint: Checkpoint, found: Conversion) -> LoadReport:
    taken = [t for k, t in checkpoint.tensors.items() if k not in set(found.dropped)]
    return LoadReport(
        source=checkpoint.source,
        architecture=architecture_of(model),
        renamed=found.renamed,
        dropped=found.dropped,
        added=found.added,
        changed=found.changed,
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix('torch.') for tensor in taken})),
        mask_token=found.mask_token,
        metadata=checkpoint.metadata,
        reasons=found.reasons,
    )


def _random_report(model: VisionTransformer) -> LoadReport:
    return LoadReport(
        source=None,
        architecture=architecture_of(model),
        renamed={},
        dropped=(),
        added=(*model.state_dict(), MASK_TOKEN),
        changed={},
        dtypes=(),
        mask_token=torch.zeros(1, model.embed_dim),
        metadata={},
    )


def _check_finite(found: Conversion, source: str) -> None:
    tensors = {**found.state, MASK_TOKEN: found.mask_token}
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise WeightsError(
            f'{source} holds values that are not finite in {len(broken)} tensors (first: '
            f'{broken[0]}): the training that wrote it diverged; use an earlier checkpoint.'
        )
