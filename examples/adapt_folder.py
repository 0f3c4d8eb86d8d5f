"""Adapt a vision transformer to a folder of images, without labels (D-ExPLoRA).

    python examples/adapt_folder.py                  # scenes that it draws itself, a tiny model
    python examples/adapt_folder.py --images photos/ --model vit_small_patch14_dinov2 \
        --weights dinov2_vits14.safetensors --epochs 12 --batch-size 64

The command `torchgeo-explora adapt` does this and scores the model before and after; use this
script where you want to change what happens in between.
"""

import argparse
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything

from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.models import create_backbone
from torchgeo_explora.tasks import CollapseGuard, ExPLoRADINOv2, FeatureHealth

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--images', type=Path, help='folder of images; scenes are drawn without one')
parser.add_argument('--model', default='test_vit', help="timm name; test_vit is timm's toy")
parser.add_argument('--weights', help='file of weights to start from; random ones without')
parser.add_argument('--out', type=Path, default=Path('output/examples/adapt_folder'))
parser.add_argument('--epochs', type=int, default=1)
parser.add_argument('--batch-size', type=int, default=8)
parser.add_argument('--image-size', type=int, default=48, help='side of the images when read')
args = parser.parse_args()
seed_everything(0)

images = args.images
if images is None:
    images = args.out / 'scenes'
    if not images.exists():
        SyntheticScenes(48, domain='target', size=48).write_scenes(images)

# Sizes of a toy run: two small crops of every image, few prototypes.
toy = {} if args.images is not None else {
    'global_size': 32, 'local_size': 16, 'n_local': 2, 'prototypes': 64, 'hidden_dim': 64,
}  # fmt: skip
task = ExPLoRADINOv2(args.model, args.weights, preset='small', **toy)
data = FolderDataModule(
    images, image_size=args.image_size, batch_size=args.batch_size, with_labels=False
)
trainer = Trainer(
    accelerator='auto',
    devices=1,
    max_epochs=args.epochs,
    logger=False,
    enable_checkpointing=False,
    default_root_dir=args.out,
    # the guard ends a run whose features collapse, and no weights are exported then
    callbacks=[FeatureHealth(every_n_steps=20, networks=['student']), CollapseGuard()],
)
trainer.fit(task, data)

# The result is a plain timm checkpoint with merged weights.
merged = args.out / 'explora.safetensors'
if task.collapse_reason is not None:
    raise SystemExit(task.collapse_reason)
model, report = create_backbone(args.model, merged)
print(report.summary())
print(f'{sum(p.numel() for p in model.parameters()):,} weights in {merged}')
