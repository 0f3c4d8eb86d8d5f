"""``adapt``: the whole job on a folder of images, in phases that a second call can go on from."""

import argparse
import signal
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora.cli.choices import choose_device
from torchgeo_explora.cli.console import percent, say, say_left_out, table
from torchgeo_explora.cli.picture import draw_report
from torchgeo_explora.cli.plan import Plan, make_plan
from torchgeo_explora.cli.run_folder import (
    RunFolder,
    environment,
    read_json,
    write_json,
    write_yaml,
)
from torchgeo_explora.cli.scoring import (
    HEADLINE_K,
    Evaluation,
    Health,
    Scores,
    judge,
    score,
)
from torchgeo_explora.cli.settings import AdaptSettings
from torchgeo_explora.cli.training import (
    LastCheckpoint,
    MetricsTable,
    ProgressLine,
    TrainingProgress,
)
from torchgeo_explora.errors import CollapseError, ConfigError
from torchgeo_explora.models import create_backbone, describe_file
from torchgeo_explora.objectives.probing import (
    Features,
    load_features,
    save_features,
    weights_hash,
)
from torchgeo_explora.tasks.callbacks import CollapseGuard, FeatureHealth, OnlineKNN

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
        return conclude(_phases(settings, folder, checks))
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
    plan = make_plan(settings, device)
    introduce(plan)
    if not folder.settings.is_file():
        write_json(folder.settings, {'settings': settings.to_dict(), **environment(device)})
    write_yaml(folder.config, plan.config(), 'The same run: torchgeo fit --config config.yaml')
    before = _before(plan, folder)
    training = _train(plan, folder, checks)
    report = describe_run(plan, folder, before, training)
    if plan.task.collapse_reason is not None:
        report |= {
            'outcome': 'collapsed',
            'sentence': f'{plan.task.collapse_reason} No weights were exported.',
        }
    else:
        report |= _after(plan, folder, before)
    write_json(folder.report, report)
    return report


def introduce(plan: Plan) -> None:
    """Say what will happen."""
    images, task = plan.images, plan.task
    say(task.load_report.summary())
    say(task.adapter_report.summary())
    side = images.arguments['image_size']
    say(f'{images.count:,} images of {plan.settings.folder}, read at {side} pixels')
    say_left_out(images.skipped)
    crops = task.recipe.crops
    say(
        f'{plan.steps:,} steps of {plan.batch_size} images ({plan.steps * plan.batch_size:,} seen), '
        f'crops 2 x {crops.global_size} and {crops.n_local} x {crops.local_size} pixels, '
        f'on {plan.device} in {plan.precision}'
    )
    labelled = 'none, so nothing will tell whether it helps'
    say(f'Labels: {labelled if images.labelled is None else images.labelled.source}')


def evaluation(plan: Plan) -> Evaluation:
    """How the features of a run are made."""
    workers = plan.images.arguments['num_workers']
    return Evaluation(plan.task.eval_transform, plan.device, plan.dtype, workers)


def measure(
    model: VisionTransformer, plan: Plan, what: str, base: Features | None = None
) -> tuple[dict[str, Any], dict[str, Features]]:
    """Measure a model: health always, probes where there are labels.

    Args:
        model: The network.
        plan: Of the run.
        what: Name for the progress line.
        base: Features of the base on the images of the health measures.

    Returns:
        ``health`` and ``scores`` (or None) for JSON, and the features they come from.
    """
    by, split = evaluation(plan), plan.images.labelled
    sample = plan.images.health_sample(plan.settings.seed)
    features = {'health': by.features(model, sample, progress=ProgressLine(f'{what}, unlabelled'))}
    result: dict[str, Any] = {
        'health': asdict(Health.of(features['health'], base)),
        'scores': None,
    }
    if split is not None:
        for part, dataset in (('reference', split.reference), ('scored', split.scored)):
            line = ProgressLine(f'{what}, {part} images')
            features[part] = by.features(model, dataset, progress=line)
        scores = score(features['reference'], features['scored'], split, plan.device)
        result['scores'] = scores.to_dict()
    return result, features


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


def brief(result: dict[str, Any]) -> str:
    """Write a measurement in one line."""
    health = result['health']
    text = f'effective rank {health["effective_rank"]:.1f} of {health["dim"]}'
    if result['scores'] is None:
        return text
    scores = Scores.from_dict(result['scores'])
    return f'kNN {percent(scores.headline)}, linear {percent(scores.linear)}, {text}'


