"""How commands of the pages are made short: one table of what is laid over them.

Every option here is one of the command itself, given once more behind those of the page, so that
the command is parsed and run with the page's own options first.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from torchgeo_explora.cli.parser import build_parser

EXPLORA: dict[str, tuple[str, ...]] = {
    'adapt': (
        '--steps', '2', '--batch-size', '4', '--rank', '2', '--precision', '32', '--image-size', '56',
        '--set', 'prototypes=32', '--set', 'hidden_dim=32', '--set', 'n_local=2',
        '--set', 'global_size=56', '--set', 'local_size=28', '--eval-size', '56', '--report', 'short',
    ),
    'estimate': (
        '--batch-size', '2', '--rank', '2', '--set', 'prototypes=32', '--set', 'hidden_dim=32',
        '--set', 'n_local=2', '--set', 'global_size=56', '--set', 'local_size=28',
    ),
    'embed': ('--window', '56'),
    'similar': ('--window', '56'),
    'probe': ('--iterations', '10', '--eval-size', '56', '--precision', '32'),
    'analyse': (
        '--image-size', '56', '--tokens', '64', '--probe-steps', '5', '--show', '1',
        '--picture-size', '56',
    ),
    'advise': (
        '--steps', '1', '--seeds', '1', '--ranks', '2', '--image-size', '56', '--precision', '32',
        '--set', 'prototypes=32', '--set', 'hidden_dim=32', '--set', 'n_local=1',
        '--set', 'global_size=56', '--set', 'local_size=28',
    ),
}  # fmt: skip
"""By the command of ``torchgeo-explora``."""

SWAPPED: dict[str, str] = {'--epochs': '--steps'}
"""Options of a page that those above exclude: they are left out with their value."""

ELSEWHERE = (
    '--engine', '--ray-address', '--workers', '--worker-cores', '--worker-gpus', '--push',
)  # fmt: skip
"""Options of a cluster, whose workers would not have the small models, and of an upload: they are
parsed and then left out. ``tests/inference`` and ``tests/cli`` test both."""

ANYWHERE = ('--device', 'cuda'), ('--device', 'cpu')
"""What no test machine has, and what takes its place."""

TRAINER = {
    'accelerator': 'cpu', 'devices': '1', 'precision': '32-true', 'max_epochs': '1', 'num_nodes': '1',
    'limit_train_batches': '2', 'limit_val_batches': '1', 'limit_test_batches': '1',
    'limit_predict_batches': '1', 'enable_progress_bar': 'false', 'enable_model_summary': 'false',
}  # fmt: skip
DATA = {'num_workers': '0', 'batch_size': '4'}
TASKS: dict[str, dict[str, str]] = {
    'ExPLoRADINOv2': {
        'prototypes': '24', 'hidden_dim': '16', 'global_size': '28', 'local_size': '14',
        'n_local': '2', 'rank': '2', 'eval_size': '28',
    },
    'ExPLoRAMAE': {
        'decoder_width': '32', 'decoder_depth': '2', 'decoder_heads': '2', 'rank': '2',
        'decoder_rank': '2', 'image_size': '32', 'accumulate': '1',
    },
    'LinearProbe': {'eval_size': '112', 'iterations': '10', 'batch_size': '8'},
    'KNN': {'eval_size': '112'},
    'LoRAClassification': {'image_size': '56', 'rank': '2'},
    'LoRASemanticSegmentation': {'rank': '2', 'decoder_options': '{decoder_channels: 16}'},
}  # fmt: skip
"""By the class of the task: arguments of the model."""

DATA_OF_TASK: dict[str, dict[str, str]] = {
    'ExPLoRAMAE': {'image_size': '32'},
    'LoRASemanticSegmentation': {'image_size': '32'},
    'LoRAClassification': {'image_size': '56'},
}

BEFORE: dict[str, tuple[str, ...]] = {
    'docs/share.md': (
        'torchgeo-explora adapt photos/ --weights dinov2_vits14.safetensors --out run1',
    ),
    'docs/reports.md': (
        'torchgeo fit --config conf/finetune_eurosat.yaml --data.init_args.root eurosat',
    ),
}
"""By page: commands of an earlier page that it goes on from."""

BENCHMARKS: dict[str, tuple[str, ...]] = {
    'pretrain_step': (
        '--model', 'S', '--rank', '2', '--batch', '2', '--rounds', '2', '--no-memory', '--prototypes', '64',
        '--global-size', '28', '--local-size', '14', '--n-local', '2',
    ),
    'mae_step': ('--arithmetic',),
    'finetune_step': ('--model', 'S', '--batch', '2', '--size', '28', '--rounds', '2'),
    'fmow_loading': ('--chips', '4', '--size', '16', '--seconds', '0.05', '--workers', '0'),
    'raster': ('--side', '256', '--repeats', '1', '--sides', '256', '--classes', '3'),
}  # fmt: skip
"""Further arguments of ``tests/benchmarks``; of those that are not here, which take long however
small their settings are, only the arguments are parsed, by the script itself."""


def shorten_explora(arguments: Sequence[str]) -> list[str]:
    """Arguments of ``torchgeo-explora`` with what makes them short."""
    command, *rest = arguments
    if {'--engine', '--push'} & set(rest):
        build_parser().parse_args(arguments)
        rest = [word for word in _without(rest, ELSEWHERE) if word != '--private']
    extra = EXPLORA.get(command, ())
    for left_out, instead in SWAPPED.items():
        if instead in extra:
            rest = _without(rest, [left_out])
    if '--resume' in rest:
        extra = ()
    return [command, *without_cuda(rest), *extra]


def _without(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    found = list(arguments)
    for option in options:
        if option in found:
            place = found.index(option)
            del found[place : place + 2]
    return found


def without_cuda(arguments: Sequence[str]) -> list[str]:
    """Arguments with another device where they name one that no test machine has."""
    (option, value), (_, instead) = ANYWHERE
    found = list(arguments)
    for place in range(len(found) - 1):
        if found[place : place + 2] == [option, value]:
            found[place + 1] = instead
    return found


def shorten_torchgeo(arguments: Sequence[str], folder: Path) -> list[str]:
    """Arguments of ``torchgeo`` with what makes them short.

    Args:
        arguments: Of the page.
        folder: Where its configurations are.
    """
    config = _merged(arguments, folder)
    task = config['model']['class_path'].rpartition('.')[2]
    data = {**DATA, **DATA_OF_TASK.get(task, {})}
    groups = {
        'trainer': TRAINER,
        'model.init_args': TASKS[task],
        'data.init_args': data,
    }
    extra = [
        word
        for group, values in groups.items()
        for key, value in values.items()
        for word in (f'--{group}.{key}', value)
    ]
    return [*arguments, *extra]


def _merged(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """The configurations of a command, later ones over earlier ones, as far as classes go."""
    merged: dict[str, Any] = {}
    for word, path in itertools.pairwise(arguments):
        if word == '--config':
            content = yaml.safe_load((folder / path).read_text(encoding='utf-8'))
            for key in ('model', 'data'):
                if 'class_path' in (part := content.get(key) or {}):
                    merged[key] = part
    return merged


def is_benchmark(arguments: Sequence[str]) -> bool:
    """Whether a call of Python is one of a benchmark."""
    return re.fullmatch(r'tests/benchmarks/\w+\.py', arguments[0]) is not None
