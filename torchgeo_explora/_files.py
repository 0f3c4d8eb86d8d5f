"""Write files so that a final name never holds half a file."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from torchgeo_explora.errors import OutputError

_BARE = (',', ':')


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its name once it is complete.

    Args:
        path: Final name of the file; its folder is created.

    Yields:
        The path to write to. It is flushed to disk and renamed when the block ends, and
        removed when the block raises.

    Raises:
        OutputError: If the file cannot be written, for instance because the disk is full.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=final.parent, prefix=f'.{final.name}.', suffix='.part')
        os.close(handle)
    except OSError as error:
        raise _refused(final, error) from error
    temporary = Path(name)
    try:
        yield temporary
        _commit(temporary, final)
    except OSError as error:
        raise _refused(final, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Path:
    """Write tensors as safetensors, complete or not at all.

    Args:
        path: Final name of the file.
        tensors: What to write, by name.
        metadata: Texts to store with it.

    Returns:
        The path.

    Raises:
        OutputError: If the file cannot be written.
    """
    final = Path(path)
    with replacing(final) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
            _sort_texts(temporary)
        except SafetensorError as error:  # its way to say that the disk refused
            raise OSError(str(error)) from error
    return final


def _sort_texts(path: Path) -> None:
    """Put the texts of a safetensors file in the order of their names, which is random as written."""
    with path.open('rb+') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(length))
        texts = dict(sorted(header['__metadata__'].items()))
        content = json.dumps(header | {'__metadata__': texts}, ensure_ascii=False, separators=_BARE)
        encoded = content.encode()
        assert len(encoded) <= length, 'another order takes as much room'
        file.seek(8)
        file.write(encoded.ljust(length))


def _commit(temporary: Path, final: Path) -> None:
    with temporary.open('rb+') as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)  # mkstemp's 0600 would hide results from colleagues
    temporary.replace(final)


def _refused(final: Path, error: OSError) -> OutputError:
    return OutputError(
        f'{final} could not be written ({error.strerror or error}): nothing was left behind. '
        'Choose a folder that exists or can be created, is writable and has free space.'
    )
