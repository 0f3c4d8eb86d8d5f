"""Arguments of ``similar``."""

import argparse

from torchgeo_explora.cli.numbers import positive

EXAMPLES = """examples:
  torchgeo-explora similar embeddings/ --like 13.4050,52.5200 --out like_this/
  torchgeo-explora similar embeddings/ --like=-70.65,-33.45 --out like_this/   negative: with =
  torchgeo-explora similar embeddings/ --like quarries.gpkg --unlike fields.gpkg --out quarries/
  torchgeo-explora similar embeddings/ --like 412300,5820400,EPSG:32633 --out here/ --top 50
  torchgeo-explora similar scenes/ --weights run1/explora.safetensors --like p.gpkg --out first/

Status 0: all rasters are done. 2: none could be. 4: some failed; they are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser."""
    parser.add_argument(
        'sources',
        nargs='+',
        metavar='SOURCE',
        help='rasters of embeddings that embed wrote, or, with --weights, any rasters; files, '
        'folders, globs, .txt lists, URLs',
    )
    _places(parser)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the results')
    parser.add_argument(
        '--dtype',
        choices=('float32', 'int8'),
        default='float32',
        help='numbers in the heat maps (float32); int8 has a scale, and errs by at most 1/254',
    )
    parser.add_argument(
        '--resume', action='store_true', help='go on with the same search in DIR after a crash'
    )
    _embedding(parser)


def _places(parser: argparse.ArgumentParser) -> None:
    places = 'X,Y (longitude and latitude), X,Y,EPSG:CODE, or a vector file in any CRS'
    parser.add_argument(
        '--like',
        nargs='+',
        required=True,
        metavar='PLACE',
        help=f'what to look for: {places}; several are averaged',
    )
    parser.add_argument(
        '--unlike', nargs='+', default=(), metavar='PLACE', help='what not to look for, likewise'
    )
    parser.add_argument(
        '--top', type=int, default=20, metavar='N', help='places to list; 0 for none (20)'
    )
    parser.add_argument(
        '--side', type=positive, default=3, metavar='N', help='side of a place in patches (3)'
    )


def _embedding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('to embed rasters first (see embed for all options)')
    group.add_argument(
        '--weights', metavar='FILE', help='weights, of rasters that are no embeddings yet'
    )
    group.add_argument(
        '--model', metavar='NAME', help='timm name, where the weights do not tell it'
    )
    group.add_argument('--base', metavar='FILE', help='base weights that a delta belongs to')
    group.add_argument(
        '--embeddings',
        metavar='DIR',
        help='where embeddings are kept for further searches (DIR/embeddings of --out)',
    )
    group.add_argument('--asset', metavar='KEY', help='asset to take of STAC items')
    group.add_argument('--window', type=positive, metavar='PX', help='side of the windows')
    group.add_argument(
        '--overlap', type=float, metavar='X', help='of neighbouring windows, as of embed'
    )
    group.add_argument(
        '--batch', type=positive, default=16, metavar='N', help='windows of a batch (16)'
    )
    group.add_argument(
        '--bands', nargs='+', metavar='B', help="bands in the order of the model's (by name)"
    )
    group.add_argument(
        '--scale', type=float, nargs=2, metavar=('LOW', 'HIGH'), help='raw values of 0 and 1'
    )
    group.add_argument(
        '--force', action='store_true', help='embed rasters that do not fit the model'
    )
    group.add_argument('--device', choices=('auto', 'cpu', 'cuda'), help='where to compute')
    group.add_argument(
        '--precision',
        choices=('auto', 'bf16', '32'),
        help='auto takes bfloat16 where the hardware computes in it',
    )
    group.add_argument(
        '--threads', type=positive, default=2, metavar='N', help='threads that read (2)'
    )
