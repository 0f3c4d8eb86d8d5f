"""Adapt to multi-spectral GeoTIFFs by masked autoencoding, in groups of bands (M-ExPLoRA).

    python examples/multispectral_mae.py             # rasters that it draws itself, a small model
    python examples/multispectral_mae.py --images geotiffs/ --epochs 50 --image-size 96 \
        --model explora_group_channel_vit_base_patch8_96 --weights mae_visualize_vit_base.pth

The bands below are those of the files, in their order; change them and the groups for a sensor of
your own.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
import timm
from lightning.pytorch import Trainer, seed_everything
from rasterio.transform import from_origin

from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.models import GroupChannelViT, create_backbone
from torchgeo_explora.tasks import ExPLoRAMAE, LossCurve, Reconstructions

BANDS = ['blue', 'green', 'red', 'nir', 'swir1', 'swir2']
GROUPS = {'visible': ['blue', 'green', 'red'], 'infrared': ['nir', 'swir1', 'swir2']}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--images', type=Path, help='folder of GeoTIFFs; some are drawn without one')
parser.add_argument('--model', default='explora_group_channel_vit_small_patch8_96')
parser.add_argument('--weights', help='file of weights to start from; random ones without')
parser.add_argument('--out', type=Path, default=Path('output/examples/multispectral_mae'))
parser.add_argument('--epochs', type=int, default=1)
parser.add_argument('--batch-size', type=int, default=8)
parser.add_argument('--image-size', type=int, default=32)
args = parser.parse_args()
seed_everything(0)

images = args.images
if images is None:  # fields of vegetation, soil and water: surfaces that the bands tell apart
    images = args.out / 'geotiffs'
    images.mkdir(parents=True, exist_ok=True)
    spectra = np.array(
        [[300, 500, 400, 4000, 2000, 900], [900, 1200, 1600, 2400, 3100, 2700],
         [600, 500, 350, 150, 80, 50]], np.float32,
    )  # fmt: skip
    for number in range(10):
        rng = np.random.default_rng(number)
        kinds = np.kron(rng.integers(0, 3, (4, 4)), np.ones((8, 8), int))
        values = spectra[kinds].transpose(2, 0, 1) * rng.uniform(0.8, 1.2, (6, 32, 32))
        place = from_origin(5e5 + 320 * number, 5e6, 10, 10)
        profile = {'count': 6, 'height': 32, 'width': 32, 'dtype': 'uint16'}
        with rasterio.open(
            images / f'{number:03}.tif', 'w', crs='EPSG:32632', transform=place, **profile
        ) as file:
            file.write(values.astype(np.uint16))

data = FolderDataModule(
    images,
    image_size=args.image_size,
    batch_size=args.batch_size,
    band_names=BANDS,
    bands=BANDS,
    with_labels=False,
    unlabelled_val=True,
)
toy = {} if args.images is not None else {
    'decoder_width': 64, 'decoder_depth': 1, 'decoder_heads': 4,
}  # fmt: skip
task = ExPLoRAMAE(
    args.model,
    args.weights,
    preset='small',
    bands=BANDS,
    groups=GROUPS,
    mean=[0.5] * len(BANDS),
    std=[0.25] * len(BANDS),
    image_size=args.image_size,
    **toy,
)
trainer = Trainer(
    accelerator='auto',
    devices=1,
    max_epochs=args.epochs,
    logger=False,
    enable_checkpointing=False,
    default_root_dir=args.out,
    callbacks=[
        LossCurve(),
        Reconstructions(images=2, composites={'false colour': ['nir', 'red', 'green']}),
    ],
)
trainer.fit(task, data)

model, report = create_backbone(args.model, args.out / 'explora.safetensors')
assert isinstance(model, GroupChannelViT) and timm.is_model(args.model)
print(report.summary())
print(f'groups of bands: {model.channel_groups}; pictures in {args.out / "reconstructions"}')
