"""fMoW-RGB: one picture a sample."""

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ._crops import Cropping, Draw
from ._fmow_pictures import FMoWPictures
from ._plots import plot_sample
from ._tables import RGB_COLUMNS


class FMoWRGB(FMoWPictures):
    """Functional Map of the World in RGB: pictures of 62 kinds of places, 0.3 to 3 m a pixel.

    Two layouts are read, in ``root`` or in a folder ``fmow``, ``fmow-rgb`` or ``fmow_rgb`` in it:

    * SatMAE's and ExPLoRA's tables ``train_62classes.csv`` and ``val_62classes.csv`` or
      ``test_62classes.csv``, of crops that fMoW's baseline script has made: the class (a name or a
      number), ``image_path``, timestamp. Columns are found by the names that they have in copies of
      these files, else by their order. Paths may be absolute, of another machine (all before the
      folder of the split is then left out), or Windows';
    * the raw data set,
      ``<split>/<class>/<class>_<place>/<class>_<place>_<date>_{rgb,msrgb}.{jpg,json}``.

    Where a JSON file lies beside an image, the image is cut to the box of its class with context,
    as the baseline does it. An image that is missing, damaged, black or without such a box is
    replaced by the next one, counted and named.

    The data set has to be downloaded by hand (https://github.com/fMoW/dataset, 200 GB). If you use
    it, please cite https://arxiv.org/abs/1711.07846.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``. With tables, ``val`` and ``test`` are the same images.
        cropping: How images, whose sizes vary, become squares.
        kind: ``rgb`` (pan-sharpened) or ``msrgb`` pictures of the raw data set.
        cut_boxes: Whether to cut images to their boxes; ``auto`` for where JSON files are.
        seed: Seed of random crops.
        csv: Table to read instead of the split's, an absolute path or relative to ``root``.
        check_files: Look for every file at once and leave missing ones out; by default a missing
            file is found when it is read.

    Raises:
        DatasetNotFoundError: If the images are not there.
        ImageError: If the table cannot be used.
        ConfigError: If an argument is not possible.
    """

    def __init__(
        self,
        root: Path | str = 'data',
        split: Literal['train', 'val', 'test'] = 'train',
        cropping: Cropping | None = None,
        kind: Literal['rgb', 'msrgb'] = 'rgb',
        cut_boxes: Literal['auto'] | bool = 'auto',
        seed: int = 0,
        csv: Path | str | None = None,
        check_files: bool = False,
    ) -> None:
        super().__init__(
            root, split, RGB_COLUMNS, kind, cut_boxes, cropping, seed, csv, check_files
        )

    def _sample(
        self, position: int, draw: Draw, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        image = self._image(position, draw)
        return None if image is None else {'image': image}

    def plot(
        self, sample: dict[str, Tensor], show_titles: bool = True, suptitle: str | None = None
    ) -> Figure:
        """Draw a sample.

        Args:
            sample: What ``__getitem__`` returns, with ``prediction`` or not.
            show_titles: Whether to write the class.
            suptitle: Title of the figure, instead of the class.

        Returns:
            A figure.
        """
        return plot_sample(sample, self.bands, self.classes, show_titles, suptitle)
