"""Maps of classes: what a fitted model sees in rasters."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchgeo_explora import __version__
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.inference.distance import DistanceBehind, WithDistance
from torchgeo_explora.inference.jobs import Job, Tiling, tiling
from torchgeo_explora.inference.layers import DISTANCE, Layer, choose_layers, layer_values
from torchgeo_explora.inference.maps import Legend, map_paths, write_maps
from torchgeo_explora.inference.pipeline import Runner, Tally, softmax
from torchgeo_explora.inference.polygons import PolygonSettings
from torchgeo_explora.inference.product import Product, Reading
from torchgeo_explora.inference.raster import SETTINGS, RasterInfo
from torchgeo_explora.inference.ray_engine import RayCluster
from torchgeo_explora.inference.resized import Resized
from torchgeo_explora.inference.run import RasterRun, Summary, check_model, silent
from torchgeo_explora.inference.shards import Shard
from torchgeo_explora.inference.sources import find_rasters
from torchgeo_explora.inference.style import class_colors
from torchgeo_explora.inference.work import WorkFolder
from torchgeo_explora.models import FeatureReference, ModelSpec
from torchgeo_explora.models.feature_reference import REFERENCE


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
        uncertainty: Measures that are written: ``entropy``, ``margin``, ``distance``.
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

    def check_reference(self, reference: FeatureReference | None) -> None:
        """Refuse to measure a distance to nothing.

        Args:
            reference: The features of the images that the model was fitted on.

        Raises:
            ConfigError: If it is needed and not there.
        """
        if DISTANCE in self.uncertainty and reference is None:
            raise ConfigError(
                'The distance is that to the images which the model was fitted on: give the '
                f'{REFERENCE} that fine-tuning wrote beside the model.'
            )

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
    reference: FeatureReference | None = None,
    progress: Callable[[Tally], None] | None = None,
    cluster: RayCluster | None = None,
    asset: str | None = None,
) -> Summary:
    """Predict rasters and write maps of classes, in the rasters' own grids.

    A raster that cannot be read or does not fit the model is named in the summary; the others go
    on. Memory beside the model is bounded whatever the size of the rasters. Maps appear under their
    names only when they are complete.

    Args:
        sources: Files, folders, globs, lists in text files, zip archives, STAC files, URLs.
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
        reference: Features of the images that the model was fitted on, for the distance.
        progress: Told of the state now and then.
        cluster: Workers of Ray that compute; they choose their device. None for this process.
        asset: Key of the asset that is taken of STAC items; None for the only one there is.

    Returns:
        What became of the rasters.

    Raises:
        ExploraError: If nothing at all can be done.
    """
    with rasterio.Env(**SETTINGS):
        how = PredictSettings() if settings is None else settings
        product = Maps(spec, how, reference)
        run = RasterRun(Path(out).expanduser(), product, shard)
        found = find_rasters(sources, run.out, asset)
        run.plan(found)
        place = torch.device(device if cluster is None else 'cpu')
        chosen = softmax if to_planes is None else to_planes
        if product.reference is not None:
            model, chosen = WithDistance(model, product.reference), DistanceBehind(chosen)
        if spec.window != spec.image_size:
            model = Resized(model, round(product.tiling.size * spec.image_size / spec.window))
        ready = model.to(place).eval()
        dtype = getattr(torch, how.precision)
        runner = Runner(ready, place, dtype, product.planes, product.tiling.size, chosen)
        check_model(runner, len(spec.bands))
        run.begin(found, resume or shard is not None, place)
        with run.folder.recorded():
            run.compute(runner, threads, silent if progress is None else progress, cluster)
            return run.conclude()


@final
class Maps(Product):
    """Maps of the classes of a fitted model.

    Args:
        spec: Describes the model.
        settings: What decides the numbers.
        reference: Features of the images that the model was fitted on, for the distance.

    Raises:
        ConfigError: If a number is not possible.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: PredictSettings,
        reference: FeatureReference | None = None,
    ) -> None:
        settings.check_reference(reference)
        self.reference = reference if DISTANCE in settings.uncertainty else None
        super().__init__(
            'predict',
            spec,
            settings.tiling(spec),
            len(spec.classes) + (self.reference is not None),
            choose_layers(spec, settings.probabilities, settings.uncertainty),
            Reading(settings.bands, settings.scale, settings.aoi, settings.force),
        )
        self.settings, self.model = settings, spec.weights_hash
        self.legend = Legend(
            spec.classes,
            class_colors(len(spec.classes), spec.colors),
            _tags(spec),
            settings.polygons(),
        )

    def describe(self) -> dict[str, Any]:
        """Return the settings, the model and what distances are to."""
        content = {'settings': asdict(self.settings), 'model': self.model}
        if self.reference is not None:
            content['reference'] = self.reference.fingerprint
        return content

    def check(self, info: RasterInfo) -> None:
        """Refuse polygons of a raster without coordinates."""
        if self.settings.vector and info.place.transform.is_identity:
            raise ImageError(
                f'{info.path} has no transform, so that polygons have no coordinates: leave '
                '--vector out, or warp the raster first.'
            )

    def paths(self, out: Path, job: Job) -> list[Path]:
        """Return where the maps of a raster are written."""
        return list(map_paths(out, job, self.layers).values())

    def render(self, layer: Layer, values: Tensor, valid: Tensor) -> NDArray[np.generic]:
        """Compute what a map holds."""
        return layer_values(layer, values, valid, len(self.legend.classes))

    def prepare(self, folder: WorkFolder, jobs: Sequence[Job]) -> None:
        """Do nothing: maps have nothing in common."""

    def write(self, folder: WorkFolder, job: Job) -> list[Path]:
        """Write the maps of a raster."""
        return write_maps(folder, job, self.legend)


def _tags(spec: ModelSpec) -> dict[str, str]:
    return {
        'TIFFTAG_SOFTWARE': f'torchgeo_explora {__version__}',
        'MODEL': spec.model,
        'MODEL_TASK': spec.task,
        'MODEL_WEIGHTS_SHA256': spec.weights_hash,
        'MODEL_VERSION': spec.version,
        'CLASSES': json.dumps(list(spec.classes)),
    }
