"""Pictures of what a masked autoencoder sees and what it makes of it, from arrays alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from torchgeo_explora._figures import INK, new_figure

PANELS = ('input', 'masked', 'output')
HIDDEN = 0.62
"""Grey of a band that is hidden; lighter than most scenes, darker than paper."""
STRETCH = (1.0, 99.0)
"""Percentiles of the input that are shown darkest and brightest."""
HEADER = 0.75
"""Height of the title and the headings, in inches."""
PLACES = 2
"""Places of a temporal picture side by side."""


@dataclass(frozen=True)
class Composite:
    """Three bands that are shown as red, green and blue.

    Args:
        title: What people call it.
        red: 0-based band.
        green: 0-based band.
        blue: 0-based band.
    """

    title: str
    red: int
    green: int
    blue: int

    @property
    def bands(self) -> list[int]:
        """The three bands."""
        return [self.red, self.green, self.blue]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One image, or one place on several dates, with its reconstruction.

    Args:
        image: (T, C, H, W), values in [0, 1]; T is 1 for an image.
        hidden: The same shape, True where the model did not see the pixel.
        output: The same shape: what was visible, and elsewhere what the model makes of it.
        labels: What is written above each date; empty for an image.
    """

    image: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    output: NDArray[np.float32]
    labels: Sequence[str] = ()

    def panels(self, composite: Composite, date: int = 0) -> list[NDArray[np.float32]]:
        """Return input, masked input and output as (H, W, 3) in [0, 1], in one stretch.

        A band that is hidden at a pixel is grey there, so that a pixel of which some bands are
        visible is tinted.
        """
        image, output = (x[date][composite.bands] for x in (self.image, self.output))
        photograph = self.image.shape[1] <= 3
        low, high = stretch(self.image[:, composite.bands], photograph)
        shown, made = ((x - low) / (high - low) for x in (image, output))
        masked = np.where(self.hidden[date][composite.bands], HIDDEN, shown)
        return [x.clip(0, 1).transpose(1, 2, 0) for x in (shown, masked, made)]


def stretch(images: NDArray[np.float32], jointly: bool) -> NDArray[np.float32]:
    """Return what is shown as black and as white, (2, C, 1, 1).

    Args:
        images: (T, C, H, W), the bands that are shown together.
        jointly: Whether all bands share one range, which keeps the colours of photographs;
            otherwise each has its own, as bands of other sensors differ in brightness.
    """
    limits = np.percentile(images, STRETCH, axis=(0, 1, 2, 3) if jointly else (0, 2, 3))
    low, high = np.broadcast_to(limits.reshape(2, -1), (2, images.shape[1])).astype(np.float32)
    high = np.maximum(high, low + 1e-3)  # a constant band is black, not noise
    return np.stack([low, high])[:, :, None, None]


def draw_images(
    rows: Sequence[Reconstruction], composites: Sequence[Composite], title: str
) -> Figure:
    """Draw one row an image: input, masked and output, for every composite.

    Args:
        rows: The images.
        composites: What is shown of their bands.
        title: Above all.
    """
    widths = [1.0] * len(PANELS)
    for _ in composites[1:]:
        widths += [0.12, *[1.0] * len(PANELS)]  # a gap between composites
    height = 1.55 * len(rows)
    figure = new_figure(1.55 * sum(widths), height + HEADER)
    grid = figure.add_gridspec(
        len(rows), len(widths), width_ratios=widths, wspace=0.04, hspace=0.04,
        left=0.01, right=0.99, bottom=0.01, top=height / (height + HEADER),
    )  # fmt: skip
    for row, picture in enumerate(rows):
        for number, composite in enumerate(composites):
            first = number * (len(PANELS) + 1)
            for offset, panel in enumerate(picture.panels(composite)):
                heading = _heading(composite, offset) if row == 0 else None
                _show(figure, grid[row, first + offset], panel, heading)
    figure.suptitle(title, fontsize=9.5, color=INK, x=0.01, ha='left', y=0.995)
    return figure


def _heading(composite: Composite, panel: int) -> str:
    return f'{composite.title}\n{PANELS[panel]}' if panel == 0 else PANELS[panel]


def draw_dates(rows: Sequence[Reconstruction], composite: Composite, title: str) -> Figure:
    """Draw a strip for every place: a column a date, and input, masked and output below it.

    Args:
        rows: The places.
        composite: What is shown of the bands.
        title: Above all.
    """
    dates, columns = max(len(row.image) for row in rows), min(len(rows), PLACES)
    lines = math.ceil(len(rows) / columns)
    height = (1.55 * len(PANELS) + 0.4) * lines
    figure = new_figure((1.55 * dates + 0.35) * columns, height + HEADER)
    outer = figure.add_gridspec(
        lines, columns, hspace=0.1, wspace=0.08,
        left=0.03, right=0.99, bottom=0.01, top=height / (height + HEADER),
    )  # fmt: skip
    for number, picture in enumerate(rows):
        cell = outer[number // columns, number % columns]
        grid = cell.subgridspec(len(PANELS), dates, wspace=0.04, hspace=0.04)
        for date in range(len(picture.image)):
            for line, panel in enumerate(picture.panels(composite, date)):
                heading = picture.labels[date] if line == 0 else None
                side = PANELS[line] if date == 0 and number % columns == 0 else None
                _show(figure, grid[line, date], panel, heading, side)
    figure.suptitle(title, fontsize=9.5, color=INK, x=0.01, ha='left', y=0.995)
    return figure


def _show(
    figure: Figure,
    cell: Any,  # noqa: ANN401  # a SubplotSpec, which matplotlib does not type
    panel: NDArray[np.float32],
    heading: str | None = None,
    side: str | None = None,
) -> None:
    axes = figure.add_subplot(cell)
    axes.imshow(panel, interpolation='nearest')
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if heading is not None:
        axes.set_title(heading, fontsize=9, loc='left', color=INK)
    if side is not None:
        axes.set_ylabel(side, fontsize=9, color=INK)
