"""Data module of RESISC45."""

from pathlib import Path
from typing import Literal, cast

from torchgeo.datasets import RESISC45

from torchgeo_explora.datasets import Cropping
from torchgeo_explora.datasets._drawn import CroppedImages, DrawnImages

from ._cropped import BYTES, CroppedDataModule


class RESISC45DataModule(CroppedDataModule):
    """RESISC45: 45 kinds of scenes in Google Earth's images, 0.2 to 30 m a pixel, 256x256.

    Images and splits are those of TorchGeo's :class:`~torchgeo.datasets.RESISC45`. Crops are those
    of :class:`CroppedDataModule`: for training a random-resized crop where ``train_scale`` is given,
    else the whole image.

    Args:
        root: Folder of TorchGeo's data set.
        image_size: Side S of the squares in pixels.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order and of random crops.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_scale: Shares of the area of a random-resized crop for training; None for the largest
            square.
        eval_resize: Shorter side before the centre is cut out; None for ``image_size``.
        download: Whether TorchGeo may download the images (400 MB).
        checksum: Whether TorchGeo checks what it downloaded.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the images are not there.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        train_scale: tuple[float, float] | None = None,
        eval_resize: int | None = None,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        options = {'download': download, 'checksum': checksum}
        super().__init__(
            RESISC45, root, image_size, batch_size, num_workers, seed, steps_per_epoch,
            train_scale, eval_resize, options,
        )  # fmt: skip
        self.bands, self.num_channels = ['red', 'green', 'blue'], 3
        self.scale = BYTES * self.num_channels

    def prepare_data(self) -> None:
        """Download the images where this is asked for and needed, in one process only."""
        if self.options['download']:
            self._dataset('train', self.eval_cropping)

    def _dataset(self, split: str, cropping: Cropping) -> DrawnImages:
        known = cast("Literal['train', 'val', 'test']", split)
        return CroppedImages(RESISC45(self.root, known, **self.options), cropping, self.seed)
