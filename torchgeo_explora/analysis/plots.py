"""Figures of an analysis: curves over the blocks, similarity of blocks, and pictures of features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from torchgeo_explora._figures import INK, new_figure, tidy
from torchgeo_explora.analysis.study import BlockMeasures

COLORS = ('#6b7785', '#1769aa', '#d1731f', '#2a8f46', '#8a4fb0', '#c8402f')
MARKERS = ('o', 's', '^', 'D', 'v', 'P')
"""Models differ in shape as well as in colour, for readers who do not tell colours apart."""
TILE = 1.9
"""Side of a picture in inches."""
HEADER = 0.45
"""Height of the headings above pictures, in inches."""
BRIGHTEST = 99.5
"""Percentile of a row's attention that is shown brightest."""
GREY = 0.35
"""Share of the picture, in greys, below its attention."""

Picture = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Curve:
    """Values over the blocks.

    Args:
        blocks: From 0.
        values: One a block.
        spread: Half width of the band around them; None for no band.
    """

    blocks: Sequence[int]
    values: NDArray[np.float64]
    spread: NDArray[np.float64] | None = None


def draw_curves(axes: Axes, curves: Mapping[str, Curve], title: str, log: bool = False) -> None:
    """Draw a curve a model.

    Args:
        axes: Where.
        curves: By the name of the model.
        title: Above.
        log: Whether values lie on a logarithmic axis.
    """
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        axes.plot(
            curve.blocks, curve.values, marker=MARKERS[number % len(MARKERS)], markersize=4,
            linewidth=1.5, color=color, label=name, zorder=3,
        )  # fmt: skip
        if curve.spread is not None:
            low, high = curve.values - curve.spread, curve.values + curve.spread
            axes.fill_between(curve.blocks, low, high, color=color, alpha=0.13, linewidth=0)
    tidy(axes, title)
    axes.set_xlabel('block', fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis='y', color='#e6e9ec', linewidth=0.8)
    axes.set_axisbelow(True)
    if log:
        _log_axis(axes)
    else:
        axes.set_ylim(bottom=0)


def _log_axis(axes: Axes) -> None:
    axes.set_yscale('log')
    axes.yaxis.set_major_formatter(ScalarFormatter())
    low, high = axes.get_ylim()
    if high / low > 30:  # labels of every 2 and 5 would crowd
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis='y', which='minor', labelsize=7.5)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc='upper left', bbox_to_anchor=(0.06, 0.0), frameon=False,
        ncols=min(len(labels), 4), fontsize=9, labelcolor=INK, borderaxespad=0.2,
    )  # fmt: skip


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = new_figure(4.6 * count, 3.3)
    axes = [figure.add_subplot(1, count, number + 1) for number in range(count)]
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.17, top=0.9, wspace=0.2)
    return figure, axes


def eigenvalue_curves(models: Mapping[str, BlockMeasures]) -> Figure:
    """Draw mean and standard deviation of the leading eigenvalues of patches, block by block.

    Args:
        models: What was measured, by name.
    """
    figure, axes = _panels(2)
    leading = next(iter(models.values())).spectrum.shape[1]
    means = {name: Curve(m.blocks, m.eigenvalue_mean) for name, m in models.items()}
    stds = {name: Curve(m.blocks, m.eigenvalue_std) for name, m in models.items()}
    draw_curves(axes[0], means, f'Mean of the {leading} leading eigenvalues', log=True)
    draw_curves(axes[1], stds, 'Their standard deviation', log=True)
    _legend(figure, axes[0])
    return figure


def rank_curves(models: Mapping[str, BlockMeasures]) -> Figure:
    """Draw effective ranks: of the patches of an image, and of the images.

    Args:
        models: What was measured, by name.
    """
    figure, axes = _panels(2)
    patches = {name: Curve(m.blocks, m.patch_rank, m.patch_rank_std) for name, m in models.items()}
    images = {name: Curve(m.blocks, m.image_rank) for name, m in models.items()}
    draw_curves(axes[0], patches, 'Effective rank of the patches of an image')
    draw_curves(axes[1], images, 'Effective rank of mean patches over the images')
    _legend(figure, axes[0])
    return figure


def position_curves(models: Mapping[str, BlockMeasures]) -> Figure:
    """Draw how often the position of a single patch is found, in per cent.

    Args:
        models: What was measured, by name.
    """
    figure, axes = _panels(1)
    curves = {name: Curve(m.blocks, 100 * m.position_accuracy) for name, m in models.items()}
    draw_curves(axes[0], curves, 'Position found from one patch (%)')
    _chance(axes[0], [m.position[0].chance for m in models.values()])
    _legend(figure, axes[0])
    return figure


def class_curves(models: Mapping[str, BlockMeasures]) -> Figure:
    """Draw how often the class of the image is found from a single patch, in per cent.

    Args:
        models: What was measured, by name; those without labels are left out.
    """
    figure, axes = _panels(1)
    curves, chances = {}, []
    for name, m in models.items():
        if m.classes is not None and m.class_accuracy is not None:
            curves[name] = Curve(m.blocks, 100 * m.class_accuracy)
            chances.append(m.classes[0].chance)
    draw_curves(axes[0], curves, 'Class of the image found from one patch (%)')
    _chance(axes[0], chances)
    _legend(figure, axes[0])
    return figure


