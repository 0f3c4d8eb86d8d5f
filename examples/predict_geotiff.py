"""Map a GeoTIFF of any size with a fitted model, and look at the result as numbers.

    python examples/predict_geotiff.py               # a raster that it draws, an untrained model
    python examples/predict_geotiff.py --raster scene.tif --model model.safetensors

`torchgeo-explora predict scene.tif --model model.safetensors --out maps` does the same.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

from torchgeo_explora.inference import PredictSettings, Tally, predict_rasters
from torchgeo_explora.models import (
    ModelSpec,
    build_classifier,
    create_backbone,
    load_model,
    save_model,
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--raster', type=Path, help='raster to map; one is drawn without')
parser.add_argument('--model', type=Path, help='model.safetensors of a fine-tuning')
parser.add_argument('--out', type=Path, default=Path('output/examples/predict_geotiff'))
args = parser.parse_args()

raster, path = args.raster, args.model
args.out.mkdir(parents=True, exist_ok=True)
if raster is None:
    raster = args.out / 'scene.tif'
    values = np.random.default_rng(0).integers(1, 255, (3, 200, 300), dtype=np.uint8)
    values[:, :, :40] = 0  # no data
    profile = {'count': 3, 'height': 200, 'width': 300, 'dtype': 'uint8', 'nodata': 0}
    place = from_origin(5e5, 5e6, 10, 10)
    with rasterio.open(raster, 'w', crs='EPSG:32632', transform=place, **profile) as file:
        file.write(values)
if path is None:  # what a fine-tuning would write; this one has learnt nothing
    backbone, _ = create_backbone('test_vit', seed=0)
    classes = ('field', 'forest', 'water')
    spec = ModelSpec(
        'classification', 'test_vit', classes, ('red', 'green', 'blue'), (0.5,) * 3, (0.5,) * 3,
        scale=((0, 255),) * 3, image_size=32,
    )  # fmt: skip
    head = torch.Generator().manual_seed(0)
    path = save_model(
        build_classifier(backbone, 3, 'avg', head), spec, args.out / 'model.safetensors'
    )


def show(tally: Tally) -> None:
    """Print how far the work is."""
    print(f'{tally.pixels:,} of {tally.total:,} pixels', flush=True)


model, spec = load_model(path)
print(f'{spec.task} of {", ".join(spec.classes)} from {", ".join(spec.bands)}')
maps = args.out / 'maps'
shutil.rmtree(maps, ignore_errors=True)  # a run in a folder that has one asks for resume=True
settings = PredictSettings(probabilities=True, uncertainty=('entropy',))
device = 'cuda' if torch.cuda.is_available() else 'cpu'
summary = predict_rasters([raster], model, spec, maps, settings, device=device, progress=show)
for failed, reason in summary.failed.items():
    print(f'{failed} failed: {reason}')

# Probabilities and classes are rasters like any other, on the grid of the input.
with rasterio.open(maps / f'{raster.stem}_pred.tif') as found, rasterio.open(raster) as scene:
    assert (found.crs, found.transform, found.shape) == (scene.crs, scene.transform, scene.shape)
    predicted = found.read(1)
    for value, name in enumerate(spec.classes):
        print(f'{name:>10}: {100 * np.mean(predicted == value):.1f} % of the raster')
    print(f'   no data: {100 * np.mean(predicted == found.nodata):.1f} %')
