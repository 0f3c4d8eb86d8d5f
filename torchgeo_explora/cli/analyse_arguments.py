"""Arguments of ``analyse``."""

import argparse

from torchgeo_explora.cli.numbers import positive, whole

EXAMPLES = """examples:
  torchgeo-explora analyse --model dinov2_vits14.safetensors --images photos/ --out analysis
  torchgeo-explora analyse --model DINOv2=dinov2_vits14.safetensors \\
      --model ExPLoRA=run1/explora.safetensors --images labelled/ --out analysis
  torchgeo-explora analyse ... --sample 2000 --blocks -4 -3 -2 -1
  torchgeo-explora analyse ... --resume            go on after a crash or Ctrl-C

Sub-folders are taken for classes where every image lies in one; probes are then also asked for the
class. Where there are folders train and test, probes are scored on test."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser."""
    parser.add_argument(
        '--model',
        action='append',
        required=True,
        dest='models',
        metavar='[NAME=]FILE',
        help='weights to look at: merged, fitted, a delta of timm weights, or stock; again for '
        'each model to compare; the first is what the others are compared with',
    )
    parser.add_argument(
        '--arch', metavar='NAME', help='timm name of the models, where a file does not tell it'
    )
    parser.add_argument('--images', required=True, metavar='FOLDER', help='folder or .zip file')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the results; new')
    parser.add_argument('--resume', action='store_true', help='go on with the analysis in DIR')
    _images(parser)
    _measures(parser)
    _pictures(parser)
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), help='where to compute')
    parser.add_argument(
        '--precision',
        choices=('auto', 'bf16', '32'),
        default='32',
        help='of the models (32, which compares best; auto takes bfloat16 where the hardware '
        'computes in it)',
    )
    parser.add_argument(
        '--workers', type=whole, default=0, metavar='N', help='processes that load images (0)'
    )


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--image-size',
        type=positive,
        metavar='PX',
        help="side of the images that the models see (default: the first model's own)",
    )
    parser.add_argument(
        '--sample', type=positive, metavar='N', help='look at N images, drawn by the seed'
    )
    parser.add_argument(
        '--bands',
        nargs='+',
        metavar='B',
        help='bands to read: 1-based indexes or descriptions, in the order of the models',
    )
    parser.add_argument('--grey', action='store_true', help='repeat a single band three times')
    parser.add_argument(
        '--scale',
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        help="raw values that become 0 and 1 (default: the models', else 0 and 255 for bytes and "
        'percentiles 1 and 99 of each band)',
    )


def _measures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--blocks',
        type=int,
        nargs='+',
        metavar='I',
        help='blocks from 0, negative ones from the end (default: all)',
    )
    parser.add_argument(
        '--leading', type=positive, default=10, metavar='K', help='leading eigenvalues (10)'
    )
    parser.add_argument(
        '--tokens',
        type=positive,
        default=40_000,
        metavar='N',
        help='patches that probes see, of all images together (40000)',
    )
    parser.add_argument(
        '--probe-steps', type=positive, default=600, metavar='N', help='steps of a probe (600)'
    )
    parser.add_argument(
        '--raw-tokens',
        action='store_true',
        help='probe tokens as they are, without giving each dimension unit variance',
    )
    parser.add_argument(
        '--batch', type=positive, default=32, metavar='N', help='images of a batch (32)'
    )
    parser.add_argument('--seed', type=whole, default=0, metavar='N', help='of all draws (0)')


def _pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--show', type=whole, default=4, metavar='N', help='images to draw maps of (4)'
    )
    parser.add_argument(
        '--pictures',
        nargs='+',
        metavar='FILE',
        help='draw maps of these images of FOLDER instead: paths in it, or names',
    )
    parser.add_argument(
        '--picture-size',
        type=positive,
        metavar='PX',
        help='side of the images that maps are drawn of (default: 224, or --image-size if larger)',
    )
