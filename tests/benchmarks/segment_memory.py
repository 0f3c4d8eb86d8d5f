"""Peak memory of a segmentation step with and without recomputed activations.

    python tests/benchmarks/segment_memory.py
    python tests/benchmarks/segment_memory.py --decoder fpn --batch 8 --precision bf16
    python tests/benchmarks/segment_memory.py --device cuda

A step is forward, backward and the optimizer's update. By default nothing is computed: the step runs on
tensors without values, and the bytes of all tensors that are alive, weights included, are counted
exactly. What a device's kernels need beside is not in it; on a GPU the allocator's own peak is read
from a real step instead. The exit status is 1 where recomputing does not halve the peak.
"""

import argparse
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchgeo_explora.models import create_backbone
from torchgeo_explora.models.segmentation import Segmenter, build_segmenter
from torchgeo_explora.objectives.finetuning import FineTuningConfig, prepare_backbone


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, each storage once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: set[int] = set()

    def see(self, tensors: Iterable[object]) -> None:
        """Count storages that are new, and uncount them when they go."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        """Uncount a storage."""
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operation and look at what it made."""
        out = func(*args, **({} if kwargs is None else kwargs))
        self.see(tree_leaves(out))
        return out


def build(args: argparse.Namespace) -> Segmenter:
    """The model, its encoder adapted."""
    vit, _ = create_backbone(args.model, None, seed=0)
    config = FineTuningConfig(
        method=args.method, drop_path=0.0, grad_checkpointing=args.checkpoint == 'yes'
    )
    prepare_backbone(vit, config, torch.Generator().manual_seed(0))
    options = {'decoder_channels': args.width} if args.decoder == 'upernet' else {}
    model = build_segmenter(vit, args.decoder, 2, seed=0, **options).to(args.device).train()
    model.set_grad_checkpointing(args.checkpoint == 'yes')
    return model


def without_values(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace all tensors of a model by ones that have a shape only."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = mode.from_tensor(parameter.detach())
            setattr(module, name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, mode.from_tensor(buffer))


def step(model: Segmenter, args: argparse.Namespace, counter: Alive | None) -> None:
    """One step of training."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    images = torch.rand((args.batch, 3, args.size, args.size), device=args.device)
    masks = torch.zeros((args.batch, args.size, args.size), dtype=torch.long, device=args.device)
    half = torch.autocast(args.device, torch.bfloat16, enabled=args.precision == 'bf16')
    if counter is not None:
        counter.see([*model.parameters(), *model.buffers(), images, masks])
    with nullcontext() if counter is None else counter:
        with half:
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), masks).backward()
        del logits
        optimizer.step()
        optimizer.zero_grad()


def measure(args: argparse.Namespace) -> int:
    """Peak of one case in bytes."""
    model = build(args)
    if args.device == 'cuda':
        step(model, args, None)
        return torch.cuda.max_memory_allocated()
    mode, counter = FakeTensorMode(), Alive()
    without_values(model, mode)
    with mode:
        step(model, args, counter)
    return counter.peak


def main() -> int:
    """Measure both cases, each in a process of its own, or one of them in this."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('--model', default='vit_base_patch14_dinov2')
    parser.add_argument('--decoder', default='upernet')
    parser.add_argument('--width', type=int, default=64, help="UPerNet's channels")
    parser.add_argument('--method', default='lora', choices=['lora', 'full'])
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--precision', default='fp32', choices=['fp32', 'bf16'])
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--checkpoint', choices=['yes', 'no'], help='one case, in this process')
    args = parser.parse_args()
    if args.checkpoint is not None:
        print(json.dumps(measure(args)))
        return 0
    peaks = []
    for case in ('no', 'yes'):
        command = [sys.executable, __file__, *sys.argv[1:], '--checkpoint', case]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
        print(f'checkpointing {case:3s}: {peaks[-1] / 2**20:,.0f} MiB')
    share = peaks[1] / peaks[0]
    print(f'{args.model}, {args.decoder}, batch {args.batch}: {share:.2f} of the peak')
    return int(share > 0.5)


if __name__ == '__main__':
    sys.exit(main())
