"""Which file a sample of a data set comes from."""

from typing import Any, Protocol, runtime_checkable

from torch.utils.data import Subset
from torchvision.datasets import DatasetFolder


@runtime_checkable
class NamesFiles(Protocol):
    """A data set that knows the files of its samples."""

    def file_of(self, index: int) -> str:
        """Return the path of a sample's file, or of its place in an archive.

        Args:
            index: Position from 0.
        """


def sample_file(dataset: Any, index: int) -> str:  # noqa: ANN401  # any data set
    """Return the file of a sample, or an empty text where the data set does not tell.

    Args:
        dataset: Any data set; our own, and TorchGeo's of class folders, know their files.
        index: Position from 0.
    """
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, int(dataset.indices[index])
    if isinstance(dataset, NamesFiles):
        return dataset.file_of(index)
    return str(dataset.samples[index][0]) if isinstance(dataset, DatasetFolder) else ''
