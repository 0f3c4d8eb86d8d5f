"""Arguments of commands whose work can be shared by the workers of a cluster."""

import argparse


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser.

    Args:
        parser: Of the command.
    """
    group = parser.add_argument_group('workers')
    group.add_argument(
        '--engine',
        choices=('local', 'ray'),
        default='local',
        help='local computes here; ray gives blocks to the workers of a Ray cluster, and those of '
        'a dead worker to another (extra torchgeo-explora[ray])',
    )
    group.add_argument(
        '--ray-address',
        metavar='ADDRESS',
        help='cluster that runs: auto, HOST:PORT or ray://HOST:PORT (default: workers on this '
        'machine, for as long as the run takes)',
    )
    group.add_argument(
        '--workers',
        type=int,
        metavar='N',
        help='workers (default: as many as the cluster has cores or GPUs for)',
    )
    group.add_argument(
        '--worker-cores', type=int, metavar='N', help='processor cores of a worker (1)'
    )
    group.add_argument(
        '--worker-gpus',
        type=float,
        metavar='X',
        help='GPUs of a worker; a fraction is shared (1 with --device cuda, otherwise 0)',
    )
