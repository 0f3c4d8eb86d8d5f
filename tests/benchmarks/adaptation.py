"""Adapt a natural-image ViT to real images and measure whether that helped.

    python tests/benchmarks/adaptation.py --images eurosat_rgb.zip \
        --weights dinov2_vits14.safetensors --json adaptation.json

The images are a zip file or a folder with ``train/<class>/*`` and ``test/<class>/*``. Labels
are used for scoring only. The start, and what every variant makes of it, is scored with the
same probes at the same size: kNN, logistic regression on class and mean patch tokens, and at the
end the 28 linear classifiers of the paper. Needs torch, timm, kornia and Pillow, not TorchGeo.
"""

import argparse
import copy
import io
import json
import os
import platform
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.adapters import (
    ExPLoRAConfig,
    apply_explora,
    blend,
    merge_lora,
    trained_in_full,
)
from torchgeo_explora.models import create_backbone, save_backbone
from torchgeo_explora.objectives import DINOv2Objective, Recipe, get_preset, make_schedules
from torchgeo_explora.objectives.diagnostics import effective_rank
from torchgeo_explora.objectives.probing import (
    Features,
    LinearProbeConfig,
    extract_features,
    knn,
    linear_probe,
    logistic_regression,
)
from torchgeo_explora.objectives.prototypes import prototypes_from_images
from torchgeo_explora.objectives.steps import (
    clip_gradients,
    make_multicrop,
    make_optimizer,
    micro_batch,
    set_rates,
    step_seed,
)
from torchgeo_explora.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD, EvalTransform

VARIANTS: dict[str, dict[str, Any]] = {
    'explora': {},
    'lora': {'unfreeze_blocks': ()},
    'unfreeze': {'rank': 0},
    'full': {'rank': 0, 'train_all': True},
}


@dataclass(frozen=True)
class Images:
    """Decoded images (n, 3, h, w) uint8 with their labels (n,)."""

    pixels: Tensor
    labels: Tensor

    def batches(self, size: int = 250) -> Iterator[dict[str, Tensor]]:
        """Yield batches in [0, 1]."""
        for pixels, labels in zip(self.pixels.split(size), self.labels.split(size), strict=True):
            yield {'image': pixels.float() / 255, 'label': labels}


def read_files(path: Path) -> dict[str, bytes]:
    """Read all images of a zip file or a folder, by relative name."""
    if path.is_dir():
        files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob('*.*')}
    else:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    suffixes = ('.jpg', '.jpeg', '.png')
    return {name: files[name] for name in sorted(files) if name.lower().endswith(suffixes)}


def load(path: Path) -> tuple[Images, Images]:
    """Return the train and the test part."""
    files = read_files(path)
    classes = sorted({Path(name).parent.name for name in files})
    parts = []
    for split in ('train', 'test'):
        names = [name for name in files if split in Path(name).parts]
        if not names:
            sys.exit(f'{path} has no {split}/<class>/ images: give such a folder or zip file.')
        arrays = [np.asarray(Image.open(io.BytesIO(files[n])).convert('RGB')) for n in names]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor([classes.index(Path(name).parent.name) for name in names])
        parts.append(Images(pixels, labels))
    return parts[0], parts[1]


class Judge:
    """Scores encoders by probes on frozen features.

    Args:
        train: Images the probes learn from.
        test: Images they are scored on.
        size: Side the images are resized to.
        device: Where features are computed.
    """

    def __init__(self, train: Images, test: Images, size: int, device: torch.device) -> None:
        self.train, self.test, self.device = train, test, device
        self.transform = EvalTransform(size, IMAGENET_MEAN, IMAGENET_STD)

    def features(self, model: VisionTransformer) -> tuple[Features, Features]:
        """Extract features of both parts, in bf16."""
        options = {'device': self.device, 'dtype': torch.bfloat16}
        return tuple(  # type: ignore[return-value]
            extract_features(model, part.batches(), self.transform, **options)  # type: ignore[arg-type]
            for part in (self.train, self.test)
        )

    def quick(self, model: VisionTransformer) -> dict[str, float]:
        """Score by neighbours and logistic regression."""
        return self._quick(*self.features(model))

    def _quick(self, train: Features, test: Features) -> dict[str, float]:
        return {
            'knn20': percent(knn(train, test, k=(20,)).accuracy[20]),
            'logistic': percent(logistic_regression(train, test).accuracy),
            'rank': round(float(effective_rank(train.last.float())), 1),
        }

    def full(self, model: VisionTransformer) -> dict[str, Any]:
        """Score by everything, the paper's 28 classifiers included."""
        train, test = self.features(model)
        best = linear_probe(train, test, config=LinearProbeConfig(iterations=3000)).best
        accuracy = knn(train, test).accuracy
        return self._quick(train, test) | {
            'linear_probe': percent(best.accuracy),
            'linear_probe_name': best.name,
            **{f'knn{k}': percent(value) for k, value in accuracy.items()},
        }


