"""Embeddings of a raster with several windows: whether windows show, and what types cost.

    python -m tests.benchmarks.embeddings raster.tif --weights dinov2_vits14.safetensors --out e.png

Prints, for each overlap and window, how much further apart neighbouring patches are (cosine
distance) where windows begin or end than elsewhere; then size and error of each type of numbers.
Draws the raster and its principal components, of one basis a setting.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from torchgeo_explora.cli.backbones import open_backbone
from torchgeo_explora.inference import EmbedSettings, embed_rasters
from torchgeo_explora.inference.embedder import patch_side
from torchgeo_explora.inference.windows import aligned_windows

SETTINGS = ((224, 0.0), (224, 0.25), (224, 0.5), (518, 0.5))
WIDTH, GAP, TITLE = 380, 6, 18


def read(path: Path) -> NDArray[np.float32]:
    """Values as they are, decoded: (bands, height, width), NaN without data."""
    with rasterio.open(path) as source:
        stored = source.read().astype(np.float64)
        scales, offsets = (np.array(x)[:, None, None] for x in (source.scales, source.offsets))
        values = np.where(stored == source.nodata, np.nan, stored * scales + offsets)
    return values.astype(np.float32)


def borders(length: int, size: int, overlap: int, patch: int) -> set[int]:
    """Patches that a window begins or ends before, along one axis."""
    spans = aligned_windows(length, size, overlap, patch).spans
    ends = {span.start + size for span in spans} | {span.start for span in spans}
    return {end // patch for end in ends if 0 < end < length}


def steps(values: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    """Mean cosine distance from each row (or column) of patches to the one before."""
    unit = np.moveaxis(values, axis, 1).astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=0)
    return np.nanmean(1 - (unit[:, 1:] * unit[:, :-1]).sum(0), axis=1)


def seam(
    values: NDArray[np.float32], shape: tuple[int, int], size: int, overlap: int, patch: int
) -> float:
    """Distance at windows' borders over that elsewhere; 1 where nothing shows."""
    at: list[float] = []
    off: list[float] = []
    for axis, length in ((1, shape[0]), (2, shape[1])):
        edge = borders(length, size, overlap, patch)
        for number, distance in enumerate(steps(values, axis), start=1):
            (at if number in edge else off).append(float(distance))
    return float(np.mean(at) / np.mean(off)) if at else 1.0


def picture(path: Path, factor: float, size: tuple[int, int]) -> Image.Image:
    """A raster of patches, enlarged as the raster itself is."""
    with rasterio.open(path) as source:
        colors = np.moveaxis(source.read([1, 2, 3]), 0, -1)
    image = Image.fromarray(colors)
    wide = (round(image.width * factor), round(image.height * factor))
    return image.resize(wide, Image.Resampling.NEAREST).crop((0, 0, *size))


def panels(parts: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side, three a row, under their titles."""
    width, height = parts[0][1].size
    rows = -(-len(parts) // 3)
    sheet = Image.new('RGB', (3 * (width + GAP), rows * (height + TITLE + GAP)), 'white')
    for number, (title, image) in enumerate(parts):
        left, top = number % 3 * (width + GAP), number // 3 * (height + TITLE + GAP)
        ImageDraw.Draw(sheet).text((left + 2, top + 3), title, fill='black')
        sheet.paste(image, (left, top + TITLE))
    return sheet


def types(raster: Path, model: Any, folder: Path) -> Iterator[str]:  # noqa: ANN401
    """Size and error of each type."""
    exact: NDArray[np.float32] | None = None
    for dtype in ('float32', 'float16', 'int8'):
        how = EmbedSettings(window=224, dtype=dtype)
        embed_rasters([raster], model.model, model.inputs, folder / dtype, how)
        path = folder / dtype / f'{raster.stem}_embedding.tif'
        values = read(path)
        exact = values if exact is None else exact
        a, b = (torch.from_numpy(x.reshape(len(x), -1)).double() for x in (values, exact))
        cosine = torch.cosine_similarity(a, b, dim=0)
        cosine = cosine[~cosine.isnan()]
        yield (
            f'{dtype}: {path.stat().st_size / 1e6:.2f} MB, largest error {np.nanmax(abs(values - exact)):.2g}, '
            f'least cosine with float32 {float(cosine.min()):.6f}'
        )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('raster', type=Path)
    parser.add_argument('--weights', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    model = open_backbone('model', args.weights, None)
    patch = patch_side(model.model)
    with rasterio.open(args.raster) as source:
        shape, colors = source.shape, np.moveaxis(source.read([1, 2, 3]), 0, -1)
    factor = WIDTH / shape[1]
    size = (WIDTH, round(shape[0] * factor))
    parts = [(args.raster.name, Image.fromarray(colors).resize(size))]
    with tempfile.TemporaryDirectory() as folder:
        for window, overlap in SETTINGS:
            out = Path(folder, f'{window}-{overlap}')
            how = EmbedSettings(window=window, overlap=overlap, dtype='float32', rgb=True, batch=4)
            embed_rasters([args.raster], model.model, model.inputs, out, how)
            values = read(out / f'{args.raster.stem}_embedding.tif')
            pixels = round(overlap * window / patch) * patch
            ratio = seam(values, shape, window, pixels, patch)
            title = f'windows of {window}, overlap {overlap:g}'
            print(f"{title}: distance at windows' borders {ratio:.2f} times that elsewhere")
            parts.append(
                (title, picture(out / f'{args.raster.stem}_rgb.tif', patch * factor, size))
            )
        for line in types(args.raster, model, Path(folder)):
            print(line)
    panels(parts).save(args.out, optimize=True)


if __name__ == '__main__':
    torch.set_num_threads(1)
    main()
