"""Checked shapes, and paths of optional real data and reference values.

Every fixture of a path skips with a reason where the folder is absent.
"""

import os
from pathlib import Path

# One thread a process: results do not depend on the machine, and parallel workers do not contend.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests import typechecker

# Before any test module imports the package: shapes in signatures are executed.
install_import_hook(
    [f'torchgeo_explora.{room}' for room in ('adapters', 'layers', 'losses', 'objectives')],
    f'{typechecker.__name__}.typechecked',
)

# How long an example takes says something about the machine, not about the code
settings.register_profile('untimed', deadline=None)
settings.load_profile('untimed')

REPOSITORY = Path(__file__).resolve().parent.parent


def _folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY.parent / 'shared' / name))
    if not folder.is_dir():
        pytest.skip(f'{variable} names no folder ({folder} is absent)')
    return folder


@pytest.fixture(scope='session')
def reference_dir() -> Path:
    """Folder of values printed by the official implementations."""
    return _folder('EXPLORA_REFERENCE_DIR', 'reference')


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """Folder of real imagery."""
    return _folder('EXPLORA_DATA_DIR', 'data')


@pytest.fixture(scope='session')
def weights_dir() -> Path:
    """Folder of real weights."""
    return _folder('EXPLORA_WEIGHTS_DIR', 'weights')
