"""The picture of ``replay``: both domains, the scores, the way there, and neighbours."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Subset

from torchgeo_explora._figures import INK, new_figure, save_png
from torchgeo_explora.cli.picture import (
    draw_bars,
    draw_checks,
    draw_loss,
    draw_neighbours,
    show_image,
)
from torchgeo_explora.cli.replay_base import Base
from torchgeo_explora.cli.run_folder import RunFolder
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.objectives.probing import load_features
from torchgeo_explora.tasks.logger import read_metrics


def draw_replay(
    folder: RunFolder,
    source: SyntheticScenes,
    target: tuple[SyntheticScenes, SyntheticScenes],
    report: dict[str, Any],
    base: Base,
) -> Path:
    """Draw the picture of a replay.

    Args:
        folder: Of the replay.
        source: Scenes of the source domain.
        target: Scenes that were adapted to, and those that were scored.
        report: Of the adaptation.
        base: The base.

    Returns:
        The path written.

    Raises:
        OutputError: If it cannot be written.
    """
    figure = new_figure(12.5, 10.6)
    grid = figure.add_gridspec(3, 1, height_ratios=(0.62, 0.9, 1.05), hspace=0.33)
    _tiles(figure, grid[0], source, target[0])
    middle = grid[1].subgridspec(1, 3, wspace=0.32, width_ratios=(1.1, 1.25, 1.25))
    axes = [figure.add_subplot(middle[0, column]) for column in range(3)]
    run = RunFolder(folder.path / 'run')
    rows = read_metrics(run.path / 'metrics.csv')
    draw_bars(axes[0], report['before'], report['after'])
    draw_checks(axes[1], rows, report['before'])
    draw_loss(axes[2], rows)
    before, after = (load_features(run.features('scored', side)) for side in ('base', 'adapted'))
    draw_neighbours(figure, grid[2], as_in_folder(target[1]), before, after, report['seed'])
    figure.suptitle(
        f'ExPLoRA replayed on synthetic scenes, target domain: {report["sentence"]}\n'
        f'base: {100 * base.accuracy:.1f} % in its own (source) domain. '
        'Drawings by rules: they say nothing about real imagery.',
        fontsize=12, color=INK, y=0.965,
    )  # fmt: skip
    return save_png(figure, folder.path / 'replay.png')


def as_in_folder(scenes: SyntheticScenes) -> Subset[dict[str, Tensor]]:
    """Return scenes in the order of the files that they were written to: class by class.

    Args:
        scenes: In their own order, which the numbers of the files follow.
    """
    return Subset(scenes, torch.argsort(scenes.labels, stable=True).tolist())


def _tiles(
    figure: Figure,
    cell: Any,  # noqa: ANN401  # a SubplotSpec, which matplotlib does not type
    source: SyntheticScenes,
    target: SyntheticScenes,
) -> None:
    """One scene of every class in both domains: the first ones, not chosen."""
    count = len(source.classes)
    sub = cell.subgridspec(2, count, wspace=0.05, hspace=0.08)
    for row, (name, scenes) in enumerate((('source', source), ('target', target))):
        for column in range(count):
            axes = figure.add_subplot(sub[row, column])
            show_image(axes, scenes[column]['image'])
            if row == 0:
                axes.set_title(source.classes[column], fontsize=9.5, color=INK)
            if column == 0:
                axes.set_ylabel(name, fontsize=10.5, color=INK)
