"""Turn a raster into embeddings of its patches, a picture of them, and a map of similar places.

    python examples/embed_geotiff.py                 # a raster that it draws itself, a tiny model
    python examples/embed_geotiff.py --raster scene.tif --like 400250 4500100 \
        --model vit_small_patch14_dinov2 --weights run1/explora.safetensors

`torchgeo-explora embed` and `torchgeo-explora similar` do the same.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.inference import EmbedSettings, SimilarSettings, embed_rasters, find_similar
from torchgeo_explora.models import InputSpec, create_backbone, read_input, save_backbone

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--raster', type=Path, help='raster to embed; one is drawn without')
parser.add_argument('--model', default='test_vit', help="timm name; test_vit is timm's toy")
parser.add_argument('--weights', type=Path, help='file of weights; random ones without')
parser.add_argument('--like', type=float, nargs=2, metavar=('X', 'Y'), help='place to find again')
parser.add_argument('--out', type=Path, default=Path('output/examples/embed_geotiff'))
args = parser.parse_args()

raster, like, weights = args.raster, args.like, args.weights
args.out.mkdir(parents=True, exist_ok=True)
if raster is None:  # eight scenes of different kinds, side by side
    raster = args.out / 'scene.tif'
    values = np.concatenate(list(SyntheticScenes(8, size=64).images.numpy()), axis=2)
    profile = {'count': 3, 'height': 64, 'width': 512, 'dtype': 'uint8'}
    with rasterio.open(
        raster, 'w', crs='EPSG:32632', transform=from_origin(5e5, 5e6, 10, 10), **profile
    ) as file:
        file.write(values)
with rasterio.open(raster) as file:
    crs = file.crs.to_string()
    like = file.xy(file.height // 2, file.width // 2) if like is None else like
if weights is None:
    spec = InputSpec(
        ('red', 'green', 'blue'), (0.5,) * 3, (0.5,) * 3, ((0, 255),) * 3, image_size=64
    )  # fmt: skip
    random, _ = create_backbone(args.model, seed=0)
    texts = {'base': args.model, **spec.texts()}
    weights = save_backbone(random, args.out / 'random.safetensors', texts)

# What the model expects of an image comes with its weights.
inputs = read_input(weights, args.model)
print(f'{inputs.source}: {", ".join(inputs.bands)}, {inputs.image_size} pixels')
backbone, report = create_backbone(args.model, weights, img_size=inputs.image_size)
embeddings, places = args.out / 'embeddings', args.out / 'similar'
for folder in (embeddings, places):
    shutil.rmtree(folder, ignore_errors=True)

settings = EmbedSettings(rgb=True)  # half of each window overlaps the next, so that none shows
summary = embed_rasters([raster], backbone, inputs, embeddings, settings, name=args.model)
for path in summary.written[str(raster)]:
    print(f'Wrote {path}')
with rasterio.open(embeddings / f'{raster.stem}_embedding.tif') as file:
    print(f'{file.count} numbers for each of {file.height} x {file.width} patches')

# A place may also be a vector file of points or polygons.
wanted = SimilarSettings(like=(f'{like[0]},{like[1]},{crs}',), top=3)
found = find_similar([embeddings], places, wanted)
for path in sorted(places.glob('*.*')):
    print(f'Wrote {path}')
