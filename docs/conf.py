"""Configuration of the documentation, built by `sphinx-build -W docs docs/_build/html`."""

import argparse
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

os.environ['COLUMNS'] = '100'  # width of the commands' help

import torchgeo_explora
from torchgeo_explora.cli.parser import build_parser
from torchgeo_explora.objectives import MAE_PRESETS, PRESETS, MAERecipe, Recipe
from torchgeo_explora.objectives.mae_presets import PARTS as MAE_PARTS
from torchgeo_explora.objectives.presets import PARTS


def _preset_rows(
    presets: Mapping[str, Recipe] | Mapping[str, MAERecipe], names: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    """Yield a header, a ruler, and one row for each number of the recipes."""
    yield ('', *(f'`{name}`' for name in presets))
    yield ('---',) * (1 + len(presets))
    for part in names:
        parts = [getattr(recipe, part) for recipe in presets.values()]
        for field in dataclasses.fields(parts[0]):
            yield (f'`{field.name}`', *(f'`{getattr(values, field.name)}`' for values in parts))
    yield ('batch of one step', *(str(recipe.batch_size) for recipe in presets.values()))
    yield ('source', *(recipe.source for recipe in presets.values()))


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _commands() -> Iterator[str]:
    """Yield a section for every command: its name and its help."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                yield f'## {name}\n\n```text\n{parser.format_help()}```\n'


def _config_rows() -> Iterator[tuple[str, ...]]:
    """Yield a header, a ruler, and one row for each file of ``conf/``, from its first line."""
    yield ('file', 'what it runs')
    yield ('---', '---')
    for path in sorted((Path(__file__).parent.parent / 'conf').glob('*.yaml')):
        first = path.read_text(encoding='utf-8').splitlines()[0]
        yield (f'`{path.name}`', first.removeprefix('# '))


project = 'torchgeo-explora'
author = 'The torchgeo-explora developers'
copyright = '2026, The torchgeo-explora developers'
version = release = torchgeo_explora.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}
exclude_patterns = ['_build']

autodoc_default_options = {
    'members': True,
    'imported-members': True,
    'show-inheritance': True,
}
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_format = 'short'
napoleon_numpy_docstring = False

myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath', 'substitution']
myst_heading_anchors = 3
myst_substitutions = {
    'commands': '\n'.join(_commands()),
    'configs': _table(_config_rows()),
    'mae_presets': _table(_preset_rows(MAE_PRESETS, MAE_PARTS)),
    'presets': _table(_preset_rows(PRESETS, PARTS)),
}

html_theme = 'furo'
html_title = 'torchgeo-explora'
