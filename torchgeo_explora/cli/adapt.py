"""``adapt``: the whole job on unlabelled images, in phases that a second call can go on from."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from torchgeo_explora._run_record import recording
from torchgeo_explora.cli.adapt_report import write_report
from torchgeo_explora.cli.choices import choose_device
from torchgeo_explora.cli.console import say, say_left_out
from torchgeo_explora.cli.energy import Energy, EnergyMeter
from torchgeo_explora.cli.fitting import train
from torchgeo_explora.cli.measuring import brief, health_line, measure, score_table
from torchgeo_explora.cli.picture import draw_report
from torchgeo_explora.cli.plan import Plan, make_plan
from torchgeo_explora.cli.reference import write_reference
from torchgeo_explora.cli.run_folder import (
    RunFolder,
    environment,
    read_json,
    write_json,
    write_yaml,
)
from torchgeo_explora.cli.scoring import Scores, judge
from torchgeo_explora.cli.settings import AdaptSettings
from torchgeo_explora.datasets._statistics import write_statistics
from torchgeo_explora.errors import CollapseError
from torchgeo_explora.models import create_backbone, describe_file
from torchgeo_explora.objectives.probing import load_features, save_features, weights_hash

CHECKS = 10
"""Looks at the representation during a run."""

UNKNOWN = (
    'There are no labels, so it cannot be told whether it helped: give labelled images as --labels '
    '(or run `torchgeo-explora probe` with both weights) before you rely on it.'
)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Args:
        args: From the parser.

    Returns:
        0.

    Raises:
        ExploraError: If something is wrong that the user can mend.
        CollapseError: If the representation collapsed.
        KeyboardInterrupt: With a sentence that says how to go on.
    """
    folder = RunFolder(Path(args.out).expanduser())
    if getattr(args, 'resume', False):
        settings = folder.read_settings()
        settings.check_unchanged(args)
        settings = settings.resumed(args)
    else:
        folder.check_new()
        settings = AdaptSettings.from_arguments(args)
    adapt(settings, folder)
    return 0


def adapt(settings: AdaptSettings, folder: RunFolder, checks: int = CHECKS) -> dict[str, Any]:
    """Do what is left of a run.

    Args:
        settings: What to do.
        folder: Where; new, or of the run to go on with.
        checks: Looks at the representation while training.

    Returns:
        The report.

    Raises:
        ExploraError: If something is wrong that the user can mend.
        CollapseError: If the representation collapsed.
        KeyboardInterrupt: With a sentence that says how to go on.
    """
    if folder.report.is_file():
        say(f'The run in {folder.path} is finished.')
        return conclude(read_json(folder.report))
    try:
        return _phases(settings, folder, checks)
    except KeyboardInterrupt:
        remedy = f'go on with `torchgeo-explora adapt --out {folder.path} --resume`'
        left = remedy if folder.settings.is_file() else 'nothing was written'
        raise KeyboardInterrupt(f'stopped by the user; {left}.') from None


def conclude(report: dict[str, Any]) -> dict[str, Any]:
    """Print how a run ended.

    Raises:
        CollapseError: If it collapsed.
    """
    if report['outcome'] == 'collapsed':
        raise CollapseError(report['sentence'])
    for path in report['files']:
        say(f'Wrote {path}')
    say(report['sentence'])
    return report


def _phases(settings: AdaptSettings, folder: RunFolder, checks: int) -> dict[str, Any]:
    device = choose_device(settings.device)
    kept = folder.statistics if folder.statistics.is_file() else None
    plan = make_plan(settings, device, kept)
    introduce(plan)
    start = None if settings.weights == 'random' else settings.weights
    with recording(
        folder.path, 'adapt', {'settings': settings.to_dict()},
        seed=settings.seed, device=device, weights={'base': start},
    ) as record:  # fmt: skip
        with metered(folder, device) as energy:
            report = _work(plan, folder, checks, energy)
        record.add(report['files'], outcome=report['outcome'], sentence=report['sentence'])
        return conclude(report)


@contextmanager
def metered(folder: RunFolder, device: torch.device) -> Iterator[Callable[[], Energy]]:
    """Measure energy, and add it to that of the parts of the run before.

    A part that was killed could not write what it took, and is missing.

    Args:
        folder: Of the run.
        device: Where it computes.

    Yields:
        Gives the energy of all parts so far.
    """
    earlier = [Energy.from_dict(read_json(folder.energy))] if folder.energy.is_file() else []
    with EnergyMeter(device) as meter:

        def total() -> Energy:
            return earlier[0] + meter.energy if earlier else meter.energy

        try:
            yield total
        finally:
            write_json(folder.energy, total().to_dict())


