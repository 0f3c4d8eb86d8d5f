"""What is measured of a model before and after a run, and how it is said."""

from dataclasses import asdict
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora.cli.console import percent, table
from torchgeo_explora.cli.plan import Plan
from torchgeo_explora.cli.scoring import Evaluation, Health, Scores, score
from torchgeo_explora.cli.training import ProgressLine
from torchgeo_explora.objectives.probing import Features


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


def brief(result: dict[str, Any]) -> str:
    """Write a measurement in one line."""
    health = result['health']
    text = f'effective rank {health["effective_rank"]:.1f} of {health["dim"]}'
    if result['scores'] is None:
        return text
    scores = Scores.from_dict(result['scores'])
    return f'kNN {percent(scores.headline)}, linear {percent(scores.linear)}, {text}'


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
