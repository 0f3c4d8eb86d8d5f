"""Configuration of the documentation, built by `sphinx-build -W docs docs/_build/html`."""

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ['COLUMNS'] = '100'  # width of the commands' help

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import torchgeo_explora
from torchgeo_explora.cli.parser import build_parser
from torchgeo_explora.objectives import MAE_PRESETS, PRESETS, MAERecipe, Recipe
from torchgeo_explora.objectives.mae_presets import PARTS as MAE_PARTS
from torchgeo_explora.objectives.presets import PARTS

DOCS = Path(__file__).parent


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
    for path in sorted((DOCS.parent / 'conf').glob('*.yaml')):
        first = path.read_text(encoding='utf-8').splitlines()[0]
        yield (f'`{path.name}`', first.removeprefix('# '))


def _notebook(name: str) -> str:
    """A notebook of ``examples/notebooks`` as Markdown, with the outputs that were kept of it."""
    path = DOCS.parent / 'examples' / 'notebooks' / f'{name}.ipynb'
    kept = json.loads((DOCS / 'tutorials' / f'{name}.json').read_text(encoding='utf-8'))
    parts = [f'*Outputs on this page: {kept["about"]}.* Made by `{kept["command"]}`']
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    for number, cell in enumerate(cells):
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(text if number else text.partition('\n')[2])  # the page has the title
        else:
            parts.append(f'```python\n{text}\n```')
            parts += _outputs(cell, kept['cells'].get(str(number), {}))
    return '\n\n'.join(parts)


def _outputs(cell: Mapping[str, Any], kept: Mapping[str, str]) -> Iterator[str]:
    """Yield what a cell printed and drew; pictures are said in words by the cell's metadata."""
    if 'text' in kept:
        yield f'```text\n{kept["text"]}\n```'
    if 'picture' in kept:
        yield f'![{cell["metadata"]["alt"]}](../pictures/{kept["picture"]})'


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
    **{path.stem: _notebook(path.stem) for path in sorted((DOCS / 'tutorials').glob('*.json'))},
}

html_math_renderer = 'mathml'
html_static_path = ['_static']
html_css_files = ['site.css']
html_theme = 'furo'
html_title = 'torchgeo-explora'


def _inline_math(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block_math(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Write formulas as MathML, which browsers draw themselves: pages need no connection."""
    app.add_html_math_renderer('mathml', (_inline_math, None), (_block_math, None))
