"""Data module of NAIP land cover."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from torchgeo_explora.datasets import Cropping, NAIPLandCover
from torchgeo_explora.datasets._drawn import DrawnImages
from torchgeo_explora.errors import ConfigError

from ._cropped import BYTES, CroppedDataModule

SIDE = 100
"""Pixels of a side of the published chips."""

METRES = 0.6
"""Metres of a pixel of the published chips."""


class NAIPLandCoverDataModule(CroppedDataModule):
    """NAIP land cover: aerial chips of 100x100 pixels at 0.6 m and their main kind of cover.

    Args:
        root: Folder of the data set, see :class:`~torchgeo_explora.datasets.NAIPLandCover`.
        evaluation: ``separate`` to validate on ``val`` and test on ``test``; ``joint`` to do both on
            all chips of the two, as SatMAE and the paper do (55,529 chips). What is chosen on
            ``joint`` images is then chosen on the images that it is scored on.
        bands: Names of the bands, in order, of red, green, blue and nir.
        image_size: Side S of the squares in pixels.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order and of random crops.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_scale: Shares of the area of a random-resized crop for training; None for whole chips.
        eval_resize: Shorter side before the centre is cut out; None for ``image_size``.
        csv: Table to read, an absolute path or relative to ``root``.
        check_files: Whether to look for every file at once.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the images are not there.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        evaluation: Literal['separate', 'joint'] = 'separate',
        bands: Sequence[str] = ('red', 'green', 'blue'),
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        train_scale: tuple[float, float] | None = None,
        eval_resize: int | None = None,
        csv: str | Path | None = None,
        check_files: bool = False,
    ) -> None:
        if evaluation not in {'separate', 'joint'}:
            raise ConfigError(f"evaluation is {evaluation!r}: give 'separate' or 'joint'.")
        options = {'bands': tuple(bands), 'csv': csv, 'check_files': check_files}
        super().__init__(
            NAIPLandCover, root, image_size, batch_size, num_workers, seed, steps_per_epoch,
            train_scale, eval_resize, options,
        )  # fmt: skip
        if evaluation == 'joint':
            self.splits |= {'val': 'val+test', 'test': 'val+test'}
        self.bands, self.num_channels = list(bands), len(bands)
        self.scale = BYTES * self.num_channels
        self.resolution = METRES * SIDE / self.eval_resize

    def _dataset(self, split: str, cropping: Cropping) -> DrawnImages:
        known = cast("Literal['train', 'val', 'test', 'val+test']", split)
        return NAIPLandCover(self.root, known, cropping=cropping, seed=self.seed, **self.options)
