"""From rasters and a fitted model to maps: plans, computes, writes, and says what became of it."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rasterio
import torch
from torch import Tensor, nn

from torchgeo_explora import __version__
from torchgeo_explora._files import replacing
from torchgeo_explora.errors import ConfigError, ExploraError, ImageError
from torchgeo_explora.inference.area import AreaOfInterest
from torchgeo_explora.inference.fit import fit_raster
from torchgeo_explora.inference.jobs import Group, Job, Tiling, Unit, group_units, tiling
from torchgeo_explora.inference.layers import choose_layers
from torchgeo_explora.inference.maps import Legend, map_paths, write_maps
from torchgeo_explora.inference.pipeline import Pipeline, Runner, Tally
from torchgeo_explora.inference.polygons import PolygonSettings
from torchgeo_explora.inference.raster import SETTINGS, read_info
from torchgeo_explora.inference.sources import Source, find_rasters
from torchgeo_explora.inference.style import class_colors
from torchgeo_explora.inference.windows import Extent
from torchgeo_explora.inference.work import WorkFolder
from torchgeo_explora.models import ModelSpec, TemporalViT


@dataclass(frozen=True)
class PredictSettings:
    """What decides the numbers in the maps.

    Args:
        window: Side of a window in pixels; None for that of the images the model was fitted on.
        overlap: Of a segmentation model: fraction of a window below 1, or pixels; None for a
            quarter.
        stride: Of a classification model: side of the cells that get one class; None for the
            window's.
        batch: Windows of a batch.
        block: Longest side of the blocks that are computed in one go, in pixels.
        max_memory: Megabytes that a block may take beside the model.
        probabilities: Whether a band of probabilities is written for each class.
        uncertainty: Measures that are written: ``entropy``, ``margin``.
        bands: Bands of the rasters, by 1-based index or name; None to find them.
        scale: Raw values that become 0 and 1; None for the model's.
        aoi: Vector file; pixels outside of its polygons are not predicted.
        force: Override objections to rasters that do not fit.
        precision: ``float32`` or ``bfloat16``.
        vector: Whether classes are written as polygons too.
        min_area: Smallest polygon, in square metres.
        simplify: Pixels by which outlines of polygons may be simplified.
    """

    window: int | None = None
    overlap: float | None = None
    stride: int | None = None
    batch: int = 16
    block: int = 8192
    max_memory: int = 256
    probabilities: bool = False
    uncertainty: tuple[str, ...] = ()
    bands: tuple[int | str, ...] | None = None
    scale: tuple[float, float] | None = None
    aoi: str | None = None
    force: bool = False
    precision: str = 'float32'
    vector: bool = False
    min_area: float = 0.0
    simplify: float = 0.0

    def polygons(self) -> PolygonSettings | None:
        """Choose polygons; None for none.

        Raises:
            ConfigError: If a number is not possible, or polygons are described and not asked for.
        """
        if self.vector:
            return PolygonSettings(self.min_area, self.simplify)
        if self.min_area != 0 or self.simplify != 0:
            raise ConfigError('min_area and simplify are of polygons: ask for these with --vector.')
        return None

    def tiling(self, spec: ModelSpec) -> Tiling:
        """Choose windows for a model.

        Raises:
            ConfigError: If a number is not possible.
        """
        return tiling(
            spec,
            self.window,
            self.overlap,
            self.stride,
            self.batch,
            self.block,
            self.max_memory * 2**20,
        )


@dataclass(frozen=True)
class Shard:
    """A share of the work.

    Args:
        number: From 1 to ``count``.
        count: Number of shards.

    Raises:
        ConfigError: If there is no such shard.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.number <= self.count:
            raise ConfigError(f'There is no shard {self.number}/{self.count}: give 1/4 to 4/4.')


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


def predict_rasters(
    sources: Sequence[str | os.PathLike[str]],
    model: nn.Module,
    spec: ModelSpec,
    out: str | Path,
    settings: PredictSettings | None = None,
    *,
    device: str | torch.device = 'cpu',
    threads: int = 2,
    resume: bool = False,
    shard: Shard | None = None,
    to_planes: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[Tally], None] | None = None,
) -> Summary:
    """Predict rasters and write maps of classes, in the rasters' own grids.

    A raster that cannot be read or does not fit the model is named in the summary; the others go
    on. Memory beside the model is bounded whatever the size of the rasters. Maps appear under their
    names only when they are complete.

    Args:
        sources: Files, folders, globs, lists in text files, URLs.
        model: Takes images in [0, 1], gives logits; what ``load_model`` returned. It is moved to
            the device and put into evaluation mode.
        spec: Describes it.
        out: Folder of the results.
        settings: What decides the numbers; None for the defaults.
        device: Where the model runs.
        threads: Threads that read.
        resume: Go on with a run in ``out``.
        shard: Compute this share of the blocks and write no map; a run with ``resume`` and without
            a shard writes the maps once all shards are done.
        to_planes: Turns the logits of a window (classes first) to what is averaged and written;
            None for softmax.
        progress: Told of the state now and then.

    Returns:
        What became of the rasters.

    Raises:
        ExploraError: If nothing at all can be done.
    """
    with rasterio.Env(**SETTINGS):
        how = PredictSettings() if settings is None else settings
        run = _Run(Path(out).expanduser(), spec, how, shard)
        found = find_rasters(sources, run.out)
        run.plan(found)
        chosen = {} if to_planes is None else {'to_planes': to_planes}
        dtype, place = getattr(torch, how.precision), torch.device(device)
        ready = model.to(place).eval()
        runner = Runner(ready, place, dtype, len(spec.classes), run.tiling.size, **chosen)
        _check_model(runner, len(spec.bands))
        run.begin(found, resume or shard is not None, place)
        with run.folder.recorded():
            run.compute(runner, threads, _silent if progress is None else progress)
            return run.conclude()


