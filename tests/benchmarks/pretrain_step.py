"""Measure one step of D-ExPLoRA beside full DINOv2 training, in time, memory and arithmetic.

    python tests/benchmarks/pretrain_step.py
    python tests/benchmarks/pretrain_step.py --device cuda --dtype bf16 --model L --batch 64

Variants: ``explora-r<rank>``, this package's step, the last block and low-rank updates training;
``full``, the same objective with every weight training; ``plain``, full training written straight
from the equations; ``lightly``, the DINOv2 step of lightly-train where that is installed.
A step is loss, backward, clipping, AdamW and teacher average, on pre-made crops and masks. All
variants start from the same weights, and must agree on the first loss, or the comparison stops.

On a CPU the clock is the processor time of this process with one thread, on a GPU that of its own
events. Variants alternate step by step, in an order that rotates, so that whatever else the
machine does meets all of them; a ratio is the median of the ratios of each round. Needs torch,
timm, jaxtyping and safetensors; neither TorchGeo nor Kornia nor Lightning.

Bytes saved for backward are those of the distinct storages that autograd keeps between forward
and backward, without weights and input images. Peak memory is that of a process of its own for
each variant (CPU), or of the device's allocator (GPU).
"""

import argparse
import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]  # also where the package is not installed

from tests.benchmarks.pretrain_flops import Sizes, step_flops  # noqa: E402
from tests.benchmarks.pretrain_variants import (  # noqa: E402
    Crops,
    ExploraStep,
    LightlyStep,
    PlainStep,
    Setting,
    Step,
    make_crops,
    make_sizes,
)
from torchgeo_explora.adapters import ExPLoRAConfig  # noqa: E402

MODELS = {
    'S': 'vit_small_patch14_dinov2',
    'B': 'vit_base_patch14_dinov2',
    'L': 'vit_large_patch14_dinov2',
}
PHASES = ('loss', 'backward', 'clip', 'optimizer', 'average')
# Dense bf16 peaks without sparsity, TFLOP/s, from the makers' data sheets
PEAKS = {'H100 PCIe': 756, 'H100': 989, 'H200': 989, 'A100': 312, 'L40S': 362, 'L4': 121}
# Largest allowed values of ExPLoRA relative to the others (time), at the default setting
TIME_BOUNDS = {'plain': 0.78, 'full': 0.88, 'lightly': 1 / 1.35}
SAVED_BOUND = 0.66
# Relative; plain logits are rounded to bf16 before the temperature divides them, ours after it
LOSS_TOLERANCE = {'fp32': 1e-4, 'bf16': 1e-3}


