"""D-ExPLoRA in a plain PyTorch loop, from the building blocks: no Trainer and no TorchGeo.

    python examples/adapt_without_lightning.py       # scenes that it draws itself, a tiny model
    python examples/adapt_without_lightning.py --images images.pt --steps 900 \
        --model vit_small_patch14_dinov2 --weights dinov2_vits14.safetensors

`images.pt` holds one tensor of images (count, 3, height, width), float in [0, 1]. This is the step
of the command `adapt` without its guard, checkpoints and scores; for anything but experiments with
the method itself, the command or `adapt_folder.py` serve better.
"""

import argparse
from pathlib import Path

import torch

from torchgeo_explora.adapters import apply_explora, blend, merge_lora, trained_in_full
from torchgeo_explora.models import create_backbone, save_backbone
from torchgeo_explora.objectives import DINOv2Objective, get_preset, make_schedules
from torchgeo_explora.objectives.steps import (
    clip_gradients,
    make_multicrop,
    make_optimizer,
    micro_batch,
    set_rates,
    step_seed,
)
from torchgeo_explora.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('--images', type=Path, help='file of one tensor; scenes are drawn without one')
parser.add_argument('--model', default='test_vit', help="timm name; test_vit is timm's toy")
parser.add_argument('--weights', help='file of weights to start from; random ones without')
parser.add_argument('--out', type=Path, default=Path('output/examples/adapt_without_lightning'))
parser.add_argument('--steps', type=int, default=8)
parser.add_argument('--batch-size', type=int, default=8)
parser.add_argument('--seed', type=int, default=0)
args = parser.parse_args()

recipe = get_preset('small')
if args.images is None:  # a toy run: small crops, few prototypes
    from torchgeo_explora.datasets import SyntheticScenes

    images = SyntheticScenes(48, domain='target', size=48).images.float() / 255
    recipe = recipe.override(
        global_size=32, local_size=16, n_local=2, prototypes=64, hidden_dim=64
    )  # fmt: skip
else:
    images = torch.load(args.images, weights_only=True)

# The student gets low-rank updates everywhere and trains its last block in full. The teacher shares
# every frozen tensor with it, and is an average of what trains.
device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
generator = torch.Generator().manual_seed(args.seed)
student, report = create_backbone(args.model, args.weights, seed=args.seed)
adapted = apply_explora(student, recipe.adapter, generator)
start = trained_in_full(student)
print(report.summary())
print(adapted.summary())

objective = DINOv2Objective(student, recipe.objective, report.mask_token, generator).to(device)
optimizer = make_optimizer(objective, adapted.unfrozen, recipe.optimization)
schedules = make_schedules(recipe.optimization, args.steps, args.batch_size)
multicrop = make_multicrop(recipe.crops, 3, IMAGENET_MEAN, IMAGENET_STD)

objective.train()
for step in range(args.steps):
    picked = torch.randperm(len(images), generator=generator)[: args.batch_size]
    # all that is random in a step hangs on this number
    seed = step_seed(args.seed, step)
    batch = images[picked].to(device)
    temperature = schedules.teacher_temperature(step)
    losses = micro_batch(objective, multicrop, recipe.crops, batch, seed, temperature)
    losses.total.backward()
    clip_gradients(objective, recipe.optimization.clip)
    set_rates(optimizer, schedules, recipe.optimization, step)
    optimizer.step()
    optimizer.zero_grad()
    objective.update_centers(losses)
    objective.update_teacher(schedules.momentum(step))
    print(f'step {step + 1}/{args.steps}, loss {losses.total.item():.3f}', flush=True)

# What is published lies part of the way from the base, with the updates merged.
published = getattr(objective, recipe.optimization.publish)
merged = merge_lora(blend(published, start, recipe.optimization.blend)).cpu()
path = save_backbone(merged, args.out / 'explora.safetensors', {'base': args.model})
print(f'Wrote {path}')
