"""Arguments that all commands on rasters have."""

import argparse

from torchgeo_explora.cli.engine_arguments import add_engine_arguments
from torchgeo_explora.cli.numbers import positive


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the rasters."""
    parser.add_argument(
        'sources',
        nargs='+',
        metavar='SOURCE',
        help='rasters, folders of them, globs, .txt lists, .zip archives, STAC files, URLs',
    )
    parser.add_argument(
        '--asset', metavar='KEY', help='asset to take of STAC items (default: the only raster)'
    )


def add_tiling(parser: argparse.ArgumentParser, overlap: str, memory: int) -> None:
    """Add how rasters are cut.

    Args:
        parser: Of the command.
        overlap: Default overlap, in words.
        memory: Default bound of the memory, in megabytes.
    """
    parser.add_argument(
        '--window', type=positive, metavar='PX', help="side of the windows (default: the model's)"
    )
    parser.add_argument(
        '--overlap',
        type=float,
        metavar='X',
        help=f'of neighbouring windows, in pixels or as a fraction below 1 ({overlap})',
    )
    parser.add_argument(
        '--batch', type=positive, default=16, metavar='N', help='windows of a batch (16)'
    )
    parser.add_argument(
        '--max-memory',
        type=positive,
        default=memory,
        metavar='MB',
        help=f'memory that the work may take beside the model ({memory})',
    )
    parser.add_argument(
        '--block',
        type=positive,
        default=8192,
        metavar='PX',
        help='longest side of what is computed in one go, and lost by a crash (8192)',
    )


def add_input(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add what is read of rasters.

    Args:
        parser: Of the command.
        verb: What it does to them.
    """
    parser.add_argument(
        '--bands',
        nargs='+',
        metavar='B',
        help="bands in the order of the model's: 1-based indexes or names (default: found by name)",
    )
    parser.add_argument(
        '--scale',
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        help="raw values that become 0 and 1, instead of the model's",
    )
    parser.add_argument(
        '--aoi', metavar='FILE', help=f'{verb} only inside the polygons of this vector file'
    )
    parser.add_argument(
        '--force',
        action='store_true',
        help=f'{verb} rasters that do not fit the model, and say what was overridden',
    )


def add_running(parser: argparse.ArgumentParser, result: str) -> None:
    """Add where and in what parts the work is done.

    Args:
        parser: Of the command.
        result: What it writes in the end.
    """
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), help='where to compute')
    parser.add_argument(
        '--precision',
        choices=('auto', 'bf16', '32'),
        help='auto takes bfloat16 where the hardware computes in it',
    )
    parser.add_argument(
        '--threads', type=positive, default=2, metavar='N', help='threads that read (2)'
    )
    parser.add_argument('--resume', action='store_true', help='go on with the run in DIR')
    parser.add_argument(
        '--shard',
        type=shard,
        metavar='I/N',
        help=f'compute one of N shares of the work and write no {result}; when all shares are '
        f'done, --resume without --shard writes the {result}s',
    )
    add_engine_arguments(parser)


def shard(text: str) -> tuple[int, int]:
    """Read the number of a share of the work and how many there are."""
    number, sign, count = text.partition('/')
    if not (sign and number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r} was given, I/N as in 2/4 is allowed')
    return int(number), int(count)