def _silent(tally: Tally) -> None:
    """Show nothing."""


def _check_model(runner: Runner, bands: int) -> None:
    """Try the model before anything is written."""
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


class _Run:
    """The work of one call."""

    def __init__(
        self, out: Path, spec: ModelSpec, settings: PredictSettings, shard: Shard | None
    ) -> None:
        self.out, self.spec, self.settings, self.shard = out, spec, settings, shard
        self.tiling = settings.tiling(spec)
        self.tiling.grid(Extent(1, 1))  # refuses impossible overlaps and strides once for all
        self.layers = choose_layers(spec, settings.probabilities, settings.uncertainty)
        self.folder = WorkFolder(out, self.layers)
        self.summary = Summary()
        self.jobs: list[Job] = []
        self.legend = Legend(
            spec.classes,
            class_colors(len(spec.classes), spec.colors),
            _tags(spec),
            settings.polygons(),
        )

    def plan(self, sources: Sequence[Source]) -> None:
        """Look at all rasters."""
        aoi = None if self.settings.aoi is None else AreaOfInterest(self.settings.aoi)
        limit = self.tiling.block_limit(len(self.spec.classes), len(self.spec.bands))
        for number, source in enumerate(sources):
            try:
                self.jobs.append(self._job(number, source, aoi, limit))
            except ExploraError as error:
                self.summary.failed[source.path] = str(error)

    def begin(self, sources: Sequence[Source], go_on: bool, device: torch.device) -> None:
        """Begin the work in the folder, or go on with it."""
        self._check_out(go_on)
        if self.jobs:
            shard = None if self.shard is None else f'{self.shard.number}-of-{self.shard.count}'
            self.folder.start(self._manifest(sources), go_on, device=device, shard=shard)

    def _job(self, number: int, source: Source, aoi: AreaOfInterest | None, limit: Extent) -> Job:
        settings = self.settings
        info = read_info(source.path)
        if settings.vector and info.place.transform.is_identity:
            raise ImageError(
                f'{info.path} has no transform, so that polygons have no coordinates: leave '
                '--vector out, or warp the raster first.'
            )
        fit = fit_raster(info, self.spec, settings.bands, settings.scale, settings.force)
        area = None if aoi is None else aoi.over(info)
        grid = self.tiling.grid(info.extent)
        blocks = grid.blocks(limit)
        if fit.overridden:
            self.summary.overridden[source.path] = fit.overridden
        mark = _fingerprint(source.path, repr((info.extent, info.dtype, fit.selection, blocks)))
        return Job(number, mark, source.target, info, fit, grid, blocks, area)

    def _check_out(self, go_on: bool) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f'{self.out} is a file: give a folder for the results.')
        there = [path for job in self.jobs for path in self._paths(job) if path.exists()]
        if there and not go_on:
            raise ConfigError(
                f'{there[0]} exists already: go on with --resume, or choose another folder.'
            )

    def _paths(self, job: Job) -> list[Path]:
        return list(map_paths(self.out, job, self.layers).values())

    def _manifest(self, sources: Sequence[Source]) -> dict[str, Any]:
        return {
            'sources': [source.path for source in sources],
            'settings': asdict(self.settings),
            'model': self.spec.weights_hash,
            'version': __version__,
        }

    def _is_final(self, job: Job) -> bool:
        return all(path.is_file() for path in self._paths(job))

    def compute(self, runner: Runner, threads: int, progress: Callable[[Tally], None]) -> None:
        """Compute what is left."""
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
        tally = Tally(sum(unit.block.area for group in groups for unit in group))
        self.summary.tally = tally
        self._assemble([job for job in self.jobs if job.number not in final])
        Pipeline(
            runner,
            self.folder,
            self.settings.batch,
            threads,
            tally,
            kept,
            progress,
            lambda unit: self._assemble([unit.job]),
        ).run(groups)

    def _share(self) -> list[Group]:
        groups = group_units(self.jobs, self.settings.batch)
        if self.shard is None:
            return groups
        return groups[self.shard.number - 1 :: self.shard.count]

    def _assemble(self, jobs: Sequence[Job]) -> None:
        """Write the maps of rasters whose blocks are done; shards leave that to the end."""
        if self.shard is not None:
            return
        for job in jobs:
            if self.folder.is_complete(job):
                paths = write_maps(self.folder, job, self.legend)
                self.summary.written[job.info.path] = list(map(str, paths))
                self.folder.drop(job)

    def conclude(self) -> Summary:
        """Tidy up and report."""
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


def _tags(spec: ModelSpec) -> dict[str, str]:
    return {
        'TIFFTAG_SOFTWARE': f'torchgeo_explora {__version__}',
        'MODEL': spec.model,
        'MODEL_TASK': spec.task,
        'MODEL_WEIGHTS_SHA256': spec.weights_hash,
        'MODEL_VERSION': spec.version,
        'CLASSES': json.dumps(list(spec.classes)),
    }
