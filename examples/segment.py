"""Segment rasters: train on polygons of a vector file, and map a raster.

    python examples/segment.py                       # a village that it draws itself, a tiny model
    python examples/segment.py --rasters rasters/ --polygons buildings.gpkg --image-size 224 \
        --model vit_small_patch14_dinov2 --weights run1/explora.safetensors --epochs 30

Polygons may lie in any coordinate system. What they do not cover is background.
"""

import argparse
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from lightning.pytorch import Trainer, seed_everything
from rasterio.transform import from_origin

from torchgeo_explora.datamodules import VectorSegmentationDataModule
from torchgeo_explora.inference import PredictSettings, predict_rasters
from torchgeo_explora.models import load_model
from torchgeo_explora.tasks import LoRASemanticSegmentation

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--rasters', type=Path, help='folder of rasters; some are drawn without one')
parser.add_argument('--polygons', type=Path, help='vector file')
parser.add_argument('--model', default='test_vit', help="timm name; test_vit is timm's toy")
parser.add_argument('--weights', help='file of weights to start from; random ones without')
parser.add_argument('--out', type=Path, default=Path('output/examples/segment'))
parser.add_argument('--epochs', type=int, default=2)
parser.add_argument('--image-size', type=int, default=64, help='side of the windows in pixels')
args = parser.parse_args()
if (args.rasters is None) != (args.polygons is None):
    parser.error('give --rasters and --polygons, or neither')
seed_everything(0)

rasters, polygons = args.rasters, args.polygons
if rasters is None:  # red roofs on green
    rasters, polygons, roofs = args.out / 'rasters', args.out / 'roofs.gpkg', []
    rasters.mkdir(parents=True, exist_ok=True)
    for number in range(8):
        rng = np.random.default_rng(number)
        west, north = 5e5 + 128 * number, 5e6
        values = rng.normal([[[90]], [[130]], [[70]]], 12, (3, 128, 128))
        for column, row in rng.integers(4, 100, (6, 2)):
            values[:, row : row + 20, column : column + 20] = [[[180]], [[80]], [[60]]]
            left, top = west + column, north - row
            roofs.append(shapely.box(left, top - 20, left + 20, top))
        profile = {'count': 3, 'height': 128, 'width': 128, 'dtype': 'uint8'}
        place = from_origin(west, north, 1, 1)
        with rasterio.open(
            rasters / f'{number}.tif', 'w', crs='EPSG:32632', transform=place, **profile
        ) as file:
            file.write(values.clip(0, 255).astype(np.uint8))
    frame = geopandas.GeoDataFrame(geometry=roofs, crs='EPSG:32632')
    frame.to_crs('EPSG:4326').to_file(polygons)

data = VectorSegmentationDataModule(
    rasters, polygons, classes=['building'], image_size=args.image_size, batch_size=8
)
options = {'decoder_channels': 32} if args.rasters is None else None
task = LoRASemanticSegmentation(
    args.model, args.weights, decoder='upernet', decoder_options=options, drop_path=0.0
)
trainer = Trainer(
    accelerator='auto',
    devices=1,
    max_epochs=args.epochs,
    logger=False,
    enable_checkpointing=False,
    default_root_dir=args.out,
)
trainer.fit(task, data)
scores = trainer.test(task, data, verbose=False)[0]
print({name: round(value, 3) for name, value in scores.items()})

# Map a raster: windows overlap and are blended, the map has the raster's own grid.
model, spec = load_model(args.out / 'model.safetensors')
scene = sorted(rasters.rglob('*.tif'))[0]
settings = PredictSettings(overlap=0.5, vector=True, min_area=4)
summary = predict_rasters([scene], model, spec, args.out / 'maps', settings, resume=True)
print('\n'.join(path for paths in summary.written.values() for path in paths))
