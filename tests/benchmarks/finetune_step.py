"""Measure one step of fine-tuning: low-rank updates beside all weights, with and without drop path.

    python tests/benchmarks/finetune_step.py
    python tests/benchmarks/finetune_step.py --model B --batch 8 --rounds 12
    python tests/benchmarks/finetune_step.py --device cuda --dtype bf16 --model L --batch 64

A step is forward, cross-entropy, backward and AdamW, on images that are there already, through the
functions that the task uses. Variants: ``lora`` and ``full``, each with stochastic depth of 0 and of
``--drop-path``. All start from the same random weights and must agree on the first loss where nothing
is dropped, or the comparison stops.

On a CPU the clock is the processor time of this process with one thread, on a GPU that of its own
events. Variants alternate step by step, in an order that rotates, so that whatever else the machine
does meets all of them; a ratio is the median of the ratios of each round. What is dropped differs
from round to round, as in training. Needs torch, timm, jaxtyping and safetensors; no Lightning.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_explora.models import Classifier, build_classifier, create_backbone
from torchgeo_explora.objectives.finetuning import (
    FineTuningConfig,
    Method,
    finetuning_groups,
    finetuning_optimizer,
    prepare_backbone,
    step_randomness,
)

MODELS = {f: f'vit_{n}_patch14_dinov2' for f, n in (('S', 'small'), ('B', 'base'), ('L', 'large'))}
LORA_BOUND = 0.80  # of the time of full fine-tuning with the same stochastic depth
DROP_BOUND = 1.10  # times faster than without stochastic depth
CLASSES = 10


@dataclass
class Variant:
    """A network in training.

    Args:
        name: For the tables.
        model: Backbone and head.
        optimizer: Over what trains.
        seconds: Time of every timed step.
    """

    name: str
    model: Classifier
    optimizer: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)

    def trained(self) -> int:
        """Number of weights that train."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def make(args: argparse.Namespace, method: Method, drop_path: float) -> Variant:
    """Build a variant; all have the same weights."""
    name = MODELS.get(args.model, args.model)
    vit, _ = create_backbone(name, None, args.size, seed=args.seed)
    config = FineTuningConfig(method=method, rank=args.rank, drop_path=drop_path)
    generator = torch.Generator().manual_seed(args.seed)
    prepare_backbone(vit, config, generator)
    model = build_classifier(vit, CLASSES, 'avg', generator)
    model.fc_norm.requires_grad_(method == 'full')
    model.backbone.norm.requires_grad_(False)  # mean pooling does not use it
    model.to(args.device).train()
    groups = finetuning_groups(model, 'backbone.', len(vit.blocks), 1e-4, 0.0, 1.0)
    optimizer = finetuning_optimizer(groups, (0.9, 0.999))
    return Variant(f'{method}-{drop_path:g}', model, optimizer)


