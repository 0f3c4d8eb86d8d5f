"""One file that holds a fitted model whole: merged weights, and what using them takes.

Safetensors with the weights of backbone and head, and in the metadata a :class:`ModelSpec` as JSON.
The backbone inside is also a start for further training: ``create_backbone`` reads it.
"""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import torchgeo_explora
from torchgeo_explora._files import write_tensors
from torchgeo_explora.adapters.merge import merge_lora
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models._build import build_backbone, model_class
from torchgeo_explora.models._checkpoint import Checkpoint, read_checkpoint
from torchgeo_explora.models._saving import GENERATOR
from torchgeo_explora.models._stored import native_arguments, own_texts
from torchgeo_explora.models.classifier import build_classifier
from torchgeo_explora.models.spec import ModelSpec
from torchgeo_explora.transforms.normalize import Normalize

__all__ = ['FittedModel', 'ModelSpec', 'load_model', 'save_model']

FORMAT = 'torchgeo-explora-model'


@final
class FittedModel(nn.Module):
    """A network with its normalisation: takes images in [0, 1], gives logits.

    Args:
        network: Takes normalised images.
        mean: Mean of each band.
        std: Standard deviation of each band.
    """

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.normalize = Normalize(mean, std)

    def forward(self, images: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Return logits: (b, classes), or (b, classes, h, w) of a segmentation model.

        Args:
            images: Images in [0, 1] (b, c, h, w), or (b, dates, c, h, w) of a temporal model.
            timestamps: Of the dates (b, dates, 3), for a temporal model.
        """
        images = self.normalize(images)
        given = (images,) if timestamps is None else (images, timestamps)
        logits: Tensor = self.network(*given)
        return logits


def save_model(model: nn.Module, spec: ModelSpec, path: str | Path) -> Path:
    """Write a fitted model, low-rank updates merged, whole or not at all.

    Args:
        model: What ``build_classifier`` or ``build_segmenter`` returned, fitted; or what
            :func:`load_model` returned. It is left as it is.
        spec: Describes it; ``version`` and ``weights_hash`` are entered here.
        path: The file to write, ending in ``.safetensors``.

    Returns:
        The path written.

    Raises:
        ConfigError: If the suffix is another one, or there is no single vision transformer inside.
        OutputError: If the file cannot be written; nothing is left behind.
    """
    path = Path(path).expanduser()
    if path.suffix != '.safetensors':
        raise ConfigError(f'{path} does not end in .safetensors: choose a name that does.')
    network = merge_lora(model.network if isinstance(model, FittedModel) else model)
    root, backbone = find_backbone(network)
    tensors = {k: t.detach().cpu().contiguous().clone() for k, t in network.state_dict().items()}
    spec = dataclasses.replace(
        spec, version=torchgeo_explora.__version__, weights_hash=tensors_hash(tensors)
    )
    texts = {
        'format': FORMAT,
        'generator': GENERATOR,
        'spec': spec.to_json(),
        'root': root,
        'base': spec.model,
        **{name: json.dumps(getattr(spec, name)) for name in ('bands', 'mean', 'std')},
        **own_texts(backbone),
    }
    return write_tensors(path, tensors, texts)


def load_model(path: str | Path) -> tuple[nn.Module, ModelSpec]:
    """Read what :func:`save_model` wrote.

    Args:
        path: The file.

    Returns:
        The model in evaluation mode, which takes images in [0, 1] and gives logits, and its
        description.

    Raises:
        WeightsError: If the file is no fitted model, or was changed since it was written.
    """
    checkpoint = read_checkpoint(path)
    spec = read_spec(checkpoint)
    if tensors_hash(checkpoint.tensors) != spec.weights_hash:
        raise WeightsError(
            f'The weights in {checkpoint.source} are not those that its description was written '
            'for (their hashes differ): it was changed or damaged; write or copy it again.'
        )
    try:
        network = _build(checkpoint, spec)
        network.load_state_dict(checkpoint.tensors)
    except (ConfigError, RuntimeError, TypeError) as error:
        raise WeightsError(
            f'{checkpoint.source} does not fit the model that it describes ({error}): write it '
            'again with this version of torchgeo_explora.'
        ) from error
    return FittedModel(network, spec.mean, spec.std).eval(), spec


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """Return the description in the metadata of a fitted model.

    Raises:
        WeightsError: If there is none, or it cannot be understood.
    """
    if not is_fitted(checkpoint):
        raise WeightsError(
            f'{checkpoint.source} is no fitted model: give the model.safetensors that fine-tuning '
            'wrote; a backbone alone has no classes.'
        )
    try:
        return ModelSpec.from_json(checkpoint.metadata.get('spec', ''))
    except ConfigError as error:
        raise WeightsError(f'{checkpoint.source} does not describe itself: {error}') from error


def is_fitted(checkpoint: Checkpoint) -> bool:
    """Whether a weights file holds a fitted model."""
    return checkpoint.metadata.get('format') == FORMAT


def find_backbone(network: nn.Module) -> tuple[str, VisionTransformer]:
    """Return the vision transformer inside a network, and the prefix of its keys.

    Raises:
        ConfigError: If there is none, or more than one.
    """
    found = [(n, m) for n, m in network.named_modules() if isinstance(m, VisionTransformer)]
    if len(found) != 1:
        raise ConfigError(
            f'{type(network).__name__} holds {len(found)} vision transformers: give a model of '
            'build_classifier or build_segmenter.'
        )
    name, backbone = found[0]
    return (f'{name}.' if name else ''), backbone


def backbone_of(checkpoint: Checkpoint) -> Checkpoint:
    """Return a fitted model's weights, the backbone among them where loading looks for one."""
    root = checkpoint.metadata.get('root', '')
    tensors = {
        f'backbone.{key.removeprefix(root)}' if key.startswith(root) else key: tensor
        for key, tensor in checkpoint.tensors.items()
    }
    return Checkpoint(tensors, checkpoint.metadata, checkpoint.source)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name}{tensor.dtype}{tuple(tensor.shape)}'.encode())
        raw = tensor.detach().cpu().contiguous().flatten()
        digest.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b'')
    return digest.hexdigest()


def _build(checkpoint: Checkpoint, spec: ModelSpec) -> nn.Module:
    inner = backbone_of(checkpoint)
    native = native_arguments(model_class(spec.model), inner, {})
    options: dict[str, Any] = {'in_chans': len(spec.bands), **native}
    bands = options.pop('in_chans')
    backbone = build_backbone(spec.model, None, bands, 0, options)
    if spec.task == 'classification':
        return build_classifier(backbone, len(spec.classes), spec.options.get('pooling', 'avg'))
    # needs segmentation-models-pytorch, which classifiers do without
    module = importlib.import_module('torchgeo_explora.models.segmentation')
    arguments = dict(spec.options)
    network: nn.Module = module.build_segmenter(
        backbone, arguments.pop('decoder'), len(spec.classes), **arguments
    )
    return network
