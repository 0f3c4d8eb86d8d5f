"""``advise``: which blocks to unfreeze and which rank, from the blocks and from short trials."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora._run_record import recording
from torchgeo_explora.analysis import (
    AnalysisConfig,
    Page,
    TokenProbeConfig,
    measure_model,
    plots,
)
from torchgeo_explora.analysis.advice import (
    Advice,
    Trial,
    advise,
    draw_candidates,
    turning_block,
)
from torchgeo_explora.analysis.pilot import Candidate, run_pilot
from torchgeo_explora.analysis.study import BlockMeasures, hold_out
from torchgeo_explora.cli.analyse_images import AnalysedImages, open_analysed
from torchgeo_explora.cli.backbones import NamedBackbone, open_backbone
from torchgeo_explora.cli.choices import choose_device, choose_precision
from torchgeo_explora.cli.console import duration, percent, say, say_left_out, table
from torchgeo_explora.cli.images import LARGEST_SIDE
from torchgeo_explora.cli.plan import IMAGES_SEEN, whole_patches
from torchgeo_explora.cli.run_folder import RunFolder, write_json
from torchgeo_explora.cli.settings import given_options
from torchgeo_explora.cli.training import ProgressLine
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.datasets.image_folder import image_root
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.models import create_backbone
from torchgeo_explora.objectives import Recipe, get_preset
from torchgeo_explora.objectives.diagnostics import effective_rank
from torchgeo_explora.objectives.presets import recipe_fields
from torchgeo_explora.objectives.probing import Features, extract_features, knn_votes
from torchgeo_explora.transforms import EvalTransform

NEIGHBOURS = 20
MEASURED = 500
"""Images that the blocks are measured on."""
LEAST_IMAGES = 5


@dataclass(frozen=True, eq=False)
class Setting:
    """What all trials share.

    Args:
        backbone: The base.
        mask_token: Of the base.
        recipe: Everything but blocks and rank.
        images: In memory, in [0, 1] (n, c, h, w).
        labels: Their classes, or None.
        held_out: Positions of the images that are scored and never trained on.
        eval_size: Side in pixels that they are scored at.
        device: Where to compute.
        dtype: Of the arithmetic.
    """

    backbone: NamedBackbone
    mask_token: Tensor
    recipe: Recipe
    images: Tensor
    labels: Tensor | None
    held_out: list[int]
    eval_size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def kept(self) -> list[int]:
        """Positions of the images that are trained on."""
        return sorted(set(range(len(self.images))) - set(self.held_out))


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0.

    Raises:
        ExploraError: If something is wrong that the user can mend.
    """
    if args.out is None:
        _advise(args)
        return 0
    out = Path(args.out).expanduser()
    RunFolder(out).check_new()
    settings = {k: v for k, v in sorted(vars(args).items()) if k not in {'command', 'out'}}
    with recording(out, 'advise', {'settings': settings}, seed=args.seed,
                   weights={'base': args.weights}) as record:  # fmt: skip
        found, measures, setting = _advise(args)
        content = describe(found) | {'blocks': measures.to_dict(), 'settings': settings}
        write_json(out / 'advice.json', content)
        page = _page(found, measures, setting, args).write(out / 'report.html')
        record.add(files=[page, out / 'advice.json'])
        say(f'Wrote {page}')
    return 0


def _advise(args: argparse.Namespace) -> tuple[Advice, BlockMeasures, Setting]:
    setting = prepare(args)
    measures = _measure(setting, args.seed)
    candidates = draw_candidates(measures, args.ranks)
    say(
        f'Patches lose their position most in block {turning_block(measures)}; '
        f'{len(candidates)} candidates, {args.seeds} trials of {args.steps} steps each'
    )
    base_model = setting.backbone.model
    before, features = score(setting, base_model)
    base = effective_rank(features) if before is None else before.double().mean().item()
    trials = []
    for number, candidate in enumerate(candidates):
        for seed in range(args.seed, args.seed + args.seeds):
            what = f'Trial of {candidate.name}, seed {seed} ({number + 1} of {len(candidates)})'
            trials.append(_trial(setting, candidate, seed, args.steps, what))
    found = advise(trials, base, candidates[0])
    for line in lines(found, setting):
        say(line)
    return found, measures, setting