def percent(share: float) -> float:
    """Return a share as a percentage with two decimals."""
    return round(100 * share, 2)


def order(count: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Yield the image indices of every batch: a new permutation each time all are used."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:batch]
        left = left[batch:]


def adapt(
    start: VisionTransformer,
    mask_token: Tensor,
    recipe: Recipe,
    images: Images,
    judge: Judge,
    args: argparse.Namespace,
    variant: str,
    seed: int,
) -> dict[str, Any]:
    """Run one variant and return its curve, its final scores and its cost."""
    device, config = torch.device(args.device), recipe.optimization
    generator = torch.Generator().manual_seed(seed)
    student = copy.deepcopy(start)
    report = apply_explora(student, recipe.adapter, generator)
    initial = trained_in_full(student)
    objective = DINOv2Objective(student, recipe.objective, mask_token, generator).to(device)
    objective.train()
    optimizer = make_optimizer(objective, report.unfrozen, config)
    schedules = make_schedules(config, args.steps, recipe.batch_size * config.accumulate)
    multicrop = make_multicrop(recipe.crops, 3, IMAGENET_MEAN, IMAGENET_STD).to(device)
    if config.prototype_init == 'images':
        indices = order(len(images.pixels), recipe.batch_size, args.steps, seed)
        started = (images.pixels[index].to(device).float() / 255 for index in indices)
        with torch.autocast(device.type, torch.bfloat16):
            prototypes_from_images(objective, multicrop, started, seed)
    curve, seconds, every = [], 0.0, max(args.steps // args.points, 1)
    print(report.summary(), flush=True)
    for step, index in enumerate(order(len(images.pixels), recipe.batch_size, args.steps, seed)):
        began = time.perf_counter()
        batch = images.pixels[index].to(device).float() / 255
        window = step - step % config.accumulate
        with torch.autocast(device.type, torch.bfloat16):
            losses = micro_batch(
                objective,
                multicrop,
                recipe.crops,
                batch,
                step_seed(seed, step),
                schedules.teacher_temperature(window),
            )
        (losses.total / config.accumulate).backward()
        objective.update_centers(losses)
        if (step + 1) % config.accumulate == 0:
            set_rates(optimizer, schedules, config, window)
            clip_gradients(objective, config.clip)
            optimizer.step()
            optimizer.zero_grad()
            objective.update_teacher(schedules.momentum(window))
        total = float(losses.total.detach())
        if total != total:
            sys.exit(f'The loss is not a number at step {step}: lower --base-lr.')
        seconds += time.perf_counter() - began
        if (step + 1) % every == 0 or step + 1 == args.steps:
            point: dict[str, Any] = {
                'step': step + 1,
                'images': (step + 1) * recipe.batch_size,
                'seconds': round(seconds),
                'loss': round(total, 3),
            }
            if args.points > 1 and step + 1 < args.steps:
                point |= {name: judge.quick(m) for name, m in networks(objective).items()}
            curve.append(point)
            print(json.dumps(point), flush=True)
    published = blend(networks(objective)[config.publish], initial, config.blend)
    final = {name: judge.full(model) for name, model in networks(objective).items()}
    final['published'] = final[config.publish] if config.blend == 1 else judge.full(published)
    if args.save is not None:
        path = Path(args.save) / f'{variant}-{seed}.safetensors'
        save_backbone(merge_lora(published).cpu(), path)
    return {
        'trainable': report.trainable_parameters,
        'seconds': round(seconds),
        'images_per_second': round(args.steps * recipe.batch_size / seconds, 1),
        'curve': curve,
        'final': final,
    }


def score_line(
    start: VisionTransformer, adapted: VisionTransformer, shares: list[float], judge: Judge
) -> dict[str, Any]:
    """Score weights on the line from the start to the adapted ones, without training."""
    first, last, scores = start.state_dict(), adapted.state_dict(), {}
    for share in shares:
        model = copy.deepcopy(start)
        model.load_state_dict({k: torch.lerp(v, last[k], share) for k, v in first.items()})
        scores[str(share)] = judge.full(model)
        print(share, json.dumps(scores[str(share)]), flush=True)
    return scores


def networks(objective: DINOv2Objective) -> dict[str, VisionTransformer]:
    """Return both networks."""
    return {'student': objective.student, 'teacher': objective.teacher}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--images', type=Path, required=True)
    parser.add_argument('--weights', type=Path, required=True)
    parser.add_argument('--model', default='vit_small_patch14_dinov2')
    parser.add_argument('--preset', default='small')
    parser.add_argument('--variants', nargs='+', default=['explora'], choices=VARIANTS)
    parser.add_argument('--adapt-on', default='train', choices=('train', 'all'))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--steps', type=int, default=1500, help='micro-batches')
    parser.add_argument('--points', type=int, default=5, help='points of the curve')
    parser.add_argument('--eval-size', type=int, default=112)
    parser.add_argument('--set', nargs='*', default=[], metavar='NAME=JSON', help='recipe fields')
    parser.add_argument('--batch-size', type=int)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--save', type=Path, help='folder for merged weights')
    parser.add_argument('--adapted', type=Path, help='saved weights: score --shares, no training')
    parser.add_argument('--shares', nargs='+', type=float, default=[0.3, 0.5, 0.7, 0.85, 1.0])
    parser.add_argument('--json', type=Path)
    return parser.parse_args()


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Describe where the numbers come from."""
    device = torch.cuda.get_device_name() if args.device == 'cuda' else platform.processor()
    return {
        'device': args.device,
        'name': device or platform.machine(),
        'threads': args.threads,
        'torch': torch.__version__,
        'date': time.strftime('%Y-%m-%d'),
        'command': ' '.join(sys.argv),
    }


def main() -> None:
    """Score the start, run every variant and seed, print and write the results."""
    args = parse()
    torch.set_num_threads(args.threads)
    train, test = load(args.images)
    fields = {key: json.loads(value) for key, _, value in (s.partition('=') for s in args.set)}
    recipe = get_preset(args.preset).override(**fields)
    recipe = replace(recipe, batch_size=args.batch_size or recipe.batch_size)
    start, report = create_backbone(args.model, args.weights)
    judge = Judge(train, test, args.eval_size, torch.device(args.device))
    results: dict[str, Any] = {'machine': machine(args), 'recipe': asdict(recipe), 'runs': []}
    results['base'] = judge.full(copy.deepcopy(start))
    print('base', json.dumps(results['base']), flush=True)
    if args.adapted is not None:
        adapted, _ = create_backbone(args.model, args.adapted)
        results['line'] = score_line(start, adapted, args.shares, judge)
        if args.json is not None:
            args.json.write_text(json.dumps(results, indent=1))
        return
    both = Images(torch.cat([train.pixels, test.pixels]), torch.cat([train.labels, test.labels]))
    images = both if args.adapt_on == 'all' else train
    for variant in args.variants:
        changed = replace(recipe, adapter=variant_config(recipe.adapter, variant))
        for seed in args.seeds:
            run = adapt(start, report.mask_token, changed, images, judge, args, variant, seed)

            results['runs'].append({'variant': variant, 'seed': seed, **run})
            print(variant, seed, json.dumps(run['final']), flush=True)
            if args.json is not None:
                args.json.write_text(json.dumps(results, indent=1))


def variant_config(config: ExPLoRAConfig, variant: str) -> ExPLoRAConfig:
    """Return what trains in a variant."""
    return replace(config, **VARIANTS[variant])


if __name__ == '__main__':
    main()
