"""What a command chooses where an option is left to it, without importing anything heavy but torch."""

from pathlib import Path

import torch

from torchgeo_explora.errors import ConfigError


def choose_device(name: str | None) -> torch.device:
    """Return the device that the option ``--device`` names.

    Raises:
        ConfigError: If there is no such device.
    """
    available = torch.cuda.is_available()
    if name == 'cuda' and not available:
        raise ConfigError('--device cuda was given and PyTorch finds no GPU: use --device cpu.')
    return torch.device('cuda' if available and name != 'cpu' else 'cpu')


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices itself, instead of emulating it."""
    if device.type == 'cuda':
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.backends.cpu.get_cpu_capability()
    return capabilities == 'AVX512' and _cpu_flag('avx512_bf16')


def _cpu_flag(name: str) -> bool:
    path = Path('/proc/cpuinfo')
    return path.is_file() and f' {name} ' in path.read_text(encoding='utf-8', errors='replace')


def choose_precision(name: str | None, device: torch.device) -> str:
    """Return Lightning's name for the option ``--precision``."""
    if name == '32' or (name != 'bf16' and not computes_bfloat16(device)):
        return '32-true'
    return 'bf16-mixed'


def parse_bands(texts: list[str]) -> list[int | str]:
    """Read bands: whole numbers are indexes, anything else a description."""
    return [int(text) if text.isdecimal() else text for text in texts]
