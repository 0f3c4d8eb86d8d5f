"""Result files of the tasks, and the progress of long computations."""

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from torchgeo_explora._files import replacing
from torchgeo_explora.objectives.probing import Progress

SECONDS_BETWEEN_REPORTS = 10.0


def write_result(
    target: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write a result as JSON and its table as CSV, and say where.

    Args:
        target: Path of both files without extension.
        result: Content of the JSON file.
        rows: Rows of the table, with the same keys.

    Returns:
        The paths written.

    Raises:
        OutputError: If they cannot be written.
    """
    paths = [target.with_name(f'{target.name}.{suffix}') for suffix in ('json', 'csv')]
    write_json(paths[0], result)
    write_table(paths[1], rows)
    for path in paths:
        rank_zero_info(f'Wrote {path}')
    return paths


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON, whole or not at all.

    Args:
        path: Of the file.
        content: Texts, finite numbers, lists and dictionaries of them.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    return path


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table as CSV, whole or not at all.

    Args:
        path: Of the file.
        rows: At least one, all with the same keys.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


class ProgressReport:
    """Says every ten seconds, and at the end, how far a computation is.

    Args:
        what: What is being done.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.last = time.monotonic()

    def __call__(self, state: Progress) -> None:
        """Report a state if it is time to."""
        finished = state.done == state.total
        if not finished and time.monotonic() - self.last < SECONDS_BETWEEN_REPORTS:
            return
        self.last = time.monotonic()
        total = '' if state.total is None else f' of {state.total}'
        rest = '' if finished or state.remaining is None else f', {state.remaining:.0f} s to go'
        rank_zero_info(f'{self.what}: {state.done}{total}, {state.rate:.0f} a second{rest}')
