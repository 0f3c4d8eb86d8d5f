"""``replay``: the paper's experiment at toy size, on synthetic scenes, in a few minutes.

A source domain takes the place of natural images, a shifted target domain that of remote sensing.
A small vision transformer is trained on the source and then adapted to unlabelled target scenes by
ExPLoRA; probes on the target domain tell what that was worth. It shows that everything works and
what a run looks like. How much ExPLoRA helps on real imagery it does not show.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchgeo_explora.cli.adapt import adapt
from torchgeo_explora.cli.choices import choose_device
from torchgeo_explora.cli.console import duration, percent, say, table
from torchgeo_explora.cli.replay_base import Base, train_base
from torchgeo_explora.cli.replay_model import NAME, SIDE
from torchgeo_explora.cli.replay_picture import draw_replay
from torchgeo_explora.cli.run_folder import RunFolder, write_json
from torchgeo_explora.cli.scoring import HEADLINE_K, Scores
from torchgeo_explora.cli.settings import AdaptSettings, given_options
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import save_backbone
from torchgeo_explora.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD

ABOUT = (
    'A small-scale replay of ExPLoRA (Khanna et al., ICML 2025) on synthetic scenes. It shows how '
    'the method works, not how much it helps on real imagery.'
)


@dataclass(frozen=True)
class ReplaySize:
    """How much the replay draws and trains.

    Args:
        source: Labelled source scenes that the base learns from.
        source_test: Source scenes that it is scored on.
        target: Target scenes that are adapted to; their labels serve the probes alone.
        target_test: Target scenes that are scored and seen by nothing that trains.
        epochs: Passes of the base over its scenes.
        steps: Steps of ExPLoRA.
        batch_size: Images of a step.
    """

    source: int = 1600
    source_test: int = 400
    target: int = 1200
    target_test: int = 800
    epochs: int = 10
    steps: int = 300
    batch_size: int = 64


RECIPE: dict[str, Any] = {
    'global_size': SIDE,
    'local_size': 24,
    'n_local': 4,
    'prototypes': 512,
    'hidden_dim': 256,
    # A model of width 96 that saw 1,600 scenes moves little at the rates of one that saw millions
    'base_lr': 0.04,
    'head_lr_scale': 0.5,
    'unfrozen_lr_scale': 0.5,
    'warmup': 0.1,
    'blend': 1.0,
}
"""What preset ``small`` needs to fit a model of width 96 and a minute of time."""
RANK = 16


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0.

    Raises:
        ExploraError: If something is wrong that the user can mend.
    """
    folder = RunFolder(Path(args.out).expanduser())
    folder.check_new()
    given = {k: v for k, v in vars(args).items() if v is not None}
    if args.images is not None:
        adapt(
            AdaptSettings(**given_options(argparse.Namespace(**given, folder=args.images))), folder
        )
        return 0
    if args.model is not None or args.weights is not None:
        raise ConfigError(
            '--model and --weights were given without --images: name the folder of images that '
            'the model is to be adapted to, or leave them out.'
        )
    replay(folder, args.seed, choose_device(args.device))
    return 0


def replay(
    folder: RunFolder, seed: int, device: torch.device, size: ReplaySize | None = None
) -> dict[str, Any]:
    """Run the replay.

    Args:
        folder: Where everything goes; new.
        seed: Of everything.
        device: Where to compute.
        size: How much is drawn and trained; a few minutes' worth when not given.

    Returns:
        The result, as ``replay.json`` has it.
    """
    size = ReplaySize() if size is None else size
    say(ABOUT)
    source, target = _draw(size, seed)
    for scenes, part in zip(target, ('train', 'test'), strict=True):
        scenes.write_scenes(folder.path / 'scenes' / part)
    say(
        f'{size.source} labelled source scenes for the base; {size.target} unlabelled target '
        f'scenes to adapt to, {size.target_test} to score ({folder.path / "scenes"})'
    )
    base = train_base(*source, size.epochs, seed, device)
    weights = save_backbone(base.model.cpu(), folder.path / 'base.safetensors', _metadata(size))
    say(f'Base: {percent(base.accuracy)} on unseen source scenes ({duration(base.seconds)})')
    settings = AdaptSettings(
        folder=str((folder.path / 'scenes').resolve()),
        model=NAME,
        weights=str(weights.resolve()),
        steps=size.steps,
        batch_size=size.batch_size,
        rank=RANK,
        extra=RECIPE,
        seed=seed,
        device=device.type,
        precision='32',
        workers=0,
    )
    report = adapt(settings, RunFolder(folder.path / 'run'), checks=6)
    result = _result(base, report, seed, size)
    for line in _lines(base, report):
        say(line)
    picture = draw_replay(folder, source[0], target, report, base)
    write_json(folder.path / 'replay.json', result)
    say(f'Wrote {picture}')
    return result


def _draw(
    size: ReplaySize, seed: int
) -> tuple[tuple[SyntheticScenes, SyntheticScenes], tuple[SyntheticScenes, SyntheticScenes]]:
    """Draw the scenes of both domains; every set has a seed of its own."""
    source = SyntheticScenes(size.source, 'source', seed=10 * seed + 1)
    source_test = SyntheticScenes(size.source_test, 'source', seed=10 * seed + 4)
    target = SyntheticScenes(size.target, 'target', seed=10 * seed + 2)
    target_test = SyntheticScenes(size.target_test, 'target', seed=10 * seed + 3)
    return (source, source_test), (target, target_test)


def _metadata(size: ReplaySize) -> dict[str, Any]:
    return {
        'base': NAME,
        'method': f'supervised, {size.epochs} epochs of {size.source} synthetic source scenes',
        'mean': list(IMAGENET_MEAN),
        'std': list(IMAGENET_STD),
        'size': SIDE,
    }


def _result(base: Base, report: dict[str, Any], seed: int, size: ReplaySize) -> dict[str, Any]:
    return {
        'about': ABOUT,
        'seed': seed,
        'size': vars(size),
        'base_accuracy_on_source': base.accuracy,
        'target': {'before': report['before']['scores'], 'after': report['after']['scores']},
        'outcome': report['outcome'],
        'sentence': report['sentence'],
        'environment': report['environment'],
    }


def _lines(base: Base, report: dict[str, Any]) -> list[str]:
    before, after = (Scores.from_dict(report[side]['scores']) for side in ('before', 'after'))
    share = 100 * report['trainable_parameters'] / report['encoder_parameters']
    rows = [
        ['target domain', f'kNN, k = {HEADLINE_K}', 'linear probe'],
        ['base, unchanged', percent(before.headline), percent(before.linear)],
        [f'ExPLoRA, {share:.0f} % of the weights', percent(after.headline), percent(after.linear)],
    ]
    return [
        table(rows),
        f'(the base classifies {percent(base.accuracy)} of unseen scenes of its own domain)',
    ]