def _train(plan: Plan, folder: RunFolder, checks: int) -> dict[str, Any]:
    """Train, or do what is left of it; export the weights."""
    if folder.merged.is_file() and folder.adapter.is_file():
        return {'seconds': None, 'resumed_at': plan.steps}
    resumed_at = _load_finished(plan, folder)
    start = time.monotonic()
    if resumed_at == plan.steps:
        plan.task.export(folder.path)
        return {'seconds': 0.0, 'resumed_at': resumed_at}
    _fit(plan, folder, checks)
    seconds = time.monotonic() - start
    done = plan.task.micro_step - (0 if resumed_at is None else resumed_at)
    return {
        'seconds': round(seconds, 1),
        'resumed_at': resumed_at,
        'images_per_second': round(done * plan.batch_size / seconds, 2),
    }


def _load_finished(plan: Plan, folder: RunFolder) -> int | None:
    """Return the step of the checkpoint, and take up its weights if training was finished."""
    if not folder.checkpoint.is_file():
        return None
    try:
        content = torch.load(folder.checkpoint, map_location='cpu', weights_only=True, mmap=True)
        step = int(content['explora']['micro_step'])
    except Exception as error:
        raise ConfigError(
            f'{folder.checkpoint} cannot be read ({type(error).__name__}): start a new run '
            'elsewhere.'
        ) from error
    say(f'Going on from step {step} of {plan.steps}')
    if step == plan.steps:
        plan.task.load_state_dict(content['state_dict'])
        plan.task.micro_step = step
    return step


def _fit(plan: Plan, folder: RunFolder, checks: int) -> None:
    metrics = MetricsTable(folder.path, plan.task)
    trainer = Trainer(
        accelerator='gpu' if plan.device.type == 'cuda' else 'cpu',
        devices=1,
        precision=plan.precision,  # type: ignore[arg-type]
        max_epochs=-1,
        logger=metrics,
        callbacks=_callbacks(plan, folder, checks),
        log_every_n_steps=max(min(plan.steps // 50, 10), 1),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path,
    )
    checkpoint = str(folder.checkpoint) if folder.checkpoint.is_file() else None
    handler = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            # said at the end, in one sentence
            warnings.filterwarnings('ignore', message=r'No weights were exported|The \w+ collapsed')
            trainer.fit(plan.task, datamodule=plan.images.module, ckpt_path=checkpoint)
    except SystemExit as end:  # what Lightning makes of Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from end
        raise
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    metrics.write()


def _callbacks(plan: Plan, folder: RunFolder, checks: int) -> list[Callback]:
    accumulate = plan.task.recipe.optimization.accumulate
    every = max(plan.steps // accumulate // checks, 1)
    dtype: Any = 'bfloat16' if plan.dtype == torch.bfloat16 else 'float32'
    networks = (plan.task.recipe.optimization.publish,)
    callbacks: list[Callback] = [
        TrainingProgress(),
        FeatureHealth(every, networks=networks, dtype=dtype, seed=plan.settings.seed),
        CollapseGuard(),
        LastCheckpoint(folder.checkpoint, plan.settings.checkpoint_every),
    ]
    split = plan.images.labelled
    if split is not None and split.module.val_dataset is not None:
        data = None if split.module is plan.images.module else split.module
        neighbours = OnlineKNN(
            every, data, networks=networks, dtype=dtype, k=HEADLINE_K, seed=plan.settings.seed,
            val_images=500,
        )  # fmt: skip
        callbacks.insert(1, neighbours)
    return callbacks


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
    names = (folder.merged, folder.adapter, folder.report, folder.picture)
    return {
        'outcome': outcome,
        'sentence': sentence,
        'standard_error': noise,
        'after': result,
        'files': [str(path) for path in names],
    }


def health_line(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Compare the health of two models in words."""
    old, new = before['health'], after['health']
    return (
        f'Effective rank {old["effective_rank"]:.1f} -> {new["effective_rank"]:.1f} of '
        f'{new["dim"]}, spread {old["spread"]:.4f} -> {new["spread"]:.4f}, '
        f'drift from the base {new["drift"]:.3f}.'
    )


def score_table(before: Scores, after: Scores) -> str:
    """Lay out all scores before and after."""
    rows = [['', 'before', 'after', 'change']]
    pairs = [(f'kNN, k = {k}', before.knn[k], after.knn[k]) for k in after.knn]
    pairs.append(('linear (logistic regression)', before.linear, after.linear))
    for name, old, new in pairs:
        rows.append([name, percent(old), percent(new), f'{100 * (new - old):+.1f}'])
    return table(rows)


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
            'folder': settings.folder,
            'adapted_to': images.count,
            'left_out': images.skipped,
            'labels': None if images.labelled is None else images.labelled.source,
            'classes': None if images.labelled is None else images.labelled.classes,
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
