"""Data modules of NAIP: images alone, and with the land use of the Chesapeake Bay."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from torchgeo.datasets import (
    NAIP,
    ChesapeakeDC,
    ChesapeakeDE,
    ChesapeakeMD,
    ChesapeakeNY,
    ChesapeakePA,
    ChesapeakeVA,
    ChesapeakeWV,
    DatasetNotFoundError,
    GeoDataset,
)

from torchgeo_explora.datasets._patches import Patches
from torchgeo_explora.errors import ConfigError, ImageError, LabelError

from ._base import ImageDataModule

STATES: dict[str, Callable[[str], GeoDataset]] = {
    'dc': ChesapeakeDC, 'de': ChesapeakeDE, 'md': ChesapeakeMD, 'ny': ChesapeakeNY,
    'pa': ChesapeakePA, 'va': ChesapeakeVA, 'wv': ChesapeakeWV,
}  # fmt: skip
"""TorchGeo's data sets of the land use of each state."""


def _read_naip(paths: str | Path, bands: Sequence[str]) -> NAIP:
    """TorchGeo's NAIP, with bands by name."""
    unknown = [band for band in bands if band not in NAIP.all_bands]
    if unknown or not bands:
        raise ConfigError(
            f'bands is {list(bands)}: choose from {", ".join(NAIP.all_bands)}, at least one.'
        )
    try:
        return NAIP(str(paths), bands=list(bands))
    except DatasetNotFoundError as error:
        raise ImageError(
            f'{paths} holds no NAIP: give a folder of its GeoTIFFs, named '
            'm_<quadrangle>_<quarter>_<zone>_<resolution>_<date>.tif.'
        ) from error


