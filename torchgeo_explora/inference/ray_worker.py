"""What a worker elsewhere does of a run, and what it is sent. Nothing here needs Ray itself."""

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import rasterio
import torch

from torchgeo_explora import __version__
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference.jobs import Job, Unit
from torchgeo_explora.inference.pipeline import Pipeline, Runner, Tally
from torchgeo_explora.inference.product import Product
from torchgeo_explora.inference.raster import SETTINGS
from torchgeo_explora.inference.work import WorkFolder

type UnitKey = tuple[int, int]
"""Number of a raster, and of a block of it."""


@dataclass(frozen=True)
class Share:
    """All that a worker is sent, once.

    Args:
        folder: Where blocks are kept and results written; a folder that all machines see.
        product: What is made of the rasters.
        jobs: The rasters, by number.
        runner: Runs the model; held by a CPU on the way.
        device: Where a worker runs it.
        threads: Threads that read.
        cores: Threads that torch computes with.
        place: Working folder, which relative paths of rasters begin at.
        version: Of this package.
    """

    folder: WorkFolder
    product: Product
    jobs: Mapping[int, Job]
    runner: Runner
    device: str
    threads: int
    cores: int
    place: Path = field(default_factory=Path.cwd)
    version: str = __version__

    def check(self) -> None:
        """Check that this machine can take part.

        Raises:
            ConfigError: If it has another version, or does not see the folder of the results.
        """
        here = platform.node()
        if self.version != __version__:
            raise ConfigError(
                f'The machine {here} has torchgeo_explora {__version__}, and the run was started '
                f'by {self.version}: install the same on all machines.'
            )
        if not self.folder.manifest.is_file():
            raise ConfigError(
                f'The machine {here} does not see {self.folder.manifest}: give an --out that all '
                'machines of the cluster share.'
            )

    def unit(self, key: UnitKey) -> Unit:
        """Return a block."""
        return Unit(self.jobs[key[0]], key[1])


@dataclass(frozen=True)
class Outcome:
    """What became of a group of blocks.

    Args:
        pixels: Pixels that are through.
        windows: Windows that the model saw.
        empty: Windows that it did not.
        failed: Why rasters failed, by number.
    """

    pixels: int
    windows: int
    empty: int
    failed: Mapping[int, str]


class Worker:
    """Computes blocks and writes results, one after the other; meanwhile it tells how far it is."""

    def __init__(self) -> None:
        self._pixels = 0

    def pixels(self) -> int:
        """Return how many pixels of the present group are through."""
        return self._pixels

    def prepare(self, share: Share) -> str:
        """Take what there is to do, and the model.

        Args:
            share: Both.

        Returns:
            Name of the machine.

        Raises:
            ConfigError: If this machine cannot take part.
        """
        with suppress(OSError):  # where it is not there, rasters with absolute paths still are
            os.chdir(share.place)
        share.check()
        device = torch.device(share.device)
        model = share.runner.model.to(device).eval()
        self.share, self.runner = share, replace(share.runner, model=model, device=device)
        return platform.node()

    def compute(self, keys: Sequence[UnitKey], failed: Mapping[int, str]) -> Outcome:
        """Compute a group of blocks.

        Args:
            keys: The blocks, in order.
            failed: Rasters that are known to fail, and why.

        Returns:
            What became of it.

        Raises:
            ExploraError: If the model does not fit, or nothing can be written.
        """
        share, self._pixels = self.share, 0
        torch.set_num_threads(share.cores)  # of this thread: Ray has several
        units = tuple(map(share.unit, keys))
        # what another worker did before it died is not done again
        done = {key for key, unit in zip(keys, units, strict=True) if share.folder.is_done(unit)}
        tally = Tally(sum(unit.block.area for unit in units), failed=dict(failed))
        with rasterio.Env(**SETTINGS):
            Pipeline(
                self.runner,
                share.folder,
                share.product.tiling.batch,
                share.threads,
                tally,
                lambda unit: (unit.job.number, unit.number) not in done,
                self._note,
                _nothing,
                share.product.render,
            ).run([units])
        return Outcome(tally.pixels, tally.windows, tally.empty, tally.failed)

    def _note(self, tally: Tally) -> None:
        self._pixels = tally.pixels

    def assemble(self, number: int) -> list[str]:
        """Write the results of a raster whose blocks are done.

        Args:
            number: Of the raster.

        Returns:
            The files written.

        Raises:
            OutputError: If one cannot be written.
        """
        share = self.share
        job = share.jobs[number]
        with rasterio.Env(**SETTINGS):
            share.product.prepare(share.folder, [job])
            return list(map(str, share.product.write(share.folder, job)))


def _nothing(unit: Unit) -> None:
    """Leave what follows to whoever shares the work out."""
