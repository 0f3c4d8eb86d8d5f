"""Numbers on the command line."""

import argparse


def whole(text: str) -> int:
    """Read a whole number of 0 or more."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """Read a whole number of 1 or more."""
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(
            f'{text!r} was given: a whole number of {least} or more is allowed'
        )
    return value
