"""Draws the picture of the documentation's first page, from what three commands wrote.

torchgeo-explora embed SCENE --weights dinov2_vits14.safetensors --pca 3 --rgb --out embeddings
torchgeo-explora predict SCENE --model model.safetensors --overlap 0.5 --uncertainty entropy --out maps
python tests/benchmarks/landing.py SCENE embeddings maps docs/pictures/landing.jpg
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.axes import Axes
from numpy.typing import NDArray


def picture(path: Path) -> NDArray[np.uint8]:
    """Red, green and blue of a raster, white where it has no data (height, width, 3)."""
    with rasterio.open(path) as file:
        values = file.read([1, 2, 3])
        return np.where(file.dataset_mask()[..., None] > 0, np.moveaxis(values, 0, -1), 255)


def layer(path: Path) -> np.ma.MaskedArray[tuple[int, ...], np.dtype[np.generic]]:
    """The first band of a raster, masked where it has no data (height, width)."""
    with rasterio.open(path) as file:
        return np.ma.MaskedArray(file.read(1), mask=file.read_masks(1) == 0)


def show(axis: Axes, values: NDArray[np.generic], title: str, **options: object) -> None:
    axis.imshow(values, **options)  # type: ignore[arg-type]
    axis.set_title(title, fontsize=11, loc='left')
    axis.axis('off')


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('scene', type=Path)
    parser.add_argument('embeddings', type=Path, help='folder of `embed --rgb`')
    parser.add_argument('maps', type=Path, help='folder of `predict --uncertainty entropy`')
    parser.add_argument('out', type=Path)
    args = parser.parse_args()
    stem, scene = args.scene.stem, picture(args.scene)
    classes = layer(args.maps / f'{stem}_pred.tif')
    figure, axes = plt.subplots(2, 2, figsize=(11, 6), layout='constrained')
    show(axes[0, 0], scene, 'A drone image')
    show(axes[0, 1], picture(args.embeddings / f'{stem}_rgb.tif'), 'What DINOv2 sees: embed')
    show(axes[1, 0], scene, 'Roofs, learned from polygons: predict')
    axes[1, 0].contour(classes.filled(0) == 1, levels=[0.5], colors='yellow', linewidths=1.4)
    entropy = layer(args.maps / f'{stem}_uncertainty.tif')
    show(axes[1, 1], entropy, 'Where it is unsure: entropy', cmap='magma', vmin=0, vmax=1)
    figure.savefig(args.out, dpi=110, pil_kwargs={'quality': 80, 'optimize': True})
    print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
