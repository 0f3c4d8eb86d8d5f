"""Pictures of predictions beside the truth, of images and of masks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from torchgeo_explora._figures import INK, new_figure
from torchgeo_explora.tasks._reports.colors import Color, Picture
from torchgeo_explora.tasks._reports.examples import Example
from torchgeo_explora.tasks._reports.tables import percent, short

RIGHT, WRONG = '#2a7f3e', '#c8402f'
TILES = 6
"""Images in a row."""
TILE = 1.55
"""Side of an image in inches."""
CAPTION = 0.42
"""Height of what is written above an image, in inches."""
GAP = 0.15
"""Between two parts of a picture, in inches."""
NAME = 20
"""Longest name of a class above an image."""
PANEL = 2.3
"""Side of a panel of a mask in inches."""
LEGEND = 24
"""Most classes that a legend names."""
TINT = 0.6
"""Share of a class's colour where it is laid over an image."""
ERRORS: dict[str, Color] = {'wrong class': (215, 48, 39)}
BINARY_ERRORS: dict[str, Color] = {'false alarm': (215, 48, 39), 'missed': (253, 184, 40)}
UNSCORED: Color = (128, 128, 128)


def draw_classified(
    sections: Sequence[tuple[str, Sequence[Example]]], names: Sequence[str], title: str
) -> Figure:
    """Draw images with their predicted class, and the true one where that is another.

    Args:
        sections: Headings and the images below them.
        names: Of the classes.
        title: Above all.
    """
    filled = [(heading, examples) for heading, examples in sections if examples]
    lines = [math.ceil(len(examples) / TILES) for _, examples in filled]
    heights = [0.3 + GAP + count * (TILE + CAPTION) for count in lines]
    figure = new_figure(TILES * TILE, sum(heights))
    top = sum(heights)
    for (heading, examples), height in zip(filled, heights, strict=True):
        figure.text(0, (top - 0.1) / sum(heights), heading, fontsize=10, color=INK, va='top')
        for number, example in enumerate(examples):
            row, column = divmod(number, TILES)
            bottom = top - 0.3 - (row + 1) * (TILE + CAPTION)
            box = (column / TILES, bottom / sum(heights), 0.95 / TILES, 0.95 * TILE / sum(heights))
            _draw_tile(figure.add_axes(box), example, names)
        top -= height
    figure.text(0, 1 + 0.1 / sum(heights), title, fontsize=11, color=INK, va='bottom')
    return figure


def _draw_tile(axes: Axes, example: Example, names: Sequence[str]) -> None:
    color = RIGHT if example.right else WRONG
    _show(axes, example.picture)
    axes.spines[:].set(color=color, linewidth=2.2, visible=True)
    sure = '' if example.confidence is None else f'{100 * example.confidence:.0f} %'
    known = '' if example.right else f'is {short(names[int(example.truth)], NAME - 5)}'
    mark = '✓' if example.right else '✗'
    lines = [
        f'{mark} {short(names[int(example.prediction)], NAME)}',
        ', '.join(part for part in (sure, known) if part),
    ]
    axes.text(0, 1.03, '\n'.join(lines), transform=axes.transAxes, fontsize=7, color=color,
              va='bottom', linespacing=1.25)  # fmt: skip


