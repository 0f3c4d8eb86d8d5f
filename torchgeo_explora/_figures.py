"""Figures that need no display, and writing them whole; for tasks, analysis and commands alike."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from torchgeo_explora._files import replacing

INK = '#333333'
"""Colour of all texts."""
LINE = '#1769aa'
"""Colour of the curve that matters."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that needs no display.

    Args:
        width: In inches.
        height: In inches.
    """
    figure = Figure(figsize=(width, height), dpi=130, facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format='png', bbox_inches='tight', pad_inches=0.15)
    return path


def tidy(axes: Axes, title: str) -> None:
    """Give axes a title and take away what nobody reads."""
    axes.set_title(title, fontsize=10.5, loc='left', color=INK)
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=8.5, colors=INK)
