"""What ``embed`` makes of rasters: patches as a raster, or windows as a table."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from torch import Tensor

from torchgeo_explora import __version__
from torchgeo_explora.errors import ImageError
from torchgeo_explora.inference.codecs import ByteCodec, Codec, ColorCodec, FloatCodec, Values
from torchgeo_explora.inference.cog import TILE, Picture, enlarged, write_cog
from torchgeo_explora.inference.jobs import Job, Tiling
from torchgeo_explora.inference.layers import Layer
from torchgeo_explora.inference.maps import refusing
from torchgeo_explora.inference.mosaic import Mosaic
from torchgeo_explora.inference.product import Product, Reading
from torchgeo_explora.inference.raster import RasterInfo
from torchgeo_explora.inference.window_table import write_table
from torchgeo_explora.inference.windows import Block
from torchgeo_explora.inference.work import WorkFolder, process_name
from torchgeo_explora.models import InputSpec
from torchgeo_explora.objectives.pca import PCAAccumulator, PCABasis

BASIS = 'pca.safetensors'
"""Where the basis of principal components is kept, in the folder of the results."""

COLORS = 3

RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


@dataclass(frozen=True)
class Embedded:
    """Of what numbers embeddings are.

    Args:
        name: Of the model.
        weights_hash: SHA-256 of its weights.
        blocks: Blocks whose outputs stand side by side, counted from 0.
        norm: Whether the final norm was applied to each.
        tokens: Of embeddings of windows: what they are made of; nothing for patches.
        dim: Their length.
    """

    name: str
    weights_hash: str
    blocks: tuple[int, ...]
    norm: bool
    tokens: tuple[str, ...]
    dim: int

    def texts(self) -> dict[str, str]:
        """Return what tells these embeddings from others, as tags of files."""
        return {
            'MODEL_WEIGHTS_SHA256': self.weights_hash,
            'EMBEDDING_BLOCKS': json.dumps(list(self.blocks)),
            'EMBEDDING_NORM': json.dumps(self.norm),
        }

    def tags(self) -> dict[str, str]:
        """Return the tags of a file of embeddings."""
        tokens = {'EMBEDDING_TOKENS': json.dumps(list(self.tokens))} if self.tokens else {}
        software = f'torchgeo_explora {__version__}'
        return {'TIFFTAG_SOFTWARE': software, 'MODEL': self.name, **self.texts(), **tokens}

    def names(self) -> tuple[str, ...]:
        """Return what each number is, for instance ``block 11 dimension 0``."""
        parts = [
            f'block {block}' + (f' {token}' if token else '')
            for block in self.blocks
            for token in (self.tokens if self.tokens else ('',))
        ]
        each = self.dim // len(parts)
        return tuple(f'{part} dimension {index}' for part in parts for index in range(each))


def filled(values: Tensor, valid: Tensor) -> Tensor:
    """Return float32 with NaN where there is no data.

    Args:
        values: (planes, height, width).
        valid: (height, width).
    """
    return values.to(torch.float32).masked_fill(~valid, math.nan)


@final
class PatchEmbeddings(Product):
    """A raster with one pixel a patch, and on demand a picture of it.

    Args:
        spec: What the model expects of an image.
        tiling: Windows of whole patches.
        reading: What of the rasters the model is given.
        model: Of what numbers embeddings are.
        settings: What decides the numbers, for JSON.
        dtype: Of the raster: ``float16``, ``int8``, ``float32``.
        components: Principal components that are written; None for embeddings.
        rgb: Whether the picture is written.
        basis: Of the components; None to fit it to all rasters.
    """

    def __init__(
        self,
        spec: InputSpec,
        tiling: Tiling,
        reading: Reading,
        model: Embedded,
        settings: Mapping[str, object],
        dtype: str,
        components: int | None,
        rgb: bool,
        basis: PCABasis | None,
    ) -> None:
        fitting = basis is None and (components is not None or rgb)
        self.model, self.settings, self.dtype = model, dict(settings), dtype
        self.components, self.rgb, self.basis = components, rgb, basis
        self.projected = basis is not None and components is not None
        count = model.dim if basis is None or not self.projected else len(basis.components)
        layer = Layer('embedding', ('',) * count, 'float32', math.nan, together=True)
        super().__init__('embed', spec, tiling, model.dim, [layer], reading, joint=fitting)

    def describe(self) -> dict[str, Any]:
        """Return the settings, the model and the basis."""
        mark = None
        if self.basis is not None:
            raw = self.basis.components.numpy().tobytes() + self.basis.mean.numpy().tobytes()
            mark = hashlib.sha256(raw).hexdigest()
        return {
            'settings': self.settings,
            'model': self.model.weights_hash,
            'basis': mark,
        }

    def check(self, info: RasterInfo) -> None:
        """Refuse nothing: every raster has patches."""

    def paths(self, out: Path, job: Job) -> list[Path]:
        """Return where the raster is written, and the picture."""
        kinds = ('rgb', 'embedding') if self.rgb else ('embedding',)
        return [out / f'{job.target}_{kind}.tif' for kind in kinds]

    def render(self, layer: Layer, values: Tensor, valid: Tensor) -> NDArray[np.generic]:
        """Return embeddings, or their components where the basis is known already."""
        if self.projected:
            assert self.basis is not None, 'components are of a basis'
            # of float32, as where they are projected later, so that numbers are the same
            values = self.basis.project(values.float().permute(1, 2, 0)).permute(2, 0, 1)
        return filled(values, valid).cpu().numpy()

    def prepare(self, folder: WorkFolder, jobs: Sequence[Job]) -> None:
        """Fit the basis, unless that is done, and keep it with the results."""
        path = folder.out / BASIS
        if self.joint and self.basis is None:
            self.basis = PCABasis.load(path) if path.is_file() else self._fit(folder, jobs)
        if self.basis is not None and not path.is_file():
            self.basis.save(path, self.model.texts() | {'model': self.model.name})

    def _fit(self, folder: WorkFolder, jobs: Sequence[Job]) -> PCABasis:
        sums = PCAAccumulator()
        for job in jobs:
            mosaic = Mosaic(folder, job, self.layers[0])
            for part in mosaic.tiles(TILE):
                values = mosaic.read(part)
                sums.add(torch.from_numpy(values[~np.isnan(values[..., 0])]))
        if sums.count == 0:
            raise ImageError('No patch of any raster has data: there is nothing to embed.')
        return sums.fit(max(0 if self.components is None else self.components, COLORS))

    def write(self, folder: WorkFolder, job: Job) -> list[Path]:
        """Write the raster of a job, the picture first."""
        mosaic = Mosaic(folder, job, self.layers[0])
        paths = self.paths(folder.out, job)
        for path in paths:
            kind = path.stem.rpartition('_')[2]
            scratch = folder.job_folder(job) / f'{kind}.{process_name()}.tif'
            with refusing(path):
                if kind == 'rgb':
                    self._write(scratch, mosaic, job, ColorCodec())
                else:
                    self._write(scratch, mosaic, job, self._codec(mosaic))
                path.parent.mkdir(parents=True, exist_ok=True)
                scratch.replace(path)
        return paths

    def _write(self, path: Path, mosaic: Mosaic, job: Job, codec: Codec) -> None:
        color = isinstance(codec, ColorCodec)
        tags = {**self.model.tags(), 'EMBEDDING_PATCH': str(job.cell)}
        if self.components is not None or color:
            assert self.basis is not None, 'components are of a basis'
            tags['EMBEDDING_PCA_FITTED_ON'] = f'{self.basis.count} patches'
        picture = Picture(
            extent=mosaic.extent,
            place=enlarged(job.info.place, job.cell),
            names=('red', 'green', 'blue', 'alpha') if color else self._names(),
            codec=codec,
            tags=tags,
            colors=RGBA if color else (),
        )
        read = self._colors if color else self._values
        parts = list(mosaic.tiles(TILE))
        write_cog(path, picture, parts, lambda part: read(mosaic, part))

    def _names(self) -> tuple[str, ...]:
        if self.components is None:
            return self.model.names()
        return tuple(f'component {number}' for number in range(1, self.components + 1))

    def _codec(self, mosaic: Mosaic) -> Codec:
        count = len(self._names())
        if self.dtype != 'int8':
            return FloatCodec(count, half=self.dtype == 'float16')
        return ByteCodec.fit(self._all(mosaic), count)

    def _all(self, mosaic: Mosaic) -> Iterator[Values]:
        return (self._values(mosaic, part) for part in mosaic.tiles(TILE))

    def _values(self, mosaic: Mosaic, part: Block) -> Values:
        values = mosaic.read(part)
        if self.components is not None:
            values = self._projections(values)[..., : self.components]
        return np.moveaxis(values, -1, 0)

    def _colors(self, mosaic: Mosaic, part: Block) -> Values:
        assert self.basis is not None, 'pictures are of components'
        projections = torch.from_numpy(self._projections(mosaic.read(part)))
        colors: Values = self.basis.to_rgb(projections).numpy()
        hidden = torch.isnan(projections[..., :1]).numpy()
        return np.moveaxis(np.where(hidden, np.float32(np.nan), colors), -1, 0)

    def _projections(self, values: Values) -> Values:
        if self.projected:
            return values
        assert self.basis is not None, 'components are of a basis'
        found: Values = self.basis.project(torch.from_numpy(values)).numpy()
        return found


@final
class WindowEmbeddings(Product):
    """A table with one row a window.

    Args:
        spec: What the model expects of an image.
        tiling: Windows and their distance.
        reading: What of the rasters the model is given.
        model: Of what numbers embeddings are.
        settings: What decides the numbers, for JSON.
    """

    def __init__(
        self,
        spec: InputSpec,
        tiling: Tiling,
        reading: Reading,
        model: Embedded,
        settings: Mapping[str, object],
    ) -> None:
        self.model, self.settings = model, dict(settings)
        layer = Layer('windows', ('',) * (model.dim + 1), 'float32', math.nan, together=True)
        super().__init__('embed', spec, tiling, model.dim + 1, [layer], reading)

    def describe(self) -> dict[str, Any]:
        """Return the settings and the model."""
        return {'settings': self.settings, 'model': self.model.weights_hash, 'basis': None}

    def check(self, info: RasterInfo) -> None:
        """Refuse nothing: every raster has windows."""

    def paths(self, out: Path, job: Job) -> list[Path]:
        """Return where the table is written."""
        return [out / f'{job.target}_windows.parquet']

    def render(self, layer: Layer, values: Tensor, valid: Tensor) -> NDArray[np.generic]:
        """Return embeddings and shares."""
        return filled(values, valid).cpu().numpy()

    def prepare(self, folder: WorkFolder, jobs: Sequence[Job]) -> None:
        """Do nothing: tables have nothing in common."""

    def write(self, folder: WorkFolder, job: Job) -> list[Path]:
        """Write the table of a raster."""
        path = self.paths(folder.out, job)[0]
        scratch = folder.job_folder(job) / f'windows.{process_name()}.parquet'
        with refusing(path):
            write_table(scratch, Mosaic(folder, job, self.layers[0]), job, self.model.tags())
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.replace(path)
        return [path]
