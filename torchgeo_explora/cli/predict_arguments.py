"""Arguments of ``predict``."""

import argparse

from torchgeo_explora.cli.engine_arguments import add_engine_arguments

EXAMPLES = """examples:
  torchgeo-explora predict scene.tif --model model.safetensors --out maps/
  torchgeo-explora predict scenes/ --model model.safetensors --out maps/ --probabilities
  torchgeo-explora predict 'scenes/*.tif' --model m.safetensors --out maps/ --aoi area.gpkg
  torchgeo-explora predict scenes/ --model m.safetensors --out maps/ --resume   after a crash
  torchgeo-explora predict scenes/ --model m.safetensors --out maps/ --shard 2/4
  torchgeo-explora predict scenes/ --model m.safetensors --out maps/ --engine ray

Status 0: all rasters are done. 2: none could be. 4: some failed; they are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser."""
    parser.add_argument(
        'sources',
        nargs='+',
        metavar='SOURCE',
        help='rasters, folders of them, globs, .txt lists, .zip archives, STAC files, URLs',
    )
    parser.add_argument(
        '--asset', metavar='KEY', help='asset to take of STAC items (default: the only raster)'
    )
    parser.add_argument(
        '--model', required=True, metavar='FILE', help='fitted model that fine-tuning wrote'
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the maps')
    _windows(parser)
    _input(parser)
    _output(parser)
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
        help='compute one of N shares of the work and write no map; when all shares are done, '
        '--resume without --shard writes the maps',
    )
    add_engine_arguments(parser)


def _windows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--window', type=positive, metavar='PX', help="side of the windows (default: the model's)"
    )
    parser.add_argument(
        '--overlap',
        type=float,
        metavar='X',
        help='of neighbouring windows, in pixels or as a fraction below 1 (0.25; segmentation)',
    )
    parser.add_argument(
        '--stride',
        type=positive,
        metavar='PX',
        help='side of the cells that get one class (default: the window; classification)',
    )
    parser.add_argument(
        '--batch', type=positive, default=16, metavar='N', help='windows of a batch (16)'
    )
    parser.add_argument(
        '--max-memory',
        type=positive,
        default=256,
        metavar='MB',
        help='memory that the work may take beside the model (256)',
    )
    parser.add_argument(
        '--block',
        type=positive,
        default=8192,
        metavar='PX',
        help='longest side of what is computed in one go, and lost by a crash (8192)',
    )


def _input(parser: argparse.ArgumentParser) -> None:
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
        '--aoi', metavar='FILE', help='predict only inside the polygons of this vector file'
    )
    parser.add_argument(
        '--force',
        action='store_true',
        help='predict rasters that do not fit the model, and say what was overridden',
    )


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--probabilities', action='store_true', help='also write a band of probabilities a class'
    )
    parser.add_argument(
        '--uncertainty',
        nargs='+',
        choices=('entropy', 'margin', 'distance'),
        default=(),
        help='also write how sure the model is, and how far windows are from its training images',
    )
    parser.add_argument(
        '--reference',
        metavar='FILE',
        help='features of the training images, for the distance (default: features.safetensors '
        'beside the model)',
    )
    parser.add_argument(
        '--vector', action='store_true', help='also write the classes as polygons (GeoPackage)'
    )
    parser.add_argument(
        '--min-area', type=float, default=0.0, metavar='M2', help='smallest polygon to write'
    )
    parser.add_argument(
        '--simplify',
        type=float,
        default=0.0,
        metavar='PX',
        help='simplify outlines by about as many pixels; neighbours keep a common outline',
    )


def positive(text: str) -> int:
    """Read a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} was given, 1 or more is allowed')
    return value


def shard(text: str) -> tuple[int, int]:
    """Read the number of a share of the work and how many there are."""
    number, sign, count = text.partition('/')
    if not (sign and number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r} was given, I/N as in 2/4 is allowed')
    return int(number), int(count)
