"""Write the report of a test: pictures, tables, and a file of everything in numbers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from torchgeo_explora._figures import save_png
from torchgeo_explora.tasks._reports.classes import ClassInfo
from torchgeo_explora.tasks._reports.collect import Outcome
from torchgeo_explora.tasks._reports.grids import draw_classified, draw_segmented
from torchgeo_explora.tasks._reports.scores import (
    ClassScore,
    class_scores,
    largest_confusions,
    overall,
)
from torchgeo_explora.tasks._reports.tables import PAIRS, draw_classes, draw_confusion, percent
from torchgeo_explora.tasks._results import write_json, write_table


def write_report(
    folder: Path, outcome: Outcome, info: ClassInfo, about: Mapping[str, Any]
) -> list[Path]:
    """Write the report of a test.

    Args:
        folder: Where it goes; created.
        outcome: Of the test, with at least one scored label.
        info: What is known of the classes.
        about: What else belongs into ``report.json``.

    Returns:
        The paths written.

    Raises:
        OutputError: If they cannot be written.
    """
    scores = class_scores(outcome.counts, info.names, info.ignored)
    title = headline(scores, info, outcome.images)
    measure: Literal['f1', 'iou'] = 'iou' if info.dense else 'f1'
    matrix = draw_confusion(outcome.counts, info.names, title, info.unit)
    paths = [
        write_table(folder / 'classes.csv', [score.row() for score in scores]),
        write_table(folder / 'confusion.csv', _matrix_rows(outcome, info)),
        save_png(draw_classes(scores, title, measure), folder / 'classes.png'),
        save_png(matrix, folder / 'confusion.png'),
    ]
    if outcome.drawn or outcome.worst:
        paths.append(save_png(draw_examples(outcome, info, title), folder / 'examples.png'))
    content = {**about, **numbers(outcome, scores, info)}
    return [*paths, write_json(folder / 'report.json', content)]


def headline(scores: list[ClassScore], info: ClassInfo, images: int) -> str:
    """Say in a line what came out."""
    sums = overall(scores)
    means = f'mean F1 {percent(sums["mean_f1"])} %'
    if info.dense:
        means = f'mean IoU {percent(sums["mean_iou"])} %'
        if len(scores) == 2:  # of two classes, one is usually the background
            means = f'IoU of {scores[1].name} {percent(scores[1].iou)} %, {means}'
    of = f'the pixels of {images:,} images' if info.dense else f'{images:,} images'
    return f'{percent(sums["accuracy"])} % of {of} are right, {means}'


def numbers(outcome: Outcome, scores: list[ClassScore], info: ClassInfo) -> dict[str, Any]:
    """Return everything of a report in numbers; None stands for what is not defined."""
    return {
        'unit': info.unit,
        'images': outcome.images,
        'unscored': outcome.unscored,
        'overall': overall(scores),
        'classes': [score.row() for score in scores],
        'confusions': [
            vars(pair) for pair in largest_confusions(outcome.counts, info.names, PAIRS)
        ],
    }


def finite(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return metrics as numbers; None for what is not finite, which JSON cannot hold."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _matrix_rows(outcome: Outcome, info: ClassInfo) -> list[dict[str, str | int]]:
    return [
        {'true class': name, **dict(zip(info.names, map(int, row), strict=True))}
        for name, row in zip(info.names, outcome.counts, strict=True)
    ]


def draw_examples(outcome: Outcome, info: ClassInfo, title: str) -> Figure:
    """Draw samples drawn by lot, and the worst ones.

    Args:
        outcome: Of the test.
        info: What is known of the classes.
        title: Above all.
    """
    drawn = sorted((item.example for item in outcome.drawn), key=lambda example: example.index)
    worst = [item.example for item in outcome.worst]
    if info.dense:
        sections = [('drawn by lot', drawn), ('most errors', worst)]
        return draw_segmented(sections, info.names, info.colors, title)
    sections = [('Drawn by lot', drawn), ('Most confident mistakes', worst)]
    return draw_classified(sections, info.names, title)
