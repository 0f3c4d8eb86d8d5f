"""What is computed together, written down so that shares of the work that differ never mix."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference.jobs import Group, Unit, stripes

SHARDS = 'shards.json'
FORMAT = 'torchgeo-explora-shards'


@dataclass(frozen=True)
class Shard:
    """A share of the work.

    Args:
        number: From 1 to ``count``.
        count: Number of shards.

    Raises:
        ConfigError: If there is no such shard.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.number <= self.count:
            raise ConfigError(f'There is no shard {self.number}/{self.count}: give 1/4 to 4/4.')

    def of(self, groups: Sequence[Group]) -> list[Group]:
        """Choose groups: every ``count``-th, so that large rasters are shared too.

        Args:
            groups: All of them.
        """
        return list(groups[self.number - 1 :: self.count])


def describe_unit(unit: Unit) -> dict[str, Any]:
    """Describe a block, and what is read for it, for JSON.

    Args:
        unit: The block.

    Returns:
        ``raster``, its ``fingerprint``, ``block`` (number), ``rows`` and ``columns`` that it fills,
        ``read_rows`` and ``read_columns`` that its windows see (each from the first pixel to before
        the second), and how many ``windows`` that is.
    """
    block, read = unit.block, stripes(unit)
    return {
        'raster': unit.job.info.path,
        'fingerprint': unit.job.fingerprint,
        'block': unit.number,
        'rows': [block.rows.first, block.rows.stop],
        'columns': [block.columns.first, block.columns.stop],
        'read_rows': [read[0].rows.first, read[-1].rows.stop],
        'read_columns': [read[0].columns.first, read[0].columns.stop],
        'windows': unit.windows,
    }


def write_plan(out: Path, groups: Sequence[Group]) -> None:
    """Write what is computed together, or check that other shards planned the same.

    Args:
        out: Folder of the results.
        groups: All of them; shard 2 of 4 computes the second, the sixth and so on.

    Raises:
        ConfigError: If shards planned something else.
        OutputError: If it cannot be written.
    """
    path = out / SHARDS
    plan = {'format': FORMAT, 'groups': [[describe_unit(u) for u in group] for group in groups]}
    if path.is_file():
        if json.loads(path.read_text(encoding='utf-8')) != plan:
            raise ConfigError(
                f'Shards of {path} were planned for other rasters, or some changed since or cannot '
                'be read from this machine: use the same for all shards, or choose another folder.'
            )
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plan, indent=1), encoding='utf-8')