def step(variant: Variant, batch: tuple[Tensor, Tensor], seed: int, dtype: torch.dtype) -> float:
    """Train on a batch; return the loss."""
    images, labels = batch
    mixed: AbstractContextManager[object] = nullcontext()
    if dtype != torch.float32:
        mixed = torch.autocast(images.device.type, dtype)
    with step_randomness(variant.model, seed, images.device), mixed:
        loss = F.cross_entropy(variant.model(images).float(), labels, label_smoothing=0.1)
    loss.backward()
    variant.optimizer.step()
    variant.optimizer.zero_grad()
    return loss.item()


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of processor time, or of the GPU."""
    if device == 'cpu':
        start = time.process_time()
        work()
        return time.process_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def measure(args: argparse.Namespace) -> list[Variant]:
    """Time every variant, alternating."""
    dtype = torch.bfloat16 if args.dtype == 'bf16' else torch.float32
    rates = (0.0, args.drop_path)
    methods: tuple[Method, ...] = ('lora', 'full')
    variants = [make(args, method, rate) for method in methods for rate in rates]
    generator = torch.Generator().manual_seed(args.seed)
    images = torch.randn(args.batch, 3, args.size, args.size, generator=generator)
    labels = torch.randint(CLASSES, (args.batch,), generator=generator)
    batch = images.to(args.device), labels.to(args.device)
    first = {v.name: step(v, batch, 0, dtype) for v in variants}
    whole = [loss for name, loss in first.items() if name.endswith('-0')]
    if abs(whole[0] - whole[1]) > 1e-3:
        raise SystemExit(f'The variants compute different things: first losses {first}.')
    for number in range(1, args.rounds + 1):
        for offset in range(len(variants)):
            variant = variants[(number + offset) % len(variants)]
            work = lambda v=variant, n=number: step(v, batch, n, dtype)  # noqa: E731
            variant.seconds.append(timed(work, args.device))
    return variants


def ratios(a: Variant, b: Variant) -> list[float]:
    """Time of one variant over that of another, in every round."""
    return [x / y for x, y in zip(a.seconds, b.seconds, strict=True)]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, middle, high


def comparisons(variants: list[Variant]) -> list[dict[str, Any]]:
    """Ratios beside their bounds."""
    lora, lora_drop, full, full_drop = variants
    pairs = [
        ('lora / full, no drop path', lora, full, LORA_BOUND, False),
        ('lora / full, drop path', lora_drop, full_drop, LORA_BOUND, False),
        ('lora: no drop path / drop path', lora, lora_drop, DROP_BOUND, True),
        ('full: no drop path / drop path', full, full_drop, DROP_BOUND, True),
    ]
    found = []
    for name, a, b, bound, least in pairs:
        spread = quartiles(ratios(a, b))
        held = spread[1] >= bound if least else spread[1] <= bound
        found.append(
            {'name': name, 'ratio': spread, 'bound': bound, 'at_least': least, 'held': held}
        )
    return found


def processor() -> str:
    """Return the processor's name."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def report(args: argparse.Namespace, variants: list[Variant], found: list[dict[str, Any]]) -> None:
    """Print the tables."""
    device = torch.cuda.get_device_name() if args.device == 'cuda' else processor()
    print(
        f'{args.model}, batch {args.batch}, {args.size} px, rank {args.rank}, {args.dtype}, '
        f'{args.rounds} rounds; {device}, {args.threads} thread, torch {torch.__version__}, '
        f'{time.strftime("%Y-%m-%d")}'
    )
    print(f'{"variant":12}{"s/step":>9}{"quartiles":>18}{"images/s":>10}{"trained":>13}')
    for variant in variants:
        low, middle, high = quartiles(variant.seconds)
        print(
            f'{variant.name:12}{middle:9.3f}{f"{low:.3f} to {high:.3f}":>18}'
            f'{args.batch / middle:10.2f}{variant.trained():13,}'
        )
    for item in found:
        low, middle, high = item['ratio']
        sign = 'at least' if item['at_least'] else 'at most'
        print(
            f'{item["name"]:32}{middle:7.3f} (quartiles {low:.3f} to {high:.3f}; {sign} '
            f'{item["bound"]:.2f}: {"held" if item["held"] else "MISSED"})'
        )


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='S', help='S, B, L, or the name of a timm ViT')
    parser.add_argument('--rank', type=int, default=8)
    parser.add_argument('--drop-path', type=float, default=0.2)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--dtype', choices=('fp32', 'bf16'), default='fp32')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=12, help='timed steps of every variant')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--check', action='store_true', help='exit with 1 if a bound is missed')
    parser.add_argument('--json', type=Path, help='write everything to this file')
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    variants = measure(args)
    found = comparisons(variants)
    report(args, variants, found)
    if args.json is not None:
        seconds = {variant.name: variant.seconds for variant in variants}
        args.json.write_text(json.dumps({'seconds': seconds, 'ratios': found}, indent=1))
    return 1 if args.check and not all(item['held'] for item in found) else 0


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
