"""One picture of a run: scores before and after, the way there, and what neighbours look like."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from torch import Tensor
from torch.utils.data import Dataset

from torchgeo_explora._figures import INK, new_figure, save_png, tidy
from torchgeo_explora.cli.images import Sample, length
from torchgeo_explora.cli.plan import Plan
from torchgeo_explora.cli.run_folder import RunFolder
from torchgeo_explora.cli.scoring import HEADLINE_K, Scores
from torchgeo_explora.objectives.probing import Features, load_features
from torchgeo_explora.tasks.logger import Metrics, read_metrics

BEFORE, AFTER, RIGHT, WRONG = '#9aa5b1', '#1769aa', '#2a9d4a', '#c8402f'
QUERIES, NEIGHBOURS = 4, 5


def draw_report(
    plan: Plan,
    folder: RunFolder,
    before: dict[str, Any],
    after: dict[str, Any],
    sentence: str,
) -> None:
    """Draw the picture of a run.

    Args:
        plan: Of the run.
        folder: Where it goes.
        before: What was measured of the base.
        after: What was measured of the adapted model.
        sentence: The conclusion.

    Raises:
        OutputError: If it cannot be written.
    """
    figure = new_figure(12.5, 8.4)
    grid = figure.add_gridspec(2, 1, height_ratios=(1, 1.25), hspace=0.32)
    top = grid[0].subgridspec(1, 3, wspace=0.32, width_ratios=(1.1, 1.25, 1.25))
    axes = [figure.add_subplot(top[0, column]) for column in range(3)]
    metrics = read_metrics(folder.path / 'metrics.csv')
    draw_bars(axes[0], before, after)
    draw_checks(axes[1], metrics, before)
    draw_loss(axes[2], metrics)
    part = 'health' if after['scores'] is None else 'scored'
    base, adapted = (load_features(folder.features(part, side)) for side in ('base', 'adapted'))
    dataset = plan.images.health_sample(plan.settings.seed)
    if plan.images.labelled is not None:
        dataset = plan.images.labelled.scored
    draw_neighbours(figure, grid[1], dataset, base, adapted, plan.settings.seed)
    figure.suptitle(sentence.splitlines()[0], fontsize=13, color=INK, y=0.97)
    save_png(figure, folder.picture)


def draw_bars(axes: Axes, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Bars of what was measured before and after, with standard errors where they are known."""
    if after['scores'] is None:
        return _health_bars(axes, before, after)
    old, new = Scores.from_dict(before['scores']), Scores.from_dict(after['scores'])
    values = [(old.headline, new.headline), (old.linear, new.linear)]
    names = [f'nearest neighbours\n(k = {HEADLINE_K})', 'linear probe\n(logistic)']
    paired_bars(axes, names, values, new.scored_images)
    tidy(axes, f'Accuracy on {new.scored_images:,} images (%)')
    return None


def paired_bars(
    axes: Axes, names: Sequence[str], values: Sequence[tuple[float, float]], images: int
) -> None:
    """Draw pairs of accuracies in per cent, with their standard errors.

    Args:
        axes: Where.
        names: One a pair.
        values: Shares before and after.
        images: Images that were scored.
    """
    for side, (color, label) in enumerate(((BEFORE, 'before'), (AFTER, 'after'))):
        heights = np.array([100 * pair[side] for pair in values])
        errors = np.sqrt(heights * (100 - heights) / images)
        x = np.arange(len(values)) + 0.36 * (side - 0.5)
        axes.bar(
            x, heights, 0.34, color=color, label=label, yerr=errors,
            error_kw={'elinewidth': 0.8, 'capsize': 2, 'ecolor': INK},
        )  # fmt: skip
        for place, height, error in zip(x, heights, errors, strict=True):
            axes.text(
                place, height + error + 1, f'{height:.1f}', ha='center', fontsize=9, color=INK
            )
    axes.set_xticks(range(len(values)), names)
    axes.set_ylim(0, 118)
    axes.set_yticks(range(0, 101, 20))
    axes.legend(frameon=False, fontsize=8.5, loc='upper left', ncols=2)


def _health_bars(axes: Axes, before: dict[str, Any], after: dict[str, Any]) -> None:
    ranks = [measured['health']['effective_rank'] for measured in (before, after)]
    axes.bar([0, 1], ranks, 0.6, color=[BEFORE, AFTER])
    for place, rank in enumerate(ranks):
        axes.text(place, rank, f'{rank:.1f}', ha='center', va='bottom', fontsize=9, color=INK)
    axes.set_xticks([0, 1], ['before', 'after'])
    dim = after['health']['dim']
    tidy(axes, f'Effective rank of {dim} features (no labels)')


