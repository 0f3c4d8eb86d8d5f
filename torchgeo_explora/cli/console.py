"""What the command prints: plain lines on stdout, warnings and errors on stderr, one line each."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

PROGRAM = 'torchgeo-explora'

NAMED = 5
"""Files that are named; the rest is counted."""

# Commands say themselves what was left out; the data set warns from several threads.
_SAID = r'.*(images cannot be read and are left out|is damaged and left out)'
_SILENT = ('lightning.pytorch', 'lightning.fabric', 'lightning')


def say(text: str = '') -> None:
    """Print a line to stdout at once, also where it is a pipe."""
    print(text, flush=True)


def complain(kind: str, text: str) -> None:
    """Print a warning or an error to stderr, as one line."""
    print(f'{PROGRAM}: {kind}: {" ".join(text.split())}', file=sys.stderr, flush=True)


@contextmanager
def plain_messages() -> Iterator[None]:
    """Show this package's warnings as one line each, and nothing of the libraries' chatter."""
    levels = {name: logging.getLogger(name).level for name in _SILENT}
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            # ours carry no category of their own and are meant for users
            warnings.filterwarnings('default', category=UserWarning, module=r'torchgeo_explora')
            warnings.filterwarnings('ignore', message=_SAID)
            warnings.showwarning = _show
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    complain('warning', str(message))


def say_left_out(files: Mapping[str, str]) -> None:
    """Name files that cannot be read, the first few with the reason."""
    if files:
        named = [f'{path} ({reason})' for path, reason in list(files.items())[:NAMED]]
        more = f' and {len(files) - NAMED} more' if len(files) > NAMED else ''
        say(f'Left out {len(files)} unreadable images: {"; ".join(named)}{more}')


def duration(seconds: float) -> str:
    """Write a length of time for people: ``42 s``, ``7 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 100 else f'{minutes // 60} h {minutes % 60:02d} min'


def size(count: float) -> str:
    """Write a number of bytes for people."""
    for unit in ('B', 'kB', 'MB'):
        if count < 1000:
            return f'{count:.0f} {unit}' if unit == 'B' else f'{count:.1f} {unit}'
        count /= 1000
    return f'{count:.2f} GB'


def percent(share: float) -> str:
    """Write a share as a percentage with one decimal."""
    return f'{100 * share:.1f} %'


def table(rows: list[list[str]], indent: str = '  ') -> str:
    """Align rows of cells: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join(
        indent
        + '  '.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
