"""Blocks of code in README and docs, and the commands that a shell makes of them."""

import re
import shlex
import stat
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted([*ROOT.glob('README.md'), *(ROOT / 'examples').glob('*.md')]),
    *sorted(path for path in (ROOT / 'docs').rglob('*.md') if '_build' not in path.parts),
]
_FENCE = re.compile(
    r'^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence)$',
    re.MULTILINE | re.DOTALL,
)
PROGRAMS = ('torchgeo-explora', 'torchgeo', 'python', 'pip')
"""What a block may call that is then looked at in this process; a shell runs all else."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: Its page, relative to the repository.
        line: Of its first line, from 1.
        language: What stands behind the fence.
        text: Its content, without common indentation.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Commands of a console block: what follows each dollar, continued lines joined."""
        joined = re.sub(r'\\\n', ' ', self.text)
        return [line[2:] for line in joined.splitlines() if line.startswith('$ ')]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in their order; what an outer fence holds belongs to it."""
    text = page.read_text(encoding='utf-8')
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(
            name,
            text.count('\n', 0, match.start()) + 2,
            match['language'].strip(),
            textwrap.dedent(match['text']),
        )
        for match in _FENCE.finditer(text)
    ]


@dataclass(frozen=True)
class Call:
    """A call of one of :data:`PROGRAMS`, as the shell made it.

    Args:
        program: Its name.
        arguments: Its arguments, globs and variables expanded.
    """

    program: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join((self.program, *self.arguments))


def calls(script: str, folder: Path, environment: dict[str, str]) -> list[Call]:
    """Let a shell read a script, and return the calls that it makes instead of making them.

    Args:
        script: Of bash.
        folder: Where it runs.
        environment: Further variables.

    Returns:
        The calls in their order. Other programs run for real, and have to succeed.
    """
    stand_ins = folder / '.stand_ins'
    log = stand_ins / 'log'
    stand_ins.mkdir(exist_ok=True)
    for program in PROGRAMS:
        path = stand_ins / program
        path.write_text(
            f'#!/usr/bin/env bash\nprintf \'%s\\0\' {program} "$@" >> "{log}"\n'
            f'printf \'\\1\' >> "{log}"\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    log.write_bytes(b'')
    found = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', f'PATH="{stand_ins}:$PATH"\n{script}'],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, f'{script}\n{found.stderr}'
    return list(_read(log))


def _read(log: Path) -> Iterator[Call]:
    for entry in log.read_text(encoding='utf-8').split('\1')[:-1]:
        program, *arguments = entry.split('\0')[:-1]
        yield Call(program, tuple(arguments))
