"""The import table of docs/design.md: a file imports only from floors below its own."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / 'torchgeo_explora'
SOURCES = sorted(PACKAGE.rglob('*.py'))

# A room is a sub-package, or a module at the top; its floor is the number.
FLOORS = {
    '__init__': 0, '_environment': 0, '_figures': 0, '_files': 0, '_imports': 0, '_run_record': 0,
    '_typing': 0, 'errors': 0,
    'datasets': 1, 'layers': 1, 'losses': 1, 'transforms': 1,
    'adapters': 2, 'datamodules': 2,
    'models': 3,
    'objectives': 4,
    'analysis': 5, 'export': 5, 'inference': 5, 'tasks': 5,
    'cli': 6,
    '__main__': 7,
}  # fmt: skip

# Data reaches models, objectives and tasks as tensors: they know no data set.
NEVER = {(room, 'datamodules') for room in ('models', 'objectives', 'tasks')}

CORE = {'einops', 'jaxtyping', 'kornia', 'numpy', 'safetensors', 'timm', 'torch', 'torchvision'}
DATA = CORE | {'PIL', 'geopandas', 'pandas', 'pyproj', 'rasterio', 'shapely', 'torchgeo'}
ALLOWED = {room: set[str]() for room, floor in FLOORS.items() if floor == 0} | {
    '_environment': {'torch'},
    '_figures': {'matplotlib'},
    '_run_record': {'torch'},
    '_files': {'safetensors', 'torch'},
    'adapters': CORE, 'layers': CORE, 'losses': CORE, 'models': CORE, 'objectives': CORE,
    'transforms': CORE,
    'datasets': DATA | {'matplotlib'},  # TorchGeo's data sets plot their samples
    'datamodules': DATA | {'lightning'},
}  # fmt: skip

# Inside a function, and only there: what is used only when the user asks for it or has it.
GUARDED = {('models/registry.py', 'torchgeo'), ('adapters/peft.py', 'peft')}

# Modules of their own that nothing in their room imports, since few need what they need:
# segmentation models are built with the decoders of segmentation-models-pytorch.
SEPARATE = {('models/segmentation.py', 'segmentation_models_pytorch')}

HEAVY = CORE | DATA | {'lightning', 'matplotlib', 'peft', 'segmentation_models_pytorch'}


class Import(NamedTuple):
    """One imported module, absolute, and whether the import stands inside a function."""

    module: str
    line: int
    in_function: bool


def _targets(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    """Absolute names of the modules that a statement or an `import_module` call asks for."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            base = package[: len(package) - level + 1] if level > 0 else ()
            stem = '.'.join([*base, *([module] if module is not None else [])])
            # `from torchgeo_explora import layers` names a room by its alias.
            return [f'{stem}.{alias.name}' for alias in names]
        case ast.Call(
            func=ast.Attribute(attr='import_module')
            | ast.Name(id='import_module')
            | ast.Name(id='__import__'),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [name]
    return []


def imports(source: str, path: str) -> Iterator[Import]:
    """Every import of a file, in functions and under TYPE_CHECKING too.

    Args:
        source: The file's text.
        path: Where it stands, relative to the package.
    """
    package = ('torchgeo_explora', *Path(path).parent.parts)

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for target in _targets(child, package):
                yield Import(target, getattr(child, 'lineno', 0), in_function)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, in_function or inner)

    yield from walk(ast.parse(source), False)


def _room(path: str) -> str:
    return Path(path).parts[0].removesuffix('.py')


def _fault(path: str, item: Import) -> str | None:
    """Say what is wrong with one import, or None."""
    room, (root, *rest) = _room(path), item.module.split('.')
    if root == 'torchgeo_explora':
        target = rest[0] if rest and rest[0] in FLOORS else '__init__'
        below = FLOORS[target] < FLOORS[room] and (room, target) not in NEVER
        ground = FLOORS[target] == FLOORS[room] == 0  # the ground floor is one room
        return None if below or ground or target == room else f'{room} may not import {target}'
    if room not in ALLOWED or root in sys.stdlib_module_names or root in ALLOWED[room]:
        return None
    if (item.in_function and (path, root) in GUARDED) or (path, root) in SEPARATE:
        return None
    return f'{room} may not import {root}'


