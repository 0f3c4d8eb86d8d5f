"""Measure one step of M-ExPLoRA beside full MAE training, in time, memory and arithmetic.

    python tests/benchmarks/mae_step.py
    python tests/benchmarks/mae_step.py --model L --batch 4
    python tests/benchmarks/mae_step.py --device cuda --dtype bf16 --model L --batch 64

Variants: ``explora-r<rank>-d<rank>``, this package's step, with low-rank updates in encoder and
decoder; ``explora-r<rank>-full-decoder``, the same with every weight of the decoder training;
``full``, the same code with every weight training; ``plain``, full training written straight from
the equations (every patch embedded, every token predicted). A step is loss, backward and AdamW, on
pre-made images and noise. All variants start from the same weights, and must agree on the first
loss, or the comparison stops.

On a CPU the clock is the processor time of this process with one thread, on a GPU that of its own
events. Variants alternate step by step, in an order that rotates, so that whatever else the
machine does meets all of them; a ratio is the median of the ratios of each round. The patch
embedding is timed alone besides, of visible patches against all: what is saved, as a share of
what the arithmetic says. Needs torch, timm, jaxtyping and safetensors; neither TorchGeo nor Kornia
nor Lightning.
"""

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]  # also where the package is not installed

from tests.benchmarks.mae_flops import Sizes, embed_flops, step_flops  # noqa: E402
from tests.benchmarks.mae_variants import (  # noqa: E402
    ENCODERS,
    SHAPES,
    Batch,
    ObjectiveStep,
    PlainStep,
    Setting,
    Step,
    embed_and_drop,
    make_batch,
    make_objective,
    make_sizes,
    make_training,
)
from tests.benchmarks.pretrain_step import machine, mark, quartiles, seconds_between  # noqa: E402
from torchgeo_explora.layers.tokens import embed_visible  # noqa: E402

PHASES = ('loss', 'backward', 'optimizer')
# Largest allowed time of ExPLoRA relative to full training
TIME_BOUNDS = {'B': 0.90, 'L': 0.82}
# Least share of the arithmetic's saving that embedding only visible patches has to bring
EMBED_BOUND = 0.9
LOSS_TOLERANCE = {'fp32': 1e-5, 'bf16': 1e-2}
# Ranks in encoder and decoder: the published script's for RGB, the paper's else (spec section A)
RANKS = {'rgb': (64, 8), 'groups': (32, 32), 'dates': (32, 32)}
EMBED_ROUNDS = 20


@dataclass
class Measured:
    """Everything that was found out about one variant.

    Args:
        loss: The first loss.
        trained: Number of weights that train.
        saved_bytes: Storage kept for backward.
        state_bytes: Storage of the optimizer's state.
        peak_bytes: Largest memory of a process, or of the GPU, that does only this.
        counted: Operations of the matrix products that ran, as torch counts them.
        phases: Seconds of every phase, one list entry a round.
    """

    loss: float = 0.0
    trained: int = 0
    saved_bytes: int = 0
    state_bytes: int = 0
    peak_bytes: int = 0
    counted: float = 0.0
    phases: list[dict[str, float]] = field(default_factory=list)

    def seconds(self) -> list[float]:
        """Return the seconds of every round's step."""
        return [sum(round_.values()) for round_ in self.phases]


def build(name: str, setting: Setting, batch: Batch) -> Step:
    """Build a variant by its name."""
    torch.manual_seed(setting.seed)
    if name == 'plain':
        return PlainStep(setting, batch)
    return ObjectiveStep(setting, batch, make_training(name, setting))


def timed_step(step: Step, device: str) -> tuple[dict[str, float], float]:
    """Do one training step; return the seconds of its phases and its loss."""
    moments = [mark(device)]
    loss = step.loss()
    moments.append(mark(device))
    loss.backward()
    moments.append(mark(device))
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)
    moments.append(mark(device))
    if device == 'cuda':
        torch.cuda.synchronize()
    spans = map(seconds_between, moments, moments[1:])
    return dict(zip(PHASES, spans, strict=True)), float(loss.detach())


