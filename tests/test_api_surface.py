"""The exported names of every public sub-package, compared with the list in `api_surface.txt`.

After a deliberate change: `python -m tests.test_api_surface` rewrites the list; review the diff.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import torchgeo_explora

LIST = Path(__file__).with_name('api_surface.txt')


def _packages() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(torchgeo_explora.__path__, 'torchgeo_explora.'):
        public = not any(part.startswith('_') for part in found.name.split('.'))
        if public and (found.ispkg or found.name == 'torchgeo_explora.errors'):
            yield importlib.import_module(found.name)


def _surface() -> list[str]:
    return sorted(f'{package.__name__}.{name}' for package in _packages() for name in _all(package))


def _all(package: ModuleType) -> list[str]:
    if package.__name__ != 'torchgeo_explora.errors':
        names: list[str] = package.__all__
        return names
    return [name for name, value in vars(package).items() if inspect.isclass(value)]


def _listed() -> list[str]:
    return LIST.read_text(encoding='utf-8').split() if LIST.exists() else []


def test_exported_names_are_the_listed_ones() -> None:
    assert _surface() == _listed()


@pytest.mark.parametrize('package', [p for p in _packages() if hasattr(p, '__path__')])
def test_a_package_exports_all_it_binds(package: ModuleType) -> None:
    bound = {
        name
        for name, value in vars(package).items()
        if not name.startswith('_') and not isinstance(value, ModuleType)
    }
    assert bound <= set(package.__all__)


@pytest.mark.parametrize('name', _listed())
def test_an_exported_object_is_documented(name: str) -> None:
    module, _, attribute = name.rpartition('.')
    value = getattr(importlib.import_module(module), attribute)
    if not callable(value):
        return
    # A dataclass without a docstring is given its signature for one.
    documentation = value.__doc__ or ''
    assert documentation.strip() != ''
    assert not documentation.startswith(f'{attribute}(')


if __name__ == '__main__':
    LIST.write_text('\n'.join(_surface()) + '\n', encoding='utf-8')
