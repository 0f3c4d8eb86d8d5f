"""Save and load what adaptation changed, apart from the weights it started from."""

import copy
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora import __version__
from torchgeo_explora._files import write_tensors
from torchgeo_explora.adapters.config import ExPLoRAConfig
from torchgeo_explora.adapters.surgery import apply_explora, encoder_parameters
from torchgeo_explora.errors import WeightsError

FORMAT = 'torchgeo-explora-adapter'


@dataclass(frozen=True)
class Adapter:
    """The changed part of an adapted encoder.

    Args:
        tensors: What trained, by parameter name.
        config: What was adapted.
        base_hash: Fingerprint of the frozen weights it belongs to.
        metadata: Everything else the file says (base model, bands, mean, std, ...).
    """

    tensors: dict[str, Tensor]
    config: ExPLoRAConfig
    base_hash: str
    metadata: dict[str, str]


def adapter_state_dict(
    model: VisionTransformer, trained: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return what trains in an adapted encoder: factors, unfrozen blocks, norms, tokens.

    Args:
        model: The adapted encoder.
        trained: Names of what was trained, for a teacher, in which nothing requires a gradient;
            the parameters that do when not given.
    """
    names = _trained(model) if trained is None else trained
    return {n: p.detach().clone() for n, p in encoder_parameters(model) if n in names}


def _trained(model: VisionTransformer) -> set[str]:
    return {name for name, parameter in encoder_parameters(model) if parameter.requires_grad}


def base_fingerprint(model: VisionTransformer, trained: Collection[str] | None = None) -> str:
    """Hash the frozen weights of an adapted encoder.

    Frozen weights are the base model's own, so this tells which base a delta belongs to.
    Position embeddings are left out: they are resampled to the image size at hand.

    Args:
        model: The adapted encoder.
        trained: As in :func:`adapter_state_dict`.

    Returns:
        A SHA-256 in hexadecimal over names, shapes and float32 values.
    """
    digest = hashlib.sha256()
    names = _trained(model) if trained is None else trained
    for name, parameter in sorted(encoder_parameters(model)):
        if name not in names and name != 'pos_embed':
            values = parameter.detach().cpu().float().contiguous()
            digest.update(f'{name}{tuple(values.shape)}'.encode())
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def load_adapter_state_dict(
    model: VisionTransformer, state: Mapping[str, Tensor], base_hash: str | None = None
) -> None:
    """Load a delta into an encoder that was adapted with the same configuration.

    Args:
        model: An encoder after ``apply_explora``.
        state: What :func:`adapter_state_dict` returned.
        base_hash: Fingerprint the frozen weights must have; not checked when not given.

    Raises:
        WeightsError: If a name is missing or unknown, a shape differs, or the base is another
            one. The model is unchanged then.
    """
    wanted = _checked(model, state, base_hash)
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])


def _checked(
    model: VisionTransformer, state: Mapping[str, Tensor], base_hash: str | None
) -> dict[str, nn.Parameter]:
    """Return what a delta is loaded into, once it is known to fit."""
    wanted = {n: p for n, p in encoder_parameters(model) if p.requires_grad}
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape]
    if missing or unknown or shapes:
        raise WeightsError(
            f'The adapter does not fit the model (missing: {missing[:3]}, unknown: {unknown[:3]}, '
            f'of another shape: {sorted(shapes)[:3]}): build the same model and apply the '
            'configuration that is stored with the adapter.'
        )
    if base_hash is not None and base_fingerprint(model) != base_hash:
        raise WeightsError(
            'The adapter belongs to other base weights than the model has (their fingerprints '
            "differ): load the base named in the adapter's metadata first."
        )
    return wanted


def save_adapter(
    model: VisionTransformer,
    config: ExPLoRAConfig,
    path: str | PathLike[str],
    metadata: Mapping[str, str] | None = None,
    trained: Collection[str] | None = None,
) -> Path:
    """Write the delta of an adapted encoder as safetensors.

    Args:
        model: The adapted encoder.
        config: What ``apply_explora`` was given.
        path: Final name; appears only when complete.
        metadata: More to store, for instance the name of the base model.
        trained: As in :func:`adapter_state_dict`.

    Raises:
        OutputError: If the file cannot be written.
    """
    own = {
        'format': FORMAT,
        'config': config.to_json(),
        'base_hash': base_fingerprint(model, trained),
        'version': __version__,
    }
    delta = adapter_state_dict(model, trained)
    tensors = {name: tensor.cpu() for name, tensor in delta.items()}
    return write_tensors(path, tensors, {**({} if metadata is None else metadata), **own})


def read_adapter(path: str | PathLike[str]) -> Adapter:
    """Read a file that :func:`save_adapter` wrote.

    Raises:
        WeightsError: If the file cannot be read or is no adapter.
    """
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f'{path} could not be read as an adapter ({error}): give the adapter.safetensors that '
            'an adaptation wrote.'
        ) from error
    if metadata.get('format') != FORMAT or not {'config', 'base_hash'} <= metadata.keys():
        raise WeightsError(
            f'{path} is no adapter of this package: give adapter.safetensors, or load merged '
            'weights as weights.'
        )
    config = ExPLoRAConfig.from_json(metadata['config'])
    return Adapter(tensors, config, metadata['base_hash'], dict(metadata))


def load_adapter(model: VisionTransformer, path: str | PathLike[str]) -> ExPLoRAConfig:
    """Adapt a plain encoder with a delta file.

    Args:
        model: The base model with the weights the adapter was trained from; changed in place, and
            left as it is if the file does not fit.
        path: The file.

    Returns:
        The configuration that was applied.

    Raises:
        WeightsError: If the file is no adapter, or belongs to another model or other weights.
        ConfigError: If the model cannot be adapted so.
    """
    adapter = read_adapter(path)
    generator = torch.Generator()  # of values that the delta's replace
    twin = _twin(model)
    apply_explora(twin, adapter.config, generator)
    _checked(twin, adapter.tensors, adapter.base_hash)
    apply_explora(model, adapter.config, generator)
    load_adapter_state_dict(model, adapter.tensors)
    return adapter.config


def _twin(model: VisionTransformer) -> VisionTransformer:
    """Copy a model's modules around the same tensors, to try out what changes modules."""
    shared: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad)
        for parameter in model.parameters()
    }
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared)
