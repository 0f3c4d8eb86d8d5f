"""Any folder of images: pictures and GeoTIFFs, nested or flat, with or without labels."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor
from torchgeo.datasets import NonGeoDataset

from torchgeo_explora.errors import ConfigError, ImageError

from ._archive import unpack_zip
from ._headers import (
    READ_ERRORS,
    check_alike,
    check_sizes,
    find_images,
    name_some,
    read_headers,
)
from ._pixels import (
    Pixels,
    Scale,
    Tile,
    drop_empty,
    fit_square,
    given_scale,
    percentile_scale,
    read_pixels,
    select_bands,
    split_windows,
    to_unit,
)

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.tif', '.tiff')
"""Files that count as images unless the user says otherwise."""

SPLITS = frozenset({'train', 'val', 'validation', 'test'})
"""Sub-folders with these names alone are parts of a data set, not classes."""

SCALE_SAMPLES = 256
"""Images that percentiles are taken from."""

REPLACEMENTS = 100
"""Images in a row that may turn out to be damaged before a sample is given up."""


class ImageFolder(NonGeoDataset):
    """Images under a folder, as float32 tensors in [0, 1], with labels where folders give them.

    Files are taken in the order of their names. Files whose header cannot be read are left out,
    counted in ``skipped`` and named in a warning; a file that turns out to be damaged only when it
    is decoded is replaced by the next readable one, and named likewise. GeoTIFFs are read through
    rasterio; one with both sides of at least ``2 * tile`` pixels is split into windows, of which
    those without data are left out. Pixels without data (nodata, masks, NaN) become 0. Alpha
    channels are left out, with a warning, unless ``bands`` names them.

    8-bit values are divided by 255. Others are scaled with ``scale``, or, where that is None,
    between two percentiles of each band over the whole folder (of up to 256 images drawn with
    ``seed``), never image by image, so that brightness stays comparable.

    Args:
        root: Folder, or a .zip file, which is unpacked.
        image_size: Side of the square images that come out: the shorter side is resized to it
            (bicubic, antialiased, only where it differs) and the centre cut out. None to leave
            images as they are.
        bands: 1-based indexes or names of the bands to read, in this order; None for all but alpha.
            Sentinel-2's names may be spelled ``B2`` or ``B02``.
        mode: ``keep`` the bands, or ``rgb``: a single band is repeated three times.
        extensions: File name extensions that count as images.
        with_labels: Whether the first-level sub-folders are classes. ``auto``: they are if every
            image lies in one, there are at least two of them, and they are not just train, val,
            validation and test.
        classes: Names of the classes, to have the same label numbers as another folder; None for
            the sorted names of the sub-folders.
        tile: Side of the windows that large GeoTIFFs are split into, or ``image_size`` if that is
            more; None never to split.
        scale: ``(low, high)`` values that become 0 and 1, each a number or one number per band.
        percentiles: Percentiles that become 0 and 1 where ``scale`` is None and values are not 8-bit.
        num_channels: Number of bands that a model needs; None for any.
        min_size: Smallest side of an image in pixels, for example one patch.
        cache: ``ram`` decodes every image once, at construction: as 8 bits for 8-bit images (12 kB
            for 64x64 RGB), else as float32.
        cache_dir: Where a .zip file is unpacked to; None for a temporary folder.
        band_names: Names of all bands of every file, in order, for files that do not name theirs;
            None for the files' own descriptions.
        seed: Seed of the images that percentiles are taken from.

    Raises:
        ImageError: If there is no such folder, no readable image, images of different kinds, of the
            wrong number of bands or too small.
        ConfigError: If an argument is not possible.

    Attributes:
        headers: Readable files.
        tiles: One entry per sample: a file, or a window of it.
        classes: Names of the classes, or None.
        labels: int64 label of every sample, or None.
        num_channels: Bands of every sample.
        bands: Name of every band, or its index where it has none.
        scale: Values that become 0 and 1, and where they come from.
        skipped: Why each unreadable file was left out.
        damaged: Why each file that could not be decoded was replaced.
    """

    def __init__(
        self,
        root: Path | str,
        image_size: int | None = None,
        bands: Sequence[int | str] | None = None,
        mode: Literal['keep', 'rgb'] = 'keep',
        extensions: Sequence[str] = EXTENSIONS,
        with_labels: Literal['auto'] | bool = 'auto',
        classes: Sequence[str] | None = None,
        tile: int | None = 256,
        scale: Sequence[float | Sequence[float]] | None = None,
        percentiles: tuple[float, float] = (1.0, 99.0),
        num_channels: int | None = None,
        min_size: int = 1,
        cache: Literal['none', 'ram'] = 'none',
        cache_dir: Path | str | None = None,
        seed: int = 0,
        band_names: Sequence[str] | None = None,
    ) -> None:
        _check_arguments(image_size, mode, with_labels, cache, percentiles)
        self.root = image_root(root, extensions, cache_dir)
        self.image_size, self.mode, self.seed = image_size, mode, seed
        self.headers, self.skipped = read_headers(find_images(self.root, extensions))
        check_sizes(self.headers, min_size)
        self._indexes = [select_bands(header, bands, band_names) for header in self.headers]
        kinds = [
            f'{_bands(self._channels(len(indexes)))} of {header.dtype}'
            for header, indexes in zip(self.headers, self._indexes, strict=True)
        ]
        check_alike(kinds, self.headers)
        self.num_channels = self._channels(len(self._indexes[0]))
        self.bands = self._names(band_names)
        self._check_channels(num_channels)
        self._say_what_is_left_out(alpha=bands is None and band_names is None)
        self.damaged: dict[Path, str] = {}
        side = tile if tile is None or image_size is None else max(tile, image_size)
        self.tiles = self._split(side)
        self.scale = self._choose_scale(scale, percentiles)
        self.classes, self.labels = self._label(with_labels, classes)
        self._cache: Tensor | None = None
        if cache == 'ram':
            self._fill_cache()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.tiles)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample.

        Args:
            index: Position from 0.

        Returns:
            ``image``, float32 (C, H, W) in [0, 1]; ``label``, int64, where there are classes.

        Raises:
            ImageError: If this image and the next 100 cannot be decoded.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} images')
        image, index = self._readable(index % len(self))
        sample = {'image': image.float().div(255) if image.dtype == torch.uint8 else image}
        if self.labels is not None:
            sample['label'] = self.labels[index]
        return sample

    def file_of(self, index: int) -> str:
        """Return the path of a sample's file; of several samples where they are windows of it.

        Args:
            index: Position from 0.
        """
        return str(self.headers[self.tiles[index].file].path)

    def pixels(self, index: int) -> Pixels | None:
        """Raw values of a sample's bands (bands, h, w), before scaling; None where it is damaged.

        Args:
            index: Position from 0.
        """
        try:
            return self._read(self.tiles[index])
        except READ_ERRORS:
            return None

    def _readable(self, index: int) -> tuple[Tensor, int]:
        """The image, or the next one that can be decoded, and its position."""
        if self._cache is not None:
            return self._cache[index], index
        for step in range(min(REPLACEMENTS + 1, len(self))):
            position = (index + step) % len(self)
            if self.headers[self.tiles[position].file].path in self.damaged:
                continue
            image = self._decode(position)
            if image is not None:
                return image, position
        raise ImageError(
            f'{self.headers[self.tiles[index].file].path} and the images after it cannot be '
            'decoded: give undamaged images.'
        )

    def _decode(self, index: int) -> Tensor | None:
        """One image as uint8 or float32, or None and a note in ``damaged``."""
        tile = self.tiles[index]
        path = self.headers[tile.file].path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', NotGeoreferencedWarning)
                values = self._read(tile)
        except READ_ERRORS as error:
            self.damaged[path] = ' '.join(str(error).split())
            warnings.warn(f'{path} is damaged and left out ({self.damaged[path]}).', stacklevel=2)
            return None
        return self._finish(values)

    def _read(self, tile: Tile) -> Pixels:
        return read_pixels(self.headers[tile.file], tile.window, self._indexes[tile.file])

    def _finish(self, values: Pixels) -> Tensor:
        """Scaled and resized pixels; bytes where the file holds bytes."""
        size = self.image_size
        fits = size is None or values.shape[1:] == (size, size)
        if self._eight_bit and fits and not np.ma.is_masked(values):
            image = torch.from_numpy(np.array(values.data))  # what the rest comes to, only faster
        else:
            image = to_unit(values, self.scale)
            image = image if size is None else fit_square(image, size)
            image = image.mul(255).add(0.5).to(torch.uint8) if self._eight_bit else image
        return image.expand(self.num_channels, -1, -1).contiguous()

    @property
    def _eight_bit(self) -> bool:
        """Whether samples are stored as bytes: exact for 8-bit images, as PIL rounds them too."""
        return self.scale.source == 'dtype'

    def _fill_cache(self) -> None:
        """Decode every image once; damaged ones are taken out."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            images = list(pool.map(self._decode, range(len(self))))
        kept = [index for index, image in enumerate(images) if image is not None]
        if not kept:
            raise ImageError(f'No image under {self.root} can be decoded: give undamaged images.')
        self.tiles = [self.tiles[index] for index in kept]
        if self.labels is not None:
            self.labels = self.labels[kept]
        self._cache = torch.stack([image for image in images if image is not None])

    def _channels(self, bands: int) -> int:
        return 3 if self.mode == 'rgb' and bands == 1 else bands

    def _names(self, band_names: Sequence[str] | None) -> tuple[str, ...]:
        names = self.headers[0].names if band_names is None else tuple(band_names)
        chosen = [names[index - 1] or str(index) for index in self._indexes[0]]
        return tuple(chosen * (self.num_channels // len(chosen)))

    def _check_channels(self, expected: int | None) -> None:
        """Compare with the number of bands that the user needs."""
        needed = 3 if self.mode == 'rgb' else expected
        if needed is not None and self.num_channels != needed:
            raise ImageError(
                f'{self.headers[0].path} has {_bands(self.num_channels)}, but {needed} are needed: '
                'choose them with `bands` (--bands; 1-based indexes), or repeat a grey band with '
                "mode 'rgb' (--grey)."
            )

    def _say_what_is_left_out(self, alpha: bool) -> None:
        if self.skipped:
            reasons = [f'{path} ({reason})' for path, reason in self.skipped.items()]
            warnings.warn(
                f'{len(reasons)} of {len(reasons) + len(self.headers)} images cannot be read and '
                f'are left out: {name_some(reasons)}.',
                stacklevel=3,
            )
        cut = [header.path for header in self.headers if header.alpha]
        if alpha and cut:
            warnings.warn(
                f'The alpha channel of {len(cut)} images is left out: {name_some(cut)}. If it is '
                'a band, as in RGB and near infrared without a colour table, give `bands`.',
                stacklevel=3,
            )

    def _split(self, tile: int | None) -> list[Tile]:
        """Samples: whole files, or windows of large rasters that hold data."""
        tiles = [
            Tile(file, window)
            for file, header in enumerate(self.headers)
            for window in drop_empty(header, split_windows(header, tile), self._indexes[file])
        ]
        if not tiles:
            raise ImageError(f'No raster under {self.root} has a pixel of data: give others.')
        return tiles

    def _choose_scale(
        self, scale: Sequence[float | Sequence[float]] | None, percentiles: tuple[float, float]
    ) -> Scale:
        """Scale of the values: given, fixed for 8 bits, or from the whole folder."""
        bands = len(self._indexes[0])
        if scale is not None:
            return given_scale(scale, bands)
        if self.headers[0].dtype == 'uint8':
            return Scale((0.0,) * bands, (255.0,) * bands, 'dtype')
        order = np.random.default_rng(self.seed).permutation(len(self.tiles))[:SCALE_SAMPLES]
        samples = []
        for index in np.sort(order):
            tile = self.tiles[index]
            path = self.headers[tile.file].path
            try:
                samples.append(self._read(tile))
            except READ_ERRORS as error:
                self.damaged[path] = ' '.join(str(error).split())
        if not samples:
            raise ImageError(f'No image under {self.root} can be decoded: give undamaged images.')
        return percentile_scale(samples, percentiles)

    def _label(
        self, with_labels: Literal['auto'] | bool, classes: Sequence[str] | None
    ) -> tuple[list[str] | None, Tensor | None]:
        """Classes and labels from the first-level sub-folders, where they are wanted."""
        if with_labels is False:
            return None, None
        parts = [self.headers[tile.file].path.relative_to(self.root).parts for tile in self.tiles]
        nested = all(len(part) > 1 for part in parts)
        found = sorted({part[0] for part in parts if len(part) > 1})
        if with_labels == 'auto' and (not nested or len(found) < 2 or set(found) <= SPLITS):
            return None, None
        if not nested:
            raise ImageError(
                f'{self.root} has images outside of class folders: move each into a sub-folder '
                'named after its class, or give with_labels false.'
            )
        names = found if classes is None else list(classes)
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise ImageError(
                f'{self.root} has the class folders {name_some(unknown)}, which are not among the '
                f'classes {names}: rename or remove them.'
            )
        return names, torch.tensor([names.index(part[0]) for part in parts])


def _bands(count: int) -> str:
    return '1 band' if count == 1 else f'{count} bands'


def image_root(
    root: Path | str, extensions: Sequence[str] = EXTENSIONS, cache_dir: Path | str | None = None
) -> Path:
    """The folder itself, or the folder that a .zip file was unpacked to.

    Args:
        root: A folder or a .zip file.
        extensions: Extensions of the images to unpack.
        cache_dir: Where to unpack to; None for a temporary folder.

    Returns:
        A path that need not exist if ``root`` does not.
    """
    root = Path(root)
    if root.suffix.lower() == '.zip' and root.is_file():
        return unpack_zip(root, extensions, None if cache_dir is None else Path(cache_dir))
    return root


def _check_arguments(
    image_size: int | None,
    mode: str,
    with_labels: str | bool,
    cache: str,
    percentiles: tuple[float, float],
) -> None:
    """Refuse what cannot be done with a sentence each."""
    if image_size is not None and image_size < 1:
        raise ConfigError(f'image_size is {image_size}: give a number of pixels of at least 1.')
    if mode not in {'keep', 'rgb'}:
        raise ConfigError(f"mode is {mode!r}: give 'keep' or 'rgb'.")
    if with_labels not in {'auto', True, False}:
        raise ConfigError(f"with_labels is {with_labels!r}: give 'auto', true or false.")
    if cache not in {'none', 'ram'}:
        raise ConfigError(f"cache is {cache!r}: give 'none' or 'ram'.")
    if cache == 'ram' and image_size is None:
        raise ConfigError("cache 'ram' needs images of one size: give image_size.")
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ConfigError(f'percentiles are {percentiles}: give 0 <= lower < upper <= 100.')
