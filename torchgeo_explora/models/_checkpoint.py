"""Read tensors from weights files without ever running code that a file may carry.

Safetensors files hold nothing but tensors and strings. Files of ``torch.save`` are pickles and
are read with ``weights_only=True`` alone, which refuses everything but tensors and plain
containers. Whatever cannot be read ends in one sentence that says what the file seems to be.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchgeo_explora.errors import WeightsError

_ALLOWED = 'pass a .safetensors file, or a .pth, .pt or .ckpt file of tensors'
# First bytes of things that are often saved under the name of a weights file.
_IMPOSTORS = (
    (b'version https://git-lfs', 'a Git LFS pointer', 'fetch the real file with `git lfs pull`'),
    (b'<!doctype', 'a web page', 'download the file itself, not the page that shows it'),
    (b'<html', 'a web page', 'download the file itself, not the page that shows it'),
    (b'<?xml', 'an XML document', 'download the file itself, not the server error'),
)
_HEAD = 512  # bytes, enough for every sign above
_SAFETENSORS_LENGTH = 8  # bytes of the header length that opens a safetensors file
# What PyTorch's readers raise on bytes that are no checkpoint.
_BROKEN = (
    AttributeError,
    BadZipFile,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a weights file holds.

    Args:
        tensors: Tensors under their dotted names; the keys of nested dictionaries are joined.
        metadata: Strings of a safetensors header, or top-level scalars of another file.
        source: Name for messages: the path, or what the tensors came from.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    source: str = 'The state dict'


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a weights file to CPU memory, never executing anything in it.

    Args:
        path: A ``.safetensors`` file or one that ``torch.save`` wrote (``.pth``, ``.pt``,
            ``.ckpt``). The content decides, not the suffix.

    Returns:
        The tensors in the file's own precision, and the metadata.

    Raises:
        WeightsError: If the file is absent, empty, truncated, something else, holds Python
            objects beside tensors, or holds no tensor.
    """
    path = _checked_path(path)
    if _is_safetensors(path):
        tensors, metadata = _read_safetensors(path)
    else:
        content = _read_torch(path)
        tensors, metadata = flatten_tensors(content), _scalars(content)
    if not tensors:
        raise WeightsError(f'{path} holds no tensor: {_ALLOWED}.')
    return Checkpoint(tensors, metadata, str(path))


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the strings in a safetensors header; empty for files of ``torch.save``.

    Args:
        path: The weights file.

    Raises:
        WeightsError: If the file cannot be read.
    """
    path = _checked_path(path)
    if not _is_safetensors(path):
        return {}
    try:
        with safe_open(path, framework='pt') as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from error


def flatten_tensors(content: object) -> dict[str, Tensor]:
    """Collect the tensors of nested dictionaries, lists and tuples under dotted names.

    Args:
        content: What a checkpoint file holds; anything but tensors and containers is passed over.
    """
    return dict(_walk(content, ''))


def _walk(content: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content.detach()
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _walk(value, f'{name}.{key}' if name else str(key))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _walk(value, f'{name}.{index}' if name else str(index))


def _scalars(content: object) -> dict[str, str]:
    if not isinstance(content, Mapping):
        return {}
    scalars = {k: v for k, v in content.items() if isinstance(v, str | int | float)}
    return {str(key): str(value) for key, value in scalars.items()}


def _checked_path(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.is_dir():
        raise WeightsError(f'{path} is a folder, not a weights file: {_ALLOWED}.')
    if not path.is_file():
        raise WeightsError(f'There is no weights file {path}: check the path, or {_ALLOWED}.')
    head = _head(path)
    if not head:
        raise WeightsError(f'{path} is empty: copy or download it again.')
    for sign, what, remedy in _IMPOSTORS:
        if head.lstrip().lower().startswith(sign):
            raise WeightsError(f'{path} is {what}, not a weights file: {remedy}.')
    return path


def _head(path: Path) -> bytes:
    try:
        with path.open('rb') as file:
            return file.read(_HEAD)
    except OSError as error:
        raise WeightsError(
            f'{path} cannot be opened ({error.strerror}): make it readable.'
        ) from error


def _is_safetensors(path: Path) -> bool:
    # the header's length in 8 bytes, then a JSON object
    opens_json = _head(path)[_SAFETENSORS_LENGTH : _SAFETENSORS_LENGTH + 1] == b'{'
    return opens_json or path.suffix == '.safetensors'


def _broken(path: Path, error: Exception) -> WeightsError:
    detail = str(error).strip().partition('\n')[0] or type(error).__name__
    return WeightsError(
        f'{path} cannot be read as weights ({detail}): it is truncated, damaged or of another '
        f'format; copy or download it again, or {_ALLOWED}.'
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except UnpicklingError as error:
        raise _refused(path, error) from error
    except _BROKEN as error:
        raise _broken(path, error) from error


def _refused(path: Path, error: UnpicklingError) -> WeightsError:
    # PyTorch's own text advises to switch the protection off: only the object's name is kept.
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    if found is None:
        return _broken(path, UnpicklingError('no plain file of tensors'))
    return WeightsError(
        f'{path} carries the Python object {found[1]} beside tensors and was not loaded, because '
        'loading it could run code: ask for a .safetensors file, or have only the state dict '
        'saved with torch.save.'
    )
