"""Arguments of ``export``."""

import argparse

from torchgeo_explora.cli import card_arguments
from torchgeo_explora.cli.numbers import positive

EXAMPLES = """examples:
  torchgeo-explora export run1 --to merged --image-size 224 --out vits14_224.safetensors
  torchgeo-explora export run1/checkpoints/last.ckpt --to delta --out adapter.safetensors
  torchgeo-explora export adapter.safetensors --to merged --weights base.safetensors --out m.safetensors
  torchgeo-explora export run1 --to peft --out peft_adapter
  torchgeo-explora export model.safetensors --to onnx --chip scene.tif --out model.onnx
  torchgeo-explora export model.safetensors --to pt2 --out model.pt2
  torchgeo-explora export model.safetensors --to stac --out shared_model
  torchgeo-explora export run1 --card --license apache-2.0 --out hub_model"""

PORTABLE = ('onnx', 'pt2', 'stac')
"""What other programs read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser."""
    parser.add_argument(
        'source',
        help='fitted model, folder of a run, checkpoint, merged weights, stock weights or a delta',
    )
    parser.add_argument(
        '--to', choices=('merged', 'delta', 'peft', *PORTABLE), help='what to make of the model'
    )
    parser.add_argument(
        '--out', required=True, metavar='PATH', help='file (peft, stac, --card: folder) to write'
    )
    parser.add_argument(
        '--model', metavar='NAME', help='timm name, where the file does not tell it'
    )
    parser.add_argument('--weights', metavar='FILE', help='base weights that a delta belongs to')
    parser.add_argument(
        '--image-size',
        type=positive,
        metavar='PX',
        help='merged: store position embeddings for images of this side, so that stock timm, built '
        'with it, gives the same features; onnx, pt2, stac: side of the tiles (default: that of '
        'the images the model was fitted on)',
    )
    _portable(parser)
    card_arguments.add_arguments(parser)


def _portable(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('onnx, pt2 and stac')
    group.add_argument(
        '--chip',
        metavar='FILE',
        help='raster in whose middle the written model is compared with the one in PyTorch '
        '(default: a random image)',
    )
    group.add_argument(
        '--bands',
        nargs='+',
        metavar='B',
        help="bands of the chip in the order of the model's: 1-based indexes or names",
    )
    group.add_argument(
        '--pooling',
        choices=('token', 'avg', 'both'),
        help='embedding that a backbone gives: class token, mean of the patch tokens, or one '
        'behind the other (default: token, where there is one)',
    )
    group.add_argument(
        '--resolution',
        type=float,
        metavar='M',
        help='size of a pixel in metres (default: what the model says)',
    )
