"""What a result belongs to beside its settings: versions, the state of the code, the hardware."""

import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

from torchgeo_explora import __version__

DISTRIBUTION = 'torchgeo-explora'
PACKAGES = (
    'torch', 'torchvision', 'timm', 'torchgeo', 'lightning', 'kornia', 'numpy', 'safetensors',
    'torchmetrics', 'segmentation-models-pytorch', 'rasterio', 'geopandas', 'shapely', 'pyproj',
    'pandas', 'pillow',
)  # fmt: skip
"""Packages whose versions can change a result."""

OPTIONAL = ('peft', 'ray', 'pyarrow', 'onnx', 'onnxruntime', 'codecarbon')
"""Packages that are named only where they are there."""

SECONDS_FOR_GIT = 10.0


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Describe versions and hardware.

    Args:
        device: Where torch computes; the CPU where it is not given.

    Returns:
        ``torchgeo_explora`` (version), ``git`` (of the package, see :func:`git_state`), ``python``,
        ``packages``, ``system``, ``device``, ``hardware``, ``cpus`` (that this process may use),
        ``threads`` (torch's), ``memory_gb``, and on a GPU ``cuda`` and ``gpu_memory_gb``.
    """
    place = torch.device('cpu') if device is None else device
    return {
        'torchgeo_explora': __version__,
        'git': _own_state(),
        'python': platform.python_version(),
        'packages': package_versions(),
        'system': platform.platform(),
        'device': str(place),
        **_hardware(place),
        'cpus': _cpus(),
        'threads': torch.get_num_threads(),
        'memory_gb': _memory(),
    }


@cache  # what runs is what was imported, even if files change later
def _own_state() -> dict[str, Any] | None:
    return git_state()


@cache
def package_versions() -> dict[str, str | None]:
    """Versions of the packages that can change a result; None for one that is not there."""
    found = {name: _version(name) for name in (*PACKAGES, *OPTIONAL)}
    found['torch'] = torch.__version__  # tells for which hardware it was built
    return {name: text for name, text in found.items() if text is not None or name in PACKAGES}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Say which commit the package is.

    Args:
        folder: Of the package's modules; of this one when not given.

    Returns:
        ``commit``, and ``changed``: the package's files that differ from it, also new ones. None
        where the package was installed without git, or git cannot be asked.
    """
    package = Path(__file__).resolve().parent if folder is None else folder
    # a package installed inside of somebody's own checkout belongs to no commit of theirs
    if _git(package, 'ls-files', '--error-unmatch', '__init__.py') is None:
        return _installed_commit()
    commit = _git(package, 'rev-parse', 'HEAD')
    status = _git(package, 'status', '--porcelain', '--', '.')
    if commit is None or status is None:
        return None
    return {'commit': commit, 'changed': [line[3:] for line in status.splitlines()]}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ['git', '-C', str(folder), *arguments],
            capture_output=True, text=True, check=True, timeout=SECONDS_FOR_GIT,
            env={**os.environ, 'GIT_OPTIONAL_LOCKS': '0'},  # to look must not get in the way
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip('\n')


def _installed_commit() -> dict[str, Any] | None:
    """The commit that pip noted when it installed from a repository (PEP 610)."""
    try:
        text = distribution(DISTRIBUTION).read_text('direct_url.json')
    except PackageNotFoundError:
        return None
    commit = json.loads(text).get('vcs_info', {}).get('commit_id') if text else None
    return None if commit is None else {'commit': commit, 'changed': []}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hardware(device: torch.device) -> dict[str, Any]:
    if device.type != 'cuda':
        return {'hardware': _processor()}
    memory = torch.cuda.get_device_properties(device).total_memory
    return {
        'hardware': torch.cuda.get_device_name(device),
        'processor': _processor(),
        'cuda': torch.version.cuda,
        'gpu_memory_gb': round(memory / 1e9, 1),
    }


def _processor() -> str:
    path = Path('/proc/cpuinfo')
    lines = path.read_text(encoding='utf-8', errors='replace') if path.is_file() else ''
    names = [line.partition(':')[2].strip() for line in lines.splitlines() if 'model name' in line]
    return names[0] if names else platform.processor() or platform.machine()


def _cpus() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count()


def _memory() -> float | None:
    try:
        return round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9, 1)
    except (AttributeError, OSError, ValueError):  # systems that do not say
        return None
