"""Camelyon17 of WILDS: patches of lymph nodes from five hospitals."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._crops import Cropping
from ._index import ImageIndex
from ._wilds import UNLABELLED, Release, Wilds, read_metadata

Camelyon17Split = Literal[
    'train', 'id_val', 'val', 'test', 'train_unlabeled', 'val_unlabeled', 'test_unlabeled'
]

_VAL_CENTRE, _TEST_CENTRE = 1, 2
_MIXED_SLIDE = 23  # of the test hospital; `mixed-to-test` trains on it

# Sizes of the labelled splits sum up to the 455,954 patches of the WILDS paper (arXiv:2012.07421);
# those of the unlabelled ones are asserted by the wilds package.
LABELLED = Release(
    'camelyon17', '1.0', '0xe45e15f39fb54e9d9e919556af67aabe', 10_658_709_504,
    {'train': 302_436, 'id_val': 33_560, 'val': 34_904, 'test': 85_054},
)  # fmt: skip
UNLABELED = Release(
    'camelyon17_unlabeled', '1.0', '0xa78be8a88a00487a92006936514967d2', 69_442_379_933,
    {'train_unlabeled': 1_799_247, 'val_unlabeled': 600_030, 'test_unlabeled': 600_030},
)  # fmt: skip


class Camelyon17(Wilds):
    """Camelyon17-WILDS: 96x96 patches of lymph nodes, with tumour in the central 32x32 or not.

    Patches come from five hospitals. Official splits: ``train`` and ``id_val`` are of hospitals 0,
    3 and 4, ``val`` of hospital 1 and ``test`` of hospital 2, so that these two are out of
    distribution. The unlabelled patches are of other slides of the same hospitals, likewise
    ``train_unlabeled``, ``val_unlabeled`` and ``test_unlabeled``. ``mixed-to-test`` moves slide 23
    of the test hospital to ``train``.

    Layout, in ``root`` or in ``root/camelyon17_v1.0`` and ``root/camelyon17_unlabeled_v1.0``::

        RELEASE_v1.0.txt
        metadata.csv: (index), patient, node, x_coord, y_coord, tumor, slide, center, split
        patches/patient_004_node_4/patch_patient_004_node_4_x_3328_y_21792.png

    Samples hold ``image``, ``label`` (in labelled splits; 1 is tumour) and ``metadata``: hospital,
    slide and y, as WILDS has it, with y -100 where it is not known. The index of 3 million patches
    takes 3 tensors.

    If you use this data set, please cite https://arxiv.org/abs/2012.07421. Licence: CC0.

    Args:
        root: Folder of the data set.
        split: One of the seven splits.
        split_scheme: ``official`` or, for labelled splits, ``mixed-to-test``.
        cropping: How patches are cut; None to leave them as they are, 96x96.
        seed: Seed of random crops.
        check_files: Look for every file at once and leave missing ones out; by default a missing
            file is found when it is read.
        download: Whether to download what is missing: 10.7 GB, or 69 GB without labels.
        checksum: Whether to check the size of what is downloaded. WILDS publishes no hash; the
            archive's own CRC is checked in any case.

    Raises:
        DatasetNotFoundError: If the table or the patches are not there.
        ImageError: If the table cannot be used, or is of another version.
        ConfigError: If an argument is not possible.
    """

    classes = ['normal', 'tumor']  # noqa: RUF012  # of one kind for all, and never changed
    metadata_fields = ('hospital', 'slide', 'y')
    official_metrics = ('accuracy',)
    releases = (LABELLED, UNLABELED)
    schemes = ('official', 'mixed-to-test')
    images = {'camelyon17': '', 'camelyon17_unlabeled': ''}  # noqa: RUF012

    def __init__(
        self,
        root: Path | str = 'data',
        split: Camelyon17Split = 'train',
        split_scheme: Literal['official', 'mixed-to-test'] = 'official',
        cropping: Cropping | None = None,
        seed: int = 0,
        check_files: bool = False,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        super().__init__(root, split, split_scheme, cropping, seed, check_files, download, checksum)

    def _index(self, folder: Path) -> ImageIndex:
        """Patches of the split."""
        labelled = self.release is LABELLED
        names = ['node', 'x_coord', 'y_coord', 'slide', 'center', 'tumor']
        columns = read_metadata(
            folder / 'metadata.csv', [*names, 'split'] if labelled else names, ['patient']
        )
        centre, slide = columns['center'].to_numpy(), columns['slide'].to_numpy()
        if labelled:
            label = columns['tumor'].to_numpy()
            number = _labelled_splits(columns['split'].to_numpy(), centre)
            if self.split_scheme == 'mixed-to-test':
                number[slide == _MIXED_SLIDE] = 0
            wanted = ('train', 'id_val', 'test', 'val').index(self.split)
        else:
            label = np.full(len(centre), UNLABELLED)
            number = np.where(np.isin(centre, (_VAL_CENTRE, _TEST_CENTRE)), centre, 0)
            wanted = ('train_unlabeled', 'val_unlabeled', 'test_unlabeled').index(self.split)
        rows = np.flatnonzero(number == wanted)
        patient = columns['patient'].astype('category').cat
        places = [patient.codes, *(columns[name] for name in names[:3])]
        patches = PatchPaths(
            tuple(patient.categories),
            torch.from_numpy(np.stack([np.asarray(place)[rows] for place in places], axis=1)),
        )
        known = np.stack([column[rows] for column in (centre, slide, label)], axis=1)
        return ImageIndex(
            patches,
            torch.from_numpy(label[rows].astype(np.int16)),
            metadata=torch.from_numpy(known.astype(np.int32)),
        )


def _labelled_splits(split: NDArray[np.int32], centre: NDArray[np.int32]) -> NDArray[np.int32]:
    """WILDS' numbers of the official splits: those of the table, but by hospital for two of them.

    Args:
        split: 0 for training, 1 for validation within the distribution, (N,).
        centre: Hospital, (N,).

    Returns:
        0 train, 1 id_val, 2 test, 3 val, (N,).
    """
    number = split.copy()
    number[centre == _VAL_CENTRE] = 3
    number[centre == _TEST_CENTRE] = 2
    return number


class PatchPaths:
    """Paths of patches, made from the numbers that tell them apart.

    Args:
        patients: Names of the patients, with their leading zeros.
        places: Number of the patient, node, x and y of every patch, (N, 4) int32.
    """

    def __init__(self, patients: tuple[str, ...], places: Tensor) -> None:
        self.patients, self.places = patients, places.to(torch.int32)

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.places)

    def __getitem__(self, index: int) -> str:
        """Path of one patch, relative to the folder of the release."""
        patient, node, x, y = self.places[index].tolist()
        slide = f'patient_{self.patients[patient]}_node_{node}'
        return f'patches/{slide}/patch_{slide}_x_{x}_y_{y}.png'

    def take(self, order: NDArray[np.integer]) -> 'PatchPaths':
        """The paths at these positions, in this order."""
        return PatchPaths(self.patients, self.places[torch.from_numpy(order.astype(np.int64))])
