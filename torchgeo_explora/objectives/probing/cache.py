"""Features on disk, under a key made of the weights, the images and the transform."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from torchgeo_explora._files import write_tensors
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.objectives.probing.features import Batch, Features


def _update(digest: 'hashlib._Hash', tensor: Tensor) -> None:
    array = tensor.detach().cpu().contiguous()
    digest.update(f'{array.dtype}{tuple(array.shape)}'.encode())
    digest.update(array.flatten().view(torch.uint8).numpy().data)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a model's state dict: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        _update(digest, tensor)
    return digest.hexdigest()


def batches_hash(batches: Iterable[Batch]) -> str:
    """SHA-256 of all images, labels and timestamps in their order, however they are batched.

    Reads and decodes every image: dear, but the only key that a changed file cannot outlive.
    """
    hashes = {name: hashlib.sha256() for name in ('image', 'label', 'timestamps')}
    for batch in batches:
        parts = {'image': batch} if isinstance(batch, Tensor) else batch
        for name in hashes.keys() & parts.keys():
            for item in parts[name]:
                _update(hashes[name], item)
    return '-'.join(found.hexdigest() for found in hashes.values())


def save_features(
    path: str | os.PathLike[str], features: Features, metadata: Mapping[str, str] | None = None
) -> None:
    """Write features to a safetensors file that is never half there.

    Args:
        path: Final name; its folder is created.
        features: What to write.
        metadata: Strings for the header, for instance the parts of the key.

    Raises:
        OutputError: If the file cannot be written.
    """
    tensors = {'cls': features.cls.contiguous(), 'patch_mean': features.patch_mean.contiguous()}
    if features.labels is not None:
        tensors['labels'] = features.labels.contiguous()
    write_tensors(path, tensors, {} if metadata is None else metadata)


def load_features(path: str | os.PathLike[str]) -> Features:
    """Read features that :func:`save_features` wrote.

    Raises:
        WeightsError: If the file cannot be read or holds something else.
    """
    try:
        with safe_open(Path(path), 'pt') as file:
            names = set(file.keys())
            labels = file.get_tensor('labels') if 'labels' in names else None
            return Features(file.get_tensor('cls'), file.get_tensor('patch_mean'), labels)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f'{path} holds no features that can be read ({error}): delete it, and they are '
            'extracted again.'
        ) from error
