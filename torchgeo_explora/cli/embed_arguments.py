"""Arguments of ``embed``."""

import argparse

from torchgeo_explora.cli.numbers import positive
from torchgeo_explora.cli.raster_arguments import (
    add_input,
    add_running,
    add_sources,
    add_tiling,
)

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
    add_sources(parser)
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
    add_tiling(parser, '0.5', 512)
    add_input(parser, 'embed')
    add_running(parser, 'result')


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
