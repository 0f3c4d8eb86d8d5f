"""Images of an index in labelled samples: crops, damage that is replaced, counted and named."""

import warnings
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.errors import ConfigError, ImageError

from ._crops import Cropping, Draw, draw_crop
from ._drawn import DrawnImages
from ._headers import READ_ERRORS, name_some
from ._index import ImageIndex

REPLACEMENTS = 100
"""Images in a row that may turn out to be damaged before a sample is given up."""

_FINE, _DAMAGED, _GAPS = 0, 1, 2


class IndexedImages(DrawnImages, ABC):
    """Images of an index, cut to squares, with a label each.

    An image that is missing or cannot be used is replaced by the next usable one, counted and named
    in a warning, as :class:`ImageFolder` does it. Whether an image is used depends on its file
    alone, never on what was drawn, so that a resumed run sees what the unbroken one would have.

    Sub-classes set up ``root``, ``bands`` and ``classes``, and call this constructor once they have an
    index.

    Args:
        index: Images and their labels.
        folder: What the index' paths are relative to.
        cropping: How images become squares.
        seed: Seed of what is drawn, at least 0.
        check_files: Whether to look for every file now, and leave missing ones out.

    Attributes:
        classes: Names of the classes, in the order of the labels.
        index: Images and their labels, in tensors that loader workers share.
        skipped: Why entries were left out, by reason.
    """

    root: Path
    bands: tuple[str, ...]
    skipped: dict[str, list[str]]

    def __init__(
        self, index: ImageIndex, folder: Path, cropping: Cropping, seed: int, check_files: bool
    ) -> None:
        if seed < 0:
            raise ConfigError(f'seed is {seed}: give a number of at least 0.')
        self.folder, self.cropping, self.seed = folder, cropping, seed
        self.index = self._existing(index) if check_files else index
        self._say_what_is_left_out()
        # written by loader workers, read by the process that started them
        self._state = torch.zeros(len(self.index), dtype=torch.uint8).share_memory_()

    @property
    def num_channels(self) -> int:
        """Bands of an image."""
        return len(self.bands)

    @property
    def labels(self) -> Tensor:
        """Class of every image, (N,) int64."""
        return self.index.labels.long()

    @property
    def damaged(self) -> list[str]:
        """Paths of the images that were found unusable so far, by any loader worker."""
        return self._in_state(_DAMAGED)

    @property
    def with_gaps(self) -> list[str]:
        """Paths of the images that were found to have pixels without data, which became 0."""
        return self._in_state(_GAPS)

    def _in_state(self, state: int) -> list[str]:
        rows = (self._state == state).nonzero()[:, 0].tolist()
        return [self.index.paths[row] for row in rows]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.index)

    def file_of(self, index: int) -> str:
        """Path of the file of a sample.

        Args:
            index: Position from 0.
        """
        return str(self._path(index))

    def draw(self, index: int, epoch: int) -> dict[str, Tensor]:
        """One sample of a pass over the data.

        Args:
            index: Position from 0.
            epoch: Number of the pass, from 0. Random choices depend on the seed, the pass and the
                position, and on nothing else.

        Returns:
            ``image``, float32 in [0, 1]; ``label``, int64, where it is known; ``metadata``, int64
            (F,), where there is some.

        Raises:
            ImageError: If this image and the next 100 cannot be used.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} of {len(self)} images')
        index %= len(self)
        for step in range(min(REPLACEMENTS + 1, len(self))):
            position = (index + step) % len(self)
            rng = np.random.default_rng([self.seed, epoch, index])
            if not self._unusable(position):
                sample = self._sample(position, draw_crop(rng), rng)
                if sample is not None:
                    return sample | self._known(position)
        raise ImageError(
            f'{self.folder / self.index.paths[index]} and the images after it cannot be used (see '
            'the warnings): give undamaged images.'
        )

    def _known(self, position: int) -> dict[str, Tensor]:
        """What the index knows of an image: its label unless that is negative, and metadata."""
        label = self.index.labels[position].long()
        known = {'label': label} if label >= 0 else {}
        if self.index.metadata is None:
            return known
        return known | {'metadata': self.index.metadata[position].long()}

    @abstractmethod
    def _sample(
        self, position: int, draw: Draw, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        """A sample without its label, or None if its image cannot be used."""

    @abstractmethod
    def _read(self, position: int) -> Tensor:
        """An image as it is: (C, H, W) bytes.

        Raises:
            OSError: Or another of ``READ_ERRORS``, if it cannot be used.
        """

    def _image(self, position: int, draw: Draw) -> Tensor | None:
        """One image cut to a square, float32 in [0, 1], or None and a warning."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', NotGeoreferencedWarning)
                image = self._read(position)
        except READ_ERRORS as error:
            self._note(position, error)
            return None
        return self.cropping.cut(image.float().div_(255), draw)

    def _unusable(self, position: int) -> bool:
        """Whether an image was found unusable before."""
        return bool(self._state[position] == _DAMAGED)

    def _path(self, position: int) -> Path:
        return self.folder / self.index.paths[position]

    def _note(self, position: int, error: BaseException) -> None:
        """Remember and name an image that cannot be used."""
        self._state[position] = _DAMAGED
        reason = ' '.join(str(error).split()) or type(error).__name__
        count = int((self._state == _DAMAGED).sum())
        warnings.warn(
            f'{self._path(position)} cannot be used and the next image takes its place ({reason}); '
            f'{count} of {len(self)} so far.',
            stacklevel=2,
        )

    def _note_gaps(self, position: int, pixels: int) -> None:
        """Remember an image with pixels without data; name the first one."""
        first = not bool((self._state == _GAPS).any())
        self._state[position] = _GAPS
        if first:
            warnings.warn(
                f'{self._path(position)} has {pixels} values without data (NaN or nodata), which '
                'become 0; other such images are only counted (attribute with_gaps).',
                stacklevel=2,
            )

    def _existing(self, index: ImageIndex) -> ImageIndex:
        """The entries whose files are there."""
        there = [(self.folder / index.paths[row]).is_file() for row in range(len(index))]
        kept = np.flatnonzero(there)
        if len(kept) < len(index):
            missing = [index.paths[row] for row in np.flatnonzero(np.logical_not(there)).tolist()]
            self.skipped['is missing'] = missing
            index = index.take(kept)
        if len(index) == 0:
            raise DatasetNotFoundError(self)
        return index

    def _say_what_is_left_out(self) -> None:
        for reason, items in self.skipped.items():
            count = f'{len(items)} of {len(items) + len(self.index)}'
            warnings.warn(
                f'{self.root}: {count} entries are left out: each {reason} ({name_some(items)}).',
                stacklevel=4,
            )


def read_rgb(path: Path) -> Tensor:
    """A picture as it is, in red, green and blue.

    Args:
        path: Anything that PIL reads.

    Returns:
        (3, H, W) bytes.

    Raises:
        OSError: Or another of ``READ_ERRORS``, if it cannot be read.
    """
    with Image.open(path) as image:
        pixels = np.array(image.convert('RGB'))
    return torch.from_numpy(pixels).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
