"""Where weights come from, and what their licence is, as far as files tell."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

import timm
from torchvision.models._api import WeightsEnum

from torchgeo_explora._run_record import read_record
from torchgeo_explora.errors import ConfigError, WeightsError
from torchgeo_explora.models import read_metadata
from torchgeo_explora.models._sources import TIMM_SOURCE
from torchgeo_explora.models.weights import ENUMS

UNKNOWN = 'unknown'
MOST_STEPS = 16
"""Files that are followed from one to the one before; a longer chain is a circle."""

_TIMM = re.compile(rf'^{re.escape(TIMM_SOURCE)}(\S+)$')


@dataclass(frozen=True)
class Lineage:
    """Where weights come from.

    Args:
        start: What they were trained from first, in words without folders.
        licence: Identifier in Hugging Face's form, ``unknown`` where nothing tells it.
        reason: How the licence is known, or why it is not.
        base_model: Identifier of the first weights on the Hugging Face hub; None if not known.
    """

    start: str
    licence: str
    reason: str
    base_model: str | None = None

    @property
    def commercial(self) -> bool:
        """Whether the licence lets others use the weights commercially, as far as is known."""
        return '-nc' not in self.licence


def trace(source: str | Path | None) -> Lineage:
    """Follow weights back to what they were trained from first.

    Files of this package name the weights that they were started from, and a fitted model's run
    does; where such a file is still there, it is looked into too.

    Args:
        source: A weights file, the text that a weights file has as its start, or the name of a
            member of a weights enum; None, or ``random``, for none.
    """
    for _ in range(MOST_STEPS):
        found = _published(source)
        if found is not None:
            return found
        before = _before(source)
        if before is None:
            break
        source = before
    name = PurePath(str(source)).name
    return Lineage(name, UNKNOWN, f'nothing says where {name} comes from')


def combine(lineage: Lineage, given: str | None) -> Lineage:
    """Take the licence that a user gives, unless it allows more than the first weights' do.

    Args:
        lineage: What is known.
        given: Identifier, or None to take what is known.

    Raises:
        ConfigError: If the first weights are not for commercial use and the licence given is.
    """
    if given is None:
        return lineage
    licence = given.strip().lower()
    if not licence or licence == UNKNOWN:
        raise ConfigError('--license is empty: give an identifier such as apache-2.0 or mit.')
    if not lineage.commercial and '-nc' not in licence:
        raise ConfigError(
            f'--license {given} was given, and the weights come from {lineage.start}, whose '
            f'licence is {lineage.licence} ({lineage.reason}): what is made from it is not for '
            'commercial use either.'
        )
    return Lineage(lineage.start, licence, 'as its publisher says', lineage.base_model)


def _published(source: str | Path | None) -> Lineage | None:
    """Recognise weights whose authors published them."""
    if source is None or str(source) in ('', 'random'):
        return Lineage('random weights', UNKNOWN, 'trained from random weights: choose a licence')
    text = str(source)
    match = _TIMM.match(text)
    if match is not None:
        return _timm(match[1])
    for enum in ENUMS:
        for member in enum:
            if text in (str(member), f'{enum.__name__}.{member.name}'):
                return _member(member, f'{enum.__name__}.{member.name}')
            if PurePath(text).name == PurePath(urlsplit(str(member.url)).path).name:
                return _member(member, f'{PurePath(text).name}, by its name')
    return None


def _timm(name: str) -> Lineage:
    config: Any = timm.get_pretrained_cfg(name)
    licence = UNKNOWN if config is None else config.license or UNKNOWN
    hub = None if config is None else config.hf_hub_id
    identifier = None if hub is None else hub.removesuffix('/') + ('' if '/' in hub[:-1] else name)
    return Lineage(f"timm's weights of {name}", licence, 'as timm says', identifier)


def _member(member: WeightsEnum, name: str) -> Lineage:
    meta = member.meta
    return Lineage(
        f'weights published at {meta["repo"]} ({name})',
        meta['licence'],
        'as published' if meta['licence'] != UNKNOWN else 'its authors name none',
    )


def _before(source: str | Path | None) -> str | None:
    """What a weights file was started from."""
    path = Path(str(source)).expanduser()
    if not path.is_file():
        return None
    try:
        told = read_metadata(path).get('start')
    except WeightsError:
        return None
    return _of_the_run(path) if told is None else told


def _of_the_run(path: Path) -> str | None:
    """What the training began with that wrote a fitted model."""
    try:
        record = read_record(path.parent)
    except ConfigError:
        return None
    parts = [] if record is None else record.get('parts', [])
    for part in reversed(parts):
        if path.name in part.get('files', {}):
            weights = part.get('weights', {}).get('weights', {})
            return _named(weights.get('source'), part)
    return None


def _named(source: str | None, part: dict[str, Any]) -> str | None:
    """``timm`` in a record stands for timm's weights of the model in its configuration."""
    model = part.get('config', {}).get('model', {}).get('init_args', {}).get('model')
    return f'{TIMM_SOURCE}{model}' if source == 'timm' and model is not None else source
