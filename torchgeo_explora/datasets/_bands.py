"""Names of bands, Sentinel-2's above all, and SatMAE's scaling of Sentinel-2 values."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchgeo_explora.errors import ConfigError

SENTINEL2_BANDS = (
    'B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B9', 'B10', 'B11', 'B12',
)  # fmt: skip
"""Order of the bands in fMoW-Sentinel's files: by wavelength (SatMAE, arXiv:2207.08051)."""

SATMAE_BANDS = ('B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12')
"""The ten bands that SatMAE and M-ExPLoRA see: without B1, B9 and B10, which have 60 m pixels."""

_SPELLING = re.compile(r'B0*(\d{1,2})(A?)', re.IGNORECASE)


@dataclass(frozen=True)
class BandStatistics:
    """Mean and standard deviation of a band, in digital numbers (reflectance times 10,000).

    Args:
        mean: Mean.
        std: Standard deviation.
    """

    mean: float
    std: float


# Of fMoW-Sentinel's training images, as SatMAE publishes them for its normalisation.
_MEANS = (
    1370.19151926, 1184.3824625, 1120.77120066, 1136.26026392, 1263.73947144, 1645.40315151,
    1846.87040806, 1762.59530783, 1972.62420416, 582.72633433, 14.77112979, 1732.16362238,
    1247.91870117,
)  # fmt: skip
_STDS = (
    633.15169573, 650.2842772, 712.12507725, 965.23119807, 948.9819932, 1108.06650639,
    1258.36394548, 1233.1492281, 1364.38688993, 472.37967789, 14.3114637, 1310.36996126,
    1087.6020813,
)  # fmt: skip


def canonical_band(name: str) -> str:
    """One spelling for every Sentinel-2 band: ``B1``, ``B01`` and ``b1`` are the same band.

    Args:
        name: Name of a band of any sensor.

    Returns:
        ``B1`` to ``B12`` and ``B8A`` for Sentinel-2's; any other name as it is.
    """
    match = _SPELLING.fullmatch(name.strip())
    if match is None:
        return name.strip()
    return f'B{int(match[1])}{match[2].upper()}'


SATMAE_STATISTICS = {
    name: BandStatistics(mean, std)
    for name, mean, std in zip(SENTINEL2_BANDS, _MEANS, _STDS, strict=True)
}
"""Statistics of fMoW-Sentinel by band; look up with :func:`canonical_band`."""


def band_positions(available: Sequence[str], wanted: Sequence[str], where: str) -> tuple[int, ...]:
    """Positions of bands that are chosen by name, in any spelling.

    Args:
        available: Names of the bands that there are, in order.
        wanted: Names of the bands to take, in order.
        where: What has the bands, for messages.

    Returns:
        0-based positions in ``available``.

    Raises:
        ConfigError: If no band is wanted, one is wanted twice or is not there, or two that are
            there have the same name.
    """
    names = [canonical_band(name) for name in available]
    chosen = [canonical_band(name) for name in wanted]
    if len(set(names)) < len(names):
        raise ConfigError(f'{where}: the bands {list(available)} name one twice: name each once.')
    missing = [name for name, key in zip(wanted, chosen, strict=True) if key not in names]
    if missing or not chosen:
        what = f'no band {missing[0]!r}' if missing else 'been asked for no band'
        raise ConfigError(f'{where} has {what}: choose from {list(available)}.')
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f'{where}: bands {list(wanted)} has one twice: choose each once.')
    return tuple(names.index(key) for key in chosen)


def satmae_range(bands: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values that SatMAE's scaling maps to 0 and to 1: mean minus and plus two deviations.

    Args:
        bands: Names of Sentinel-2 bands, in any spelling.

    Returns:
        Two arrays of one value per band, in digital numbers.

    Raises:
        ConfigError: If a name is not Sentinel-2's.
    """
    unknown = [name for name in bands if canonical_band(name) not in SATMAE_STATISTICS]
    if unknown:
        raise ConfigError(
            f"SatMAE's scaling knows no band {unknown[0]!r}: give names of Sentinel-2's bands, "
            f'{", ".join(SENTINEL2_BANDS)}.'
        )
    statistics = [SATMAE_STATISTICS[canonical_band(name)] for name in bands]
    mean = np.array([band.mean for band in statistics])
    reach = 2 * np.array([band.std for band in statistics])
    return mean - reach, mean + reach


def satmae_scale(values: NDArray[np.generic], bands: Sequence[str]) -> NDArray[np.uint8]:
    """Scale digital numbers as SatMAE does: mean +- 2 deviations to 0..255, cut off to bytes.

    ``uint8(clip(255 (x - (mean - 2 std)) / (4 std), 0, 255))`` (SatMAE, section 4.2 and its code:
    the fraction is dropped, not rounded).

    Args:
        values: (C, H, W) digital numbers; those that are not finite become 0.
        bands: Names of the C bands.

    Returns:
        (C, H, W) bytes; divided by 255 they are the network's input.
    """
    low, high = (side[:, None, None] for side in satmae_range(bands))
    scaled = (255 * (values.astype(np.float64) - low) / (high - low)).clip(0, 255)
    if values.dtype.kind == 'f':
        scaled[~np.isfinite(values)] = 0
    return scaled.astype(np.uint8)
