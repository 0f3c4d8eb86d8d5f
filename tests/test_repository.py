"""Rules that hold for the repository as a whole."""

import ast
import importlib
import importlib.metadata
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / 'torchgeo_explora').rglob('*.py'))
CONFIGS = sorted(path.name for path in (ROOT / 'conf').glob('*.yaml'))
MAX_FILE_LINES = 400
MAX_BODY_LINES = 50
MEDIAN_BODY_LINES = 8
PERCENTILE_95_BODY_LINES = 30
DEVELOPMENT = {'dev', 'docs', 'style', 'tests'}
"""Extras whose packages the package itself does not import."""

# Put together from parts, so that this file passes its own tests.
HOSTS = ['.'.join(parts) for parts in (
    ('pypi', 'org'), ('pythonhosted', 'org'), ('download', 'pytorch', 'org'),
    ('registry', 'npmjs', 'org'), ('conda', 'anaconda', 'org'), ('deb', 'debian', 'org'),
)]  # fmt: skip
MACHINE_PATH = re.compile(r'(?<![\w.}/~])/(?:work|root|home|tmp|opt|Users)' + '/')
LOCK_NAMES = re.compile(r'(\.lock|pylock[\w.]*\.toml|package-lock\.json|-lock\.ya?ml)$')
UNFINISHED = re.compile('|'.join(''.join(parts) for parts in (
    (r'\bTO', r'DO\b'), (r'\bFIX', r'ME\b'), (r'\bX', r'XX\b'),
    ('raise NotImplemented', 'Error'), (r'mark\.x', 'fail'),
)))  # fmt: skip


def _tracked() -> list[Path]:
    listing = subprocess.run(
        ['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip(f'not a git checkout: {listing.stderr.strip()}')
    return [ROOT / name for name in listing.stdout.split('\0') if name and (ROOT / name).is_file()]


def _texts() -> Iterator[tuple[str, str]]:
    """Yield name and text of every tracked file that is text."""
    for path in _tracked():
        content = path.read_bytes()
        if b'\0' not in content:
            yield path.relative_to(ROOT).as_posix(), content.decode('utf-8')


def _matches(pattern: re.Pattern[str], suffix: str = '') -> list[str]:
    return [
        f'{name}:{number}: {line.strip()}'
        for name, text in _texts()
        if name.endswith(suffix)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def _bodies(path: Path) -> Iterator[tuple[str, int]]:
    """Yield where each function of a file stands and how many lines its body has.

    The docstring does not count.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        yield f'{path.relative_to(ROOT).as_posix()}:{node.lineno} {node.name}', lines


def test_no_lock_file() -> None:
    assert [path.name for path in _tracked() if LOCK_NAMES.search(path.name)] == []


def test_no_path_of_a_machine() -> None:
    assert _matches(MACHINE_PATH) == []


def test_no_registry_host() -> None:
    assert _matches(re.compile('|'.join(map(re.escape, HOSTS)))) == []


def test_dependencies_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    required = {_distribution(item) for item in project['dependencies']}
    extras = project['optional-dependencies']
    optional = {
        _distribution(item) for name in extras.keys() - DEVELOPMENT for item in extras[name]
    }
    homes = importlib.metadata.packages_distributions()
    roots = {root for path in SOURCES for root in _imported(path)}
    roots -= {'torchgeo_explora', *sys.stdlib_module_names}
    imported = {_canonical(homes.get(root, [root])[0]) for root in roots}
    assert imported - optional == required


def _distribution(requirement: str) -> str:
    return _canonical(re.split(r'[\[<>=!~]', requirement)[0])


def _canonical(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.split('.')[0]


def test_nothing_unfinished() -> None:
    assert _matches(UNFINISHED, '.py') == []


@pytest.mark.parametrize('word', ['TO{}DO: x', '# FIX{}ME', 'raise NotImplemented{}Error', 'X{}XX'])
def test_unfinished_is_seen(word: str) -> None:
    assert UNFINISHED.search(word.format('')) is not None


@pytest.mark.parametrize('line', ['cd /{}/main', '"/{}/me/x"', '(/{}/x)', 'a=/{}/'])
@pytest.mark.parametrize('folder', ['work', 'root', 'home', 'tmp', 'Users'])
def test_machine_path_is_seen(line: str, folder: str) -> None:
    assert MACHINE_PATH.search(line.format(folder)) is not None


@pytest.mark.parametrize('line', ['example.org/home/x', '../home/x', '{root}/home/x', '~/tmp/x'])
def test_other_path_is_left_alone(line: str) -> None:
    assert MACHINE_PATH.search(line) is None


def test_files_are_short() -> None:
    lengths = {p.name: len(p.read_text(encoding='utf-8').splitlines()) for p in SOURCES}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    bodies = dict(body for path in SOURCES for body in _bodies(path))
    lengths = sorted(bodies.values())
    assert {where: n for where, n in bodies.items() if n > MAX_BODY_LINES} == {}
    assert statistics.median(lengths) <= MEDIAN_BODY_LINES
    assert statistics.quantiles(lengths, n=20)[-1] <= PERCENTILE_95_BODY_LINES


@pytest.mark.parametrize('name', CONFIGS)
def test_config_says_what_to_expect(name: str) -> None:
    lines = (ROOT / 'conf' / name).read_text(encoding='utf-8').splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith('#')), len(lines))
    header = '\n'.join(lines[:end])
    for field in ('Paper:', 'Hardware:', 'Expected:'):
        assert field in header, f'{name}: its header has no line "# {field} ..."'


def _class_paths(node: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(node, dict):
        if isinstance(path := node.get('class_path'), str):
            yield path
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _class_paths(child)


@pytest.mark.parametrize('name', CONFIGS)
def test_config_names_classes_that_exist(name: str) -> None:
    config = yaml.safe_load((ROOT / 'conf' / name).read_text(encoding='utf-8'))
    for class_path in _class_paths(config):
        module, _, attribute = class_path.rpartition('.')
        if module == '':  # Lightning's own classes may be named without their module
            module = 'lightning.pytorch.callbacks'
        assert callable(getattr(importlib.import_module(module), attribute))


def _readme_commands() -> list[str]:
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    return re.findall(r'^```bash\n(.*?)\n```$', text, flags=re.MULTILINE | re.DOTALL)


def test_readme_begins_with_the_two_commands_that_ci_runs() -> None:
    run, test = _readme_commands()[:2]
    assert run.endswith('torchgeo-explora replay')
    assert '-m pytest' in test
    for command in (run, test):
        assert '\n' not in command  # one command, to be pasted as it is
        assert command.startswith('python3.12 -m venv ')  # it works alone
    script = (ROOT / '.ci' / 'run').read_text(encoding='utf-8')
    assert re.findall(r'"\$\(readme_command (\d)\)"', script) == ['1', '2']


def test_ci_extracts_the_commands_as_they_are_printed() -> None:
    script = (ROOT / '.ci' / 'run').read_text(encoding='utf-8')
    function = re.search(r'^readme_command\(\) \{\n.*?^\}\n', script, re.MULTILINE | re.DOTALL)
    assert function is not None
    for number, command in enumerate(_readme_commands()[:2], 1):
        printed = subprocess.run(
            ['bash', '-c', f'{function[0]} readme_command {number}'],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert printed.stdout.strip() == command
