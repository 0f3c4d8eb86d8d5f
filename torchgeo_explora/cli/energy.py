"""Energy that a command takes, as far as the machine and `codecarbon` can tell.

Nothing here is a guess in disguise: where nothing measures, the number is None and the reason is
said; where codecarbon estimates from nominal powers, the source says so.
"""

import importlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import ModuleType, TracebackType
from typing import Any, Self

import torch

from torchgeo_explora.cli.console import duration

EXTRA = 'energy'
"""Extra that installs codecarbon."""

COUNTRY = 'CODECARBON_COUNTRY_ISO_CODE'
"""Variable that names the country, three letters; codecarbon's own."""

NOT_INSTALLED = (
    f"codecarbon is not installed: pip install 'torchgeo-explora[{EXTRA}]' to have the energy of "
    'runs measured or estimated'
)
_COUNTERS = ('rapl', 'power gadget', 'emi', 'powermetrics', 'apple', 'raspberry')
"""Words in codecarbon's names of processors whose energy is read from a counter."""


@dataclass(frozen=True)
class Energy:
    """Time, energy and emissions of some work.

    Args:
        seconds: Time that passed.
        kwh: Energy in kilowatt hours, or None where nothing measured or estimated it.
        kg_co2: Emissions in kilograms of CO2 equivalents, or None where energy or country are not
            known.
        source: Where the numbers are from, which of them are estimates, or why there are none.
    """

    seconds: float
    kwh: float | None
    kg_co2: float | None
    source: str

    def __add__(self, other: 'Energy') -> 'Energy':
        """Join the energy of two parts of some work, for instance before and after a crash."""
        sources = dict.fromkeys((self.source, other.source))
        return Energy(
            self.seconds + other.seconds,
            _sum(self.kwh, other.kwh),
            _sum(self.kg_co2, other.kg_co2),
            '; '.join(sources),
        )

    def sentence(self) -> str:
        """Say all of it in one sentence."""
        time_taken = duration(self.seconds)
        if self.kwh is None:
            return f'{time_taken}; the energy is not known ({self.source}).'
        emissions = '' if self.kg_co2 is None else f', {self.kg_co2 * 1000:.3g} g of CO2'
        return f'{time_taken}, {self.kwh * 1000:.3g} Wh{emissions} ({self.source}).'

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> 'Energy':
        """Read what :meth:`to_dict` returned."""
        return cls(**content)


class EnergyMeter:
    """Measures what happens inside a ``with`` block.

    Uses codecarbon without a network: its figures for countries come with it, and nothing is sent
    or written. Everything on the machine counts, also what other programs do; of GPUs, the one
    that is used, and none where the work is done on the CPU.

    Args:
        device: Where the work is done.

    Example:
        >>> with EnergyMeter(torch.device('cpu')) as meter:
        ...     result = sum(range(10))
        >>> meter.energy.seconds < 60
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start = time.monotonic()
        self._tracker: Any = None
        self._readings: list[Any] = []
        self._reason = NOT_INSTALLED
        self._final: Energy | None = None

    def __enter__(self) -> Self:
        """Start the clock, and codecarbon where it is there."""
        codecarbon = _codecarbon()
        if codecarbon is not None:
            try:
                self._tracker = self._start_tracker(codecarbon)
            except Exception as error:  # whatever goes wrong there must not end a training
                self._reason = f'codecarbon could not start ({type(error).__name__}: {error})'
        self._start = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, whatever happened inside."""
        seconds = time.monotonic() - self._start
        if self._tracker is not None:
            self._tracker.stop()  # of a tracker that never started, this does nothing
        self._final = self._read(seconds)

    @property
    def energy(self) -> Energy:
        """What the work took so far; after the block, all of it."""
        if self._final is not None:
            return self._final
        if self._tracker is not None:
            try:
                self._tracker.flush()
            except Exception as error:
                self._reason = f'codecarbon failed ({type(error).__name__}: {error})'
                self._readings.clear()
        return self._read(time.monotonic() - self._start)

    def _start_tracker(self, codecarbon: ModuleType) -> Any:  # noqa: ANN401
        base: Any = importlib.import_module('codecarbon.output').BaseOutput
        readings = self._readings

        class Keep(base):  # type: ignore[misc]
            """Keeps the totals that codecarbon hands to its outputs."""

            def out(self, total: object, delta: object) -> None:
                readings.append(total)

        tracker = codecarbon.OfflineEmissionsTracker(
            output_methods=[],
            output_handlers=[Keep()],
            emissions_endpoint=None,
            electricitymaps_api_token=None,
            gpu_ids=gpu_ids(self.device),
            log_level='critical',
        )
        tracker.start()
        self._reason = 'codecarbon gave no numbers'
        return tracker

    def _read(self, seconds: float) -> Energy:
        if not self._readings:
            return Energy(seconds, None, None, self._reason)
        total = self._readings[-1]
        grid = _grid(self._tracker.force_carbon_intensity_g_co2e_kwh, total)
        source = describe_source(
            f'codecarbon {total.codecarbon_version}',
            [item.description() for item in vars(self._tracker).get('_hardware', [])],
            grid,
        )
        emissions = None if grid is None else float(total.emissions)
        return Energy(seconds, float(total.energy_consumed), emissions, source)


def describe_source(name: str, hardware: Iterable[str], grid: str | None) -> str:
    """Say which numbers were measured, and which are estimates.

    Args:
        name: Program and version.
        hardware: codecarbon's descriptions of what it follows, for instance ``CPU(Intel Rapl)``.
        grid: Whose mix of electricity was taken; None where it is not known.
    """
    parts = [f'{name}, whole machine']
    for item in hardware:
        lower = item.lower()
        if lower.startswith('gpu'):
            parts.append('GPU measured by its driver')
        elif any(word in lower for word in _COUNTERS):
            parts.append('processor measured by its counters')
        elif lower.startswith('cpu'):
            parts.append('processor estimated from its load and nominal power, not measured')
        else:
            parts.append('memory estimated from its size')
    unknown = f'CO2 not known: name the country in {COUNTRY}, for instance DEU'
    return ', '.join([*dict.fromkeys(parts), unknown if grid is None else f'CO2 with {grid}'])


def gpu_ids(device: torch.device) -> list[int] | None:
    """Return the number that the driver gives to a device.

    Args:
        device: Where the work is done.

    Returns:
        One number; none for a CPU; None, which is all that are visible, where it cannot be told.
    """
    if device.type != 'cuda':
        return []
    try:
        pynvml: Any = importlib.import_module('pynvml')
        uuid = torch.cuda.get_device_properties(device).uuid
        pynvml.nvmlInit()
        return [int(pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(f'GPU-{uuid}')))]
    except Exception:  # parts of a GPU, other vendors, no such library: each has its own error
        return None


def _codecarbon() -> ModuleType | None:
    try:
        module = importlib.import_module('codecarbon')
    except ImportError:
        return None
    logging.getLogger('codecarbon').setLevel(logging.CRITICAL)
    return module


def _grid(intensity: float | None, total: Any) -> str | None:  # noqa: ANN401
    """Whose electricity emissions are computed with; None for codecarbon's mean of the world."""
    if intensity is not None:
        return f'{intensity:g} g a kWh, as it was set'
    if total.on_cloud == 'Y':
        return f'the mix of {total.cloud_provider} {total.cloud_region}'
    return f'the mean mix of {total.country_name}' if total.country_name else None


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
