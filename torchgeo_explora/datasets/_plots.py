"""Figures of samples, as TorchGeo's data sets draw them."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor
from torchgeo.datasets import RGBBandsMissingError

from ._bands import canonical_band

_COMPOSITES = {
    'true colour': ('B4', 'B3', 'B2'),
    'near infrared, red, green': ('B8', 'B4', 'B3'),
    'SWIR, near infrared, red': ('B12', 'B8', 'B4'),
}


def composites(bands: Sequence[str]) -> dict[str, list[int]]:
    """Pictures that can be made of some bands.

    Args:
        bands: Names of the channels; ``('red', 'green', 'blue')`` or Sentinel-2's.

    Returns:
        Positions of the three channels by the picture's name.

    Raises:
        RGBBandsMissingError: If true colour is not among them.
    """
    names = [canonical_band(name) for name in bands]
    if names[:3] == ['red', 'green', 'blue']:
        return {'true colour': [0, 1, 2]}
    found = {
        title: [names.index(name) for name in triple]
        for title, triple in _COMPOSITES.items()
        if set(triple) <= set(names)
    }
    if 'true colour' not in found:
        raise RGBBandsMissingError
    return found


def plot_sample(
    sample: dict[str, Tensor],
    bands: Sequence[str],
    classes: Sequence[str],
    show_titles: bool,
    suptitle: str | None,
    rows: Sequence[str] | None = None,
) -> Figure:
    """Draw the composites of a sample side by side, one row for each date.

    Args:
        sample: ``image``, (C, H, W) or (T, C, H, W) in [0, 1], ``label``, and ``prediction`` or not.
        bands: Names of the channels.
        classes: Names of the classes.
        show_titles: Whether to write titles.
        suptitle: Title of the figure.
        rows: Titles of the dates.

    Returns:
        A figure.
    """
    image = sample['image'].float().clamp(0, 1)
    dates = image[None] if image.ndim == 3 else image
    columns = composites(bands)
    wide = len(columns) == 1 and len(dates) > 1  # dates of one composite lie side by side
    grid = (1, len(dates)) if wide else (len(dates), len(columns))
    figure, axes = plt.subplots(
        *grid, figsize=(4 * grid[1], 4 * grid[0] + 0.5), squeeze=False, layout='constrained'
    )
    panels = [(date, title) for date in range(len(dates)) for title in columns]
    for axis, (date, title) in zip(axes.flat, panels, strict=True):
        axis.imshow(dates[date][columns[title]].permute(1, 2, 0).numpy(), interpolation='nearest')
        axis.axis('off')
        if show_titles:
            axis.set_title(title if rows is None else rows[date])
    heading = suptitle if suptitle is not None else _caption(sample, classes, show_titles)
    if heading:
        figure.suptitle(heading)
    return figure


def _caption(sample: dict[str, Tensor], classes: Sequence[str], show_titles: bool) -> str:
    if not show_titles or 'label' not in sample:
        return ''
    caption = f'Label: {classes[int(sample["label"])]}'
    if 'prediction' in sample:
        caption += f'\nPrediction: {classes[int(sample["prediction"])]}'
    return caption