def draw_checks(axes: Axes, metrics: Metrics, before: dict[str, Any]) -> None:
    """The probe during training, or the drift where there are no labels."""
    metric = 'knn' if before['scores'] is not None else 'drift'
    columns = {key for row in metrics.values() for key in row}
    scale = 100 if metric == 'knn' else 1
    for column in sorted(key for key in columns if key.endswith(f'/{metric}')):
        steps, values = curve(metrics, column)
        label = column.partition('/')[0]
        axes.plot(steps, scale * np.array(values), '.-', color=AFTER, label=label)
    what = 'Neighbours while training (%)' if metric == 'knn' else 'Drift from base'
    tidy(axes, what)
    axes.set_xlabel('step', fontsize=9)


def curve(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a metric."""
    points = [(step, row[name]) for step, row in metrics.items() if name in row]
    return [step for step, _ in points], [value for _, value in points]


def draw_loss(axes: Axes, metrics: Metrics) -> None:
    """The parts of the loss over the run."""
    names = {
        'train_dino_global': 'class token, global',
        'train_dino_local': 'class token, local',
        'train_ibot': 'masked patches',
    }
    for column, label in names.items():
        steps, values = curve(metrics, column)
        axes.plot(steps, values, label=label, linewidth=1.2)
    tidy(axes, 'Losses')
    axes.set_xlabel('step', fontsize=9)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def nearest(features: Features, queries: Tensor, count: int) -> Tensor:
    """Return the nearest other images of some images (queries, count), by cosine."""
    unit = F.normalize(features.last, dim=1)
    similarity = unit[queries] @ unit.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    return similarity.topk(min(count, len(unit) - 1), dim=1).indices


def draw_neighbours(
    figure: Figure | SubFigure,
    cell: Any,  # noqa: ANN401  # a SubplotSpec, which matplotlib does not type
    dataset: Dataset[Sample],
    before: Features,
    after: Features,
    seed: int,
) -> None:
    """Images drawn at random, with their nearest neighbours before and after.

    Args:
        figure: Where.
        cell: Part of its grid.
        dataset: The images, in the order of the features.
        before: Features by the base.
        after: Features by the adapted model.
        seed: Draws the images.
    """
    order = np.random.default_rng([seed, 2]).permutation(length(dataset))
    queries = torch.from_numpy(order[:QUERIES].copy())
    found = [nearest(features, queries, NEIGHBOURS) for features in (before, after)]
    _check_order(dataset, before, torch.cat([queries, *(side.flatten() for side in found)]))
    width = found[0].shape[1]
    columns = 1 + 2 * (width + 1)
    sub: GridSpecFromSubplotSpec = cell.subgridspec(
        len(queries), columns, wspace=0.06, hspace=0.1,
        width_ratios=[1, *([0.35, *[1] * width] * 2)],
    )  # fmt: skip
    titles = {0: 'at random', 2: 'nearest before', 3 + width: 'nearest after'}
    for row, query in enumerate(queries.tolist()):
        _tile(figure.add_subplot(sub[row, 0]), dataset, query, None)
        for side, neighbours in enumerate(found):
            for rank, index in enumerate(neighbours[row].tolist()):
                axes = figure.add_subplot(sub[row, 2 + side * (width + 1) + rank])
                _tile(axes, dataset, index, _agreement(dataset, query, index))
    for column, title in titles.items():
        figure.add_subplot(sub[0, column], frameon=False, xticks=[], yticks=[]).set_title(
            title, fontsize=10, loc='left', color=INK
        )


def _check_order(dataset: Dataset[Sample], features: Features, shown: Tensor) -> None:
    for index in shown.tolist():
        label = dataset[index].get('label')
        if features.labels is not None and label is not None:
            same = int(label) == int(features.labels[index])
            assert same, 'images and features stand in different orders'


def _agreement(dataset: Dataset[Sample], query: int, index: int) -> bool | None:
    label, other = dataset[query].get('label'), dataset[index].get('label')
    return None if label is None or other is None else bool(label == other)


def _tile(axes: Axes, dataset: Dataset[Sample], index: int, agrees: bool | None) -> None:
    """Show an image in a frame that says whether its class is the right one."""
    show_image(axes, dataset[index]['image'])
    color = INK if agrees is None else RIGHT if agrees else WRONG
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=0.8 if agrees is None else 2.2)


def show_image(axes: Axes, image: Tensor) -> None:
    """Show the first three bands (or the first) of an image (C, H, W) in [0, 1]."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    axes.imshow(shown.permute(1, 2, 0).numpy(), interpolation='nearest')
    axes.set_xticks([])
    axes.set_yticks([])
