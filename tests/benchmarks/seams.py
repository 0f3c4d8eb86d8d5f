"""Show a map where windows meet, for several overlaps, and measure what can be seen there.

Run by hand: ``python -m tests.benchmarks.seams SCENE MODEL --out seams.png --bands 5 3 2``. Every panel
is the probability of the last class around one place, best on the border of windows without overlap,
enlarged without smoothing. Below it stands how much neighbouring pixels differ across the borders of
the map's own windows, as a multiple of the difference elsewhere: 1 where borders do not show.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import rasterio
from numpy.typing import NDArray

mpl.use('Agg')

import matplotlib.pyplot as plt

from torchgeo_explora.inference import PredictSettings, predict_rasters
from torchgeo_explora.inference.windows import overlapping_windows
from torchgeo_explora.models import load_model

ZOOM = 8
DPI = 100

type Map = NDArray[np.float32]


def probabilities(scene: Path, model: Path, bands: list[int] | None, overlap: float) -> Map:
    """Map the last class.

    Args:
        scene: The raster.
        model: File of a fitted segmentation model.
        bands: 1-based; None to find them.
        overlap: Of the windows.

    Returns:
        (height, width).
    """
    network, spec = load_model(model)
    chosen = None if bands is None else tuple(bands)
    settings = PredictSettings(overlap=overlap, probabilities=True, bands=chosen, force=True)
    with tempfile.TemporaryDirectory() as folder:
        summary = predict_rasters([scene], network, spec, folder, settings)
        assert not summary.failed, summary.failed
        with rasterio.open(Path(folder, f'{scene.stem}_probabilities.tif')) as source:
            values: Map = source.read(source.count)
    return values


def seam_contrast(values: Map, size: int, overlap: float) -> float:
    """Return the difference across borders of windows, as a multiple of that elsewhere.

    Args:
        values: (height, width).
        size: Side of the windows.
        overlap: Of the windows, as a fraction.
    """
    across, elsewhere = [], []
    for axis, length in enumerate(values.shape):
        jumps = np.abs(np.diff(values, axis=axis))
        spans = overlapping_windows(length, size, round(overlap * size)).spans
        ends = {end for span in spans for end in (span.output.first, span.output.stop)}
        borders = np.isin(np.arange(1, length), sorted(ends))
        across.append(np.compress(borders, jumps, axis=axis).ravel())
        elsewhere.append(np.compress(~borders, jumps, axis=axis).ravel())
    return float(np.nanmean(np.concatenate(across)) / np.nanmean(np.concatenate(elsewhere)))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('scene', type=Path)
    parser.add_argument('model', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--bands', type=int, nargs='+')
    parser.add_argument('--overlaps', type=float, nargs='+', default=[0.0, 0.25, 0.5])
    parser.add_argument('--side', type=int, default=48, help='pixels of the raster that are shown')
    parser.add_argument('--corner', type=int, nargs=2, help='row and column that are shown')
    args = parser.parse_args()
    size = load_model(args.model)[1].image_size
    row, column = (size, size) if args.corner is None else args.corner
    half = args.side // 2
    part = np.s_[row - half : row + half, column - half : column + half]
    width = args.side * ZOOM / DPI
    figure, axes = plt.subplots(
        1, len(args.overlaps), figsize=(width * len(args.overlaps) + 0.2, width + 0.6), dpi=DPI
    )
    for axis, overlap in zip(np.atleast_1d(axes), args.overlaps, strict=True):
        values = probabilities(args.scene, args.model, args.bands, overlap)
        contrast = seam_contrast(values, size, overlap)
        print(f'overlap {overlap:g}: difference across borders {contrast:.2f} x elsewhere')
        axis.imshow(values[part], cmap='viridis', vmin=0, vmax=1, interpolation='nearest')
        axis.set_title(f'overlap {overlap:g}')
        axis.set_xlabel(f'across borders: {contrast:.2f} x elsewhere')
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(args.out)


if __name__ == '__main__':
    main()
