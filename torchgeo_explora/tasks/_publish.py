"""Write the result of an adaptation: merged weights and the delta."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from torchgeo_explora._files import write_tensors
from torchgeo_explora.adapters import ExPLoRAConfig, merge_lora, save_adapter
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import save_backbone
from torchgeo_explora.models._decoder_loading import decoder_texts

MERGED, DELTA, DECODER = 'explora.safetensors', 'adapter.safetensors', 'decoder.safetensors'


def publish(
    model: VisionTransformer,
    config: ExPLoRAConfig,
    folder: Path,
    metadata: Mapping[str, object],
    trained: Collection[str] | None = None,
) -> list[Path]:
    """Write merged weights and the delta of an adapted encoder.

    Args:
        model: The adapted encoder; it is left as it is.
        config: What was adapted.
        folder: Where ``explora.safetensors`` and ``adapter.safetensors`` go.
        metadata: What the weights are (base, bands, mean, std, size, ...).
        trained: Names of what was trained, for a teacher, in which nothing requires a gradient.

    Returns:
        The paths written.
    """
    merged = save_backbone(
        merge_lora(model), folder / MERGED, {**metadata, 'config': json.loads(config.to_json())}
    )
    return [merged, save_adapter(model, config, folder / DELTA, as_texts(metadata), trained)]


def as_texts(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return metadata as safetensors stores it: strings as they are, other values as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}


def publish_decoder(decoder: nn.Module, folder: Path, metadata: Mapping[str, object]) -> Path:
    """Write the merged decoder of a masked autoencoder under MAE's own names.

    Args:
        decoder: The adapted decoder; it is left as it is. What its predictions mean is stored.
        folder: Where ``decoder.safetensors`` goes.
        metadata: As in :func:`publish`.
    """
    state = merge_lora(decoder).state_dict()
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    texts = {**as_texts(metadata), **decoder_texts(decoder), 'format': 'pt'}
    return write_tensors(folder / DECODER, tensors, texts)


def normalization(
    values: Sequence[float] | None, imagenet: Sequence[float], bands: int, name: str
) -> list[float]:
    """Return a mean or spread with one value a band; ImageNet's where three bands give none.

    Raises:
        ConfigError: If the number of values is not the number of bands.
    """
    given = imagenet if values is None and bands == len(imagenet) else values
    if given is None or len(given) != bands:
        count = 'none' if given is None else len(given)
        raise ConfigError(
            f'{name} has {count} values for {bands} bands: give one a band, for images scaled to '
            '0 to 1.'
        )
    return [float(value) for value in given]