def _chance(axes: Axes, chances: Sequence[float]) -> None:
    for chance in sorted(set(chances)):
        axes.axhline(100 * chance, color=INK, linewidth=0.8, linestyle=':')
    if chances:
        axes.text(
            1, 100 * max(chances), 'chance', transform=axes.get_yaxis_transform(),
            ha='right', va='bottom', fontsize=7.5, color=INK,
        )  # fmt: skip


def cka_curves(pairs: Mapping[str, Curve]) -> Figure:
    """Draw how alike the same block of two models is.

    Args:
        pairs: Linear CKA of each block, by the names of the two models.
    """
    figure, axes = _panels(1)
    draw_curves(axes[0], pairs, 'Linear CKA of the same block')
    axes[0].set_ylim(0, 1.03)
    _legend(figure, axes[0])
    return figure


def cka_heatmap(
    matrix: NDArray[np.float64],
    names: tuple[str, str],
    blocks: tuple[Sequence[int], Sequence[int]],
) -> Figure:
    """Draw how alike every block of a model is to every block of another.

    Args:
        matrix: Linear CKA, a row for each block of the first model.
        names: Of the two models.
        blocks: Of the two models.
    """
    figure = new_figure(4.4, 3.9)
    axes = figure.add_subplot()
    shown = axes.imshow(matrix, origin='lower', vmin=0, vmax=1, cmap='viridis')
    for axis, name, numbers in zip((axes.yaxis, axes.xaxis), names, blocks, strict=True):
        step = -(-len(numbers) // 12)
        axis.set_ticks(range(0, len(numbers), step), [str(b) for b in numbers[::step]])
        axis.set_label_text(f'block of {name}', fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.04)
    bar.ax.tick_params(labelsize=8, colors=INK)
    axes.set_title('Linear CKA of mean patches', fontsize=10.5, loc='left', color=INK)
    return figure


def attention_figure(
    pictures: Sequence[Picture], maps: Mapping[str, NDArray[np.floating[Any]]]
) -> Figure:
    """Draw where the class token of each model looks, averaged over the heads.

    Brightness is shared by the models of a row.

    Args:
        pictures: Images (h, w, 3) in [0, 1].
        maps: By model, attention of each head resized to the images (images, heads, h, w).
    """
    columns = {name: [head.mean(axis=0) for head in found] for name, found in maps.items()}
    rows = []
    for row, picture in enumerate(pictures):
        top = _brightest([found[row] for found in columns.values()])
        rows.append([picture, *(_heat(picture, found[row], top) for found in columns.values())])
    return picture_grid(rows, ['image', *maps])


def heads_figure(
    pictures: Sequence[Picture], maps: Mapping[str, NDArray[np.floating[Any]]]
) -> Figure:
    """Draw the attention of every head, a row for each image and model.

    Args:
        pictures: Images (h, w, 3) in [0, 1].
        maps: By model, attention of each head resized to the images (images, heads, h, w).
    """
    heads = max(found.shape[1] for found in maps.values())
    rows, labels = [], []
    for number, picture in enumerate(pictures):
        for name, found in maps.items():
            tiles = [_heat(picture, head, _brightest([head])) for head in found[number]]
            rows.append([picture, *tiles])
            labels.append(name)
    return picture_grid(rows, ['image', *(f'head {i}' for i in range(heads))], labels, 1.25)


def pca_figure(
    pictures: Sequence[Picture], maps: Mapping[str, NDArray[np.floating[Any]]]
) -> Figure:
    """Draw the first three principal components of patches as red, green and blue.

    Args:
        pictures: Images (h, w, 3) in [0, 1].
        maps: By model, colours of the patches (images, gh, gw, 3) in [0, 1].
    """
    rows = [[p, *(found[row] for found in maps.values())] for row, p in enumerate(pictures)]
    return picture_grid(rows, ['image', *maps])


def picture_grid(
    rows: Sequence[Sequence[Picture]],
    headings: Sequence[str],
    labels: Sequence[str] = (),
    tile: float = TILE,
) -> Figure:
    """Draw pictures in rows and columns.

    Args:
        rows: Pictures (h, w, 3) in [0, 1].
        headings: Of the columns.
        labels: Of the rows; none where empty.
        tile: Side of a picture in inches.
    """
    height = tile * len(rows)
    figure = new_figure(tile * len(headings), height + HEADER)
    grid = figure.add_gridspec(
        len(rows), len(headings), wspace=0.05, hspace=0.05, left=0.02, right=0.99, bottom=0.01,
        top=height / (height + HEADER),
    )  # fmt: skip
    for row, tiles in enumerate(rows):
        for column, picture in enumerate(tiles):
            axes = figure.add_subplot(grid[row, column])
            small = max(picture.shape[:2]) < 100
            axes.imshow(picture, interpolation='nearest' if small else 'antialiased')
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(headings[column], fontsize=9, loc='left', color=INK)
            if column == 0 and labels:
                axes.set_ylabel(labels[row], fontsize=8, color=INK)
    return figure


def _brightest(maps: Sequence[NDArray[np.floating[Any]]]) -> float:
    return max(float(np.percentile(np.stack(maps), BRIGHTEST)), 1e-12)


def _heat(picture: Picture, values: NDArray[np.floating[Any]], top: float) -> Picture:
    """Colours of a map over its picture in greys."""
    grey = picture @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    colors = matplotlib.colormaps['inferno'](np.clip(values / top, 0, 1))[..., :3]
    mixed: Picture = GREY * grey[..., None] + (1 - GREY) * colors
    return mixed.clip(0, 1)
