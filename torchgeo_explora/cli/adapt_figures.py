"""Figures of the report of a run: what was seen, the values of its bands, and the way there."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from torchgeo_explora._figures import LINE, new_figure, tidy
from torchgeo_explora.cli.adapt_study import picture
from torchgeo_explora.cli.picture import curve, draw_loss
from torchgeo_explora.datamodules._sampler import shuffled
from torchgeo_explora.datasets import GeoTIFFFolder
from torchgeo_explora.datasets._grids import RasterWindow
from torchgeo_explora.datasets._statistics import BandStatistics
from torchgeo_explora.tasks.logger import Metrics

MOST_RASTERS = 6
MOST_WINDOWS = 120
THUMBNAIL = 420
"""Pixels of a side of a raster's picture."""


def windows_seen(images: GeoTIFFFolder, seen: int) -> dict[int, list[RasterWindow]]:
    """List the windows that a run trained on, by raster, in the order of the run.

    Args:
        images: The rasters.
        seen: Number of windows from the beginning of the run.
    """
    found: dict[int, list[RasterWindow]] = defaultdict(list)
    for key in shuffled(len(images), images.seed, 0, seen, keys=True):
        epoch, index = divmod(key, len(images))
        window = images.window(index, epoch)
        found[window.file].append(window)
    return dict(found)


def draw_windows(
    images: GeoTIFFFolder, seen: dict[int, list[RasterWindow]]
) -> list[tuple[Figure, str]]:
    """Draw where windows lie on the rasters that gave the most, with the names of these.

    Args:
        images: The rasters.
        seen: Windows by raster.
    """
    files = sorted(seen, key=lambda file: len(seen[file]), reverse=True)[:MOST_RASTERS]
    figures = []
    for file in files:
        figure = new_figure(4.6, 4.4)
        _draw_raster(figure.add_subplot(), images, file, seen[file])
        figures.append((figure, Path(images.rasters[file].source.path).name))
    return figures


def _draw_raster(
    axes: Axes, images: GeoTIFFFolder, file: int, windows: Sequence[RasterWindow]
) -> None:
    source = images.rasters[file].source
    height, width = source.header.height, source.header.width
    axes.imshow(thumbnail(images, file), extent=(0, width, height, 0), interpolation='nearest')
    chosen = windows[:: max(-(-len(windows) // MOST_WINDOWS), 1)]
    boxes = [Rectangle((w.column, w.row), w.width, w.height) for w in chosen]
    axes.add_collection(
        PatchCollection(boxes, facecolor='none', edgecolor='#ffb000', linewidth=0.6, alpha=0.7)
    )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    tidy(axes, f'{len(windows):,} windows, {len(chosen):,} of them drawn')


def thumbnail(images: GeoTIFFFolder, file: int) -> NDArray[np.float32]:
    """Return a small picture of a raster, transparent where it has no data (h, w, 4).

    Args:
        images: The rasters.
        file: Position of the raster.
    """
    header = images.rasters[file].source.header
    whole = RasterWindow(file, 0, 0, header.height, header.width)
    values = images.read(whole, THUMBNAIL)
    shown = picture(images.finish(values))
    valid = ~np.ma.getmaskarray(values).all(axis=0)
    return np.dstack([shown, valid.astype(np.float32)])


def draw_pictures(pictures: Sequence[NDArray[np.float32]]) -> Figure:
    """Draw some images side by side.

    Args:
        pictures: (h, w, 3) in [0, 1].
    """
    columns = min(len(pictures), 6)
    rows = -(-len(pictures) // columns)
    figure = new_figure(1.7 * columns, 1.7 * rows)
    for place, shown in enumerate(pictures):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(shown, interpolation='nearest')
        axes.set_axis_off()
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.04, hspace=0.04)
    return figure


def draw_histograms(found: BandStatistics) -> Figure:
    """Draw how often each raw value occurs, band by band, with those that become 0 and 1.

    Args:
        found: What was measured.
    """
    count = len(found.bands)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = new_figure(2.9 * columns, 2.0 * rows + 0.3)
    for band, name in enumerate(found.bands):
        axes = figure.add_subplot(rows, columns, band + 1)
        edges = np.linspace(found.low[band], found.high[band], len(found.histogram[band]) + 1)
        total = max(sum(found.histogram[band]), 1)
        axes.stairs(100 * np.asarray(found.histogram[band]) / total, edges, fill=True, color=LINE)
        tidy(axes, name)
        axes.set_yticks([])
        axes.spines['left'].set_visible(False)
        axes.locator_params(axis='x', nbins=4)
    figure.tight_layout()
    return figure


def draw_course(metrics: Metrics) -> list[tuple[Figure, str]]:
    """Draw losses, rank, spread, drift and, where there are labels, neighbours over the run.

    Args:
        metrics: By step and name.

    Returns:
        Figures, and what each shows.
    """
    figures = [(new_figure(4.6, 3.0), 'Losses')]
    draw_loss(figures[0][0].add_subplot(), metrics)
    for name, title, factor in _PANELS:
        columns = _columns(metrics, name)
        if columns:
            figure = new_figure(4.6, 3.0)
            _draw_panel(figure.add_subplot(), metrics, columns, title, factor)
            figures.append((figure, title))
    return figures


def _draw_panel(
    axes: Axes, metrics: Metrics, columns: Sequence[str], title: str, factor: float
) -> None:
    for column in columns:
        steps, values = curve(metrics, column)
        axes.plot(steps, factor * np.array(values), '.-', color=LINE)
    tidy(axes, title)
    axes.set_xlabel('step', fontsize=9)


_PANELS: tuple[tuple[str, str, float], ...] = (
    ('rank', 'Effective rank of the features', 1.0),
    ('spread', 'Spread of the features', 1.0),
    ('drift', 'Drift from the base', 1.0),
    ('knn', 'Nearest neighbours (%)', 100.0),
    ('prototype_usage', 'Use of the prototypes', 1.0),
)


def _columns(metrics: Metrics, name: str) -> list[str]:
    known = {key for row in metrics.values() for key in row}
    return sorted(key for key in known if key == name or key.endswith(f'/{name}'))


def rows_of_rasters(
    images: GeoTIFFFolder, seen: dict[int, list[RasterWindow]], most: int = 50
) -> list[list[Any]]:
    """List the rasters of a run, those that gave most windows first.

    Args:
        images: The rasters.
        seen: Windows by raster.
        most: Rows at most.
    """
    order = sorted(
        range(len(images.rasters)), key=lambda file: len(seen.get(file, [])), reverse=True
    )
    rows = []
    for file in order[:most]:
        source = images.rasters[file].source
        header, pixel = source.header, source.pixel()
        rows.append([
            Path(source.path).name, header.width, header.height, header.dtype,
            'not known' if pixel is None else f'{pixel:.3g} m', len(seen.get(file, [])),
        ])  # fmt: skip
    return rows
