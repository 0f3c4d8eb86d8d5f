"""Arguments of ``adapt`` that describe its images."""

import argparse

EXAMPLES = """examples:
  torchgeo-explora adapt photos/ --weights dinov2_vits14.safetensors --out run1
  torchgeo-explora adapt photos/ --labels labelled/ --weights timm --out run2 --epochs 20
  torchgeo-explora adapt imagery/*.tif --weights dinov2_vits14.safetensors --out run3
  torchgeo-explora adapt scenes/ --bands 3 2 1 --out run4 --preset paper --device cuda
  torchgeo-explora adapt scenes/ --labels fields.gpkg --class-column crop --out run5
  torchgeo-explora adapt --out run1 --resume       go on after a crash or Ctrl-C

A folder of pictures or chips is read image by image. Rasters (files, globs, lists, VRT, STAC items,
folders of nothing else) are read in windows, drawn evenly over files and area where there is data.

Sub-folders of images are taken for classes where every image lies in one. Classes never train: they
only tell, by probes before and after, whether the adaptation helped. report.html says all of it."""


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add what the images are to a parser."""
    parser.add_argument(
        'sources',
        nargs='*',
        metavar='SOURCE',
        help='a folder or .zip file of images; or rasters, folders of them, globs, .txt lists, '
        'STAC items, URLs',
    )
    parser.add_argument(
        '--read-as',
        choices=('auto', 'images', 'rasters'),
        help='whether SOURCE is a folder of images, or rasters to draw windows from (default: by '
        'what is there)',
    )
    parser.add_argument('--asset', metavar='NAME', help='asset of STAC items')
    _add_windows(parser)


def _add_windows(parser: argparse.ArgumentParser) -> None:
    rasters = parser.add_argument_group('windows of rasters')
    rasters.add_argument(
        '--windows', type=int, metavar='N', help='windows of a pass (default: what fits in)'
    )
    rasters.add_argument(
        '--balance',
        type=float,
        metavar='X',
        help='share of a raster in a pass: 1 by its area, 0 all alike, between a power of the area '
        '(default: 0.5)',
    )
    rasters.add_argument(
        '--min-valid',
        type=float,
        metavar='X',
        help='least share of pixels with data in a window (default: 0.9)',
    )
    rasters.add_argument(
        '--resolution',
        type=float,
        metavar='M',
        help='metres to which pixels are resampled (default: as they are)',
    )


def add_values(parser: argparse.ArgumentParser) -> None:
    """Add what raw values mean, and where labels come from, to a parser."""
    parser.add_argument(
        '--scale',
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        help='raw values that become 0 and 1 (default: 0 and 255 for bytes, those of the weights, '
        'or percentiles 1 and 99 of each band)',
    )
    parser.add_argument(
        '--labels',
        metavar='PATH',
        help='labels for the probes: images with one sub-folder a class, or a vector file of '
        'polygons',
    )
    parser.add_argument(
        '--class-column', metavar='NAME', help='column of the vector file that names classes'
    )
    parser.add_argument(
        '--min-cover',
        type=float,
        metavar='X',
        help='least share of a window that its class covers (default: 0.5)',
    )
    parser.add_argument(
        '--report',
        choices=('full', 'short'),
        help='short leaves measures of the blocks and pictures of features out of report.html '
        '(default: full)',
    )
