"""``python -m torchgeo_explora`` as a fork runs it."""

import runpy
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Run as its own process.

    Args:
        arguments: Of the command.
    """
    sys.argv[1:] = arguments
    runpy.run_module('torchgeo_explora', run_name='__main__', alter_sys=True)
