"""Entry point of the command: parse, run, and turn what a user can mend into one line."""

import importlib
import os
import sys
from collections.abc import Sequence

from torchgeo_explora.cli.console import complain, plain_messages
from torchgeo_explora.cli.parser import build_parser
from torchgeo_explora.errors import CollapseError, ExploraError

SUCCESS, USER_ERROR, COLLAPSED, INTERRUPTED = 0, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; those of the process when not given.

    Returns:
        0; 2 for an error that the user can mend; 3 if the representation collapsed; 4 if some
        rasters of many failed; 130 after Ctrl-C. Anything else is a defect and keeps its traceback.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as end:  # argparse's way to say that it printed help or a mistake
        return int(end.code) if isinstance(end.code, int) else USER_ERROR
    try:
        # imported first, because Lightning sets the levels of its loggers when it is imported
        command = importlib.import_module(f'torchgeo_explora.cli.{args.command}')
        with plain_messages():
            status: int = command.run(args)
    except CollapseError as error:
        complain('collapsed', str(error))
        return COLLAPSED
    except ExploraError as error:
        complain('error', str(error))
        return USER_ERROR
    except KeyboardInterrupt as interrupt:
        complain(
            'interrupted', str(interrupt) or 'stopped by the user; nothing was left half-done.'
        )
        return INTERRUPTED
    except BrokenPipeError:  # the reader, for instance `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCESS
    return status
