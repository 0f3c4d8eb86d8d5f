"""The folder of a run: what is in it, what of the run is finished, and writing it whole."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from torchgeo_explora._environment import environment
from torchgeo_explora._files import replacing
from torchgeo_explora._run_record import RECORD
from torchgeo_explora.errors import ConfigError, OutputError
from torchgeo_explora.models.feature_reference import REFERENCE

if TYPE_CHECKING:  # with Lightning and TorchGeo it takes seconds to import, which `info` can spare
    from torchgeo_explora.cli.settings import AdaptSettings

__all__ = ['RunFolder', 'environment', 'read_json', 'write_json', 'write_yaml']


@dataclass(frozen=True)
class RunFolder:
    """Names of everything in the folder of a run.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def settings(self) -> Path:
        """Settings, and the record of the run; written first."""
        return self.path / RECORD

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
        """The result in one picture."""
        return self.path / 'report.png'

    @property
    def page(self) -> Path:
        """The result, to read."""
        return self.path / 'report.html'

    @property
    def statistics(self) -> Path:
        """What was measured of the bands."""
        return self.path / 'statistics.json'

    @property
    def energy(self) -> Path:
        """Time and energy of all parts of the run."""
        return self.path / 'energy.json'

    @property
    def features_reference(self) -> Path:
        """Summary of the features of images that were adapted to."""
        return self.path / REFERENCE

    @property
    def analysis(self) -> Path:
        """Parts of what is measured of the blocks."""
        return self.path / 'analysis'

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

    def read_settings(self) -> 'AdaptSettings':
        """Read the settings of the run to resume.

        Raises:
            ConfigError: If there is no run.
        """
        if not self.settings.is_file():
            raise ConfigError(
                f'{self.path} holds no run to resume (there is no {self.settings.name}): '
                'leave --resume out to start one.'
            )
        from torchgeo_explora.cli.settings import AdaptSettings

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