class NAIPDataModule(ImageDataModule):
    """Unlabelled patches of NAIP's aerial images, for extended pre-training.

    Patches are drawn by TorchGeo's ``RandomPatchSampler``, anew in every pass, from a generator
    that depends on the seed and the pass alone, so that a resumed run sees the patches that the
    unbroken one would have seen. Test and prediction go over a grid of patches that covers all
    rasters, those seen in training too: there are no labels to hold back. There is no validation.

    Args:
        root: Folder of NAIP's GeoTIFFs, searched with its sub-folders.
        patch_size: Side of a patch in pixels.
        length: Patches of a pass; None for about as many as fit side by side.
        bands: Names of the bands, from R, G, B and NIR.
        batch_size: Patches of a batch (on each device).
        num_workers: Processes that load patches.
        seed: Seed of the patches and of the training order.
        steps_per_epoch: Batches of an epoch; None for one pass.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the images are not there or smaller than a patch.

    Attributes:
        bands: Names of the bands.
        scale: Values of each band that become 0 and 1.
        resolution: Size of a pixel in the unit of the first raster's CRS, metres for NAIP, once set
            up.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        patch_size: int = 256,
        length: int | None = None,
        bands: Sequence[str] = ('R', 'G', 'B'),
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__(Patches, batch_size, num_workers, seed, steps_per_epoch)
        self.root, self.patch_size, self.length = root, patch_size, length
        self.bands, self.num_channels = list(bands), len(bands)
        self.scale = ((0.0, 255.0),) * len(bands)
        self.resolution, self.classes = None, None
        self._ready = False

    def setup(self, stage: str) -> None:
        """Index the rasters, once.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ConfigError: If an argument is not possible.
            ImageError: If the images are not there or smaller than a patch.
        """
        if self._ready:
            return
        naip = _read_naip(self.root, self.bands)
        self.resolution = float(max(naip.res))
        self.predict_dataset = self.test_dataset = Patches(naip, self.patch_size)
        length = len(self.predict_dataset) if self.length is None else self.length
        self.train_dataset = Patches(naip, self.patch_size, length, None, self.seed)
        self._ready = True


class NAIPChesapeakeDataModule(ImageDataModule):
    """Patches of NAIP's aerial images with the land use of the Chesapeake Bay, 2022 edition.

    As TorchGeo's data module of this name, with what that leaves open: training patches come from a
    seed and can be resumed, only the states that are there are read, and prediction goes over the
    test area. The western half of where images and labels meet is for training, the south-east for
    validation, the north-east for testing.

    Masks hold the codes of the files as they are, up to 127; 0 is ground without a label, and is to
    be ignored.

    Args:
        naip_root: Folder of NAIP's GeoTIFFs.
        chesapeake_root: Folder of the states' GeoTIFFs, ``<state>_lulc_<year>_2022-Edition.tif``.
        patch_size: Side of a patch in pixels.
        length: Training patches of a pass; None for about as many as fit side by side.
        bands: Names of NAIP's bands, from R, G, B and NIR.
        batch_size: Patches of a batch (on each device).
        num_workers: Processes that load patches.
        seed: Seed of the training patches and of their order.
        steps_per_epoch: Batches of an epoch; None for one pass.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the images are not there or smaller than a patch.
        LabelError: In ``setup``, if there are no labels, or none where the images are.

    Attributes:
        bands: Names of the bands.
        classes: The codes, 0 to 127, as texts.
        colors: Colour of every code in TorchGeo's table.
        ignore_index: 0.
    """

    ignore_index = 0

    def __init__(
        self,
        naip_root: str | Path = 'data/naip',
        chesapeake_root: str | Path = 'data/chesapeake',
        patch_size: int = 256,
        length: int | None = None,
        bands: Sequence[str] = ('R', 'G', 'B', 'NIR'),
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__(Patches, batch_size, num_workers, seed, steps_per_epoch)
        self.naip_root, self.chesapeake_root = naip_root, chesapeake_root
        self.patch_size, self.length = patch_size, length
        self.bands, self.num_channels = list(bands), len(bands)
        self.scale = ((0.0, 255.0),) * len(bands)
        table = np.round(np.asarray(ChesapeakeDC.cmap.colors) * 255).astype(int)[:128, :3]
        self.colors = tuple((int(red), int(green), int(blue)) for red, green, blue in table)
        self.classes = [str(code) for code in range(len(self.colors))]
        self.resolution = None
        self._ready = False

    def setup(self, stage: str) -> None:
        """Index the rasters, once; all splits are there at every stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ConfigError: If an argument is not possible.
            ImageError: If the images are not there or smaller than a patch.
            LabelError: If there are no labels, or none where the images are.
        """
        if self._ready:
            return
        naip = _read_naip(self.naip_root, self.bands)
        both = self._with_labels(naip)
        self.resolution = float(max(naip.res))
        x, y, _ = both.bounds
        middle_x, middle_y = (x.start + x.stop) / 2, (y.start + y.stop) / 2
        west = shapely.box(x.start, y.start, middle_x, y.stop)
        south = shapely.box(middle_x, y.start, x.stop, middle_y)
        north = shapely.box(middle_x, middle_y, x.stop, y.stop)
        size = self.patch_size
        length = len(Patches(both, size, None, west)) if self.length is None else self.length
        self.train_dataset = Patches(both, size, length, west, self.seed)
        self.val_dataset, self.test_dataset = (
            Patches(both, size, None, area) for area in (south, north)
        )
        self._ready = True

    def _with_labels(self, naip: NAIP) -> GeoDataset:
        """Images where there are labels too."""
        labels: Any = None
        for state in STATES.values():
            try:
                found = state(str(self.chesapeake_root))
            except DatasetNotFoundError:
                continue
            labels = found if labels is None else labels | found
        if labels is None:
            raise LabelError(
                f'{self.chesapeake_root} holds no labels: give a folder with '
                f'<state>_lulc_<year>_2022-Edition.tif for one of {", ".join(STATES)}.'
            )
        try:
            both: GeoDataset = naip & labels
        except RuntimeError as error:  # TorchGeo's, for data sets that do not meet
            raise LabelError(
                f'The labels of {self.chesapeake_root} lie nowhere on the images of '
                f'{self.naip_root}: give images of the same place and years.'
            ) from error
        return both