def saved_bytes(step: Step, batch: Batch) -> int:
    """Return the bytes of the storages that a forward pass keeps for its backward pass."""
    known = {t.untyped_storage().data_ptr() for t in (*step.parameters(), batch.images)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that holds its own output would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step.loss()
    del loss  # the graph keeps every storage alive, and so its address its own, until here
    return sum(kept.values())


def inspect(step: Step, setting: Setting, batch: Batch) -> Measured:
    """Do the first step, untimed, and note what only needs to be found once."""
    saved = saved_bytes(step, batch)
    with FlopCounterMode(display=False) as counter:
        _, loss = timed_step(step, setting.device)
    state = [v for s in step.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    return Measured(
        loss=loss,
        trained=sum(p.numel() for g in step.optimizer.param_groups for p in g['params']),
        saved_bytes=saved,
        state_bytes=sum(t.numel() * t.element_size() for t in state),
        counted=counter.get_total_flops(),
    )


def check_losses(results: dict[str, Measured], tolerance: float) -> None:
    """Stop unless all variants had the same first loss."""
    losses = {name: result.loss for name, result in results.items()}
    low, high = min(losses.values()), max(losses.values())
    if not high - low <= tolerance * abs(high):
        raise SystemExit(
            f'The first losses differ ({losses}), so the variants do not compute the same: '
            f'allowed is a relative {tolerance}. Nothing was timed.'
        )


def measure(names: list[str], setting: Setting, batch: Batch, rounds: int) -> dict[str, Measured]:
    """Build all variants, compare their first losses and time them in turn."""
    steps = {name: build(name, setting, batch) for name in names}
    results = {name: inspect(step, setting, batch) for name, step in steps.items()}
    check_losses(results, LOSS_TOLERANCE[setting.dtype])
    for round_ in range(rounds + 1):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            spans, _ = timed_step(steps[name], setting.device)
            if round_ > 0:  # the first round warms up
                results[name].phases.append(spans)
    return results


def peak_memory(setting: Setting, name: str) -> int:
    """Return the largest memory of two steps of one variant, alone in this process."""
    step = build(name, setting, make_batch(setting))
    for _ in range(2):  # the optimizer's state is there from the second on
        timed_step(step, setting.device)
    if setting.device == 'cuda':
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == 'darwin' else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def peak_memory_alone(name: str, argv: list[str]) -> int:
    """Run :func:`peak_memory` in a new process with the same arguments."""
    command = [sys.executable, __file__, *argv, '--memory-of', name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f'Measuring the memory of {name} failed:\n{done.stderr}')
    return int(done.stdout.split()[-1])


def timed_embedding(setting: Setting, batch: Batch, trains: bool) -> dict[str, Any]:
    """Time the embedding of visible patches against that of all, forward and backward.

    Args:
        setting: What is measured.
        batch: Images and noise.
        trains: Whether the embedding's weights train, so that it has a backward pass.
    """
    objective, vit, _ = make_objective(setting)
    objective.to(setting.device).requires_grad_(trains)
    mask = objective.mask(batch.images, batch.noise).to(batch.images.device)

    def ours() -> Tensor:
        return embed_visible(vit, batch.images, mask.keep, batch.timestamps)

    def plain() -> Tensor:
        return embed_and_drop(vit, batch, mask)

    torch.testing.assert_close(ours(), plain(), rtol=1e-4, atol=1e-5)
    rounds = [
        [timed_call(call, setting) for call in (ours, plain)] for _ in range(EMBED_ROUNDS + 1)
    ][1:]
    kept = mask.keep.shape[1] / mask.masked.shape[1]
    shares = [(all_ - visible) / (all_ * (1 - kept)) for visible, all_ in rounds]
    return {
        'visible': statistics.median(visible for visible, _ in rounds),
        'all': statistics.median(all_ for _, all_ in rounds),
        'share': quartiles(shares),
        'bound': EMBED_BOUND,
    }


def timed_call(call: Any, setting: Setting) -> float:  # noqa: ANN401 - without arguments
    """Return the seconds of a forward, and of a backward pass where something trains."""
    start = mark(setting.device)
    with setting.autocast():
        out = call()
    if out.requires_grad:
        out.sum().backward()
    end = mark(setting.device)
    if setting.device == 'cuda':
        torch.cuda.synchronize()
    return seconds_between(start, end)


def ratios(results: dict[str, Measured], a: str, b: str) -> list[float]:
    """Return the ratio of the seconds of two variants in every round."""
    pairs = zip(results[a].seconds(), results[b].seconds(), strict=True)
    return [x / y for x, y in pairs]


def compare(
    results: dict[str, Measured], a: str, b: str, setting: Setting, sizes: Sizes
) -> dict[str, Any]:
    """Return the ratios of one of our variants to another one, beside their bounds."""
    floors = [step_flops(sizes, make_training(name, setting)) for name in (a, b)]
    bounded = b == 'full' and setting.kind == 'rgb'
    return {
        'time': quartiles(ratios(results, a, b)),
        'time_bound': TIME_BOUNDS.get(setting.model) if bounded else None,
        'arithmetic': floors[0] / floors[1],
        'saved': results[a].saved_bytes / results[b].saved_bytes,
        'state': results[a].state_bytes / results[b].state_bytes,
        'peak': results[a].peak_bytes / results[b].peak_bytes if results[b].peak_bytes else None,
    }


def summary(
    setting: Setting, results: dict[str, Measured], sizes: Sizes, embedding: dict[str, Any]
) -> dict[str, Any]:
    """Put everything into one JSON object."""
    variants = {
        name: {
            **asdict(result),
            'seconds': quartiles(result.seconds()),
            'formula': step_flops(sizes, make_training(name, setting)),
        }
        for name, result in results.items()
    }
    ours = [name for name in results if name.startswith('explora-r')]
    others = [name for name in results if name not in ours]
    return {
        'setting': asdict(setting),
        'machine': machine(setting.device),
        'sizes': asdict(sizes),
        'variants': variants,
        'ratios': {
            f'{a}/{b}': compare(results, a, b, setting, sizes)
            for a in [*ours, *(['full'] if 'full' in results else [])]
            for b in others
            if a != b
        },
        'embedding': embedding,
    }


def report(found: dict[str, Any]) -> None:
    """Print the tables."""
    print('setting  ' + ', '.join(f'{k} {v}' for k, v in found['setting'].items()))
    print('machine  ' + ', '.join(f'{k} {v}' for k, v in found['machine'].items()))
    print(
        f'\n{"variant":26}{"s/step":>9}{"quartiles":>16}{"trained":>13}{"saved MB":>10}'
        f'{"state MB":>10}{"peak MB":>9}  GFLOP an image: formula, counted'
    )
    batch = found['setting']['batch']
    for name, v in found['variants'].items():
        low, middle, high = v['seconds']
        spread = f'{low:.3f}-{high:.3f}'
        print(
            f'{name:26}{middle:9.3f}{spread:>16}{v["trained"]:13,}{v["saved_bytes"] / 1e6:10,.0f}'
            f'{v["state_bytes"] / 1e6:10,.0f}{v["peak_bytes"] / 1e6:9,.0f}  '
            f'{v["formula"] / batch / 1e9:,.2f} {v["counted"] / batch / 1e9:,.2f}'
        )
    print('\nseconds by phase (median)')
    for name, v in found['variants'].items():
        medians = {p: statistics.median(r[p] for r in v['phases']) for p in PHASES}
        print(f'{name:26}' + '  '.join(f'{p} {s:.3f}' for p, s in medians.items()))
    print()
    for name, r in found['ratios'].items():
        report_ratio(name, r)
    for what, e in found['embedding'].items():
        low, middle, high = e['share']
        print(
            f'embedding, {what}: visible {1e3 * e["visible"]:.2f} ms, all {1e3 * e["all"]:.2f} ms, '
            f'{middle:.3f} of the possible saving ({low:.3f}-{high:.3f}, at least {e["bound"]})'
        )


def report_ratio(name: str, r: dict[str, Any]) -> None:
    """Print one comparison."""
    low, middle, high = r['time']
    bound = '' if r['time_bound'] is None else f', bound {r["time_bound"]:.2f}'
    print(
        f'{name:34} time {middle:.3f} (quartiles {low:.3f}-{high:.3f}{bound})  arithmetic '
        f'{r["arithmetic"]:.3f}  saved {r["saved"]:.3f}  state {r["state"]:.3f}'
    )


def report_arithmetic(names: list[str], setting: Setting, sizes: Sizes) -> None:
    """Print what the formulas of :mod:`mae_flops` give for every variant."""
    full = step_flops(sizes, make_training('full', setting))
    for name in names:
        training = make_training(name, setting)
        total = step_flops(sizes, training)
        own = embed_flops(sizes, training)
        print(
            f'{name:26}{total / setting.batch / 1e9:9,.2f} GFLOP an image, '
            f'{total / full:.3f} of full; patch embedding {own / setting.batch / 1e9:.3f}'
        )


def missed(found: dict[str, Any]) -> list[str]:
    """Return a sentence for every bound that does not hold."""
    sentences = []
    for name, r in found['ratios'].items():
        bound = r['time_bound']
        if bound is not None and name.startswith('explora') and r['time'][1] > bound:
            sentences.append(f'{name}: time {r["time"][1]:.3f}, allowed {bound:.3f}.')
    for what, e in found['embedding'].items():
        if e['share'][1] < e['bound']:
            sentences.append(
                f'Embedding, {what}: {e["share"][1]:.3f} of the saving, wanted {e["bound"]}.'
            )
    return sentences


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', choices=tuple(ENCODERS), default='B')
    parser.add_argument('--kind', choices=tuple(SHAPES), default='rgb')
    parser.add_argument('--rank', type=int, help='in the encoder (64 for RGB, else 32)')
    parser.add_argument('--decoder-rank', type=int, help='in the decoder (8 for RGB, else 32)')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--dtype', choices=('fp32', 'bf16'), default='fp32')
    parser.add_argument('--threads', type=int, default=1, help='processor threads')
    parser.add_argument('--rounds', type=int, default=8, help='timed steps of every variant')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--no-memory', action='store_true', help='skip peak memory')
    parser.add_argument('--check', action='store_true', help='exit with 1 if a bound is missed')
    parser.add_argument('--arithmetic', action='store_true', help='count operations, run nothing')
    parser.add_argument('--json', type=Path, help='write everything to this file')
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    setting = Setting(args.model, args.kind, args.batch, args.device, args.dtype, args.seed)
    if args.memory_of is not None:
        print(peak_memory(setting, args.memory_of))
        return 0
    rank, decoder_rank = (
        given if given is not None else default
        for given, default in zip((args.rank, args.decoder_rank), RANKS[args.kind], strict=True)
    )
    names = [f'explora-r{rank}-d{decoder_rank}', f'explora-r{rank}-full-decoder', 'full', 'plain']
    batch = make_batch(setting)
    sizes = make_sizes(setting, batch)
    if args.arithmetic:
        report_arithmetic(names, setting, sizes)
        return 0
    peaks = {} if args.no_memory else {name: peak_memory_alone(name, argv) for name in names}
    embedding = {
        what: timed_embedding(setting, batch, trains)
        for what, trains in (('frozen', False), ('trained', True))
    }
    results = measure(names, setting, batch, args.rounds)
    for name, value in peaks.items():
        results[name].peak_bytes = value
    found = summary(setting, results, sizes, embedding)
    report(found)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1))
    failures = missed(found)
    print('\n'.join(['', *failures]) if failures else '\nEvery bound holds.')
    return 1 if failures and args.check else 0


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
