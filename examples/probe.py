"""Score a frozen model on labelled images: nearest neighbours, linear probe, logistic regression.

    python examples/probe.py                         # scenes that it draws itself, a tiny model
    python examples/probe.py --train train/ --test test/ --image-size 112 \
        --model vit_small_patch14_dinov2 --weights run1/explora.safetensors

Run it with the original weights and with the adapted ones, on the same images, and keep the better.
`torchgeo-explora probe` does the same.
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from torchgeo_explora.datasets import ImageFolder, SyntheticScenes
from torchgeo_explora.models import create_backbone, read_input
from torchgeo_explora.objectives.probing import (
    LinearProbeConfig,
    extract_features,
    knn,
    linear_probe,
    logistic_regression,
)
from torchgeo_explora.transforms import EvalTransform

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--train', type=Path, help='folder with a sub-folder a class')
parser.add_argument('--test', type=Path, help='another one with the same classes')
parser.add_argument('--model', default='test_vit', help="timm name; test_vit is timm's toy")
parser.add_argument('--weights', help='file of weights; random ones without')
parser.add_argument('--image-size', type=int, default=48)
parser.add_argument('--iterations', type=int, default=100, help='of the linear probe; paper: 12500')
args = parser.parse_args()
if (args.train is None) != (args.test is None):
    parser.error('give --train and --test, or neither')

if args.train is None:
    train, test = (SyntheticScenes(160, 'target', size=48, seed=seed) for seed in (1, 2))
else:
    train, test = (
        ImageFolder(root, image_size=args.image_size, mode='rgb')
        for root in (args.train, args.test)
    )
    if train.classes != test.classes:
        raise SystemExit(f'The classes differ: {train.classes} and {test.classes}.')

device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
model, report = create_backbone(args.model, args.weights, seed=0)
print(report.summary())
transform = EvalTransform(args.image_size)
if args.weights is not None:  # the mean and standard deviation that the weights expect
    inputs = read_input(args.weights, args.model)
    transform = EvalTransform(args.image_size, inputs.mean, inputs.std)

# Class tokens of the last blocks and mean patch tokens, extracted once.
blocks = min(4, len(model.blocks))
reference, scored = (
    extract_features(
        model, DataLoader(part, batch_size=64), transform.to(device), blocks, device=device
    )
    for part in (train, test)
)
neighbours = knn(reference, scored, device=device)
for k, accuracy in neighbours.accuracy.items():
    print(f'{k:3} neighbours: {100 * accuracy:.1f} %')
if neighbours.note is not None:
    print(neighbours.note)

config = LinearProbeConfig(blocks=(1, blocks), iterations=args.iterations)
probe = linear_probe(reference, scored, config=config, device=device)
print(f'linear probe, best of {len(probe.scores)}: {100 * probe.best.accuracy:.1f} %')
logistic = logistic_regression(reference, scored, device=device)
print(f'logistic regression: {100 * logistic.accuracy:.1f} %')
error = 100 * (logistic.accuracy * (1 - logistic.accuracy) / len(scored)) ** 0.5
print(f'One standard error, from the number of images that are scored: {error:.1f} points')
