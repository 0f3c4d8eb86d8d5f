"""Arguments of ``embed``."""

import argparse

from torchgeo_explora.cli.engine_arguments import add_engine_arguments
from torchgeo_explora.cli.predict_arguments import positive, shard

EXAMPLES = """examples:
  torchgeo-explora embed scene.tif --weights run1/explora.safetensors --out embeddings/
  torchgeo-explora embed scenes/ --weights explora.safetensors --out pca/ --pca 16 --rgb
  torchgeo-explora embed new.tif --weights explora.safetensors --out new/ --basis pca/pca.safetensors
  torchgeo-explora embed scenes/ --weights explora.safetensors --out int8/ --dtype int8 --blocks -4 -1
  torchgeo-explora embed scenes/ --weights explora.safetensors --out windows/ --window-embeddings
  torchgeo-explora embed scenes/ --weights explora.safetensors --out embeddings/ --resume

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
        '--weights',
        required=True,
        metavar='FILE',
        help='merged or stock weights, a fitted model, a delta, or a training checkpoint',
    )
    parser.add_argument(
        '--model', metavar='NAME', help='timm name, where the weights do not tell it'
    )
    parser.add_argument('--base', metavar='FILE', help='base weights that a delta belongs to')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the results')
    _embedding(parser)
    _components(parser)
    _of_windows(parser)
    _cutting(parser)
    _input(parser)
    _running(parser)
    add_engine_arguments(parser)


def _embedding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--blocks',
        type=int,
        nargs='+',
        default=(-1,),
        metavar='I',
        help='blocks whose outputs stand side by side, 0-based or negative from the end (-1)',
    )
    parser.add_argument(
        '--no-norm', action='store_true', help="leave out the model's final norm after each block"
    )
    parser.add_argument(
        '--dtype',
        choices=('float16', 'int8', 'float32'),
        default='float16',
        help='numbers in the raster (float16); int8 has a scale and an offset a band, and errs by '
        "at most 1/508 of the band's range",
    )


def _components(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--pca',
        type=positive,
        metavar='K',
        help='write K principal components, of all rasters together, instead of the embeddings',
    )
    parser.add_argument(
        '--basis', metavar='FILE', help='principal components that an earlier command kept'
    )
    parser.add_argument(
        '--rgb', action='store_true', help='also write a picture of the first three components'
    )


def _of_windows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--window-embeddings',
        action='store_true',
        help='write a table (GeoParquet) with one embedding a window instead of one a patch',
    )
    parser.add_argument(
        '--stride', type=positive, metavar='PX', help='from one window to the next (the window)'
    )
    parser.add_argument(
        '--tokens',
        nargs='+',
        choices=('class', 'mean'),
        default=('class',),
        help='what a window is told by: class token, mean of its patch tokens, or both (class)',
    )


def _cutting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--window', type=positive, metavar='PX', help="side of the windows (default: the model's)"
    )
    parser.add_argument(
        '--overlap',
        type=float,
        metavar='X',
        help='of neighbouring windows, in pixels or as a fraction below 1 (0.5)',
    )
    parser.add_argument(
        '--batch', type=positive, default=16, metavar='N', help='windows of a batch (16)'
    )
    parser.add_argument(
        '--max-memory',
        type=positive,
        default=512,
        metavar='MB',
        help='memory that the work may take beside the model (512)',
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
        '--aoi', metavar='FILE', help='embed only inside the polygons of this vector file'
    )
    parser.add_argument(
        '--force',
        action='store_true',
        help='embed rasters that do not fit the model, and say what was overridden',
    )


def _running(parser: argparse.ArgumentParser) -> None:
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
        help='compute one of N shares of the work and write no result; when all shares are done, '
        '--resume without --shard writes them',
    )
