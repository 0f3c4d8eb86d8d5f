"""Data modules of WILDS: Camelyon17 and iWildCam."""

from abc import ABC
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch.utilities import rank_zero_info

from torchgeo_explora.datasets import Camelyon17, Cropping, IWildCam
from torchgeo_explora.datasets._drawn import DrawnImages
from torchgeo_explora.datasets._wilds import Wilds
from torchgeo_explora.datasets.camelyon17 import Camelyon17Split
from torchgeo_explora.datasets.iwildcam import IWildCamSplit
from torchgeo_explora.errors import ConfigError, ImageError

from ._cropped import BYTES, CroppedDataModule

type Labelled17 = Literal['train', 'id_val', 'val', 'test']
type LabelledCam = Literal['train', 'val', 'test', 'id_val', 'id_test']


class WildsDataModule(CroppedDataModule, ABC):
    """What the data modules of WILDS share.

    Batches hold ``image`` (B, 3, S, S), ``label`` (B,) where the split has labels, and ``metadata``
    (B, F), see the data sets. A run on unlabelled images validates on labelled ones where they are
    there, and does without them where they are not.

    Args:
        dataset_class: Class of the data sets.
        root: Folder that holds the folders of the releases.
        splits: Names of the splits to train, validate and test on.
        image_size: Side of the squares in pixels.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order and of random crops.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_scale: Shares of the area of a random-resized crop for training.
        eval_resize: Shorter side before the centre is cut out.
        options: Further arguments of the data sets.
    """

    def __init__(
        self,
        dataset_class: type[Wilds],
        root: str | Path,
        splits: tuple[str, str, str],
        image_size: int,
        batch_size: int,
        num_workers: int,
        seed: int,
        steps_per_epoch: int | None,
        train_scale: tuple[float, float] | None,
        eval_resize: int | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__(
            dataset_class, root, image_size, batch_size, num_workers, seed, steps_per_epoch,
            train_scale, eval_resize, options,
        )  # fmt: skip
        labelled, unlabelled = (set(release.rows) for release in dataset_class.releases)
        for split, allowed in zip(splits, (labelled | unlabelled, labelled, labelled), strict=True):
            if split not in allowed:
                raise ConfigError(
                    f'{dataset_class.__name__} has no split {split!r} to use there: give one of '
                    f'{", ".join(sorted(allowed))}.'
                )
        if splits[0] in splits[1:]:
            raise ConfigError(
                f'The images of {splits[0]} are to be trained on and scored on: give other splits.'
            )
        self.unlabelled = splits[0] in unlabelled
        self.splits = dict(zip(('train', 'val', 'test'), splits, strict=True))
        self.bands, self.num_channels = list(dataset_class.bands), len(dataset_class.bands)
        self.scale = BYTES * self.num_channels
        self.official_metrics = dataset_class.official_metrics

    def prepare_data(self) -> None:
        """Download the images where this is asked for and needed, in one process only."""
        if self.options['download']:
            self._dataset(self.splits['train'], self.train_cropping)
            if not self.unlabelled:
                self._dataset(self.splits['val'], self.eval_cropping)

    def _validation(self) -> DrawnImages | None:
        """Labelled images; None where a run on unlabelled ones has none."""
        try:
            return self._split('val', self.eval_cropping)
        except ImageError as error:
            if not self.unlabelled:
                raise
            rank_zero_info(f'There are no labelled images to validate on: {error}')
            return None


class Camelyon17DataModule(WildsDataModule):
    """Camelyon17-WILDS: patches of lymph nodes, with or without tumour.

    Args:
        root: Folder that holds ``camelyon17_v1.0`` and, for unlabelled patches,
            ``camelyon17_unlabeled_v1.0``; see :class:`~torchgeo_explora.datasets.Camelyon17`.
        train_split: Patches to train on: ``train``, or for pre-training ``train_unlabeled``.
        val_split: Patches to validate on: ``val``, of a hospital that is not trained on, or
            ``id_val``, of those that are.
        test_split: Patches to test on.
        split_scheme: ``official``, or ``mixed-to-test`` to train on a slide of the test hospital.
        image_size: Side S of the squares in pixels; a patch has 96.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order and of random crops.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_scale: Shares of the area of a random-resized crop for training; None for whole patches.
        eval_resize: Shorter side before the centre is cut out; None for ``image_size``.
        check_files: Whether to look for every file at once.
        download: Whether to download what is missing: 10.7 GB, or 69 GB without labels.
        checksum: Whether to check the size of what is downloaded.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the images are not there.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        train_split: Camelyon17Split = 'train',
        val_split: Labelled17 = 'val',
        test_split: Labelled17 = 'test',
        split_scheme: Literal['official', 'mixed-to-test'] = 'official',
        image_size: int = 96,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        train_scale: tuple[float, float] | None = None,
        eval_resize: int | None = None,
        check_files: bool = False,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        options = {
            'split_scheme': split_scheme, 'check_files': check_files, 'download': download,
            'checksum': checksum,
        }  # fmt: skip
        super().__init__(
            Camelyon17, root, (train_split, val_split, test_split), image_size, batch_size,
            num_workers, seed, steps_per_epoch, train_scale, eval_resize, options,
        )  # fmt: skip

    def _dataset(self, split: str, cropping: Cropping) -> DrawnImages:
        return Camelyon17(
            self.root, cast('Camelyon17Split', split), cropping=cropping, seed=self.seed,
            **self.options,
        )  # fmt: skip


class IWildCamDataModule(WildsDataModule):
    """iWildCam2020-WILDS: pictures of camera traps, of 182 kinds of animals.

    Args:
        root: Folder that holds ``iwildcam_v2.0`` and, for ``extra_unlabeled``,
            ``iwildcam_unlabeled_v1.0``; see :class:`~torchgeo_explora.datasets.IWildCam`.
        train_split: Pictures to train on. For pre-training ``train`` as well, which the paper found
            better than ``extra_unlabeled``.
        val_split: Pictures to validate on: ``val``, of traps that are not trained on, or ``id_val``,
            of those that are.
        test_split: Pictures to test on.
        image_size: Side S of the squares in pixels; sizes of the pictures vary.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order and of random crops.
        steps_per_epoch: Batches of an epoch; None for one pass over the images.
        train_scale: Shares of the area of a random-resized crop for training; None for the largest
            square at a random place.
        eval_resize: Shorter side before the centre is cut out; None for ``image_size``.
        check_files: Whether to look for every file at once.
        download: Whether to download what is missing: 12 GB, or 41 GB without labels.
        checksum: Whether to check the size of what is downloaded.

    Raises:
        ConfigError: If an argument is not possible.
        ImageError: In ``setup``, if the images are not there.
    """

    def __init__(
        self,
        root: str | Path = 'data',
        train_split: IWildCamSplit = 'train',
        val_split: LabelledCam = 'val',
        test_split: LabelledCam = 'test',
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        train_scale: tuple[float, float] | None = None,
        eval_resize: int | None = None,
        check_files: bool = False,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        options = {'check_files': check_files, 'download': download, 'checksum': checksum}
        super().__init__(
            IWildCam, root, (train_split, val_split, test_split), image_size, batch_size,
            num_workers, seed, steps_per_epoch, train_scale, eval_resize, options,
        )  # fmt: skip

    def _dataset(self, split: str, cropping: Cropping) -> DrawnImages:
        return IWildCam(
            self.root, cast('IWildCamSplit', split), cropping=cropping, seed=self.seed,
            **self.options,
        )  # fmt: skip
