"""Arguments of ``advise``."""

import argparse

from torchgeo_explora.cli.numbers import positive

EXAMPLES = """examples:
  torchgeo-explora advise --images photos/ --weights dinov2_vits14.safetensors
  torchgeo-explora advise --images labelled/ --weights dinov2_vits14.safetensors --out advice
  torchgeo-explora advise ... --ranks 8 32 64 --steps 80 --seeds 3

Each candidate adapts the model for a few steps on the images. With class folders trials are scored
by nearest neighbours, else by the effective rank of the features. The last block and rank 64, the
paper's choice, are suggested unless a trial is better by twice its error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser."""
    parser.add_argument('--images', required=True, metavar='FOLDER', help='folder or .zip file')
    parser.add_argument('--weights', required=True, metavar='FILE', help='weights of the base')
    parser.add_argument(
        '--arch', metavar='NAME', help='timm name of the model, where the file does not tell it'
    )
    parser.add_argument('--out', metavar='DIR', help='also write a page and the numbers here; new')
    parser.add_argument('--preset', default='small', help='recipe of the trials (small)')
    parser.add_argument(
        '--set',
        action='append',
        dest='extra',
        default=[],
        metavar='KEY=VALUE',
        help='replace a number of the recipe, for instance --set base_lr=5e-4',
    )
    parser.add_argument(
        '--ranks', type=positive, nargs='+', default=[8, 64], metavar='R', help='ranks (8 64)'
    )
    parser.add_argument(
        '--steps', type=positive, default=40, metavar='N', help='steps of a trial (40)'
    )
    parser.add_argument(
        '--seeds', type=positive, default=2, metavar='N', help='trials of a candidate (2)'
    )
    parser.add_argument(
        '--sample', type=positive, default=2000, metavar='N', help='images to use, at most (2000)'
    )
    _images(parser)
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of all draws (0)')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), help='where to compute')
    parser.add_argument(
        '--precision',
        choices=('auto', 'bf16', '32'),
        help='auto takes bfloat16 where the hardware computes in it',
    )


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--image-size',
        type=positive,
        metavar='PX',
        help='side to which images are resized when read (default: their own, at most 256)',
    )
    parser.add_argument(
        '--bands',
        nargs='+',
        metavar='B',
        help='bands to read: 1-based indexes or descriptions, in the order of the model',
    )
    parser.add_argument('--grey', action='store_true', help='repeat a single band three times')
    parser.add_argument(
        '--scale', type=float, nargs=2, metavar=('LOW', 'HIGH'), help='raw values of 0 and 1'
    )
