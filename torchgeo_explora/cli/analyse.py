"""``analyse``: what each block of a model knows, and what adapting it changed."""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora._run_record import recording
from torchgeo_explora.analysis import (
    AnalysisConfig,
    BlockMeasures,
    TokenProbeConfig,
    class_attention,
    enlarge,
    has_class_attention,
    measure_model,
    patch_features,
    pca_maps,
)
from torchgeo_explora.analysis.report import PAGE, Pictures, write_analysis
from torchgeo_explora.cli.analyse_images import (
    AnalysedImages,
    composites,
    find_pictures,
    open_analysed,
    read_pictures,
)
from torchgeo_explora.cli.backbones import NamedBackbone, common_side, open_backbones
from torchgeo_explora.cli.choices import choose_device, choose_precision
from torchgeo_explora.cli.console import say, say_left_out
from torchgeo_explora.cli.run_folder import RunFolder, read_json
from torchgeo_explora.cli.training import ProgressLine
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.probing import Progress
from torchgeo_explora.objectives.probing.features import evaluation_mode
from torchgeo_explora.transforms import Normalize

WORK = 'work'
"""Folder of unfinished work inside that of the results; removed at the end."""
PICTURE_SIDE = 224
BASIS_IMAGES = 64
"""Images, besides those drawn, that the basis of principal components is fitted on."""
FREE = ('command', 'resume', 'out', 'device', 'workers')
"""Arguments that change no number and may differ when an analysis goes on."""


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0.

    Raises:
        ExploraError: If something is wrong that the user can mend.
        KeyboardInterrupt: With a sentence that says how to go on.
    """
    out, device = Path(args.out).expanduser(), choose_device(args.device)
    settings = {k: v for k, v in sorted(vars(args).items()) if k not in FREE}
    if _begun(out, settings, args.resume):
        say(f'{out / PAGE} is there: the analysis is done.')
        return 0
    half = choose_precision(args.precision, device).startswith('bf16')
    models = open_backbones(args.models, args.arch)
    side = common_side(models, args.image_size)
    images = open_analysed(args, [item.inputs for item in models], side)
    find_pictures(images, args.pictures, args.show, args.seed)  # refuses names before the work
    _introduce(models, images, side, str(device))
    weights = {item.name: item.path for item in models}
    with recording(out, 'analyse', {'settings': settings}, seed=args.seed, device=device,
                   weights=weights) as record:  # fmt: skip
        try:
            measured = {
                item.name: _measure(args, item, images, number, device, half)
                for number, item in enumerate(models)
            }
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                'stopped by the user; the same command with --resume goes on.'
            ) from None
        pictures = draw(args, models, images, side, device)
        facts = _facts(args, models, images, side)
        written = write_analysis(
            out, measured, pictures, facts, f'Block by block on {Path(args.images).name}'
        )
        record.add(files=written)
    shutil.rmtree(out / WORK, ignore_errors=True)
    for path in written:
        say(f'Wrote {path}')
    return 0


def _begun(out: Path, settings: Mapping[str, object], resume: bool) -> bool:
    """Check the folder; return whether all is done."""
    if not resume:
        RunFolder(out).check_new()
        return False
    if not (out / 'run.json').is_file():
        raise ConfigError(
            f'{out} holds no analysis to go on with: leave --resume out to start one.'
        )
    told, now = read_json(out / 'run.json').get('settings'), json.loads(json.dumps(settings))
    changed = sorted(k for k in now if not isinstance(told, dict) or told.get(k) != now[k])
    if changed:
        raise ConfigError(
            f'The analysis in {out} was begun with other values of {", ".join(changed)}: give the '
            'same ones to go on, or another --out.'
        )
    return (out / PAGE).is_file()


def _introduce(
    models: Sequence[NamedBackbone], images: AnalysedImages, side: int, device: str
) -> None:
    for item in models:
        say(f'{item.name}: {item.arch} from {item.path}; {item.inputs.source}')
    classes = 'no classes' if images.classes is None else f'{len(images.classes)} classes'
    say(f'{images.source}; {classes}; seen at {side} pixels on {device}')
    say_left_out(images.left_out())


def _measure(
    args: argparse.Namespace,
    item: NamedBackbone,
    images: AnalysedImages,
    number: int,
    device: torch.device,
    half: bool,
) -> BlockMeasures:
    """Measure one model, or go on with it."""
    lines: dict[str, ProgressLine] = {}

    def progress(phase: str, state: Progress) -> None:
        what = 'images' if phase == 'images' else 'probes of blocks'
        lines.setdefault(phase, ProgressLine(f'{item.name}, {what}', phase))(state)

    config = AnalysisConfig(
        blocks=None if args.blocks is None else tuple(args.blocks),
        leading=args.leading,
        tokens=args.tokens,
        probe=TokenProbeConfig(
            steps=args.probe_steps, seed=args.seed, standardize=not args.raw_tokens
        ),
        batch_size=args.batch,
        seed=args.seed,
    )
    normalize = Normalize(item.inputs.mean, item.inputs.std)
    return measure_model(
        item.model,
        images.dataset,
        normalize.to(device),
        config,
        folder=Path(args.out).expanduser() / WORK / str(number),
        key=f'{images.key} {item.inputs.mean} {item.inputs.std}',
        held_out=images.held_out,
        device=device,
        dtype=torch.bfloat16 if half else torch.float32,
        workers=args.workers,
        progress=progress,
    )


def draw(
    args: argparse.Namespace,
    models: Sequence[NamedBackbone],
    images: AnalysedImages,
    side: int,
    device: torch.device,
) -> Pictures:
    """Draw attention and principal components of some images.

    Args:
        args: From the parser.
        models: The models, on any device.
        images: Of the analysis.
        side: Of the images that were measured.
        device: Where to compute.
    """
    numbers = find_pictures(images, args.pictures, args.show, args.seed)
    if not numbers:
        return Pictures([], [], {}, {})
    large = max(side, PICTURE_SIDE) if args.picture_size is None else args.picture_size
    large = common_side(models, large)
    say(f'Drawing maps of {len(numbers)} images at {large} pixels')
    shown = read_pictures(images, numbers, large)
    more = find_pictures(images, None, BASIS_IMAGES, args.seed + 1)
    others = read_pictures(images, more, large)
    attention: dict[str, NDArray[np.float32]] = {}
    features: dict[int, dict[str, Tensor]] = {}
    notes = []
    for item in models:
        normalize = Normalize(item.inputs.mean, item.inputs.std).to(device)
        model = item.model.to(device)
        with evaluation_mode(model):
            x = normalize(torch.cat([shown, others]).to(device))
            found = torch.cat([patch_features(model, part).cpu() for part in x.split(8)])
            features.setdefault(found.shape[-1], {})[item.name] = found
            if has_class_attention(model):
                maps = class_attention(model, x[: len(shown)])
                attention[item.name] = enlarge(maps, large, large).cpu().numpy()
            else:
                notes.append(f'No attention is drawn of {item.name}: it has no class token, or '
                             "another attention than timm's standard one.")  # fmt: skip
    components = {
        name: colors[: len(shown)].numpy()
        for group in features.values()
        for name, colors in pca_maps(group).maps.items()
    }
    part = images.parts[0]
    people = composites(shown, part.bands, part.scale.source == 'dtype')
    names = [images.file_of(number).name for number in numbers]
    return Pictures(people, names, attention, components, notes)


def _facts(
    args: argparse.Namespace,
    models: Sequence[NamedBackbone],
    images: AnalysedImages,
    side: int,
) -> dict[str, object]:
    """What was analysed, and how, for people."""
    classes = 'none' if images.classes is None else ', '.join(images.classes)
    return {
        **{item.name: f'{item.arch}, {item.path}' for item in models},
        'images': images.source,
        'classes': classes,
        'size of images': f'{side} x {side} pixels',
        'eigenvalues': f'the {args.leading} leading ones of each image',
        'probes': f'softmax regression on about {args.tokens:,} patches of all images, '
        f'{args.probe_steps} steps of AdamW, '
        f'{"raw" if args.raw_tokens else "standardised"} inputs',
        'seed': args.seed,
        'precision': args.precision,
    }
