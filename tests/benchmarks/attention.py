"""Time fused against plain attention for short sequences on a CPU.

    python tests/benchmarks/attention.py

Prints the CPU time of a forward and backward pass in bf16, medians of alternating runs, for
the sequence lengths of small crops. `layers.tokens.fast_attention` chooses by these.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# (images, tokens): 64 images at patch 14 as local and global crops of 28, 42, 70 and 98 pixels,
# then 4 images at 224 pixels
CASES = ((384, 5), (384, 10), (128, 26), (128, 50), (8, 257))
BACKENDS = {'fused': SDPBackend.FLASH_ATTENTION, 'plain': SDPBackend.MATH}


def once(backend: SDPBackend, images: int, tokens: int, heads: int = 6, width: int = 64) -> float:
    """Return the CPU seconds of one forward and backward pass."""
    qkv = torch.randn(3, images, heads, tokens, width, dtype=torch.bfloat16, requires_grad=True)
    began = time.process_time()
    with sdpa_kernel(backend):
        query, key, value = qkv.unbind(0)
        F.scaled_dot_product_attention(query, key, value).sum().backward()
    return time.process_time() - began


def main() -> None:
    """Time every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f'torch {torch.__version__}, {args.threads} threads, CPU ms: median (least to most)')
    for images, tokens in CASES:
        times: dict[str, list[float]] = {name: [] for name in BACKENDS}
        for _ in range(args.rounds + 1):
            for name, backend in BACKENDS.items():
                times[name].append(1e3 * once(backend, images, tokens))
        parts = []
        for name, values in times.items():
            kept = values[1:]  # the first round warms up
            low, middle, high = min(kept), statistics.median(kept), max(kept)
            parts.append(f'{name} {middle:6.1f} ({low:.1f} to {high:.1f})')
        ratio = statistics.median(times['fused'][1:]) / statistics.median(times['plain'][1:])
        print(f'{images:4} x {tokens:3} tokens: {", ".join(parts)}, fused/plain {ratio:.2f}')


if __name__ == '__main__':
    main()