def _work(
    plan: Plan, folder: RunFolder, checks: int, energy: Callable[[], Energy]
) -> dict[str, Any]:
    """Do what is left of the phases."""
    images = plan.images
    if not folder.statistics.is_file():
        write_statistics(folder.statistics, images.statistics, images.about)
    write_yaml(folder.config, plan.config(), 'The same run: torchgeo fit --config config.yaml')
    before = _before(plan, folder)
    training = train(plan, folder, checks)
    report = describe_run(plan, folder, before, training)
    if plan.task.collapse_reason is not None:
        reason = f'{plan.task.collapse_reason} No weights were exported.'
        report |= {'outcome': 'collapsed', 'sentence': reason}
    else:
        report |= _after(plan, folder, before)
    report['energy'] = energy().to_dict()
    report['files'].append(str(write_report(plan, folder, report)))
    write_json(folder.report, report)
    return report


def introduce(plan: Plan) -> None:
    """Say what will happen."""
    images, task = plan.images, plan.task
    say(task.load_report.summary())
    say(task.adapter_report.summary())
    side, settings = images.arguments['image_size'], plan.settings
    what = 'images' if settings.sources is None else 'windows a pass'
    say(f'{images.count:,} {what} of {settings.images}, read at {side} pixels')
    say_left_out(images.skipped)
    say(f'Bands {", ".join(images.bands)}; mean and std {plan.values.source}')
    crops = task.recipe.crops
    say(
        f'{plan.steps:,} steps of {plan.batch_size} images ({plan.steps * plan.batch_size:,} seen), '
        f'crops 2 x {crops.global_size} and {crops.n_local} x {crops.local_size} pixels, '
        f'on {plan.device} in {plan.precision}'
    )
    labelled = 'none, so nothing will tell whether it helps'
    say(f'Labels: {labelled if images.labelled is None else images.labelled.source}')


def _before(plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """Measure the base, once."""
    if folder.before.is_file():
        return read_json(folder.before)
    # up-projections start at zero: the student is the base
    result, features = measure(plan.task.model.student, plan, 'Base')
    for part, found in features.items():
        save_features(folder.features(part), found)
    student = plan.task.model.student
    result['base_sha256'] = weights_hash(student)
    write_json(folder.before, result)
    say(f'Before: {brief(result)}')
    return result


def _after(plan: Plan, folder: RunFolder, before: dict[str, Any]) -> dict[str, Any]:
    """Measure the exported file, judge, and draw."""
    model, _ = create_backbone(
        plan.settings.model, folder.merged, in_chans=plan.arguments['in_channels']
    )
    base = load_features(folder.features('health'))
    result, features = measure(model, plan, 'Adapted', base)
    say(f'After: {brief(result)}')
    outcome, sentence, noise = 'unknown', f'{health_line(before, result)}\n{UNKNOWN}', None
    if before['scores'] is not None and result['scores'] is not None:
        old, new = Scores.from_dict(before['scores']), Scores.from_dict(result['scores'])
        verdict = judge(old, new)
        outcome, sentence, noise = verdict.outcome, verdict.sentence, verdict.noise
        say(score_table(old, new))
    for part, found in features.items():
        save_features(folder.features(part, 'adapted'), found)
    draw_report(plan, folder, before, result, sentence)
    names = [folder.merged, folder.adapter, folder.report, folder.picture]
    names += write_reference(model, plan, folder)
    return {
        'outcome': outcome,
        'sentence': sentence,
        'standard_error': noise,
        'after': result,
        'files': [str(path) for path in names],
    }


def describe_run(
    plan: Plan, folder: RunFolder, before: dict[str, Any], training: dict[str, Any]
) -> dict[str, Any]:
    """Everything of a run that does not depend on its outcome."""
    settings, images, adapter = plan.settings, plan.images, plan.task.adapter_report
    weights = Path(settings.weights)
    return {
        'settings': settings.to_dict(),
        'model': settings.model,
        'weights': plan.task.load_report.source,
        'weights_sha256': describe_file(weights)['sha256'] if weights.is_file() else None,
        'seed': settings.seed,
        'trainable_parameters': adapter.trainable_parameters,
        'encoder_parameters': adapter.total_parameters,
        'recipe': asdict(plan.task.recipe),
        'images': {
            'folder': settings.images,
            'rasters': settings.sources,
            'adapted_to': images.count,
            'left_out': images.skipped,
            'labels': None if images.labelled is None else images.labelled.source,
            'classes': None if images.labelled is None else images.labelled.classes,
            'bands': images.bands,
            'mean': plan.values.mean,
            'std': plan.values.std,
            'normalisation': plan.values.source,
        },
        'steps': plan.task.micro_step,
        'steps_planned': plan.steps,
        'batch_size': plan.batch_size,
        'precision': plan.precision,
        'training': training,
        'environment': environment(plan.device),
        'before': before,
        'after': None,
        'files': [],
    }
