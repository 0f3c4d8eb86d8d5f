"""Arguments of ``predict``."""

import argparse

from torchgeo_explora.cli.numbers import positive
from torchgeo_explora.cli.raster_arguments import (
    add_input,
    add_running,
    add_sources,
    add_tiling,
)

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
    add_sources(parser)
    parser.add_argument(
        '--model', required=True, metavar='FILE', help='fitted model that fine-tuning wrote'
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the maps')
    add_tiling(parser, '0.25; segmentation', 256)
    parser.add_argument(
        '--stride',
        type=positive,
        metavar='PX',
        help='side of the cells that get one class (default: the window; classification)',
    )
    add_input(parser, 'predict')
    _output(parser)
    add_running(parser, 'map')


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
