"""Goes through rasters: plans, computes what is left, writes results, says what became of it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchgeo_explora import __version__
from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError, ExploraError, ImageError
from torchgeo_explora.inference.area import AreaOfInterest
from torchgeo_explora.inference.fit import fit_raster
from torchgeo_explora.inference.jobs import Group, Job, Unit, group_units
from torchgeo_explora.inference.pipeline import Pipeline, Runner, Tally
from torchgeo_explora.inference.product import Product
from torchgeo_explora.inference.raster import read_info
from torchgeo_explora.inference.ray_engine import RayCluster, RayRun
from torchgeo_explora.inference.ray_worker import Share
from torchgeo_explora.inference.shards import Shard, write_plan
from torchgeo_explora.inference.sources import Source
from torchgeo_explora.inference.windows import Extent
from torchgeo_explora.inference.work import WorkFolder
from torchgeo_explora.models import TemporalViT


@dataclass
class Summary:
    """What became of the rasters.

    Args:
        written: Files written, by raster.
        skipped: Rasters that were done before.
        unfinished: Rasters of which other shards have blocks to do.
        failed: Reasons, by raster.
        overridden: Objections that the user overrode, by raster.
        tally: Counts.
    """

    written: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    overridden: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tally: Tally = field(default_factory=lambda: Tally(0))

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        content = asdict(self)
        counts = content.pop('tally')
        kept = ('pixels', 'windows', 'empty')
        return content | {key: counts[key] for key in kept} | {'seconds': self.tally.seconds}


def silent(tally: Tally) -> None:
    """Show nothing.

    Args:
        tally: What could be shown.
    """


def check_model(runner: Runner, bands: int) -> None:
    """Try a model before anything is written.

    Args:
        runner: Runs it.
        bands: Of its images.

    Raises:
        ConfigError: If it cannot take windows of a raster.
        WeightsError: If it returns something else than it should.
    """
    if any(isinstance(module, TemporalViT) for module in runner.model.modules()):
        raise ConfigError(
            'The model sees several dates of a place, and rasters are single images: give a model '
            'of single images.'
        )
    try:
        runner.run(torch.zeros(1, bands, runner.size, runner.size))
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f'The model cannot take windows of {bands} bands and {runner.size} pixels '
            f'({" ".join(str(error).split())}): choose --window as the model needs it.'
        ) from error


class RasterRun:
    """The work of one call.

    Args:
        out: Folder of the results.
        product: What is made of the rasters.
        shard: Share of the blocks to compute, without writing results; None for all, with them.

    Raises:
        ConfigError: If windows cannot lie as they are asked to.
    """

    def __init__(self, out: Path, product: Product, shard: Shard | None) -> None:
        self.out, self.product, self.shard = out, product, shard
        product.tiling.grid(Extent(1, 1))  # refuses impossible overlaps and strides once for all
        self.folder = WorkFolder(out, product.layers, f'.torchgeo-explora-{product.command}')
        self.summary = Summary()
        self.jobs: list[Job] = []

    def plan(self, sources: Sequence[Source]) -> None:
        """Look at all rasters.

        Args:
            sources: The rasters.

        Raises:
            ConfigError: If windows do not fit into the memory, or the area cannot be read.
        """
        product = self.product
        aoi = None if product.reading.aoi is None else AreaOfInterest(product.reading.aoi)
        self._block_limit(1)  # refuses windows that cannot fit once for all
        for number, source in enumerate(sources):
            try:
                self.jobs.append(self._job(number, source, aoi))
            except ExploraError as error:
                self.summary.failed[source.path] = str(error)

    def begin(self, sources: Sequence[Source], go_on: bool, device: torch.device) -> None:
        """Begin the work in the folder, or go on with it.

        Args:
            sources: The rasters.
            go_on: Whether the work may have begun.
            device: Where the model runs.

        Raises:
            ConfigError: If the folder holds other work.
            OutputError: If nothing can be written.
        """
        self._check_out(go_on)
        if self.jobs:
            shard = None if self.shard is None else f'{self.shard.number}-of-{self.shard.count}'
            manifest = {
                'sources': [source.path for source in sources],
                **self.product.describe(),
                'version': __version__,
            }
            self.folder.start(
                manifest, go_on, command=self.product.command, device=device, shard=shard
            )
            if self.shard is not None:
                write_plan(self.out, self._groups())

    def _block_limit(self, itemsize: int) -> Extent:
        product = self.product
        return product.tiling.block_limit(product.planes, len(product.spec.bands), itemsize)

    def _job(self, number: int, source: Source, aoi: AreaOfInterest | None) -> Job:
        product, reading = self.product, self.product.reading
        if source.reason is not None:
            raise ImageError(source.reason)
        info = read_info(source.path)
        product.check(info)
        fit = fit_raster(info, product.spec, reading.bands, reading.scale, reading.force)
        area = None if aoi is None else aoi.over(info)
        grid = product.tiling.grid(info.extent)
        blocks = grid.blocks(self._block_limit(np.dtype(info.dtype).itemsize))
        if fit.overridden:
            self.summary.overridden[source.path] = fit.overridden
        mark = _fingerprint(source.path, repr((info.extent, info.dtype, fit.selection, blocks)))
        cell = product.tiling.cell
        return Job(number, mark, source.target, info, fit, grid, blocks, area, cell)

    def _check_out(self, go_on: bool) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f'{self.out} is a file: give a folder for the results.')
        there = [
            path for job in self.jobs for path in self.product.paths(self.out, job) if path.exists()
        ]
        if there and not go_on:
            raise ConfigError(
                f'{there[0]} exists already: go on with --resume, or choose another folder.'
            )

    def _is_final(self, job: Job) -> bool:
        return all(path.is_file() for path in self.product.paths(self.out, job))

    def compute(
        self,
        runner: Runner,
        threads: int,
        progress: Callable[[Tally], None],
        cluster: RayCluster | None = None,
    ) -> None:
        """Compute what is left.

        Args:
            runner: Runs the model.
            threads: Threads that read.
            progress: Told of the state now and then.
            cluster: Workers that compute it; None for this process.

        Raises:
            ExploraError: If the model does not fit, or nothing can be written.
        """
        final = {job.number for job in self.jobs if self._is_final(job)}
        self.summary.skipped = [job.info.path for job in self.jobs if job.number in final]
        done = {
            (job.number, number)
            for job in self.jobs
            for number in range(len(job.blocks))
            if job.number in final or self.folder.is_done(Unit(job, number))
        }

        def kept(unit: Unit) -> bool:
            return (unit.job.number, unit.number) not in done

        groups = [group for group in self._share() if any(map(kept, group))]
        self.summary.tally = Tally(sum(unit.block.area for group in groups for unit in group))
        left = [job for job in self.jobs if job.number not in final]
        if cluster is None:
            self._assemble_now(left)
            self._compute_here(runner, threads, progress, kept, groups)
        else:
            self._compute_there(runner, threads, progress, cluster, groups)
        if self.product.joint:
            self.assemble(left)

    def _compute_here(
        self,
        runner: Runner,
        threads: int,
        progress: Callable[[Tally], None],
        kept: Callable[[Unit], bool],
        groups: Sequence[Group],
    ) -> None:
        Pipeline(
            runner,
            self.folder,
            self.product.tiling.batch,
            threads,
            self.summary.tally,
            kept,
            progress,
            lambda unit: self._assemble_now([unit.job]),
            self.product.render,
        ).run(groups)

    def _compute_there(
        self,
        runner: Runner,
        threads: int,
        progress: Callable[[Tally], None],
        cluster: RayCluster,
        groups: Sequence[Group],
    ) -> None:
        if self.shard is not None:
            raise ConfigError(
                'Workers of Ray share all of the work: leave --shard out, or --engine ray.'
            )
        jobs = {job.number: job for job in self.jobs}
        share = Share(
            self.folder, self.product, jobs, runner, cluster.device, threads, cluster.cores
        )
        complete = [
            number
            for number, job in jobs.items()
            if not (self.product.joint or self._is_final(job)) and self.folder.is_complete(job)
        ]

        def written(number: int, files: list[str]) -> None:
            self.summary.written[jobs[number].info.path] = files
            self.folder.drop(jobs[number])

        tally, joint = self.summary.tally, self.product.joint
        RayRun(cluster, share, tally, progress, written, joint).run(groups, complete)

    def _groups(self) -> list[Group]:
        return group_units(self.jobs, self.product.tiling.batch)

    def _share(self) -> list[Group]:
        return self._groups() if self.shard is None else self.shard.of(self._groups())

    def _assemble_now(self, jobs: Sequence[Job]) -> None:
        """Write results as soon as there are the blocks, unless they wait for those of others."""
        if not self.product.joint:
            self.assemble(jobs)

    def assemble(self, jobs: Sequence[Job]) -> None:
        """Write the results of rasters whose blocks are done; shards leave that to the end.

        Args:
            jobs: The rasters; of joint results, all that are left.

        Raises:
            OutputError: If one cannot be written.
        """
        complete = [job for job in jobs if self.shard is None and self.folder.is_complete(job)]
        if complete:
            self.product.prepare(self.folder, complete)
        for job in complete:
            paths = self.product.write(self.folder, job)
            self.summary.written[job.info.path] = list(map(str, paths))
            self.folder.drop(job)

    def conclude(self) -> Summary:
        """Tidy up and report.

        Returns:
            What became of the rasters.
        """
        summary = self.summary
        paths = {job.number: job.info.path for job in self.jobs}
        summary.failed |= {paths[number]: why for number, why in summary.tally.failed.items()}
        for job in self.jobs:
            if job.number in summary.tally.failed:
                self.folder.drop(job)
            elif not self._is_final(job):
                summary.unfinished.append(job.info.path)
        if self.jobs and self.shard is None:
            self.folder.close()
            with replacing(self.folder.report) as temporary:
                temporary.write_text(json.dumps(summary.to_dict(), indent=1), encoding='utf-8')
        return summary


def _fingerprint(path: str, about: str) -> str:
    file = Path(path)
    if file.is_file():
        status = file.stat()
        about += f' {status.st_size} {status.st_mtime_ns}'
    return hashlib.sha256(f'{path} {about}'.encode()).hexdigest()[:12]
