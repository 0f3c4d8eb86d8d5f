"""Fine-tune a classifier with low-rank updates, test it, and use the file that comes out.

    python examples/finetune.py                      # scenes that it draws itself, a tiny model
    python examples/finetune.py --images labelled/ --image-size 112 --epochs 20 \
        --model vit_small_patch14_dinov2 --weights run1/explora.safetensors

The folder has a sub-folder a class, or `train/` and `test/` with those in them.
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from torchgeo_explora.datamodules import FolderDataModule
from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.models import load_model
from torchgeo_explora.tasks import LoRAClassification

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--images', type=Path, help='labelled folder; scenes are drawn without one')
parser.add_argument('--model', default='test_vit', help="timm name; test_vit is timm's toy")
parser.add_argument('--weights', help='file of weights to start from; random ones without')
parser.add_argument('--out', type=Path, default=Path('output/examples/finetune'))
parser.add_argument('--epochs', type=int, default=2)
parser.add_argument('--batch-size', type=int, default=16)
parser.add_argument('--image-size', type=int, default=32)
args = parser.parse_args()
seed_everything(0)

images = args.images
if images is None:
    images = args.out / 'scenes'
    for part, count, seed in (('train', 96, 1), ('test', 48, 2)):
        if not (images / part).exists():
            SyntheticScenes(count, size=32, seed=seed).write_scenes(images / part)

data = FolderDataModule(images, image_size=args.image_size, batch_size=args.batch_size)
task = LoRAClassification(
    args.model,
    args.weights,
    image_size=args.image_size,
    rank=8,
    base_lr=0.016,
    drop_path=0.1,
    turns=True,  # what is seen from above has no up and down
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

# A confusion matrix, a table of the classes and pictures go to test_report/.
data.setup('test')
if data.test_dataset is not None:
    scores = trainer.test(task, data, verbose=False)[0]
    print(f'accuracy {100 * scores["test_OverallAccuracy"]:.1f} % of the test images')

# One file holds the model whole: merged weights, bands, normalisation and classes.
model, spec = load_model(args.out / 'model.safetensors')
sample = data.val_dataset[0]['image'] if data.val_dataset is not None else torch.rand(3, 32, 32)
with torch.no_grad():
    probabilities = model(sample[None]).softmax(dim=1)[0]
for name, probability in sorted(
    zip(spec.classes, probabilities.tolist(), strict=True), key=lambda pair: -pair[1]
)[:3]:
    print(f'{name:>10} {100 * probability:5.1f} %')