def prepare(args: argparse.Namespace) -> Setting:
    """Load the base and the images.

    Args:
        args: From the parser.

    Raises:
        ExploraError: If something is wrong that the user can mend.
    """
    device = choose_device(args.device)
    half = choose_precision(args.precision, device).startswith('bf16')
    path = Path(args.weights).expanduser()
    if not path.is_file():
        raise ConfigError(f'{path} is no file: give the weights of the base as --weights.')
    backbone = open_backbone(path.stem, path, args.arch)
    width = backbone.model.embed_dim
    if max(args.ranks) > width:
        raise ConfigError(
            f'--ranks {max(args.ranks)}: the model is {width} wide; give ranks from 1 to {width}.'
        )
    _, report = create_backbone(backbone.arch, path)
    extra = given_options(argparse.Namespace(extra=args.extra))['extra']
    unknown = sorted(set(extra) - set(recipe_fields()))
    if unknown:
        raise ConfigError(f'--set {unknown[0]}: this is no number of a recipe.')
    recipe = get_preset(args.preset).override(**extra)
    sides = {
        name: whole_patches(getattr(recipe.crops, name), backbone.patch)
        for name in ('global_size', 'local_size')
    }
    recipe = recipe.override(**sides)
    side = _side(args) if args.image_size is None else args.image_size
    images = open_analysed(args, [backbone.inputs], side)
    say(f'{backbone.name}: {backbone.arch}; {backbone.inputs.source}')
    say(f'{images.source}, read at {side} pixels, on {device}')
    say_left_out(images.left_out())
    pixels, labels = _read(images)
    held_out = images.held_out
    chosen = hold_out(len(pixels), 0.3, args.seed) if held_out is None else list(held_out)
    if min(len(chosen), len(pixels) - len(chosen)) < LEAST_IMAGES:
        raise ImageError(
            f'There are {len(pixels)} images, {len(chosen)} of them to score: give at least '
            f'{LEAST_IMAGES} to adapt to and {LEAST_IMAGES} to score.'
        )
    return Setting(
        backbone, report.mask_token, recipe, pixels, labels, chosen, sides['global_size'], device,
        torch.bfloat16 if half else torch.float32,
    )  # fmt: skip


def _side(args: argparse.Namespace) -> int:
    """Median of the images' shorter sides, as `adapt` reads them."""
    root = image_root(Path(args.images).expanduser())
    folder = ImageFolder(root, scale=(0, 1), with_labels=False, tile=None)
    sides = [min(header.height, header.width) for header in folder.headers]
    return min(int(np.median(sides)), LARGEST_SIDE)


def _read(images: AnalysedImages) -> tuple[Tensor, Tensor | None]:
    """Read all images into memory."""
    samples = [images.dataset[place] for place in range(len(images.chosen))]
    pixels = torch.stack([sample['image'] for sample in samples])
    known = all('label' in sample for sample in samples)
    return pixels, torch.stack([sample['label'] for sample in samples]) if known else None


def _measure(setting: Setting, seed: int) -> BlockMeasures:
    """Measure the blocks of the base on some of the images."""
    order = np.random.default_rng([seed, 5]).permutation(len(setting.images))[:MEASURED]
    resize = EvalTransform(setting.eval_size, setting.backbone.inputs.mean,
                           setting.backbone.inputs.std).to(setting.device)  # fmt: skip
    dataset: Any = [{'image': setting.images[i]} for i in sorted(order.tolist())]
    return measure_model(
        setting.backbone.model, dataset, resize,
        AnalysisConfig(tokens=8000, probe=TokenProbeConfig(steps=200), seed=seed),
        device=setting.device, progress=lambda _, state: None,
    )  # fmt: skip


def score(setting: Setting, model: VisionTransformer) -> tuple[Tensor | None, Tensor]:
    """Score a model on the images held out.

    Args:
        setting: What all trials share.
        model: The model.

    Returns:
        Which images nearest neighbours classify correctly, or None without labels; and the
        images' class tokens.
    """
    inputs = setting.backbone.inputs
    transform = EvalTransform(setting.eval_size, inputs.mean, inputs.std).to(setting.device)

    def features(index: list[int]) -> Features:
        rows = torch.tensor(index)
        labels = None if setting.labels is None else setting.labels[rows]
        found = extract_features(
            model, setting.images[rows].split(64), transform, 1, setting.device, setting.dtype
        )
        return Features(found.cls, found.patch_mean, labels)

    held_out = features(setting.held_out)
    if setting.labels is None:
        return None, held_out.last
    reference = features(setting.kept)
    labels, truth = reference.require_labels(), held_out.require_labels()
    count = int(torch.cat([labels, truth]).max()) + 1
    nearest = min(NEIGHBOURS, len(labels))
    votes = knn_votes(reference.last, labels, held_out.last, (nearest,), count)[nearest]
    return votes.argmax(dim=1) == truth, held_out.last


