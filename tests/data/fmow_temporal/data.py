"""Makes an fMoW-temporal: SatMAE's tables with timestamps, and places of one to five dates.

Run as a script with a folder's name to look at it.
"""

import sys
from pathlib import Path

from tests.data.fmow_rgb.data import write_tables

DATES = (5, 2, 1)
"""Dates of the places of every class: more than three, fewer, and one alone."""


def write_temporal(root: Path) -> Path:
    """Tables and crops of both splits; returns ``root``."""
    return write_tables(root, DATES)


if __name__ == '__main__':
    write_temporal(Path(sys.argv[1]))
