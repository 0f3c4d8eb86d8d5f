"""Pictures of scores: the confusion matrix and the scores of every class."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from torchgeo_explora._figures import INK, LINE, new_figure, tidy
from torchgeo_explora.tasks._reports.scores import ClassScore, Counts, largest_confusions

MATRIX = 10.0
"""Side of a matrix of many classes in inches, as long as its cells are not too small."""
CELLS = (0.1, 0.62)
"""Smallest and largest side of a cell in inches."""
NUMBERED = 24
"""Most classes whose shares are written into the cells."""
PAIRS = 25
"""Confusions that are listed beside a matrix without numbers."""
ROWS = 62
"""Most classes in a column of the table."""
ABSENT = '#ececec'
"""Of rows of classes that there is nothing of."""
TITLES = {'f1': 'F1', 'iou': 'IoU'}
"""What the scores that rank classes are called."""
NAME = 30
"""Longest name of a class that is written out."""


def short(name: str, length: int = NAME) -> str:
    """Shorten a name."""
    return name if len(name) <= length else f'{name[: length - 1]}…'


def percent(value: float | None) -> str:
    """Write a share as a percentage; a dash where it is not defined."""
    return '–' if value is None else f'{100 * value:.1f}'


def draw_confusion(counts: Counts, names: Sequence[str], title: str, unit: str) -> Figure:
    """Draw a confusion matrix: a row for every true class, coloured by the row's shares.

    Up to 24 classes have their shares written in per cent; of more classes, the pairs that were
    confused most often are listed beside.

    Args:
        counts: True against predicted classes.
        names: Of all classes.
        title: Above all.
        unit: What was counted, in the plural.
    """
    side = min(max(MATRIX / len(names), CELLS[0]), CELLS[1]) * len(names)
    figure = new_figure(side, side)
    axes = figure.add_axes((0, 0, 1, 1))
    supports = counts.sum(axis=1, keepdims=True)
    shares = np.where(supports > 0, counts / np.maximum(supports, 1), np.nan)
    norm = PowerNorm(0.5, 0, 1)  # a few per cent of a class are seen too
    colors = colormaps['Blues'].with_extremes(bad=ABSENT)
    image = axes.imshow(np.ma.masked_invalid(shares), cmap=colors, norm=norm)
    _label_matrix(axes, names, supports[:, 0].tolist(), 72 * side / len(names), unit)
    if len(names) <= NUMBERED:
        _write_shares(axes, shares, 72 * side / len(names))
    else:
        _list_confusions(axes, counts, names, unit)
        _scale(figure, image, side)
    axes.set_title(title, fontsize=11, loc='left', color=INK, pad=10)
    return figure


def _scale(figure: Figure, image: AxesImage, side: float) -> None:
    """Say what the colours mean; ``side`` is the figure's in inches."""
    box = (0, -0.4 / side, 2.8 / side, 0.12 / side)
    bar = figure.colorbar(
        image, cax=figure.add_axes(box), orientation='horizontal', ticks=[0, 0.05, 0.25, 0.5, 1]
    )
    bar.ax.set_xticklabels(['0', '5', '25', '50', '100'], fontsize=8)
    bar.ax.annotate(
        '% of the true class', (1, 0.5), (10, 0), fontsize=8, va='center', color=INK,
        xycoords='axes fraction', textcoords='offset points',
    )  # fmt: skip


def _label_matrix(
    axes: Axes, names: Sequence[str], supports: Sequence[int], cell: float, unit: str
) -> None:
    """Name rows, with their sums, and columns; ``cell`` is the side of a cell in points."""
    size = min(9.0, 0.85 * cell)
    places = range(len(names))
    rows = [f'{short(name)} ({amount(count)})' for name, count in zip(names, supports, strict=True)]
    axes.set_yticks(places, rows, fontsize=size, color=INK)
    axes.set_xticks(places, [short(name) for name in names], fontsize=size, color=INK, rotation=90)
    axes.set_ylabel(f'true class ({unit})', fontsize=10, color=INK)
    axes.set_xlabel('predicted class', fontsize=10, color=INK)
    axes.xaxis.set_ticks_position('top')
    axes.xaxis.set_label_position('top')
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_color('#cccccc')
    if len(names) > NUMBERED:  # lines that lead the eye from a cell to its names
        axes.set_xticks(np.arange(-0.5, len(names), 10), minor=True)
        axes.set_yticks(np.arange(-0.5, len(names), 10), minor=True)
        axes.grid(which='minor', color='#dddddd', linewidth=0.5)
        axes.tick_params(which='minor', length=0)


