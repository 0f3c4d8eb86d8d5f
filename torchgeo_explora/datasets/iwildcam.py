"""iWildCam of WILDS: animals in pictures of camera traps."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from torchgeo_explora.errors import ImageError

from ._crops import Cropping
from ._headers import name_some
from ._index import ImageIndex, PackedStrings
from ._wilds import UNLABELLED, Release, Wilds, read_metadata

IWildCamSplit = Literal['train', 'val', 'test', 'id_val', 'id_test', 'extra_unlabeled']

# Sizes of the labelled splits sum up to the 203,029 pictures of the WILDS paper (arXiv:2012.07421),
# which gives 819,120 unlabelled ones (arXiv:2112.05090).
LABELLED = Release(
    'iwildcam', '2.0', '0x6313da2b204647e79a14b468131fcd64', 11_957_420_032,
    {'train': 129_809, 'val': 14_961, 'test': 42_791, 'id_val': 7_314, 'id_test': 8_154},
)  # fmt: skip
UNLABELED = Release(
    'iwildcam_unlabeled', '1.0', '0xff56ea50fbf64aabbc4d09b2e8d50e18', 41_016_937_676,
    {'extra_unlabeled': 819_120},
)  # fmt: skip

_TIME = '%Y-%m-%d %H:%M:%S.%f'
_UNKNOWN_CATEGORIES = (-1, 99_999)  # of the unlabelled table: not in v2.0, or not known at all


class IWildCam(Wilds):
    """iWildCam2020-WILDS: pictures of camera traps, of 182 kinds of animals (0 is ``empty``).

    Official splits: ``train``, ``id_val`` and ``id_test`` are of the same camera traps, on other
    days; ``val`` and ``test`` are of other traps, and so out of distribution.

    Layout, in ``root`` or in ``root/iwildcam_v2.0``::

        RELEASE_v2.0.txt
        metadata.csv: split, location_remapped, sequence_remapped, y, datetime, filename, ...
        categories.csv: y, category_id, name
        train/<filename>: the pictures of all splits

    and for ``extra_unlabeled`` in ``root/iwildcam_unlabeled_v1.0`` a ``metadata.csv`` with ``uid``,
    and ``images/<uid>.jpg``.

    Samples hold ``image``, ``label`` (not in ``extra_unlabeled``) and ``metadata``: location,
    sequence, year, month, day, hour, minute, second and y, as WILDS has it; -1 for a time that is
    not known.

    If you use this data set, please cite https://arxiv.org/abs/2012.07421 and
    https://arxiv.org/abs/2004.10340. Licence: CDLA-Permissive-1.0.

    Args:
        root: Folder of the data set.
        split: One of the six splits.
        cropping: How pictures, whose sizes vary, become squares.
        seed: Seed of random crops.
        check_files: Look for every file at once and leave missing ones out; by default a missing
            file is found when it is read.
        download: Whether to download what is missing: 12 GB, or 41 GB without labels.
        checksum: Whether to check the size of what is downloaded. WILDS publishes no hash; the
            archive's own CRC is checked in any case.

    Raises:
        DatasetNotFoundError: If the table or the pictures are not there.
        ImageError: If the table cannot be used, or is of another version.
        ConfigError: If an argument is not possible.

    Attributes:
        classes: Names of the classes, from ``categories.csv``; their numbers where it has no name.
    """

    metadata_fields = (
        'location', 'sequence', 'year', 'month', 'day', 'hour', 'minute', 'second', 'y',
    )  # fmt: skip
    official_metrics = ('accuracy', 'macro_recall', 'macro_f1')
    releases = (LABELLED, UNLABELED)
    images = {'iwildcam': 'train', 'iwildcam_unlabeled': 'images'}  # noqa: RUF012

    def __init__(
        self,
        root: Path | str = 'data',
        split: IWildCamSplit = 'train',
        cropping: Cropping | None = None,
        seed: int = 0,
        check_files: bool = False,
        download: bool = False,
        checksum: bool = True,
    ) -> None:
        super().__init__(root, split, 'official', cropping, seed, check_files, download, checksum)

    def _index(self, folder: Path) -> ImageIndex:
        """Pictures of the split."""
        path = folder / 'metadata.csv'
        return self._labelled(path) if self.release is LABELLED else self._unlabelled(path)

    def _labelled(self, path: Path) -> ImageIndex:
        numbers, texts = ['location_remapped', 'sequence_remapped', 'y'], ['split', 'datetime']
        table = read_metadata(path, numbers, [*texts, 'filename'])
        labels = table['y'].to_numpy()
        if labels.min(initial=0) < 0:
            raise ImageError(f"{path} has negative labels: give the table of WILDS' release.")
        self.classes = _class_names(
            path.with_name('categories.csv'), int(labels.max(initial=0)) + 1
        )
        times = _times(table['datetime'])
        if (times[:, 0] < 0).any():
            rows = [f'row {row + 2}' for row in np.flatnonzero(times[:, 0] < 0).tolist()]
            raise ImageError(
                f'{path} has no time like 2013-05-07 13:52:00.000 in {len(rows)} rows '
                f"({name_some(rows)}): give the table of WILDS' release."
            )
        rows_of_split = np.flatnonzero((table['split'] == self.split).to_numpy())
        files = table['filename'].to_numpy()[rows_of_split].tolist()
        known = np.column_stack([table[numbers[:2]].to_numpy(), times, labels])[rows_of_split]
        return ImageIndex(
            PackedStrings(files),
            torch.from_numpy(known[:, -1].astype(np.int16)),
            metadata=torch.from_numpy(known.astype(np.int32)),
        )

    def _unlabelled(self, path: Path) -> ImageIndex:
        self.classes = []
        gaps = ['location_remapped', 'sequence_remapped', 'y']
        table = read_metadata(path, [], ['uid', 'datetime'], gaps)
        numbers = table[gaps].fillna(-1).to_numpy().astype(np.int32)
        hidden = np.isin(numbers[:, 2], _UNKNOWN_CATEGORIES)
        numbers[hidden, 2] = UNLABELLED
        known = np.column_stack([numbers[:, :2], _times(table['datetime']), numbers[:, 2]])
        return ImageIndex(
            PackedStrings([f'{uid}.jpg' for uid in table['uid']]),
            torch.full((len(known),), UNLABELLED, dtype=torch.int16),
            metadata=torch.from_numpy(known.astype(np.int32)),
        )


def _times(texts: 'pd.Series[str]') -> NDArray[np.int32]:
    """Year, month, day, hour, minute and second; -1 where there is no time.

    Args:
        texts: Times like ``2013-05-07 13:52:00.000``.

    Returns:
        (N, 6).
    """
    moments = pd.to_datetime(texts, format=_TIME, errors='coerce').dt
    parts = [
        moments.year, moments.month, moments.day, moments.hour, moments.minute, moments.second,
    ]  # fmt: skip
    return np.column_stack([part.fillna(-1).to_numpy() for part in parts]).astype(np.int32)


def _class_names(path: Path, count: int) -> list[str]:
    """Names of the classes by their number.

    Args:
        path: ``categories.csv``, which need not be there.
        count: Number of classes.
    """
    names = [str(number) for number in range(count)]
    if not path.is_file():
        return names
    table = read_metadata(path, ['y'], ['name'])
    for number, name in zip(table['y'].tolist(), table['name'], strict=True):
        if 0 <= number < count:  # categories without a picture have 99,999
            names[number] = name
    return names
