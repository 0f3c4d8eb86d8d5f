"""Chooses what computes: this process, or the workers of a cluster."""

import argparse

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference.ray_engine import RayCluster

_OF_WORKERS = ('ray_address', 'workers', 'worker_cores', 'worker_gpus')


def choose_cluster(args: argparse.Namespace) -> RayCluster | None:
    """Return the workers that a command asks for; None for this process.

    Args:
        args: From the parser.

    Raises:
        ConfigError: If workers are described and not asked for, or not possible.
    """
    if args.engine == 'local':
        given = [name for name in _OF_WORKERS if getattr(args, name) is not None]
        if given:
            raise ConfigError(
                f'--{given[0].replace("_", "-")} is of workers: ask for these with --engine ray.'
            )
        return None
    if args.shard is not None:
        raise ConfigError(
            'Workers of Ray share all of the work: leave --shard out, or --engine ray.'
        )
    gpus = float(args.device == 'cuda') if args.worker_gpus is None else args.worker_gpus
    if (args.device == 'cpu' and gpus > 0) or (args.device == 'cuda' and gpus == 0):
        raise ConfigError(
            f'--device {args.device} and workers of {gpus:g} GPUs were asked for: leave one out.'
        )
    cores = 1 if args.worker_cores is None else args.worker_cores
    return RayCluster(args.ray_address, args.workers, cores, gpus)


def describe_cluster(cluster: RayCluster) -> str:
    """Say in words where a run computes.

    Args:
        cluster: The workers.
    """
    where = 'this machine' if cluster.address is None else cluster.address
    gpus = f' and {cluster.gpus:g} GPUs' if cluster.gpus > 0 else ''
    cores = '1 core' if cluster.cores == 1 else f'{cluster.cores} cores'
    return f'workers of {cores}{gpus} of Ray on {where}'


def counted(number: int, what: str) -> str:
    """Return a number with what it counts.

    Args:
        number: How many.
        what: The word for one.
    """
    return f'{number} {what}' if number == 1 else f'{number:,} {what}s'