def _write_shares(axes: Axes, shares: np.ndarray, cell: float) -> None:
    for row, column in np.argwhere(np.nan_to_num(shares) > 0):
        share = shares[row, column]
        axes.text(
            column, row, _rounded(share), ha='center', va='center', fontsize=min(10.0, 0.33 * cell),
            color='white' if share > 0.35 else INK,
        )  # fmt: skip


def _rounded(share: float) -> str:
    """Per cent without places, and neither 0 nor 100 where it is not that."""
    if 0 < share < 0.005:
        return '<1'
    return '>99' if 0.995 <= share < 1 else f'{100 * share:.0f}'


def _list_confusions(axes: Axes, counts: Counts, names: Sequence[str], unit: str) -> None:
    found = largest_confusions(counts, names, PAIRS)
    lines = [
        f'{pair.count:,} ({100 * pair.share:.0f} %)  {short(pair.truth)} → {short(pair.prediction)}'
        for pair in found
    ]
    heading = f'Most confused ({unit}, share of the true class)'
    axes.annotate(
        '\n'.join([heading, *(lines if lines else ['nothing'])]), (1, 1), (12, 0), fontsize=9,
        xycoords='axes fraction', textcoords='offset points', va='top', color=INK, linespacing=1.5,
    )  # fmt: skip


def draw_classes(scores: Sequence[ClassScore], title: str, measure: str) -> Figure:
    """Draw the scores of every class, best first: a bar, precision and recall, and numbers.

    Args:
        scores: Of the classes.
        title: Above all.
        measure: ``f1`` or ``iou``, which is the bar, and the order.
    """
    ranked = sorted(scores, key=lambda score: -_value(score, measure))
    columns = math.ceil(len(ranked) / ROWS)
    rows = math.ceil(len(ranked) / columns)
    height = 0.2 * rows + 0.2
    figure = new_figure(7.0 * columns, height)
    for column in range(columns):
        axes = figure.add_axes(((column + 0.34) / columns, 0, 0.36 / columns, 1))
        part = ranked[column * rows : (column + 1) * rows]
        _draw_column(axes, part, rows, measure)
    axes = figure.axes[0]
    axes.annotate(
        f'bar: {TITLES[measure]}    ▶ precision    ◁ recall', (0, 1), (0, 22), fontsize=8,
        xycoords='axes fraction', textcoords='offset points', color=INK, va='bottom',
    )  # fmt: skip
    figure.text(0, 1 + 0.62 / height, title, fontsize=11, color=INK, va='bottom')
    return figure


def _value(score: ClassScore, measure: str) -> float:
    """What a class is ranked by; classes without a value come last."""
    value = _value_of(score, measure)
    return -1.0 if value is None else value


def _draw_column(axes: Axes, scores: Sequence[ClassScore], rows: int, measure: str) -> None:
    values = [max(_value(score, measure), 0.0) for score in scores]
    axes.barh(range(len(scores)), values, 0.72, color='#bcd6ea')
    _marks(axes, [score.precision for score in scores], '>', 'full')
    _marks(axes, [score.recall for score in scores], '<', 'none')
    axes.set_yticks(range(len(scores)), [short(score.name) for score in scores])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ['0', '25', '50', '75', '100 %'])
    axes.xaxis.set_ticks_position('top')
    tidy(axes, '')
    axes.spines['bottom'].set_visible(False)
    axes.tick_params(length=0)
    head = -0.5 - 12 / (0.2 * 72)  # beside the tick labels, 12 points above the first row
    _numbers(axes, head, [TITLES[measure], 'precision', 'recall', 'support'], 7)
    for place, score in enumerate(scores):
        shares = map(percent, (_value_of(score, measure), score.precision, score.recall))
        _numbers(axes, place, [*shares, amount(score.support)], 8)


def _value_of(score: ClassScore, measure: str) -> float | None:
    return score.iou if measure == 'iou' else score.f1


def _marks(
    axes: Axes, values: Sequence[float | None], marker: str, fill: Literal['full', 'none']
) -> None:
    known = {place: value for place, value in enumerate(values) if value is not None}
    axes.plot(
        list(known.values()), list(known), linestyle='none', marker=marker, color=LINE,
        markersize=4.5, fillstyle=fill, clip_on=False,
    )  # fmt: skip


def amount(count: int) -> str:
    """Write a number of images or pixels in at most seven characters."""
    for size, letter in ((10**9, 'G'), (10**6, 'M')):
        if count >= size:
            return f'{count / size:.1f} {letter}'
    return f'{count:,}'


def _numbers(axes: Axes, place: float, cells: Sequence[str], size: float) -> None:
    """Write a row of numbers right of the bars."""
    for x, text in zip((1.21, 1.43, 1.6, 1.82), cells, strict=True):
        axes.text(x, place, text, ha='right', va='center', fontsize=size, color=INK,
                  transform=axes.get_yaxis_transform())  # fmt: skip
