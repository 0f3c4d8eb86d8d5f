"""Embeddings of rasters: of every patch as a raster, or of every window as a table."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import rasterio
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference.embedder import ImageEmbedder, PatchEmbedder, patch_side
from torchgeo_explora.inference.embeddings import (
    Embedded,
    PatchEmbeddings,
    WindowEmbeddings,
)
from torchgeo_explora.inference.jobs import Tiling
from torchgeo_explora.inference.pipeline import Runner, Tally
from torchgeo_explora.inference.product import Product, Reading
from torchgeo_explora.inference.raster import SETTINGS
from torchgeo_explora.inference.ray_engine import RayCluster
from torchgeo_explora.inference.run import RasterRun, Summary, check_model, silent
from torchgeo_explora.inference.shards import Shard
from torchgeo_explora.inference.sources import find_rasters
from torchgeo_explora.models import InputSpec
from torchgeo_explora.models.fitted import tensors_hash
from torchgeo_explora.objectives.pca import PCABasis, basis_metadata

DTYPES = ('float16', 'int8', 'float32')


@dataclass(frozen=True)
class EmbedSettings:
    """What decides the numbers of embeddings.

    Args:
        window: Side of a window in pixels, a multiple of the patch; None for that of the images
            that the model was trained on, at most.
        overlap: Of neighbouring windows: a fraction of a window below 1, rounded to whole patches,
            or pixels; None for half. What a model makes of a patch depends on the whole window, so
            that a small overlap shows windows as squares.
        batch: Windows of a batch.
        block: Longest side of the blocks that are computed in one go, in pixels.
        max_memory: Megabytes that the work may take beside the model.
        blocks: Blocks of the model whose outputs are taken, 0-based or negative from the end;
            several stand side by side.
        norm: Whether the model's final norm is applied to each of them.
        dtype: ``float16``, ``int8`` (with a scale and an offset for every band and file: an error
            of at most 1/508 of the band's range) or ``float32``.
        pca: Write so many principal components instead of the embeddings; None for embeddings.
        basis: File with principal components to use; None to fit them to all rasters.
        rgb: Whether a picture of the first three principal components is written too.
        windows: Write one embedding a window, as a table, instead of one a patch.
        stride: Of window embeddings: pixels from one window to the next; None for the window.
        tokens: Of window embeddings: ``class``, ``mean`` (of the patch tokens), or both.
        bands: Bands of the rasters, by 1-based index or name; None to find them.
        scale: Raw values that become 0 and 1; None for the model's.
        aoi: Vector file; patches outside of its polygons are left out.
        force: Override objections to rasters that do not fit.
        precision: ``float32`` or ``bfloat16``: what the model computes in.

    Raises:
        ConfigError: If a value is not possible, or values do not belong together.
    """

    window: int | None = None
    overlap: float | None = None
    batch: int = 16
    block: int = 8192
    max_memory: int = 512
    blocks: tuple[int, ...] = (-1,)
    norm: bool = True
    dtype: str = 'float16'
    pca: int | None = None
    basis: str | None = None
    rgb: bool = False
    windows: bool = False
    stride: int | None = None
    tokens: tuple[str, ...] = ('class',)
    bands: tuple[int | str, ...] | None = None
    scale: tuple[float, float] | None = None
    aoi: str | None = None
    force: bool = False
    precision: str = 'float32'

    def __post_init__(self) -> None:
        """Check what does not take a model."""
        if self.dtype not in DTYPES:
            raise ConfigError(f'dtype is {self.dtype!r}: choose from {", ".join(DTYPES)}.')
        for name in ('batch', 'block', 'max_memory', 'window', 'stride', 'pca'):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f'{name} is {number}: give 1 or more.')
        self._check_windows()

    def _check_windows(self) -> None:
        of_patches = {'overlap': None, 'pca': None, 'basis': None, 'rgb': False, 'dtype': 'float16'}
        of_windows = {'stride': None, 'tokens': ('class',)}
        others, kind = (of_patches, 'patches') if self.windows else (of_windows, 'windows')
        given = [name for name, default in others.items() if getattr(self, name) != default]
        if given:
            raise ConfigError(
                f'{given[0]} is for embeddings of {kind}, and those of '
                f'{"windows" if self.windows else "patches"} were asked for: leave it out, or '
                f'{"leave out" if self.windows else "give"} --window-embeddings.'
            )

    def tiling(self, image_size: int, patch: int) -> Tiling:
        """Choose windows for a model.

        Args:
            image_size: Side of the images that it was trained on, in pixels.
            patch: Side of its patches.

        Raises:
            ConfigError: If a number is not possible.
        """
        size = max(image_size // patch, 1) * patch if self.window is None else self.window
        if size % patch:
            near = max(round(size / patch), 1) * patch
            raise ConfigError(
                f'Windows of {size} pixels do not divide into patches of {patch}: give a multiple, '
                f'for instance {near}.'
            )
        memory = self.max_memory * 2**20
        if self.windows:
            stride = size if self.stride is None else self.stride
            return Tiling(size, 0, stride, self.batch, self.block, memory, cell=stride)
        overlap = _overlap(size, patch, self.overlap)
        return Tiling(size, overlap, None, self.batch, self.block, memory, cell=patch)


def _overlap(size: int, patch: int, overlap: float | None) -> int:
    share = 0.5 if overlap is None else overlap
    if share < 1:
        return round(share * size / patch) * patch
    if share % patch:
        raise ConfigError(
            f'An overlap of {share:g} pixels was given, and patches are {patch} wide: give a '
            'multiple, or a fraction below 1.'
        )
    return int(share)


def embed_rasters(
    sources: Sequence[str | os.PathLike[str]],
    backbone: VisionTransformer,
    spec: InputSpec,
    out: str | Path,
    settings: EmbedSettings | None = None,
    *,
    name: str = '',
    device: str | torch.device = 'cpu',
    threads: int = 2,
    resume: bool = False,
    shard: Shard | None = None,
    progress: Callable[[Tally], None] | None = None,
    cluster: RayCluster | None = None,
    asset: str | None = None,
) -> Summary:
    """Embed rasters.

    ``<name>_embedding.tif`` has one pixel a patch of the raster, in the raster's own coordinates:
    patches lie from its first pixel on, the last ones reach beyond its end. Where windows overlap,
    their outputs are averaged. A patch without data in any pixel has none. Principal components are
    those of all rasters of the call together; their basis is kept in ``pca.safetensors``.

    Args:
        sources: Files, folders, globs, lists in text files, zip archives, STAC files, URLs.
        backbone: The model; it is moved to the device and put into evaluation mode.
        spec: What it expects of an image.
        out: Folder of the results.
        settings: What decides the numbers; None for the defaults.
        name: Of the model, for the files' tags.
        device: Where the model runs.
        threads: Threads that read.
        resume: Go on with a run in ``out``.
        shard: Compute this share of the blocks and write no result.
        progress: Told of the state now and then.
        cluster: Workers of Ray that compute; they choose their device. None for this process.
        asset: Key of the asset that is taken of STAC items; None for the only one there is.

    Returns:
        What became of the rasters. One that cannot be read or does not fit is named, and the others
        go on.

    Raises:
        ExploraError: If nothing at all can be done.
    """
    how = EmbedSettings() if settings is None else settings
    with rasterio.Env(**SETTINGS):
        place = torch.device(device if cluster is None else 'cpu')
        embedder, product = make_product(backbone, spec, how, name)
        run = RasterRun(Path(out).expanduser(), product, shard)
        found = find_rasters(sources, run.out, asset)
        run.plan(found)
        runner = Runner(
            embedder.to(place).eval(), place, getattr(torch, how.precision), embedder.dim,
            product.tiling.size, as_they_are, product.tiling.cell, how.windows,
        )  # fmt: skip
        check_model(runner, len(spec.bands))
        run.begin(found, resume or shard is not None, place)
        with run.folder.recorded():
            run.compute(runner, threads, silent if progress is None else progress, cluster)
            return run.conclude()


def as_they_are(outputs: Tensor) -> Tensor:
    """Return the outputs of a model.

    Args:
        outputs: (dim, height, width).
    """
    return outputs


def make_product(
    backbone: VisionTransformer, spec: InputSpec, settings: EmbedSettings, name: str = ''
) -> tuple[PatchEmbedder | ImageEmbedder, Product]:
    """Return the model that is run, and what is made of its outputs.

    Args:
        backbone: The model.
        spec: What it expects of an image.
        settings: What decides the numbers.
        name: Of the model.

    Raises:
        ConfigError: If settings do not fit the model, or one another.
        WeightsError: If the basis cannot be read.
    """
    tiles = settings.tiling(spec.image_size, patch_side(backbone))
    reading = Reading(settings.bands, settings.scale, settings.aoi, settings.force)
    tokens = (settings.tokens, settings.blocks, settings.norm)
    embedder: PatchEmbedder | ImageEmbedder
    if settings.windows:
        embedder = ImageEmbedder(backbone, spec.mean, spec.std, *tokens)
    else:
        embedder = PatchEmbedder(backbone, spec.mean, spec.std, settings.blocks, settings.norm)
    model = Embedded(
        name=name,
        weights_hash=tensors_hash(backbone.state_dict()),
        blocks=embedder.blocks,
        norm=settings.norm,
        tokens=settings.tokens if settings.windows else (),
        dim=embedder.dim,
    )
    if settings.windows:
        return embedder, WindowEmbeddings(spec, tiles, reading, model, _described(settings))
    basis = _basis(settings, model)
    if basis is None and settings.pca is not None and settings.pca > embedder.dim:
        raise ConfigError(
            f'{settings.pca} principal components were asked for and the embeddings have '
            f'{embedder.dim} numbers: ask for {embedder.dim} or fewer.'
        )
    return embedder, PatchEmbeddings(
        spec, tiles, reading, model, _described(settings), settings.dtype,
        components(settings, basis), settings.rgb, basis,
    )  # fmt: skip


def _described(settings: EmbedSettings) -> dict[str, object]:
    return json.loads(json.dumps(settings.__dict__))  # type: ignore[no-any-return]


def components(settings: EmbedSettings, basis: PCABasis | None) -> int | None:
    """Return how many principal components are written; None for embeddings.

    Args:
        settings: What the user asked for.
        basis: The basis that the user gave.

    Raises:
        ConfigError: If the basis does not have as many.
    """
    if basis is None:
        return settings.pca
    there = len(basis.components)
    if settings.rgb and there < 3:
        raise ConfigError(
            f'{settings.basis} has {there} components, and a picture takes three: fit a basis with '
            '3 or more.'
        )
    if settings.pca is not None and settings.pca > there:
        raise ConfigError(
            f'{settings.pca} principal components were asked for and {settings.basis} has {there}: '
            'ask for as many, or fit a larger basis.'
        )
    return there if settings.pca is None and not settings.rgb else settings.pca


def _basis(settings: EmbedSettings, model: Embedded) -> PCABasis | None:
    """Read the basis that the user gave, and refuse one of another model."""
    if settings.basis is None:
        return None
    basis, texts = PCABasis.load(settings.basis), basis_metadata(settings.basis)
    own = model.texts()
    other = [key for key in own if key in texts and texts[key] != own[key]]
    if other or len(basis.mean) != model.dim:
        raise ConfigError(
            f'{settings.basis} is of other embeddings '
            f'({", ".join(other) or f"{len(basis.mean)} dimensions instead of {model.dim}"}): give '
            'one that was fitted with the same weights, --blocks and --no-norm.'
        )
    return basis
