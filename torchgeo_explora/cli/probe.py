"""``probe``: score weights on labelled images by nearest neighbours and linear classifiers."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora._run_record import recording
from torchgeo_explora.cli.choices import choose_device, choose_precision
from torchgeo_explora.cli.console import percent, say, say_left_out, table
from torchgeo_explora.cli.images import LabelledSplit, left_out, reading, separate_split
from torchgeo_explora.cli.plan import patch_size, statistics, whole_patches
from torchgeo_explora.cli.run_folder import RunFolder, environment, write_json
from torchgeo_explora.cli.scoring import Evaluation
from torchgeo_explora.cli.settings import AdaptSettings, given_options, weights_argument
from torchgeo_explora.cli.training import ProgressLine
from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.datasets.image_folder import image_root
from torchgeo_explora.models import create_backbone, read_metadata
from torchgeo_explora.objectives.probing import (
    Features,
    KNNResult,
    LinearProbeConfig,
    LinearProbeResult,
    LogisticResult,
    knn,
    linear_probe,
    logistic_regression,
    weights_hash,
)
from torchgeo_explora.transforms import EvalTransform

EVAL_SIZE = 224
"""Pixels that the paper evaluates at, where the weights do not name the size of their crops."""


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0.

    Raises:
        ExploraError: If something is wrong that the user can mend.
    """
    out = None if args.out is None else RunFolder(Path(args.out).expanduser())
    if out is not None:
        out.check_new()
    opened = open_probe(args)
    if out is None:
        score(opened, args)
        return 0
    settings = opened.settings
    content = {'settings': settings.to_dict() | {'test': args.test, 'iterations': args.iterations}}
    weights = {'model': None if settings.weights == 'random' else settings.weights}
    with recording(
        out.path, 'probe', content, seed=settings.seed, device=opened.by.device, weights=weights
    ) as record:
        result = score(opened, args)
        path = out.path / 'probe.json'
        write_json(path, result)
        record.add([path])
    say(f'Wrote {path}')
    return 0


@dataclass(frozen=True)
class Opened:
    """A model and the images that it is scored on.

    Args:
        settings: What was asked for.
        split: The images.
        model: The network.
        side: Pixels of the images that the model sees.
        by: Makes features.
    """

    settings: AdaptSettings
    split: LabelledSplit
    model: VisionTransformer
    side: int
    by: Evaluation


def open_probe(args: argparse.Namespace) -> Opened:
    """Open images and model, and say what they are.

    Args:
        args: From the parser.

    Raises:
        ExploraError: If something is wrong that the user can mend.
    """
    settings = AdaptSettings(**given_options(args))
    device = choose_device(settings.device)
    split, arguments = _split(settings, args.test)
    side = settings.eval_size
    if side is None:
        side = whole_patches(stored_size(settings.weights), patch_size(settings.model))
    mean, std = statistics(settings)
    model, report = create_backbone(
        settings.model, weights_argument(settings.weights), in_chans=len(mean), seed=settings.seed
    )
    say(report.summary())
    say(f'{split.source}; {len(split.classes)} classes, seen at {side} pixels on {device}')
    assert isinstance(split.module, FolderDataModule), 'probes read folders'
    say_left_out(left_out(split.module))
    half = choose_precision(settings.precision, device).startswith('bf16')
    by = Evaluation(
        EvalTransform(side, mean, std).to(device),
        device,
        torch.bfloat16 if half else torch.float32,
        arguments['num_workers'],
    )
    return Opened(settings, split, model, side, by)


def score(opened: Opened, args: argparse.Namespace) -> dict[str, Any]:
    """Score a model, print the scores, and return them for JSON.

    Args:
        opened: Model and images.
        args: From the parser.
    """
    by, split, seed = opened.by, opened.split, opened.settings.seed
    reference = by.features(opened.model, split.reference, 4, ProgressLine('Reference images'))
    scored = by.features(opened.model, split.scored, 4, ProgressLine('Scored images'))
    result = probe(reference, scored, args.iterations, seed, by.device)
    for line in lines(result):
        say(line)
    return describe(result, split) | {
        'settings': opened.settings.to_dict(),
        'weights_sha256': weights_hash(opened.model),
        'eval_size': opened.side,
        'environment': environment(by.device),
    }


def stored_size(weights: str) -> int:
    """Side of the crops that weights were adapted with; the paper's where they do not tell."""
    metadata = read_metadata(weights) if Path(weights).is_file() else {}
    return int(metadata['size']) if metadata.get('size', '').isdecimal() else EVAL_SIZE


def _split(settings: AdaptSettings, test: str | None) -> tuple[LabelledSplit, dict[str, Any]]:
    """Open the images; a folder for scoring replaces the share that is held back."""
    root = image_root(settings.folder)
    arguments = reading(settings, root, patch_size(settings.model))
    if test is None:
        return separate_split(Path(settings.folder), arguments), arguments
    return (
        separate_split(Path(settings.folder), arguments | {'val_root': str(Path(test))}),
        arguments,
    )


class ProbeResult:
    """All scores of one set of weights.

    Args:
        neighbours: Of nearest neighbours.
        linear: Of the paper's linear probe.
        logistic: Of a logistic regression.
        counts: Reference and scored images.
    """

    def __init__(
        self,
        neighbours: KNNResult,
        linear: LinearProbeResult,
        logistic: LogisticResult,
        counts: tuple[int, int],
    ) -> None:
        self.neighbours, self.linear, self.logistic = neighbours, linear, logistic
        self.counts = counts


def probe(
    reference: Features, scored: Features, iterations: int, seed: int, device: torch.device
) -> ProbeResult:
    """Score features in three ways.

    Args:
        reference: Features whose labels are used.
        scored: Features that are classified.
        iterations: Steps of the linear probe.
        seed: Of the linear probe.
        device: Where to compute.
    """
    available = reference.cls.shape[1]
    blocks = tuple(sorted({1, min(4, available)}))
    config = LinearProbeConfig(blocks=blocks, iterations=iterations, seed=seed)
    return ProbeResult(
        knn(reference, scored, device=device),
        linear_probe(reference, scored, config=config, device=device),
        logistic_regression(reference, scored, device=device),
        (len(reference), len(scored)),
    )


def lines(result: ProbeResult) -> list[str]:
    """Lay the scores out for people."""
    rows = [[f'kNN, k = {k}', percent(a)] for k, a in result.neighbours.accuracy.items()]
    best = result.linear.best
    rows.append([f'linear probe, best of {len(result.linear.scores)} ({best.name})',
                 percent(best.accuracy)])  # fmt: skip
    rows.append(
        ['logistic regression, class and mean patch token', percent(result.logistic.accuracy)]
    )
    notes = [] if result.neighbours.note is None else [result.neighbours.note]
    return [
        table(rows),
        *notes,
        f'{result.counts[0]:,} reference and {result.counts[1]:,} scored images. The best linear '
        'classifier is chosen on the scored images, as in the paper: slightly optimistic.',
    ]


def describe(result: ProbeResult, split: LabelledSplit) -> dict[str, Any]:
    """Return all scores for JSON."""
    return {
        'knn': {str(k): accuracy for k, accuracy in result.neighbours.accuracy.items()},
        'note': result.neighbours.note,
        'linear_probe': {
            'best': {'name': result.linear.best.name, **asdict(result.linear.best)},
            'classifiers': [{'name': s.name, **asdict(s)} for s in result.linear.scores],
        },
        'logistic_regression': result.logistic.accuracy,
        'reference_images': result.counts[0],
        'scored_images': result.counts[1],
        'classes': split.classes,
        'images': split.source,
    }
