"""Data modules of rasters of any kind: windows without labels, and windows of polygons' classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torchgeo_explora.datasets.geotiff_folder import GeoTIFFFolder
from torchgeo_explora.datasets.labelled_windows import LabelledWindows

from ._base import ImageDataModule


class GeoTIFFDataModule(ImageDataModule):
    """Unlabelled windows of rasters of any size, for extended pre-training.

    Windows are drawn anew in every pass, from the seed and the pass alone, so that a resumed run
    sees the windows that the unbroken one would have seen. Test and prediction go over windows side
    by side, those seen in training too: there are no labels to hold back. There is no validation.

    Args:
        sources: A file, a folder (with all below), a glob, anything that GDAL opens, or a list.
        image_size: Side of the images, and of the windows in the rasters' own pixels; None for the
            usual short side of the rasters, at most 256.
        batch_size: Windows of a batch (on each device).
        num_workers: Processes that read windows.
        seed: Seed of the windows and of the training order.
        steps_per_epoch: Batches of an epoch; None for one pass.
        bands: 1-based indexes or names of the bands to read, in this order; None for all but alpha.
        mode: ``keep`` the bands, or ``rgb``: a single band is repeated three times.
        length: Windows of a pass; None for as many as fit side by side.
        balance: How a pass is shared out over rasters: 1 by their area with data, 0 for as many of
            each, between by a power of the area.
        min_valid: Least share of pixels with data in a window.
        scale: ``(low, high)`` values that become 0 and 1, each a number or one number per band.
        percentiles: Percentiles that become 0 and 1 where ``scale`` is None and values are not 8-bit.
        resolution: Metres that pixels are resampled to; None to leave them as they are.
        num_channels: Number of bands that a model needs; None for any.
        min_size: Smallest side of a raster in pixels, for example one patch.
        statistics: File that keeps what was measured of the bands; read where it is there, else
            written.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the rasters cannot be used.

    Attributes:
        bands: Names of the bands, once set up.
        scale: Values of each band that become 0 and 1, once set up.
        resolution: Metres of a pixel of the images, once set up; None where that varies.
    """

    def __init__(
        self,
        sources: str | Path | Sequence[str | Path],
        image_size: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        bands: Sequence[int | str] | None = None,
        mode: Literal['keep', 'rgb'] = 'keep',
        length: int | None = None,
        balance: float = 0.5,
        min_valid: float = 0.9,
        scale: Sequence[float | Sequence[float]] | None = None,
        percentiles: tuple[float, float] = (1.0, 99.0),
        resolution: float | None = None,
        num_channels: int | None = None,
        min_size: int = 1,
        statistics: str | Path | None = None,
    ) -> None:
        super().__init__(GeoTIFFFolder, batch_size, num_workers, seed, steps_per_epoch)
        self.options: dict[str, Any] = {
            'sources': sources, 'image_size': image_size, 'bands': bands, 'mode': mode,
            'length': length, 'balance': balance, 'min_valid': min_valid, 'scale': scale,
            'percentiles': percentiles, 'resolution': resolution, 'num_channels': num_channels,
            'min_size': min_size, 'statistics': statistics, 'seed': seed,
        }  # fmt: skip
        self.bands: list[str] = []
        self.classes = None
        self._ready = False

    def setup(self, stage: str) -> None:
        """Look at the rasters, once; all splits are there at every stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ConfigError: If an argument is not possible.
            ImageError: If the rasters cannot be used.
        """
        if not self._ready:
            self.take(GeoTIFFFolder(**self.options))

    def take(self, images: GeoTIFFFolder) -> None:
        """Be set up with rasters that were looked at already.

        Args:
            images: What :meth:`setup` would make.
        """
        self.train_dataset = images
        self.predict_dataset = self.test_dataset = images.side_by_side()
        self.num_channels, self.bands = images.num_channels, list(images.bands)
        self.scale, self.resolution = value_pairs(images), images.resolution
        self._ready = True


class LabelledGeoTIFFDataModule(ImageDataModule):
    """Windows of rasters with the class of the polygons that cover them, for probes and classifiers.

    Windows stand side by side; the label of each is the class that covers at least ``min_cover`` of
    it, and others are left out. Whole blocks of ground are held out for validation and testing.

    Args:
        images: The rasters and how they are read: arguments of :class:`GeoTIFFDataModule`.
        labels: Vector file of polygons in any coordinate reference system.
        class_column: Column that names each polygon's class.
        batch_size: Windows of a batch (on each device).
        num_workers: Processes that read windows.
        seed: Seed of the split and of the training order.
        steps_per_epoch: Batches of an epoch; None for one pass.
        min_cover: Least share of a window that its class covers.
        val_fraction: Share of the windows that are held out.
        layer: Layer of a file with several.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the rasters cannot be used.
        LabelError: In ``setup``, if the labels cannot be used.

    Attributes:
        bands: Names of the bands, once set up.
        classes: Names of the classes, once set up.
        scale: Values of each band that become 0 and 1, once set up.
        resolution: Metres of a pixel of the images, once set up; None where that varies.
    """

    def __init__(
        self,
        images: dict[str, Any],
        labels: str | Path,
        class_column: str,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        min_cover: float = 0.5,
        val_fraction: float = 0.3,
        layer: str | None = None,
    ) -> None:
        super().__init__(LabelledWindows, batch_size, num_workers, seed, steps_per_epoch)
        self.images, self.labels = images, labels
        self.options: dict[str, Any] = {
            'class_column': class_column, 'min_cover': min_cover, 'fraction': val_fraction,
            'layer': layer, 'seed': seed,
        }  # fmt: skip
        self.bands: list[str] = []
        self._ready = False

    def setup(self, stage: str) -> None:
        """Look at rasters and polygons, once; all splits are there at every stage.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ImageError: If the rasters cannot be used.
            LabelError: If the labels cannot be used.
        """
        if not self._ready:
            self.take(GeoTIFFFolder(**self.images))

    def take(self, images: GeoTIFFFolder) -> None:
        """Be set up with rasters that were looked at already.

        Args:
            images: The rasters.

        Raises:
            LabelError: If the labels cannot be used.
        """
        windows = LabelledWindows(images, self.labels, **self.options)
        self.train_dataset = windows
        self.val_dataset = self.test_dataset = windows.with_split('scored')
        self.classes = windows.classes
        self.num_channels, self.bands = images.num_channels, list(images.bands)
        self.scale, self.resolution = value_pairs(images), images.resolution
        self._ready = True


def value_pairs(images: GeoTIFFFolder) -> tuple[tuple[float, float], ...]:
    """Raw values of each band of the images that become 0 and 1.

    Args:
        images: The rasters.
    """
    pairs = tuple(zip(images.scale.low, images.scale.high, strict=True))
    return pairs * (images.num_channels // len(pairs))  # a grey band that is repeated has one
