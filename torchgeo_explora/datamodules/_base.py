"""What all our data modules share: images in [0, 1], untouched, and a training order to resume."""

from torch.utils.data import DataLoader
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset

from torchgeo_explora.datasets._drawn import DrawnImages
from torchgeo_explora.errors import ConfigError

from ._sampler import Passes, ResumableLoader, ResumableSampler, Sample


class ImageDataModule(NonGeoDataModule):
    """Data module whose batches hold ``image`` in [0, 1], neither normalised nor augmented.

    The task crops, augments and normalises. Sub-classes set the data sets, ``num_channels`` and
    ``classes`` in ``setup``.

    Training batches come in an order that depends on ``seed`` and on the number of batches that the
    trainer has processed, so that a run resumed from any checkpoint sees the batches that the
    unbroken run would have seen, with any number of workers. It needs nothing from the task.

    Args:
        dataset_class: Class of the data sets.
        batch_size: Images of a batch (on each device).
        num_workers: Processes that load images.
        seed: Seed of the training order, at least 0.
        steps_per_epoch: Batches of an epoch, which is then shorter or longer than a pass over the
            images; None for as many full batches as there are (at least one).

    Raises:
        ConfigError: If a number is out of range.

    Attributes:
        num_channels: Bands of the images, once set up.
        classes: Names of the classes, or None where there are no labels.
        scale: For each band the values of the files that become 0 and 1, once set up; None where it
            is not known.
        resolution: Metres of a pixel of the images that come out; None where it is not known or
            varies.
        official_metrics: What the data set's benchmark reports.
    """

    num_channels: int
    classes: list[str] | None
    scale: tuple[tuple[float, float], ...] | None = None
    resolution: float | None = None
    official_metrics: tuple[str, ...] = ()

    def __init__(
        self,
        dataset_class: type[NonGeoDataset],
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
    ) -> None:
        for name, value in (('batch_size', batch_size), ('steps_per_epoch', steps_per_epoch)):
            if value is not None and value < 1:
                raise ConfigError(f'{name} is {value}: give a number of at least 1.')
        if num_workers < 0 or seed < 0:
            raise ConfigError(f'num_workers {num_workers}, seed {seed}: give at least 0 for both.')
        super().__init__(dataset_class, batch_size, num_workers)
        self.seed, self.steps_per_epoch = seed, steps_per_epoch

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Leave the batch as it is: TorchGeo would normalise it here, and our tasks do that."""
        return batch

    def _samples_taken(self) -> int:
        """Training samples that this rank's trainer has processed, over all epochs."""
        if self.trainer is None:
            return 0
        # restored from a checkpoint before the loader is first asked for a batch
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.total
        batches: int = progress.processed  # type: ignore[attr-defined]  # declared as its base
        return batches * self.batch_size

    def train_dataloader(self) -> DataLoader[Sample]:
        """Full batches in the resumable order."""
        dataset = self._valid_attribute('train_dataset', 'dataset')
        drawn = isinstance(dataset, DrawnImages)
        rank, world = (
            (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        )
        steps = self.steps_per_epoch
        if steps is None:
            steps = max(len(dataset) // (self.batch_size * world), 1)
        sampler = ResumableSampler(
            len(dataset), self.seed, steps * self.batch_size, self._samples_taken, rank, world,
            keys=drawn,
        )  # fmt: skip
        samples = Passes(dataset) if drawn else dataset
        return ResumableLoader(samples, sampler, self.batch_size, self.num_workers)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:  # type: ignore[override]
        """Labelled images in a fixed order; an empty list where there are none."""
        return [] if self.val_dataset is None else self._dataloader_factory('val')

    def test_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:  # type: ignore[override]
        """Labelled test images in a fixed order; an empty list where there are none."""
        return [] if self.test_dataset is None else self._dataloader_factory('test')

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Images in a fixed order: those set up for it, else of the test, validation, training."""
        sets = (self.predict_dataset, self.test_dataset, self.val_dataset, self.train_dataset)
        dataset = next(dataset for dataset in sets if dataset is not None)
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers)
