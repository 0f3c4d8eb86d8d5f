"""Every block of README and docs is run or parsed, page by page, as a reader would.

A page runs in a folder of its own, with the configurations of ``conf`` and stand-ins for the files
that it names; models of the documented names are small, and :mod:`tests.docs.shorter` says what is
laid over long commands. Blocks of Python share one namespace a page.
"""

import argparse
import ast
import contextlib
import io
import os
import re
import runpy
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torchgeo.main
import yaml

from tests.docs.blocks import PAGES, ROOT, Block, Call, blocks, calls
from tests.docs.fragments import check_fragment
from tests.docs.shorter import (
    BEFORE,
    BENCHMARKS,
    is_benchmark,
    shorten_explora,
    shorten_torchgeo,
    without_cuda,
)
from tests.docs.stand_ins import FILES, FULL, given, small_models
from torchgeo_explora.cli import main as explora

LANGUAGES = {'console', 'python', 'yaml', 'bash', 'text', 'bibtex', 'csv', 'json'}
RUN = ('console', 'python', 'yaml', 'bash')
BY_CI = {('README.md', 'bash')}
"""Blocks that ``.ci/run`` runs in a clone of their own; tests/test_repository.py holds it to that."""

WRITTEN = re.compile(r'^# (?P<name>[\w./-]+\.(?:ya?ml|py|sh|txt))$')
"""First line of a block that is a file: the block is written under that name."""

_PRINTED = (SystemExit,)
"""How a command ends that only prints."""

pytestmark = [
    pytest.mark.filterwarnings('ignore'),
    pytest.mark.timeout(600),
]
WITH_BLOCKS = [
    page
    for page in PAGES
    if any(block.language in RUN and (block.page, block.language) not in BY_CI for block in blocks(page))
]  # fmt: skip


def _identify(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    kinds = {(b.page, b.line): b.language for page in PAGES for b in blocks(page)}
    unknown = {
        place: language
        for place, language in kinds.items()
        if language not in LANGUAGES and not language.startswith('{')
    }
    assert unknown == {}


def test_commands_stand_in_blocks_that_are_run() -> None:
    """No command hides in a block of plain text, or in indented lines, that nothing runs."""
    command = re.compile(
        r'^\s*(\$ |torchgeo(-explora)? [a-z]+ |python (-m )?[\w/.]+)', re.MULTILINE
    )
    hidden = [
        f'{block.page}:{block.line}'
        for page in PAGES
        for block in blocks(page)
        if block.language == 'text' and command.search(block.text)
    ]
    assert hidden == []
    indented = re.compile(r'^ {4,}(OMP\w+=\d )?(torchgeo|python|pip) ', re.MULTILINE)
    for page in PAGES:
        text = page.read_text(encoding='utf-8')
        outside = re.sub(r'^ *(`{3,}).*?^ *\1$', '', text, flags=re.MULTILINE | re.DOTALL)
        assert indented.search(outside) is None, page.name


@pytest.fixture(scope='session')
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which stand-ins are made, once each, when a page names them first."""
    return tmp_path_factory.mktemp('shelf')


@pytest.fixture
def desk(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a page runs in."""
    (tmp_path / 'conf').symlink_to(ROOT / 'conf')
    (tmp_path / 'tests').symlink_to(ROOT / 'tests')
    (tmp_path / 'examples').symlink_to(ROOT / 'examples')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'agg')
    monkeypatch.setenv('SLURM_ARRAY_TASK_ID', '1')
    with small_models(shelf / 'downloads'):
        yield tmp_path


@pytest.mark.slow
@pytest.mark.parametrize('page', WITH_BLOCKS, ids=_identify)
def test_page(page: Path, desk: Path, shelf: Path) -> None:
    found = blocks(page)
    _lay_out(found, desk, shelf)
    for command in BEFORE.get(found[0].page, ()):
        _call(Call(command.split()[0], tuple(command.split()[1:])), desk)
    namespace = given()
    for block in found:
        if (block.page, block.language) in BY_CI or block.language not in RUN:
            continue
        start = time.process_time()
        try:
            _run(block, desk, namespace)
        except (Exception, SystemExit) as error:
            error.add_note(f'{block.page}:{block.line}')
            raise
        _note(f'{time.process_time() - start:.1f} s {block.page}:{block.line}')