@dataclass
class Measured:
    """Everything that was found out about one variant.

    Args:
        loss: The first loss.
        trained: Number of weights that train, heads included.
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


def build(name: str, setting: Setting, crops: Crops) -> Step:
    """Build a variant by its name."""
    torch.manual_seed(setting.seed)
    if name == 'plain':
        return PlainStep(setting, crops)
    if name == 'lightly':
        return LightlyStep(setting, crops)
    if name == 'full':
        adapter = ExPLoRAConfig(rank=0, train_all=True)
    else:
        adapter = ExPLoRAConfig(rank=int(name.removeprefix('explora-r')), unfreeze_blocks=(-1,))
    return ExploraStep(setting, crops, adapter)


def mark(device: str) -> Any:  # noqa: ANN401 - seconds, or a GPU's event
    """Note the present moment on the clock of a device."""
    if device == 'cpu':
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(a: Any, b: Any) -> float:  # noqa: ANN401 - moments of either kind
    """Return the seconds between two moments, past ones."""
    seconds: float = b - a if isinstance(a, float) else a.elapsed_time(b) / 1000
    return seconds


def timed_step(step: Step, device: str) -> tuple[dict[str, float], float]:
    """Do one training step; return the seconds of its phases and its loss."""
    moments = [mark(device)]
    loss = step.loss()
    moments.append(mark(device))
    loss.backward()
    moments.append(mark(device))
    step.clip()
    moments.append(mark(device))
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)
    moments.append(mark(device))
    step.average()
    moments.append(mark(device))
    if device == 'cuda':
        torch.cuda.synchronize()
    spans = map(seconds_between, moments, moments[1:])
    return dict(zip(PHASES, spans, strict=True)), float(loss.detach())


def saved_bytes(step: Step, crops: Crops) -> int:
    """Return the bytes of the storages that a forward pass keeps for its backward pass."""
    known = {t.untyped_storage().data_ptr() for t in step.parameters()}
    known |= {t.untyped_storage().data_ptr() for t in (crops.global_, crops.local)}
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


def state_bytes(step: Step) -> int:
    """Return the bytes of the optimizer's state."""
    states = step.optimizer.state.values()
    tensors = [v for state in states for v in state.values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def inspect(step: Step, crops: Crops, device: str) -> Measured:
    """Do the first step, untimed, and note what only needs to be found once."""
    saved = saved_bytes(step, crops)
    with FlopCounterMode(display=False) as counter:
        _, loss = timed_step(step, device)
    trained = [p for group in step.optimizer.param_groups for p in group['params']]
    return Measured(
        loss=loss,
        trained=sum(p.numel() for p in trained),
        saved_bytes=saved,
        state_bytes=state_bytes(step),
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


def measure(names: list[str], setting: Setting, rounds: int) -> dict[str, Measured]:
    """Build all variants, compare their first losses and time them in turn."""
    crops = make_crops(setting)
    steps = {name: build(name, setting, crops) for name in names}
    results = {name: inspect(step, crops, setting.device) for name, step in steps.items()}
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
    crops = make_crops(setting)
    step = build(name, setting, crops)
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


def ratios(results: dict[str, Measured], a: str, b: str) -> list[float]:
    """Return the ratio of the seconds of two variants in every round."""
    pairs = zip(results[a].seconds(), results[b].seconds(), strict=True)
    return [x / y for x, y in pairs]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, middle, high


def formula(name: str, sizes: Sizes, pruned: bool) -> float:
    """Return the arithmetic of a variant's step (see :mod:`pretrain_flops`)."""
    if name.startswith('explora-r'):
        return step_flops(sizes, 'explora', int(name.removeprefix('explora-r')), pruned)
    return step_flops(sizes, 'full', pruned=pruned and name == 'full')


def peak_rate(setting: Setting, given: float | None) -> tuple[float, str]:
    """Return the device's peak in FLOP/s, and where the number comes from."""
    if given is not None:
        return given * 1e12, 'given'
    if setting.device == 'cuda' and setting.dtype == 'bf16':
        device = torch.cuda.get_device_name()
        for name, value in PEAKS.items():
            if all(word in device for word in name.split()):
                return value * 1e12, f'data sheet of {device}'
    return measured_rate(setting), 'measured, product of two 2,048 x 2,048 matrices'


def measured_rate(setting: Setting) -> float:
    """Return the rate of a large matrix product, the best of ten."""
    dtype = torch.bfloat16 if setting.dtype == 'bf16' else torch.float32
    size = 2048
    a = torch.randn(size, size, device=setting.device).to(dtype)
    best = float('inf')
    for _ in range(10):
        start = mark(setting.device)
        a @ a
        end = mark(setting.device)
        if setting.device == 'cuda':
            torch.cuda.synchronize()
        best = min(best, seconds_between(start, end))
    return 2 * size**3 / best


def summary(
    setting: Setting, results: dict[str, Measured], sizes: Sizes, peak: tuple[float, str]
) -> dict[str, Any]:
    """Put everything into one JSON object."""
    variants = {}
    for name, result in results.items():
        seconds = quartiles(result.seconds())
        flops = formula(name, sizes, True)
        variants[name] = {
            **asdict(result),
            'seconds': seconds,
            'images_per_second': setting.batch / seconds[1],
            'formula': flops,
            'formula_without_pruning': formula(name, sizes, False),
            'mfu': flops / seconds[1] / peak[0],
        }
    ours = [name for name in results if name.startswith('explora-r')]
    return {
        'setting': asdict(setting),
        'machine': machine(setting.device),
        'peak': {'flops': peak[0], 'source': peak[1]},
        'sizes': asdict(sizes),
        'variants': variants,
        'ratios': {
            f'{a}/{b}': compare(results, a, b, sizes)
            for a in ours
            for b in results
            if b not in ours
        },
    }


def compare(results: dict[str, Measured], a: str, b: str, sizes: Sizes) -> dict[str, Any]:
    """Return the ratios of one of our variants to another one, beside their bounds."""
    each = ratios(results, a, b)
    floors = [formula(a, sizes, p) / formula(b, sizes, p) for p in (True, False)]
    return {
        'time': quartiles(each),
        'range': (min(each), max(each)),
        'time_bound': TIME_BOUNDS[b],
        'saved': results[a].saved_bytes / results[b].saved_bytes,
        'saved_bound': SAVED_BOUND,
        'arithmetic': floors[0],
        'arithmetic_without_pruning': floors[1],
        'state': results[a].state_bytes / results[b].state_bytes,
        'peak': results[a].peak_bytes / results[b].peak_bytes if results[b].peak_bytes else None,
    }


def machine(device: str) -> dict[str, str]:
    """Say what the numbers were measured on."""
    return {
        'device': torch.cuda.get_device_name() if device == 'cuda' else processor(),
        'threads': str(torch.get_num_threads()),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'date': time.strftime('%Y-%m-%d'),
    }


def processor() -> str:
    """Return the processor's name."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def report(found: dict[str, Any]) -> None:
    """Print the tables."""
    print('setting  ' + ', '.join(f'{k} {v}' for k, v in found['setting'].items()))
    print('machine  ' + ', '.join(f'{k} {v}' for k, v in found['machine'].items()))
    peak = found['peak']
    print(f'peak     {peak["flops"] / 1e9:,.0f} GFLOP/s ({peak["source"]})\n')
    print(
        f'{"variant":14}{"s/step":>9}{"quartiles":>16}{"img/s":>9}{"MFU":>7}{"trained":>13}'
        f'{"saved MB":>10}{"state MB":>10}{"peak MB":>9}  GFLOP an image: formula, unpruned, counted'
    )
    batch = found['setting']['batch']
    for name, v in found['variants'].items():
        low, middle, high = v['seconds']
        spread = f'{low:.3f}-{high:.3f}'
        print(
            f'{name:14}{middle:9.3f}{spread:>16}{v["images_per_second"]:9.3f}{v["mfu"]:7.1%}'
            f'{v["trained"]:13,}{v["saved_bytes"] / 1e6:10,.0f}{v["state_bytes"] / 1e6:10,.0f}'
            f'{v["peak_bytes"] / 1e6:9,.0f}  {v["formula"] / batch / 1e9:,.1f} '
            f'{v["formula_without_pruning"] / batch / 1e9:,.1f} {v["counted"] / batch / 1e9:,.1f}'
        )
    print('\nseconds by phase (median)')
    for name, v in found['variants'].items():
        medians = {p: statistics.median(r[p] for r in v['phases']) for p in PHASES}
        print(f'{name:14}' + '  '.join(f'{p} {s:.3f}' for p, s in medians.items()))
    print()
    for name, r in found['ratios'].items():
        low, middle, high = r['time']
        print(
            f'{name:22} time {middle:.3f} (quartiles {low:.3f}-{high:.3f}, bound '
            f'{r["time_bound"]:.3f})  saved {r["saved"]:.3f} (bound {r["saved_bound"]:.2f})  '
            f'arithmetic {r["arithmetic"]:.3f}, unpruned {r["arithmetic_without_pruning"]:.3f}'
        )


def report_arithmetic(names: list[str], sizes: Sizes, batch: int) -> None:
    """Print what the formulas of :mod:`pretrain_flops` give for every variant."""
    for name in names:
        pruned, plain = (formula(name, sizes, p) / batch / 1e9 for p in (True, False))
        print(f'{name:14}{pruned:9,.1f} GFLOP an image, {plain:,.1f} with the last block in full')


def missed(found: dict[str, Any]) -> list[str]:
    """Return a sentence for every bound that does not hold."""
    sentences = []
    for name, r in found['ratios'].items():
        if r['time'][1] > r['time_bound']:
            sentences.append(f'{name}: time {r["time"][1]:.3f}, allowed {r["time_bound"]:.3f}.')
        if r['saved'] > r['saved_bound']:
            sentences.append(f'{name}: saved {r["saved"]:.3f}, allowed {r["saved_bound"]:.3f}.')
    return sentences


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='S', help='S, B, L, or the name of a timm ViT')
    parser.add_argument('--rank', type=int, nargs='+', default=[32, 64])
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--prototypes', type=int, default=65_536)
    parser.add_argument('--global-size', type=int, default=224)
    parser.add_argument('--local-size', type=int, default=98)
    parser.add_argument('--n-local', type=int, default=8)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--dtype', choices=('fp32', 'bf16'), default='fp32')
    parser.add_argument('--threads', type=int, default=1, help='processor threads')
    parser.add_argument('--chunk', type=int, help="rows of logits at a time (package's default)")
    parser.add_argument('--rounds', type=int, default=8, help='timed steps of every variant')
    parser.add_argument('--against', nargs='*', choices=tuple(TIME_BOUNDS), help='other variants')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--peak-tflops', type=float, help='peak rate of the device, for the MFU')
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
    shared = {key: getattr(args, key) for key in Setting.__dataclass_fields__ if key != 'model'}
    setting = Setting(model=MODELS.get(args.model, args.model), **shared)
    if args.memory_of is not None:
        print(peak_memory(setting, args.memory_of))
        return 0
    names = [f'explora-r{rank}' for rank in args.rank] + against(args.against)
    sizes = make_sizes(setting, make_crops(setting))
    if args.arithmetic:
        report_arithmetic(names, sizes, setting.batch)
        return 0
    peaks = {} if args.no_memory else {n: peak_memory_alone(n, argv) for n in names}
    results = measure(names, setting, args.rounds)
    for name, value in peaks.items():
        results[name].peak_bytes = value
    found = summary(setting, results, sizes, peak_rate(setting, args.peak_tflops))
    report(found)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1))
    failures = missed(found)
    print('\n'.join(['', *failures]) if failures else '\nEvery bound holds.')
    return 1 if failures and args.check else 0


def against(given: list[str] | None) -> list[str]:
    """Return the variants to compare with; by default all that can run here."""
    if given is not None:
        return given
    return ['plain', 'full'] + (['lightly'] if find_spec('lightly_train') is not None else [])


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