def draw_segmented(
    sections: Sequence[tuple[str, Sequence[Example]]],
    names: Sequence[str],
    colors: Sequence[Color],
    title: str,
) -> Figure:
    """Draw a row a tile: image, truth, prediction, and where the two differ.

    Classes are laid over the image in their colours, black ones not at all. Of two classes, errors
    are told apart as false alarms and misses.

    Args:
        sections: Headings and the tiles below them.
        names: Of the classes.
        colors: Of the classes.
        title: Above all.
    """
    rows = [(heading, example) for heading, part in sections for example in part]
    figure = new_figure(4 * PANEL, len(rows) * PANEL)
    for row, (heading, example) in enumerate(rows):
        first = row == 0 or rows[row - 1][0] != heading
        for column, (name, panel) in enumerate(panels(example, colors).items()):
            box = (column / 4, 1 - (row + 1) / len(rows), 0.98 / 4, 0.98 / len(rows))
            axes = figure.add_axes(box)
            _show(axes, panel)
            if row == 0:
                axes.set_title(name, fontsize=9.5, color=INK, loc='left')
            if column == 0:
                label = f'{heading}\n' if first else ''
                axes.set_ylabel(f'{label}{percent(1 - example.error)} % right', fontsize=8.5)
    _legend(figure, names, colors, rows)
    figure.text(0, 1 + 0.35 / (len(rows) * PANEL), title, fontsize=11, color=INK, va='bottom')
    return figure


def _legend(
    figure: Figure, names: Sequence[str], colors: Sequence[Color], rows: Sequence[Any]
) -> None:
    present = sorted(
        {int(c) for _, e in rows for m in (e.truth, e.prediction) for c in np.unique(m)}
    )
    entries = {short(names[index]): colors[index] for index in present if index >= 0}
    if len(entries) > LEGEND:
        entries = dict(list(entries.items())[:LEGEND])
    shown = {name: color for name, color in entries.items() if color != (0, 0, 0)}
    unscored = {'not scored': UNSCORED} if -1 in present else {}
    errors = BINARY_ERRORS if len(names) == 2 else ERRORS
    handles = [
        Patch(facecolor=_unit(color), label=name)
        for name, color in {**shown, **errors, **unscored}.items()
    ]
    figure.legend(
        handles=handles, loc='upper left', bbox_to_anchor=(0, 0), ncols=6, fontsize=8.5,
        frameon=False, labelcolor=INK, borderaxespad=0.4,
    )  # fmt: skip


def _unit(color: Color) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def panels(example: Example, colors: Sequence[Color]) -> dict[str, Picture]:
    """Return the four pictures of a tile, by name.

    Args:
        example: A tile with masks.
        colors: Of the classes.
    """
    prediction = np.where(example.truth < 0, -1, example.prediction)
    return {
        'image': example.picture,
        'truth': overlay(example.picture, example.truth, colors),
        'prediction': overlay(example.picture, prediction, colors),
        'errors': error_map(example, len(colors)),
    }


def overlay(picture: Picture, mask: NDArray[np.int64], colors: Sequence[Color]) -> Picture:
    """Lay the colours of classes over a picture in greys; black classes are left out.

    Args:
        picture: (H, W, 3).
        mask: Class indices (H, W), -1 where nothing is known.
        colors: Of the classes.
    """
    palette = np.array([*colors, UNSCORED], np.float32)  # -1 is the last
    laid = palette[mask]
    weight = TINT * (laid.any(axis=-1, keepdims=True))
    return np.round(_grey(picture) * (1 - weight) + laid * weight).astype(np.uint8)


def _grey(picture: Picture) -> NDArray[np.float32]:
    luma = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    return np.repeat(luma[..., None], 3, axis=-1)


def error_map(example: Example, classes: int) -> Picture:
    """Mark wrong pixels: false alarms and misses of the second of two classes, else all alike.

    Args:
        example: A tile with masks.
        classes: Number of classes.
    """
    truth, prediction = example.truth, example.prediction
    wrong = (truth >= 0) & (truth != prediction)
    kinds = [wrong & (prediction == 1), wrong & (truth == 1)] if classes == 2 else [wrong]
    marks = np.full(truth.shape, 0)
    for number, kind in enumerate(kinds, 1):
        marks[kind] = number
    marks[truth < 0] = -1
    errors = BINARY_ERRORS if classes == 2 else ERRORS
    return overlay(example.picture, marks, [(0, 0, 0), *errors.values()])


def _show(axes: Axes, picture: Picture) -> None:
    axes.imshow(picture, interpolation='nearest' if max(picture.shape) < 128 else 'antialiased')
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
