"""Adapt a vision transformer to windows of your own GeoTIFFs, without labels.

    python examples/adapt_geotiffs.py                # rasters that it draws itself, a tiny model
    python examples/adapt_geotiffs.py --rasters imagery/ --bands 3 2 1 --image-size 112 \
        --model vit_small_patch14_dinov2 --weights dinov2_vits14.safetensors --steps 900

Windows are drawn evenly over files and area, away from pixels without data; values are scaled by
percentiles of each band, measured once. `torchgeo-explora adapt imagery/` does all of it, and
reports what changed.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
from lightning.pytorch import Trainer, seed_everything
from rasterio.transform import from_origin

from torchgeo_explora.datamodules import GeoTIFFDataModule
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.models import read_input
from torchgeo_explora.tasks import ExPLoRADINOv2

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--rasters', type=Path, nargs='+', help='files and folders; some are drawn')
parser.add_argument('--bands', type=int, nargs='+', help='1-based bands to read; all without')
parser.add_argument('--model', default='test_vit', help="timm name; test_vit is timm's toy")
parser.add_argument('--weights', help='file of weights to start from; random ones without')
parser.add_argument('--out', type=Path, default=Path('output/examples/adapt_geotiffs'))
parser.add_argument('--steps', type=int, default=4)
parser.add_argument('--image-size', type=int, default=48, help='side of the windows in pixels')
args = parser.parse_args()
seed_everything(0)

rasters = args.rasters
toy = {}
if rasters is None:  # two scenes of 16 bits, one with a corner without data
    rasters = [args.out / 'rasters']
    rasters[0].mkdir(parents=True, exist_ok=True)
    scenes = SyntheticScenes(2, domain='target', size=192).images.numpy()
    for number, scene in enumerate(scenes):
        values = scene.astype(np.uint16) * 20 + 100
        values[:, : 60 * number, : 60 * number] = 0
        place = from_origin(5e5, 5e6 - 2000 * number, 10, 10)
        profile = {'count': 3, 'height': 192, 'width': 192, 'dtype': 'uint16', 'nodata': 0}
        with rasterio.open(
            rasters[0] / f'{number}.tif', 'w', crs='EPSG:32632', transform=place, **profile
        ) as file:
            file.write(values)
    toy = {
        'global_size': 32, 'local_size': 16, 'n_local': 2, 'prototypes': 64, 'hidden_dim': 64,
    }  # fmt: skip

data = GeoTIFFDataModule(
    rasters, image_size=args.image_size, batch_size=8, bands=args.bands, min_valid=0.9
)
data.setup('fit')
measured = data.train_dataset.statistics
for band, (low, high) in zip(data.bands, data.scale, strict=True):
    print(f'band {band}: {low:g} becomes 0, {high:g} becomes 1')

# Three bands are taken for red, green and blue; others have no hue, and their embedding trains.
task = ExPLoRADINOv2(
    args.model,
    args.weights,
    preset='small',
    in_channels=len(data.bands),
    mean=measured.mean,
    std=measured.std,
    steps=args.steps,
    **toy,
)
trainer = Trainer(
    accelerator='auto',
    devices=1,
    max_epochs=-1,  # the task knows its steps
    logger=False,
    enable_checkpointing=False,
    default_root_dir=args.out,
)
trainer.fit(task, data)

# The scaling is stored with the weights, for `embed` and for everything else that reads rasters.
inputs = read_input(args.out / 'explora.safetensors')
print(f'{args.out / "explora.safetensors"}: bands {inputs.bands}, scale {inputs.scale}')
