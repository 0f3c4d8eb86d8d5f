"""Arguments of every command. Nothing heavy is imported here, so that ``--help`` is immediate."""

import argparse
import sys
from typing import NoReturn

from torchgeo_explora import __version__
from torchgeo_explora.cli import (
    adapt_arguments,
    advise_arguments,
    analyse_arguments,
    embed_arguments,
    export_arguments,
    predict_arguments,
    similar_arguments,
)
from torchgeo_explora.cli.console import PROGRAM, complain
from torchgeo_explora.cli.numbers import positive, whole

MODEL = 'vit_small_patch14_dinov2'
PRESETS = ('small', 'paper', 'workshop')

_ABOUT = (
    """Adapt a natural-image vision transformer to your own imagery, without labels (ExPLoRA)."""
)

_EXAMPLES = {
    None: """examples:
  torchgeo-explora replay                          the whole method in minutes, on synthetic scenes
  torchgeo-explora estimate photos/                what a run would take, before it runs
  torchgeo-explora adapt photos/ --weights dinov2_vits14.safetensors --out run1
  torchgeo-explora info run1/explora.safetensors
  torchgeo-explora predict scenes/ --model model.safetensors --out maps""",
    'adapt': adapt_arguments.EXAMPLES,
    'predict': predict_arguments.EXAMPLES,
    'embed': embed_arguments.EXAMPLES,
    'similar': similar_arguments.EXAMPLES,
    'analyse': analyse_arguments.EXAMPLES,
    'advise': advise_arguments.EXAMPLES,
    'probe': """examples:
  torchgeo-explora probe labelled/ --weights run1/explora.safetensors
  torchgeo-explora probe train/ --test test/ --weights timm --out scores""",
    'info': """examples:
  torchgeo-explora info run1                       what a run did and whether it helped
  torchgeo-explora info model.safetensors          what a weights file or fitted model is
  torchgeo-explora info lightning_logs/version_0/peft   what a PEFT adapter with head is""",
    'export': export_arguments.EXAMPLES,
    'estimate': """examples:
  torchgeo-explora estimate photos/ --model vit_base_patch14_dinov2
  torchgeo-explora estimate --images 100000 --preset paper --device cuda""",
    'replay': """examples:
  torchgeo-explora replay
  torchgeo-explora replay --images photos/ --weights dinov2_vits14.safetensors --out replay""",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        complain('error', f'{message}; see `{self.prog} --help`.')
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; ``command`` names the one that was chosen."""
    parser = Parser(
        prog=PROGRAM,
        description=_ABOUT,
        epilog=_EXAMPLES[None],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'{PROGRAM} {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='command')
    for name, (summary, add_arguments) in _COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=f'{summary[0].upper()}{summary[1:]}.',
            epilog=_EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS if name == 'adapt' else None,
        )
        add_arguments(sub)
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--model', metavar='NAME', help=f'timm vision transformer (default: {MODEL})'
    )
    parser.add_argument(
        '--weights',
        metavar='FILE',
        help="file of weights, name of an enum member, 'timm' for timm's own (default), or 'random'",
    )


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--bands',
        nargs='+',
        metavar='B',
        help='bands to read: 1-based indexes or descriptions, in the order of red, green, blue',
    )
    parser.add_argument('--grey', action='store_true', help='repeat a single band three times')
    parser.add_argument(
        '--image-size',
        type=positive,
        metavar='PX',
        help='side to which images are resized when read (default: their own, at most 256)',
    )
    parser.add_argument(
        '--mean', type=float, nargs='+', metavar='M',
        help='mean of each band in [0, 1]; with --std, allows any number of bands',
    )  # fmt: skip
    parser.add_argument(
        '--std', type=float, nargs='+', metavar='S', help='standard deviation of each band'
    )
    parser.add_argument(
        '--workers', type=whole, metavar='N', help='processes that load images (default: by size)'
    )


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), help='where to compute')
    parser.add_argument(
        '--precision',
        choices=('auto', 'bf16', '32'),
        help='auto takes bfloat16 where the hardware computes in it',
    )


def _recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--preset', choices=PRESETS, help='recipe (default: small)')
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--epochs', type=positive, metavar='N', help='passes over the images')
    length.add_argument('--steps', type=positive, metavar='N', help='batches of the whole run')
    parser.add_argument(
        '--batch-size',
        type=positive,
        metavar='N',
        help="images of a batch (default: the recipe's)",
    )
    parser.add_argument('--rank', type=whole, metavar='R', help='rank of the low-rank updates')
    parser.add_argument(
        '--unfreeze',
        type=int,
        nargs='*',
        metavar='I',
        help='blocks that train in full, 0-based or negative from the end (default: -1)',
    )
    parser.add_argument(
        '--set',
        action='append',
        dest='extra',
        metavar='KEY=VALUE',
        help='replace any other number of the recipe, for instance --set base_lr=5e-4',
    )
    parser.add_argument('--seed', type=whole, metavar='N', help='seed of everything drawn (0)')


def _adapt(parser: argparse.ArgumentParser) -> None:
    adapt_arguments.add_sources(parser)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the results; new')
    parser.add_argument(
        '--resume', action='store_true', help='go on with the run in DIR, with its settings'
    )
    adapt_arguments.add_values(parser)
    parser.add_argument(
        '--all-images',
        action='store_true',
        help='adapt to the held-out images too; their labels still never train',
    )
    _model(parser)
    _recipe(parser)
    _images(parser)
    _device(parser)
    parser.add_argument(
        '--eval-size',
        type=positive,
        metavar='PX',
        help='side of the images that probes see (default: that of the global crops)',
    )
    parser.add_argument(
        '--checkpoint-every',
        type=positive,
        metavar='N',
        help='batches between checkpoints (default: about five minutes)',
    )


def _probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', help='folder or .zip file with one sub-folder a class')
    parser.add_argument(
        '--test', metavar='FOLDER', help='score on these images; by default on a fifth of FOLDER'
    )
    _model(parser)
    _images(parser)
    _device(parser)
    parser.add_argument(
        '--eval-size',
        type=positive,
        metavar='PX',
        help='side of the images that the model sees (default: what adapted weights name, else 224)',
    )
    parser.add_argument(
        '--iterations', type=positive, default=2000, metavar='N', help='steps of the linear probe'
    )
    parser.add_argument('--seed', type=whole, default=0, metavar='N', help='seed of the split (0)')
    parser.add_argument('--out', metavar='DIR', help='also write the scores here; new')


def _info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('path', help='weights file, or folder of a run')
    parser.add_argument('--json', action='store_true', help='print JSON')


def _estimate(parser: argparse.ArgumentParser) -> None:
    adapt_arguments.add_sources(parser)
    parser.add_argument('--images', type=positive, metavar='N', help='number of images instead')
    _model(parser)
    _recipe(parser)
    _device(parser)
    parser.add_argument('--json', action='store_true', help='print JSON')


def _replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--images', metavar='FOLDER', help='adapt to these images instead')
    _model(parser)
    parser.add_argument(
        '--out', default='replay', metavar='DIR', help='folder of the results (default: replay)'
    )
    parser.add_argument('--seed', type=whole, default=0, metavar='N', help='seed of everything (0)')
    _device(parser)


_COMMANDS = {
    'adapt': ('adapt a model to a folder of images, and say whether it helped', _adapt),
    'predict': (
        'write maps of what a fitted model sees in rasters',
        predict_arguments.add_arguments,
    ),
    'embed': (
        'write what a model makes of every patch or window of rasters: embeddings',
        embed_arguments.add_arguments,
    ),
    'similar': (
        'find places like those that you point at',
        similar_arguments.add_arguments,
    ),
    'analyse': (
        'measure and draw what each block of models knows',
        analyse_arguments.add_arguments,
    ),
    'advise': (
        'suggest blocks to unfreeze and a rank, from short trials on your images',
        advise_arguments.add_arguments,
    ),
    'probe': ('score weights on labelled images: nearest neighbours and linear probe', _probe),
    'info': ('say what weights, a fitted model, an adapter or a run are', _info),
    'export': (
        'write a model for other programs, or convert weights, delta and PEFT files',
        export_arguments.add_arguments,
    ),
    'estimate': ('say what a run would take on this machine, from a timed step', _estimate),
    'replay': ('run the whole method in minutes on synthetic scenes, or on your images', _replay),
}