def _trial(setting: Setting, candidate: Candidate, seed: int, steps: int, what: str) -> Trial:
    inputs = setting.backbone.inputs
    pilot = run_pilot(
        setting.backbone.model, setting.mask_token, setting.recipe, candidate,
        setting.images[setting.kept], inputs.mean, inputs.std, steps, seed, setting.dtype,
        ProgressLine(what, 'steps'),
    )  # fmt: skip
    right, features = score(setting, pilot.model)
    return Trial(candidate, seed, right, features, pilot.seconds, pilot.trainable)


def lines(found: Advice, setting: Setting) -> list[str]:
    """Lay the advice out for people.

    Args:
        found: The advice.
        setting: What the trials shared.
    """
    return [table([list(_HEADER), *_rows(found, setting)]), *sentences(found)]


_HEADER = ('candidate', 'trains', 'score', 'gain', 'error', 's a step', 'a whole run')


def _rows(found: Advice, setting: Setting) -> list[list[str]]:
    steps = IMAGES_SEEN / setting.recipe.batch_size
    return [
        [
            row.candidate.name, f'{row.trainable:,}', _score(found, row.score),
            _score(found, row.gain, sign=True), _score(found, row.error),
            f'{row.seconds:.2f}', duration(steps * row.seconds),
        ]
        for row in found.table
    ]  # fmt: skip


def _score(found: Advice, value: float, sign: bool = False) -> str:
    scaled = 100 * value if found.measure == 'neighbours' else value
    return f'{scaled:+.1f}' if sign else f'{scaled:.1f}'


def sentences(found: Advice) -> list[str]:
    """Say what is suggested, and how sure that is.

    Args:
        found: The advice.
    """
    best = found.chosen
    unit = 'points of nearest neighbours' if found.measure == 'neighbours' else 'of effective rank'
    base = percent(found.base) if found.measure == 'neighbours' else f'{found.base:.1f}'
    told = [f'Before any adaptation: {base}.']
    if found.sure == 'none':
        told.append(
            f"Suggested: {found.reference.name}, the paper's choice. No other candidate was better "
            'by twice its error: the trials give no reason to choose another.'
        )
    else:
        word = 'clearly' if found.sure == 'clear' else 'weakly'
        told.append(
            f'Suggested: {best.candidate.name}; {word} better than {found.reference.name} in the '
            f'trials, by {_score(found, best.gain)} +- {_score(found, best.error)} {unit}.'
        )
        told.append(
            'That is the beginning of a run, where more blocks also move faster, and need not be '
            'its end: adapt with both and compare before you rely on it.'
        )
    if found.measure == 'effective rank':
        told.append(
            'There are no labels: candidates were ranked by the effective rank of the features, '
            'which often but not always goes with accuracy. Label a few images to be surer.'
        )
    told.append(f'For adapt: {option(best.candidate)}')
    return told


def option(candidate: Candidate) -> str:
    """Return the options of ``adapt`` for a candidate."""
    blocks = ' '.join(map(str, candidate.unfreeze_blocks))
    return f'--unfreeze {blocks} --rank {candidate.rank}'


def describe(found: Advice) -> dict[str, Any]:
    """Return the advice for JSON."""
    rows = [{'name': row.candidate.name, **asdict(row)} for row in found.table]
    return {
        'suggested': asdict(found.candidate) | {'options': option(found.candidate)},
        'sure': found.sure,
        'measure': found.measure,
        'base': found.base,
        'reference': asdict(found.reference),
        'candidates': rows,
    }


def _page(
    found: Advice, measures: BlockMeasures, setting: Setting, args: argparse.Namespace
) -> Page:
    name = setting.backbone.name
    page = Page('What to unfreeze, with which rank', f'{name} on {args.images}')
    page.note('\n\n'.join(sentences(found)))
    unit = 'per cent of nearest neighbours' if found.measure == 'neighbours' else 'effective rank'
    page.table(_rows(found, setting), _HEADER, f'Trials of {args.steps} steps; scores in {unit}')
    page.heading('The base, block by block')
    figures: Sequence[Any] = (
        (plots.position_curves({name: measures}), 'What a patch tells of its position.',
         'Position accuracy by block'),
        (plots.eigenvalue_curves({name: measures}), 'Leading eigenvalues of patches.',
         'Eigenvalues by block'),
    )  # fmt: skip
    return page.pictures(figures)
