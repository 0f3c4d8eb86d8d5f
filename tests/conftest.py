"""Paths of optional real data and reference values, each skipped with a reason when absent."""

import os
from pathlib import Path

import pytest

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
