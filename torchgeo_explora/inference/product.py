"""What a command makes of rasters; how they are gone through is the same for all."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.inference.jobs import Job, Tiling
from torchgeo_explora.inference.layers import Layer
from torchgeo_explora.inference.raster import RasterInfo
from torchgeo_explora.inference.work import WorkFolder
from torchgeo_explora.models import InputSpec, ModelSpec


@dataclass(frozen=True)
class Reading:
    """What of the rasters the model is given.

    Args:
        bands: Bands by 1-based index or name; None to find them.
        scale: Raw values that become 0 and 1; None for the model's.
        aoi: Vector file; pixels outside of its polygons are left out.
        force: Override objections to rasters that do not fit.

    Raises:
        ConfigError: If the scale has no length.
    """

    bands: tuple[int | str, ...] | None = None
    scale: tuple[float, float] | None = None
    aoi: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Check the scale."""
        if self.scale is None:
            return
        low, high = self.scale
        if not (math.isfinite(low) and math.isfinite(high)) or low == high:
            raise ConfigError(
                f'The scale is {low:g} to {high:g}: give two different finite raw values, those '
                'that become 0 and 1.'
            )


class Product(ABC):
    """Results of one command. It holds plain values, so that workers elsewhere can be sent a copy.

    Args:
        command: Name of the command.
        spec: What the model expects of an image.
        tiling: Windows.
        planes: Numbers that are averaged, a pixel of the result.
        layers: What is written of a block.
        reading: What of the rasters the model is given.
        joint: Whether results of one raster take the blocks of all of them.
    """

    def __init__(
        self,
        command: str,
        spec: ModelSpec | InputSpec,
        tiling: Tiling,
        planes: int,
        layers: Sequence[Layer],
        reading: Reading,
        joint: bool = False,
    ) -> None:
        self.command, self.spec, self.tiling = command, spec, tiling
        self.planes, self.layers, self.reading = planes, tuple(layers), reading
        self.joint = joint

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what decides the results, for JSON: a run goes on only where this is the same."""

    @abstractmethod
    def check(self, info: RasterInfo) -> None:
        """Refuse a raster that nothing can be made of.

        Args:
            info: Its header.

        Raises:
            ImageError: If so.
        """

    @abstractmethod
    def paths(self, out: Path, job: Job) -> list[Path]:
        """Return where results of a raster are written; all are there once it is done.

        Args:
            out: Folder of the results.
            job: The raster.
        """

    @abstractmethod
    def render(self, layer: Layer, values: Tensor, valid: Tensor) -> NDArray[np.generic]:
        """Compute what a layer holds.

        Args:
            layer: The layer.
            values: (planes, height, width) float64.
            valid: (height, width) where there is data.

        Returns:
            (bands, height, width) of the layer's data type.
        """

    @abstractmethod
    def prepare(self, folder: WorkFolder, jobs: Sequence[Job]) -> None:
        """Do what results of all rasters have in common; called before :meth:`write`.

        Args:
            folder: With the blocks.
            jobs: Rasters whose blocks are done: all of them, of joint results.
        """

    @abstractmethod
    def write(self, folder: WorkFolder, job: Job) -> list[Path]:
        """Write the results of a raster.

        Args:
            folder: With the blocks, all of which are done.
            job: The raster.

        Returns:
            The files written.

        Raises:
            OutputError: If one cannot be written.
        """