def _lay_out(found: Sequence[Block], desk: Path, shelf: Path) -> None:
    """Put those files on the desk that the page names and does not make itself."""
    texts = [block.text for block in found if block.language in RUN]
    text = '\n'.join([*texts, *BEFORE.get(found[0].page, ())])
    made = set(re.findall(r'(?:--out|-o) (\S+?)/?(?=\s|$)', text))
    for name, write in FILES.items():
        named = re.search(rf'(?<![\w./-]){re.escape(name)}(?![\w.-])', text) is not None
        if named and name.split('/')[0] not in made:
            if not (shelf / name).exists():
                (shelf / name).parent.mkdir(parents=True, exist_ok=True)
                write(shelf / name)
            (desk / name).parent.mkdir(parents=True, exist_ok=True)
            (desk / name).symlink_to(shelf / name)
    for block in found:
        if (first := WRITTEN.match(block.text.partition('\n')[0])) is not None:
            (desk / first['name']).write_text(block.text, encoding='utf-8')


def _run(block: Block, desk: Path, namespace: dict[str, Any]) -> None:
    if block.language == 'python':
        _run_python(block, namespace)
    elif block.language == 'yaml':
        check_fragment(yaml.safe_load(block.text))
    else:
        scripts = [block.text] if block.language == 'bash' else block.commands
        assert scripts, f'{block.page}:{block.line} has no line that begins with a dollar'
        for script in scripts:
            for call in calls(script, desk, dict(os.environ)):
                _call(call, desk)


def _run_python(block: Block, namespace: dict[str, Any]) -> None:
    tree = ast.parse(block.text, filename=block.page)
    ast.increment_lineno(tree, block.line - 1)
    printed = io.StringIO()
    place = torch.device('meta') if f"'{FULL}'" in block.text else contextlib.nullcontext()
    with place, contextlib.redirect_stdout(printed):
        exec(compile(tree, block.page, 'exec'), namespace)
    for line in re.findall(r'^print\(.*\)  # ([\d.,_]+)$', block.text, re.MULTILINE):
        assert line in printed.getvalue().splitlines(), f'{line} was not: {printed.getvalue()}'


def _call(call: Call, desk: Path) -> None:
    start, arguments = time.process_time(), list(call.arguments)
    if call.program == 'torchgeo-explora':
        _renew(arguments, desk)
        assert explora(shorten_explora(arguments)) == 0, str(call)
    elif call.program == 'torchgeo':
        with contextlib.suppress(*_PRINTED if '--print_config' in arguments else ()):
            torchgeo.main.main(shorten_torchgeo(arguments, desk))
    elif call.program == 'pip':
        _check_extras(arguments)
    else:
        _call_python(arguments)
    _note(f'    {time.process_time() - start:.1f} s {call}')


def _check_extras(arguments: Sequence[str]) -> None:
    """What a page installs is this package with extras that it has."""
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    for item in arguments[1:]:
        found = re.fullmatch(r'torchgeo-explora(?:\[([\w,]+)\])?', item)
        assert found is not None, f'{item} is installed by a page'
        assert set((found[1] or '').split(',')) - {''} <= project['optional-dependencies'].keys()


def _note(line: str) -> None:
    """Append to the file that ``DOCS_TIMES`` names, for whoever wants to know what is slow."""
    if 'DOCS_TIMES' in os.environ:
        with Path(os.environ['DOCS_TIMES']).open('a', encoding='utf-8') as file:
            file.write(f'{line}\n')


def _renew(arguments: Sequence[str], desk: Path) -> None:
    """Take away the folder of an earlier command of the page that had the same name for it."""
    if '--out' in arguments and '--resume' not in arguments and '--shard' not in arguments:
        out = desk / arguments[arguments.index('--out') + 1]
        if out.is_dir() and not out.is_symlink():
            shutil.rmtree(out)


class _Parsed(Exception):
    """The arguments of a script are fine."""


def _call_python(arguments: Sequence[str]) -> None:
    """Run a script of the repository, or only parse its arguments where the table says so."""
    script, *rest = without_cuda(arguments)
    extra = BENCHMARKS.get(Path(script).stem) if is_benchmark(arguments) else ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [script, *rest, *(extra or ())])
        patch.syspath_prepend(str(ROOT))
        if extra is None:
            patch.setattr(argparse.ArgumentParser, 'parse_args', _stop_after_parsing())
            with pytest.raises(_Parsed):
                runpy.run_path(str(ROOT / script), run_name='__main__')
            return
        try:
            runpy.run_path(str(ROOT / script), run_name='__main__')
        except SystemExit as end:
            assert end.code in (None, 0), arguments


def _stop_after_parsing() -> Any:  # noqa: ANN401
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *given: Any) -> NoReturn:  # noqa: ANN401
        parse(parser, *given)
        raise _Parsed

    return parse_and_stop


def test_torch_is_left_as_it_was() -> None:
    assert torch.get_default_dtype() is torch.float32
