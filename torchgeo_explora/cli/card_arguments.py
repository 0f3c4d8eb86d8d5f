"""Arguments of ``export --card``."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser.

    Args:
        parser: Of ``export``.
    """
    group = parser.add_argument_group('model card')
    group.add_argument(
        '--card',
        action='store_true',
        help='instead of --to: write a folder for the Hugging Face hub into --out, with the model '
        'and a README.md that describes it',
    )
    group.add_argument(
        '--license',
        metavar='ID',
        help='licence of the model, for instance apache-2.0 (default: that of the weights it was '
        'started from, where it is known)',
    )
    group.add_argument(
        '--push',
        metavar='REPO',
        help='upload the folder to this repository of the hub, for instance name/model; nothing is '
        'uploaded without this',
    )
    group.add_argument(
        '--private', action='store_true', help='make the repository private if it is new'
    )
