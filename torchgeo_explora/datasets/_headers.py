"""What an image file says about itself: size, bands, type. Read without decoding its pixels."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import rasterio
from PIL import Image, UnidentifiedImageError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from torchgeo_explora.errors import ImageError

RASTER_EXTENSIONS = ('.tif', '.tiff')
"""Read through rasterio, which knows windows, 16 bits, any number of bands and nodata."""

READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    RasterioError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
"""What PIL and rasterio raise for a file that is damaged or no image."""

NAMED = 5
"""File names in a message; the rest is counted."""

# PIL mode: data type, colour bands, whether there is an alpha channel. Other modes become RGB.
_MODES = {
    '1': ('uint8', 1, False),
    'L': ('uint8', 1, False),
    'LA': ('uint8', 1, True),
    'RGBA': ('uint8', 3, True),
    'I;16': ('uint16', 1, False),
    'I;16B': ('uint16', 1, False),
    'I': ('int32', 1, False),
    'F': ('float32', 1, False),
}


@dataclass(frozen=True)
class ImageHeader:
    """Size and type of an image file.

    Args:
        path: The file.
        height: Rows in pixels.
        width: Columns in pixels.
        names: Description of every band of the file, empty where it has none.
        indexes: 1-based indexes of the bands that are no alpha channel.
        dtype: NumPy name of the data type.
        masked: Whether some pixels may be without data.
    """

    path: Path
    height: int
    width: int
    names: tuple[str, ...]
    indexes: tuple[int, ...]
    dtype: str
    masked: bool

    @property
    def alpha(self) -> bool:
        """Whether there is an alpha channel."""
        return len(self.indexes) < len(self.names)


def is_raster(path: Path) -> bool:
    """Whether a file is read through rasterio."""
    return path.suffix.lower() in RASTER_EXTENSIONS


def read_header(path: Path) -> ImageHeader:
    """Read the header of one file.

    Args:
        path: An image.

    Returns:
        The header.

    Raises:
        OSError: Or another of ``READ_ERRORS``, if the file is damaged or no image.
    """
    return _raster_header(path) if is_raster(path) else _picture_header(path)


def _raster_header(path: Path) -> ImageHeader:
    with rasterio.open(path) as source:
        return describe_raster(source, path)


def describe_raster(source: rasterio.DatasetReader, path: Path) -> ImageHeader:
    """What an open raster says about itself.

    Args:
        source: The raster.
        path: Its file, for messages.
    """
    names = tuple(name or '' for name in source.descriptions)
    # GDAL takes a fourth band of bytes for alpha; one with a name of its own is none
    indexes = tuple(
        index
        for index, name, kind in zip(source.indexes, names, source.colorinterp, strict=True)
        if kind != ColorInterp.alpha or name.lower() not in {'', 'alpha'}
    )
    no_mask = MaskFlags.all_valid if len(indexes) < len(names) else MaskFlags.alpha
    return ImageHeader(
        path=path,
        height=source.height,
        width=source.width,
        names=names,
        indexes=indexes,
        dtype=source.dtypes[0],
        # an alpha band masks the others, and is itself valid everywhere
        masked=not any(
            {MaskFlags.all_valid, no_mask} & set(source.mask_flag_enums[index - 1])
            for index in indexes
        ),
    )


def _picture_header(path: Path) -> ImageHeader:
    with Image.open(path) as image:
        dtype, bands, alpha = _MODES.get(image.mode, ('uint8', 3, 'transparency' in image.info))
        names = ('red', 'green', 'blue') if bands == 3 else ('grey',)
        return ImageHeader(
            path=path,
            height=image.height,
            width=image.width,
            names=names + (('alpha',) if alpha else ()),
            indexes=tuple(range(1, bands + 1)),
            dtype=dtype,
            masked=False,
        )


def find_images(root: Path, extensions: Sequence[str]) -> list[Path]:
    """All image files under a folder, in an order that depends on their names alone.

    Args:
        root: A folder; hidden files and folders in it are left out.
        extensions: Lower-case extensions with their dot.

    Returns:
        Sorted paths.

    Raises:
        ImageError: If there is no such folder, or no image in it.
    """
    if not root.is_dir():
        kind = 'a file, not a folder' if root.exists() else 'not there'
        raise ImageError(f'{root} is {kind}: give a folder (or a .zip file) of images.')
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(('.', '__MACOSX'))]
        found += [
            Path(folder, name)
            for name in files
            if not name.startswith('.') and Path(name).suffix.lower() in extensions
        ]
    if not found:
        raise ImageError(
            f'{root} holds no image: give a folder with {", ".join(extensions)} files in it or in '
            'its sub-folders.'
        )
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def read_headers(paths: Sequence[Path]) -> tuple[list[ImageHeader], dict[Path, str]]:
    """Read many headers at once, leaving out the files that cannot be read.

    Args:
        paths: Image files.

    Returns:
        The headers in the order of ``paths``, and why each of the other files was left out.

    Raises:
        ImageError: If no file can be read.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=16) as pool:
        # plain pictures in TIFF files have no place on Earth, and need none
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        results = list(pool.map(_try_header, paths))
    headers = [result for result in results if isinstance(result, ImageHeader)]
    skipped = {
        path: result
        for path, result in zip(paths, results, strict=True)
        if not isinstance(result, ImageHeader)
    }
    if not headers:
        path, reason = next(iter(skipped.items()))
        raise ImageError(
            f'None of {len(paths)} images can be read; the first is {path} ({reason}). '
            'Give undamaged images.'
        )
    return headers, skipped


def _try_header(path: Path) -> ImageHeader | str:
    try:
        return read_header(path)
    except READ_ERRORS as error:
        return ' '.join(str(error).split()) or type(error).__name__


def check_alike(kinds: Sequence[str], headers: Sequence[ImageHeader]) -> None:
    """Refuse images that cannot be put into one batch.

    Args:
        kinds: What each image is, in words ("3 bands of uint8").
        headers: The images.

    Raises:
        ImageError: If there is more than one kind; the files of the rarer kinds are named.
    """
    (common, count), *others = Counter(kinds).most_common()
    if others:
        odd = [
            f'{header.path} ({kind})'
            for kind, header in zip(kinds, headers, strict=True)
            if kind != common
        ]
        raise ImageError(
            f'{count} images have {common}, but {len(odd)} do not: {name_some(odd)}. Give images '
            'of one kind, choose `bands` (--bands) that all of them have, or repeat grey bands with '
            "mode 'rgb' (--grey)."
        )


def check_sizes(headers: Sequence[ImageHeader], min_size: int) -> None:
    """Refuse images with a side of less than ``min_size`` pixels.

    Args:
        headers: The images.
        min_size: Smallest side in pixels, for example the model's patch size.

    Raises:
        ImageError: Naming the images that are too small.
    """
    small = [
        f'{header.path} ({header.width}x{header.height})'
        for header in headers
        if min(header.height, header.width) < min_size
    ]
    if small:
        raise ImageError(
            f'{len(small)} images are smaller than {min_size} pixels (one patch of the model): '
            f'{name_some(small)}. Remove them or give larger images.'
        )


def name_some(items: Iterable[object]) -> str:
    """The first few of many, and how many more there are."""
    names = [str(item) for item in items]
    more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
    return ', '.join(names[:NAMED]) + more
