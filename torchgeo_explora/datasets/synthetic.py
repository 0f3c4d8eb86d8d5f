"""Synthetic scenes with classes in two domains: small, seeded, honest stand-ins for imagery."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import torch
from rasterio.enums import ColorInterp
from rasterio.transform import Affine, from_origin
from torch import Tensor
from torchgeo.datasets import NonGeoDataset

from torchgeo_explora.errors import ConfigError, OutputError

from ._scenes import STRUCTURES, draw_canvas
from ._sensor import DOMAINS, Domain, observe

PIXEL = 10.0
"""Side of a pixel on the ground in metres, as Sentinel-2's; for the files' transforms only."""

ORIGIN = (500_000.0, 5_000_000.0)
"""Upper left corner of scene 0 in metres, on the central meridian of its UTM zone."""

COLUMNS = 64
"""Scenes in a row of the grid on which they are laid out."""

_STREAM = {'source': 0, 'target': 1}


class SyntheticScenes(NonGeoDataset):
    """Land-cover scenes drawn by rules, in a source and a shifted target domain.

    Eight classes differ in *structure*: fields, forest, lake, orchard, pivots (circular
    irrigation), river, road and urban blocks. Surfaces take their colours from a palette of the
    domain, with a spread of each scene's own, so that colour alone does not tell the classes apart
    though it helps in the source domain. The target domain has another palette with more spread,
    smaller structures, haze, less contrast, more blur and noise, and the stripes of a bad sensor.

    These are pictures of rules, not of the Earth. They show whether a method works as it should
    within minutes on any machine; what it does to them says nothing about how much it would help
    on real imagery.

    Scene i depends on ``seed``, ``domain`` and i alone: more scenes with the same seed begin with
    the same ones. Classes take turns, so that they are balanced.

    Args:
        count: Number of scenes.
        domain: ``source`` or ``target``.
        size: Side in pixels, at least 16.
        seed: Seed, at least 0. Different seeds give independent scenes, for training and testing.

    Raises:
        ConfigError: If an argument is not possible.

    Attributes:
        classes: Names of the classes.
        images: (count, 3, size, size) bytes.
        labels: (count,) int64.
        num_channels: 3: red, green and blue.
    """

    num_channels = 3

    def __init__(
        self,
        count: int = 800,
        domain: Literal['source', 'target'] = 'source',
        size: int = 64,
        seed: int = 0,
    ) -> None:
        if domain not in DOMAINS:
            raise ConfigError(f"domain is {domain!r}: give 'source' or 'target'.")
        if count < 1 or size < 16 or seed < 0:
            raise ConfigError(
                f'count {count}, size {size}, seed {seed}: give at least 1 scene of at least 16 '
                'pixels and a seed of at least 0.'
            )
        self.count, self.domain, self.size, self.seed = count, domain, size, seed
        self.classes = list(STRUCTURES)
        self.labels = torch.arange(count) % len(self.classes)
        self.images = torch.from_numpy(np.stack([self._draw(index) for index in range(count)]))

    def __len__(self) -> int:
        """Number of scenes."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One scene.

        Args:
            index: Position from 0.

        Returns:
            ``image``, float32 (3, size, size) in [0, 1], and ``label``, int64.
        """
        return {'image': self.images[index].float().div(255), 'label': self.labels[index]}

    def _draw(self, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Scene ``index`` as bytes."""
        rng = np.random.default_rng([self.seed, _STREAM[self.domain], index])
        spec: Domain = DOMAINS[self.domain]
        scale = spec.scale * rng.uniform(0.9, 1.1)
        draw = STRUCTURES[self.classes[int(self.labels[index])]]
        return observe(rng, draw(rng, draw_canvas(rng, self.size, scale)), spec)

    def transform(self, index: int) -> Affine:
        """Place of a scene on the ground: scenes lie side by side in rows of 64.

        Args:
            index: Position from 0.

        Returns:
            From (column, row) of a pixel to (easting, northing) in metres.
        """
        row, column = divmod(index, COLUMNS)
        side = self.size * PIXEL
        return from_origin(ORIGIN[0] + column * side, ORIGIN[1] - row * side, PIXEL, PIXEL)

    def write_scenes(self, folder: Path | str) -> list[Path]:
        """Write every scene as a GeoTIFF, ``<class>/<class>_<number>.tif``.

        Args:
            folder: A folder that is new or empty.

        Returns:
            The files, in the order of the scenes.

        Raises:
            OutputError: If the folder has something in it or cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f'{folder} is there already: give a new or empty folder.')
        try:
            for name in self.classes:
                (folder / name).mkdir(parents=True, exist_ok=True)
            return [self._write(folder, index) for index in range(len(self))]
        except (OSError, rasterio.errors.RasterioError) as error:
            raise OutputError(
                f'{folder} cannot be written ({error}): give a folder with room in it.'
            ) from error

    def _write(self, folder: Path, index: int) -> Path:
        """One GeoTIFF, which has its name only once it is complete."""
        name = self.classes[int(self.labels[index])]
        path = folder / name / f'{name}_{index:05d}.tif'
        partial = path.with_name(f'.{path.name}.partial')
        with rasterio.open(
            partial, 'w', driver='GTiff', count=3, dtype='uint8', width=self.size,
            height=self.size, crs=f'EPSG:{DOMAINS[self.domain].epsg}',
            transform=self.transform(index), compress='deflate', photometric='rgb',
        ) as sink:  # fmt: skip
            sink.write(self.images[index].numpy())
            sink.descriptions = ('red', 'green', 'blue')
            sink.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        with partial.open('rb') as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
        return path