def faults(source: str, path: str) -> list[str]:
    """List every import of a file that the table forbids."""
    if _room(path) not in FLOORS:
        return [f'{path}: has no floor in the table']
    found = ((item, _fault(path, item)) for item in imports(source, path))
    return [f'{path}:{item.line}: {fault}' for item, fault in found if fault is not None]


@pytest.mark.parametrize('path', [p.relative_to(PACKAGE).as_posix() for p in SOURCES])
def test_file_imports_only_from_below(path: str) -> None:
    assert faults((PACKAGE / path).read_text(encoding='utf-8'), path) == []


@pytest.mark.parametrize(
    ('path', 'source'),
    [
        ('layers/x.py', 'import lightning'),
        ('layers/x.py', 'from ..losses import dino'),
        ('layers/x.py', 'from torchgeo_explora import losses'),
        ('losses/x.py', 'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rasterio'),
        ('adapters/x.py', 'def f():\n    from torchgeo.models import vit'),
        ('adapters/x.py', "import importlib\nimportlib.import_module('peft')"),
        ('models/registry.py', 'import torchgeo'),
        ('models/x.py', 'def f():\n    import torchgeo'),
        ('models/x.py', 'from torchgeo_explora.datamodules import folder'),
        ('objectives/x.py', 'from torchgeo_explora.tasks.dinov2 import ExPLoRADINOv2'),
        ('tasks/x.py', 'from ..datamodules.folder import FolderDataModule'),
        ('inference/x.py', 'from torchgeo_explora.tasks import LinearProbe'),
        ('tasks/x.py', 'from .. import analysis'),
        ('errors.py', 'import torch'),
        ('layers/x.py', 'from torchgeo_explora import cli'),
        ('extras/x.py', 'import json'),
        ('models/x.py', 'import segmentation_models_pytorch'),
    ],
)
def test_table_catches(path: str, source: str) -> None:
    assert len(faults(source, path)) == 1


@pytest.mark.parametrize(
    ('path', 'source'),
    [
        (
            'layers/x.py',
            'import math\nfrom .._typing import GridSize\nfrom .lora import LoRALinear',
        ),
        ('models/registry.py', 'def f():\n    import torchgeo.models.api'),
        ('tasks/x.py', 'import lightning\nfrom torchgeo_explora.objectives import dinov2'),
        ('cli.py', 'from torchgeo_explora.datamodules import folder'),
        ('datamodules/x.py', 'from torchgeo.datamodules import BaseDataModule'),
    ],
)
def test_table_permits(path: str, source: str) -> None:
    assert faults(source, path) == []


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_top_level_import_is_free() -> None:
    loaded = json.loads(
        _python('import json, sys, torchgeo_explora; print(json.dumps(sorted(sys.modules)))')
    )
    assert HEAVY.isdisjoint(name.split('.')[0] for name in loaded)
    assert [name for name in loaded if name.startswith('torchgeo_explora.')] == []


def _module(path: str) -> str:
    return f'torchgeo_explora.{path.removesuffix(".py").replace("/", ".")}'


def test_nothing_imports_a_separate_module_by_itself() -> None:
    """Not when it is imported: a function may, for whoever asks for it."""
    for separate, _ in SEPARATE:
        module = _module(separate)
        for path in (path.relative_to(PACKAGE).as_posix() for path in SOURCES):
            if FLOORS[_room(path)] > FLOORS[_room(separate)] or path == separate:
                continue
            items = imports((PACKAGE / path).read_text(encoding='utf-8'), path)
            asked = [item.module for item in items if not item.in_function]
            assert not [name for name in asked if f'{name}.'.startswith(f'{module}.')], path


def test_core_runs_where_only_torch_and_timm_are_installed() -> None:
    rooms = sorted(room for room, allowed in ALLOWED.items() if allowed is CORE)
    absent = sorted((HEAVY - CORE - {'PIL'}) | {'pytorch_lightning', 'torchmetrics'})
    code = f"""
import importlib, sys
for name in {absent!r}:
    sys.modules[name] = None  # an import of it raises ModuleNotFoundError
for room in {rooms!r}:
    importlib.import_module('torchgeo_explora.' + room)
print(' '.join(sys.modules))
"""
    loaded = set(_python(code).split())
    assert loaded >= {f'torchgeo_explora.{room}' for room in rooms}
    assert loaded.isdisjoint(map(_module, [path for path, _ in SEPARATE]))
