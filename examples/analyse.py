"""Measure block by block what a model knows of its patches, and compare it with another.

    python examples/analyse.py                       # scenes that it draws itself, tiny models
    python examples/analyse.py --images labelled/ --model vit_small_patch14_dinov2 \
        --image-size 112 --weights dinov2_vits14.safetensors --other run1/explora.safetensors

`torchgeo-explora analyse` does the same, and writes one page with everything.
"""

import argparse
from pathlib import Path

import torch

from torchgeo_explora._figures import save_png
from torchgeo_explora.analysis import AnalysisConfig, TokenProbeConfig, cka_matrix, measure_model
from torchgeo_explora.analysis.plots import eigenvalue_curves, position_curves
from torchgeo_explora.datasets import ImageFolder, SyntheticScenes
from torchgeo_explora.models import create_backbone
from torchgeo_explora.transforms import EvalTransform

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--images', type=Path, help='folder of images, in class folders or not')
parser.add_argument('--model', default='test_vit', help="timm name; test_vit is timm's toy")
parser.add_argument('--weights', help='file of weights; random ones without')
parser.add_argument('--other', help='another file, for instance the adapted weights')
parser.add_argument('--image-size', type=int, default=64)
parser.add_argument('--out', type=Path, default=Path('output/examples/analyse'))
args = parser.parse_args()

config = AnalysisConfig()
if args.images is None:
    images = SyntheticScenes(40, size=64)
    config = AnalysisConfig(leading=4, tokens=500, probe=TokenProbeConfig(steps=30))
else:
    images = ImageFolder(args.images, image_size=args.image_size, mode='rgb')

sides = {'one': (args.weights, 0), 'other': (args.other, 1)}
transform = EvalTransform(args.image_size)
measures = {}
for name, (weights, seed) in sides.items():
    model, report = create_backbone(args.model, weights, seed=seed)
    print(f'{name}: {report.summary()}')
    measures[name] = measure_model(model.eval(), images, transform, config)

for name, found in measures.items():
    rank = ' '.join(f'{value:6.1f}' for value in found.patch_rank)
    position = ' '.join(f'{100 * value:5.1f}%' for value in found.position_accuracy)
    print(f'{name:>6} rank of patches, by block:  {rank}')
    print(f'{name:>6} position told from a patch:  {position}')
    if found.class_accuracy is not None:
        accuracy = ' '.join(f'{100 * value:5.1f}%' for value in found.class_accuracy)
        print(f'{name:>6} class told from a patch:     {accuracy}')

# How alike the same blocks of the two are: 1 where one is a rotation of the other.
alike = cka_matrix(*([torch.as_tensor(part) for part in side.sample] for side in measures.values()))
print('  CKA of the same blocks:        ', ' '.join(f'{value:.2f} ' for value in alike.diagonal()))

for name, draw in (('eigenvalues', eigenvalue_curves), ('position', position_curves)):
    print(f'Wrote {save_png(draw(measures), args.out / f"{name}.png")}')
