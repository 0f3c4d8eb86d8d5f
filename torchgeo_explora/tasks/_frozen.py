"""What the probing tasks share: a frozen backbone, its features of a data module, result files."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask
from torchvision.models._api import WeightsEnum

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.models import LoadReport, create_backbone
from torchgeo_explora.objectives.probing import (
    Features,
    batches_hash,
    extract_features,
    image_features,
    load_features,
    save_features,
    weights_hash,
)
from torchgeo_explora.objectives.probing.features import Transform
from torchgeo_explora.tasks._results import ProgressReport
from torchgeo_explora.tasks._subsets import shared_with
from torchgeo_explora.tasks.predictions import PredictionWriter
from torchgeo_explora.tasks.record import record_callbacks
from torchgeo_explora.transforms import EvalTransform
from torchgeo_explora.transforms._resample import crop_and_resize, draw_boxes

STAGES = {'train': 'fit', 'val': 'validate', 'test': 'test'}
"""Trainer's stage in which a data module sets up a split."""
CROP_SCALE = (0.08, 1.0)
"""Area of the training crops of the paper's probes: torchvision's default."""


class RandomViews:
    """Random-resized crops with flips, normalised, in an order fixed by a seed.

    Args:
        transform: Gives the size and the normalisation.
        seed: Draws the crops; the global random state is not used.
    """

    def __init__(self, transform: EvalTransform, seed: int) -> None:
        self.transform = transform
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Return one crop of every image of a batch (B, ..., C, S, S); dates are cropped alike."""
        height, width = images.shape[-2:]
        boxes = draw_boxes((len(images), 1), height, width, CROP_SCALE, self.generator)
        stacked = images.float().flatten(1, -3)  # (b, t, c, h, w) -> (b, t * c, h, w)
        crops = crop_and_resize(stacked, boxes.to(images.device), self.transform.size)[0]
        out: Tensor = self.transform.normalize(crops.reshape(*images.shape[:-2], *crops.shape[-2:]))
        return out


class FrozenFeatureTask(BaseTask):
    """A frozen backbone scored on the features of a labelled data module.

    Features of the training images are extracted by the task itself, once, in a fixed order and
    with the same transform as those of the evaluated images.
    """

    ignore = ('weights',)
    mode = 'max'
    predicts = False
    n_last_blocks: int
    weights: WeightsEnum | str | bool | None

    def configure_models(self) -> None:
        """Build the frozen backbone and the transform."""
        hparams = self.hparams
        self.model, self.load_report = create_backbone(
            hparams['model'], self.weights, in_chans=hparams['in_channels'], seed=0
        )
        self.model.requires_grad_(False)
        mean, std = (self._statistics(name) for name in ('mean', 'std'))
        self.eval_transform = EvalTransform(hparams['eval_size'], mean, std, hparams['resize'])
        self._kept: dict[str, Features] = {}
        self._evaluated: list[Features] = []
        self._hash: str | None = None

    def _statistics(self, name: str) -> list[float]:
        given: Sequence[float] | None = self.hparams[name]
        if given is None:
            given = own_statistics(self.model, self.load_report, name, self.hparams['in_channels'])
        if len(given) != self.hparams['in_channels']:
            raise ConfigError(
                f'{name} has {len(given)} values for {self.hparams["in_channels"]} bands: give one '
                'for each band, of images in [0, 1].'
            )
        return [float(value) for value in given]

    @property
    def backbone_hash(self) -> str:
        """SHA-256 of the backbone's weights."""
        if self._hash is None:
            self._hash = weights_hash(self.model)
        return self._hash

    def configure_callbacks(self) -> list[Callback]:
        """Add the record of the run, and the files of a prediction unless the user has."""
        there = any(isinstance(found, PredictionWriter) for found in self.trainer.callbacks)  # type: ignore[attr-defined]
        writers = [] if there or not self.predicts else [PredictionWriter()]
        return [*writers, *record_callbacks(self.trainer)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Nothing trains by default."""
        return None

    def setup(self, stage: str) -> None:
        """Refuse what a probe cannot do.

        Raises:
            ConfigError: On several devices, whose shares of the images a probe would not join, or
                without labelled images, for which the trainer would silently do nothing.
        """
        if self.trainer.world_size > 1:
            raise ConfigError(
                f'The probe was started on {self.trainer.world_size} devices and runs on one: '
                'set trainer.devices to 1.'
            )
        if stage == 'predict':
            if not self.predicts:
                raise ConfigError(
                    f'{type(self).__name__} scores labelled images and predicts none: use validate '
                    'or test.'
                )
            return
        self._dataset({stage: split for split, stage in STAGES.items()}[stage])

    def _datamodule(self) -> BaseDataModule:
        datamodule = getattr(self.trainer, 'datamodule', None)
        if not isinstance(datamodule, BaseDataModule):
            raise ConfigError(
                f'The probe was given {type(datamodule).__name__} as data and needs a TorchGeo '
                'data module with labelled images: use for example FolderDataModule.'
            )
        return datamodule

    def _dataset(self, split: str) -> Dataset[Any]:
        """Images of ``train``, ``val`` or ``test`` of the data module."""
        datamodule = self._datamodule()
        if getattr(datamodule, f'{split}_dataset') is None:
            datamodule.setup(STAGES[split])
        dataset: Dataset[Any] | None = getattr(datamodule, f'{split}_dataset')
        if dataset is None:
            raise ConfigError(
                f'{type(datamodule).__name__} has no {split} images with labels, and the probe '
                'needs them: give a folder with one sub-folder of images for each class.'
            )
        return dataset

    def _check_apart(self) -> None:
        train = self._dataset('train')  # its setup may replace the others
        for split in ('val', 'test'):
            other: Dataset[Any] | None = getattr(self._datamodule(), f'{split}_dataset')
            if other is not None and shared_with(train, other):
                raise ConfigError(
                    f'Some {split} images are training images as well, so the probe would learn '
                    'the labels that it is scored on: set train_on_val to false.'
                )

    def _batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """Batches of a split in a fixed order, treated as the data module treats evaluated ones."""
        datamodule = self._datamodule()
        loader = DataLoader(
            self._dataset(split),
            batch_size=self.hparams['eval_batch_size'],
            num_workers=datamodule.num_workers,
            collate_fn=getattr(datamodule, 'collate_fn', default_collate),
            generator=torch.Generator(),
        )
        for batch in loader:
            tensors = {k: v.to(self.device) for k, v in batch.items() if isinstance(v, Tensor)}
            yield check_batch(datamodule.on_after_batch_transfer(tensors, 0))

    def _extract(self, split: str, views: int) -> Features:
        transforms: Sequence[Transform] = [self.eval_transform]
        if views > 1:
            transforms = [RandomViews(self.eval_transform, seed) for seed in range(views)]
        dataset = self._dataset(split)
        total = len(dataset) if isinstance(dataset, Sized) else None
        parts = [
            extract_features(
                self.model,
                self._batches(split),
                transform,
                self.n_last_blocks,
                progress=ProgressReport(f'Features of {split} images'),
                total=total,
            )
            for transform in transforms
        ]
        return Features.concatenate(parts)

    def split_features(self, split: str, views: int = 1) -> Features:
        """Features of ``train`` or ``val``, extracted once and kept, on disk where asked.

        Args:
            split: ``train`` or ``val``.
            views: 1 for the evaluation transform, more for as many random-resized crops.
        """
        if split not in self._kept:
            self._check_apart()
            with self.trainer.precision_plugin.forward_context():
                self._kept[split] = self._cached(split, views)
        return self._kept[split]

    def _cached(self, split: str, views: int) -> Features:
        if self.hparams['cache_dir'] is None:
            return self._extract(split, views)
        key = {
            'weights': self.backbone_hash,
            'images': batches_hash(self._batches(split)),
            'transform': f'{self.eval_transform} {self._statistics("mean")} '
            f'{self._statistics("std")} {CROP_SCALE} {views}',
            'blocks': str(self.n_last_blocks),
            'precision': str(self.trainer.precision),
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        path = Path(self.hparams['cache_dir']) / f'{name}.safetensors'
        if path.is_file():
            rank_zero_info(f'Features of {split} images: read from {path}')
            return load_features(path)
        features = self._extract(split, views)
        save_features(path, features, key)
        return features

    def evaluated(self) -> Features:
        """Features of all images of the present evaluation; forgets them."""
        features = Features.concatenate(self._evaluated)
        self._evaluated = []
        return features

    @abstractmethod
    def report(self, stage: str, features: Features) -> None:
        """Score the features of an evaluation, log and write the result.

        Args:
            stage: ``val`` or ``test``.
            features: Of the evaluated images.
        """

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Extract the features of a batch."""
        self._evaluate(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Extract the features of a batch."""
        self._evaluate(batch)

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        check_batch(batch)
        images = self.eval_transform(batch['image'])
        found = image_features(self.model, images, self.n_last_blocks, batch.get('timestamps'))
        labels = batch['label'].cpu()
        self._evaluated.append(Features(found.cls.cpu(), found.patch_mean.cpu(), labels))

    def on_validation_epoch_end(self) -> None:
        """Score on the validation images."""
        self._finish('val')

    def on_test_epoch_end(self) -> None:
        """Score on the test images."""
        self._finish('test')

    def _finish(self, stage: str) -> None:
        if self.trainer.sanity_checking:
            self._evaluated = []
            return
        self.report(stage, self.evaluated())

    def result_folder(self) -> Path:
        """Folder of the result files: the task's ``output_dir``, or the run's."""
        if self.hparams['output_dir'] is not None:
            return Path(self.hparams['output_dir'])
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)

    @property
    def writes(self) -> bool:
        """Whether results are written: not where a run is only tried out."""
        return not self.trainer.fast_dev_run  # type: ignore[attr-defined]

    def describe(self, stage: str, evaluated: Features) -> dict[str, Any]:
        """What was scored, for the result file."""
        hparams = self.hparams
        return {
            'model': hparams['model'],
            'weights': self.load_report.source,
            'weights_sha256': self.backbone_hash,
            'eval_size': hparams['eval_size'],
            'resize': self.eval_transform.resize,
            'mean': self._statistics('mean'),
            'std': self._statistics('std'),
            'precision': str(self.trainer.precision),
            'stage': stage,
            'evaluated_images': len(evaluated),
        }


def own_statistics(
    model: VisionTransformer, report: LoadReport, name: str, in_channels: int
) -> list[float]:
    """Mean or std that the weights were trained with: the file's own, or timm's of the model.

    Args:
        model: The backbone.
        report: Of its weights.
        name: ``mean`` or ``std``.
        in_channels: Bands.

    Raises:
        ConfigError: If they are not known for this number of bands.
    """
    if name in report.metadata:
        stored: list[float] = json.loads(report.metadata[name])
        return stored
    if in_channels != 3:
        raise ConfigError(
            f'The {name} of {in_channels} bands is not known: give one value for each band, of '
            'images in [0, 1].'
        )
    values = cast('dict[str, list[float]]', model.pretrained_cfg)[name]
    return list(values)


def check_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a batch holds images with one class each.

    Raises:
        ConfigError: If not.
    """
    label = batch.get('label')
    if 'image' not in batch or not isinstance(label, Tensor) or label.ndim != 1:
        shape = tuple(label.shape) if isinstance(label, Tensor) else None
        raise ConfigError(
            f'The batches hold {sorted(batch)} (label: {shape}); a probe needs image and one class '
            'index an image as label: use a data set for single-label classification.'
        )
    return dict(batch)
