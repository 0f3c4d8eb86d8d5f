"""The folder of a run: what is in it, what of the run is finished, and writing it whole."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from torchgeo_explora import __version__
from torchgeo_explora._files import replacing
from torchgeo_explora.cli.settings import AdaptSettings
from torchgeo_explora.errors import ConfigError, OutputError

PACKAGES = (
    'torch',
    'torchvision',
    'timm',
    'torchgeo',
    'lightning',
    'kornia',
    'numpy',
    'safetensors',
)


@dataclass(frozen=True)
class RunFolder:
    """Names of everything in the folder of a run.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """Settings and environment; written first."""
        return self.path / 'run.json'

    @property
    def config(self) -> Path:
        """The same run for ``torchgeo fit``."""
        return self.path / 'config.yaml'

    @property
    def before(self) -> Path:
        """What was measured of the base."""
        return self.path / 'before.json'

    @property
    def checkpoint(self) -> Path:
        """Where to go on."""
        return self.path / 'checkpoints' / 'last.ckpt'

    @property
    def merged(self) -> Path:
        """The adapted weights."""
        return self.path / 'explora.safetensors'

    @property
    def adapter(self) -> Path:
        """What the adaptation changed."""
        return self.path / 'adapter.safetensors'

    @property
    def report(self) -> Path:
        """The result; written last."""
        return self.path / 'report.json'

    @property
    def picture(self) -> Path:
        """The result, to look at."""
        return self.path / 'report.png'

    def features(self, part: str, side: str = 'base') -> Path:
        """Features of some images (``reference``, ``scored``, ``health``), ``base`` or ``adapted``."""
        return self.path / 'features' / f'{side}_{part}.safetensors'

    def check_new(self) -> None:
        """Refuse a folder that has something in it.

        Raises:
            OutputError: If it does, or is no folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f'{self.path} is a file: give a new folder as --out.')
        if self.path.is_dir() and any(self.path.iterdir()):
            remedy = ', or go on with the run in it by --resume' if self.settings.is_file() else ''
            raise OutputError(f'{self.path} has something in it: give a new folder{remedy}.')

    def read_settings(self) -> AdaptSettings:
        """Read the settings of the run to resume.

        Raises:
            ConfigError: If there is no run.
        """
        if not self.settings.is_file():
            raise ConfigError(
                f'{self.path} holds no run to resume (there is no {self.settings.name}): '
                'leave --resume out to start one.'
            )
        return AdaptSettings.from_json(self.settings.read_text(encoding='utf-8'), self.settings)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def read_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_json` wrote.

    Raises:
        ConfigError: If it is no JSON object.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path} cannot be read ({error}): start a new run elsewhere.') from error
    return content


def write_yaml(path: Path, content: Mapping[str, Any], comment: str) -> None:
    """Write YAML under a comment, whole or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as temporary:
        text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
        temporary.write_text(f'# {comment}\n{text}', encoding='utf-8')


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that a result belongs to."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor()
    return {
        'torchgeo_explora': __version__,
        'python': platform.python_version(),
        'packages': {name: _version(name) for name in PACKAGES},
        'system': platform.platform(),
        'device': str(device),
        'hardware': name,
        'cpus': os.cpu_count(),
        'threads': torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path('/proc/cpuinfo')
    lines = path.read_text(encoding='utf-8', errors='replace') if path.is_file() else ''
    names = [line.partition(':')[2].strip() for line in lines.splitlines() if 'model name' in line]
    return names[0] if names else platform.processor() or platform.machine()
