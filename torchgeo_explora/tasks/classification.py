"""Fine-tuning of a vision transformer for classification, with low-rank updates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchgeo.tasks import Classification
from torchmetrics import MetricCollection
from torchvision.models._api import WeightsEnum

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.tokens import token_count
from torchgeo_explora.models import (
    Classifier,
    TemporalViT,
    build_classifier,
    save_finetuned,
    save_model,
)
from torchgeo_explora.objectives.finetuning import Method
from torchgeo_explora.tasks._facts import check_labels, warn_of_unseen
from torchgeo_explora.tasks._finetuning import FITTED, FineTuningTask
from torchgeo_explora.tasks._frozen import check_batch
from torchgeo_explora.tasks._reference import write_reference
from torchgeo_explora.tasks.metrics import official_metrics
from torchgeo_explora.transforms import TrainingViews
from torchgeo_explora.transforms.normalize import resize_and_centre

PEFT_FOLDER = 'peft'


class LoRAClassification(FineTuningTask, Classification):
    """A backbone with low-rank updates on Q and V of every block, and a linear classifier.

    The defaults are the paper's for fMoW-RGB and ViT-L: rank 8, the mean patch
    token, stochastic depth up to 0.2, label smoothing 0.1, AdamW without weight decay, a rate of
    1e-3 for 256 images, a warm-up of one epoch and half a cosine, random-resized crops and flips.

    Batches hold ``image`` in [0, 1], (B, C, H, W), or (B, T, C, H, W) with ``timestamps`` (B, T, 3)
    for a temporal model, and ``label`` (B,). Images are cropped, resized and normalised here. What
    is random hangs on ``seed`` and the step alone, so that a resumed run equals an unbroken one.

    A fit writes ``model.safetensors`` (merged, see ``load_model``), and for low-rank updates the
    folder ``peft``, of a few MB, that ``load_finetuned`` and plain PEFT with timm read.

    Args:
        model: Name of a timm vision transformer, stock or of this package.
        weights: What to start from: ``True`` for timm's own weights; a merged file, a delta, a
            fitted model or a checkpoint of this package's tasks; an enum or its name; None for
            random weights.
        base_weights: For a delta, the weights that it was trained from.
        num_classes: Number of classes; from the data module or ``labels`` by default.
        labels: Names of the classes; the data module's by default.
        bands: Names of the images' bands, in their order; the data module's by default.
        groups: For a group-channel model: the bands of each group.
        in_channels: Number of bands; that of ``bands``, or the model's own, by default.
        image_size: Side of the images that the model sees, in pixels; a multiple of its patch.
        resize: Length of the shorter side before the centre is cut out, in evaluation;
            ``image_size`` by default. The paper resizes to 256 for 224.
        mean: Mean of each band in [0, 1]; that of the weights by default.
        std: Standard deviation of each band; that of the weights by default.
        method: ``lora``, ``full`` to train every weight, ``frozen`` to train the head alone.
        rank: Rank of the low-rank updates.
        alpha: Numerator of their scale ``alpha / rank``.
        targets: What gets updates, out of ``q``, ``k``, ``v``, ``proj`` and ``mlp``.
        unfreeze_blocks: Blocks trained in full beside, negative ones from the end.
        train_norms: Whether all norms train too, that before the head included.
        train_patch_embed: Whether the patch embedding trains too; by default where the weights
            have none that fits as it is.
        pooling: ``avg`` for the mean patch token, ``token`` for the class token.
        drop_path: Probability of stochastic depth in the last block.
        grad_checkpointing: Recompute activations in the backward pass to save memory.
        loss: ``ce``, or ``focal``, ``jaccard`` or ``dice`` of TorchGeo.
        label_smoothing: Share of a label that all classes divide among them; for ``ce`` only.
        class_weights: Weight of each class in ``ce``.
        ignore_index: Label that counts in no loss and no metric.
        crop_scale: Smallest and largest share of an image's area that a training crop covers;
            None for the whole image.
        turns: Whether training images are turned by quarters too: views from above have no top.
        base_lr: Learning rate for 256 images; scaled with the images of an optimizer step.
        min_lr: Learning rate at the end.
        warmup_epochs: Epochs over which the rate rises from 0.
        weight_decay: Of matrices.
        betas: Of AdamW.
        layer_decay: Factor of the rate from a layer to the one below.
        reference_images: Training images whose features are summarised in ``features.safetensors``
            when the fit ends, so that maps can tell what is unlike them; 0 for no such file.
        seed: Seed of the new weights, crops and stochastic depth.

    Raises:
        ConfigError: If an argument is not possible.
        WeightsError: If the weights cannot be read or do not fit.
    """

    model: Classifier

    def __init__(
        self,
        model: str = 'vit_large_patch14_dinov2',
        weights: WeightsEnum | str | bool | None = None,
        base_weights: WeightsEnum | str | bool | None = None,
        num_classes: int | None = None,
        labels: Sequence[str] | None = None,
        bands: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        in_channels: int | None = None,
        image_size: int = 224,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        method: Method = 'lora',
        rank: int = 8,
        alpha: float = 1.0,
        targets: Sequence[str] = ('q', 'v'),
        unfreeze_blocks: Sequence[int] = (),
        train_norms: bool = False,
        train_patch_embed: bool | None = None,
        pooling: Literal['avg', 'token'] = 'avg',
        drop_path: float = 0.2,
        grad_checkpointing: bool = False,
        loss: Literal['ce', 'focal', 'jaccard', 'dice'] = 'ce',
        label_smoothing: float = 0.1,
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        crop_scale: tuple[float, float] | None = (0.2, 1.0),
        turns: bool = False,
        base_lr: float = 1e-3,
        min_lr: float = 1e-6,
        warmup_epochs: float = 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        layer_decay: float = 1.0,
        reference_images: int = 2000,
        seed: int = 0,
    ) -> None:
        self.weights, self.base_weights = weights, base_weights
        self.resize = image_size if resize is None else resize
        if self.resize < image_size or not 0 <= label_smoothing < 1:
            raise ConfigError(
                f'resize is {resize}, image_size {image_size}, label_smoothing {label_smoothing}: '
                'give a resize of at least image_size, and a share from 0 to less than 1.'
            )
        if num_classes is None and labels is not None:
            num_classes = len(labels)
        super().__init__(weights=weights)
        self.seen = torch.zeros(0, dtype=torch.long)
        self.whole_epoch = False
        self.official = nn.ModuleDict()

    def configure_models(self) -> None:
        """Build backbone and classifier; the head follows once the classes are known."""
        hparams = self.hparams
        vit = self.make_backbone(hparams['image_size'])
        count = hparams['num_classes']
        self.model = build_classifier(
            vit, 1 if count is None else count, hparams['pooling'], self._head_generator()
        )
        self._choose_norms()
        self.views = TrainingViews(
            hparams['image_size'], self.resize, hparams['crop_scale'], hparams['turns']
        )
        self._check_size()

    def _head_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.hparams['seed'] + 1)

    def _choose_norms(self) -> None:
        """Train the norm that is in use along with the others, and never the one that is not."""
        config = self.adapter_report.config
        self.model.fc_norm.requires_grad_(config.train_norms or config.train_all)
        if self.hparams['pooling'] == 'avg':
            self.model.backbone.norm.requires_grad_(False)

    def _check_size(self) -> None:
        size, bands = self.hparams['image_size'], self.in_channels
        shape = (0, bands, size, size) if not self.takes_dates else (0, 1, bands, size, size)
        token_count(self.model.backbone, torch.empty(shape, device='meta'))

    @property
    def takes_dates(self) -> bool:
        """Whether the backbone takes sequences of images."""
        return isinstance(self.model.backbone, TemporalViT)

    def configure_losses(self) -> None:
        """Build the loss: TorchGeo's, with label smoothing in the cross-entropy.

        Raises:
            ConfigError: If there is not one class weight a class.
        """
        super().configure_losses()
        weights, hparams = self.hparams['class_weights'], self.hparams
        count = hparams['num_classes']
        if weights is not None and count is not None and len(weights) != count:
            raise ConfigError(
                f'class_weights has {len(weights)} values for {count} classes: give one a class.'
            )
        if hparams['loss'] == 'ce':
            ignored = -100 if hparams['ignore_index'] is None else hparams['ignore_index']
            self.criterion = nn.CrossEntropyLoss(
                weight=None if weights is None else torch.tensor(weights, dtype=torch.float32),
                ignore_index=ignored,
                label_smoothing=hparams['label_smoothing'],
            )

    def configure_metrics(self) -> None:
        """Build TorchGeo's metrics, once the number of classes is known."""
        if self.hparams['num_classes'] is not None:
            super().configure_metrics()

    def setup(self, stage: str) -> None:
        """Take the classes from the data module where they are not given.

        Raises:
            ConfigError: If they are not known, or bands or classes are others.
        """
        super().setup(stage)
        labels = self.hparams['labels']
        if self.hparams['num_classes'] is None:
            if labels is None:
                raise ConfigError(
                    'The classes are not known: the data module does not name them; set '
                    'num_classes or labels.'
                )
            self._set_classes(len(labels))
        elif labels is not None and len(labels) != self.hparams['num_classes']:
            raise ConfigError(
                f'num_classes is {self.hparams["num_classes"]}, and the data has {len(labels)} '
                f'classes ({", ".join(labels)}): leave num_classes away.'
            )
        self.official = self._official()

    def _set_classes(self, count: int) -> None:
        self.hparams['num_classes'] = count
        model = self.model
        fresh = build_classifier(
            model.backbone, count, self.hparams['pooling'], self._head_generator()
        )
        model.head = fresh.head
        self.configure_losses()
        self.configure_metrics()

    def _official(self) -> nn.ModuleDict:
        """Metrics that the authors of a data set report, where the data module names them."""
        datamodule = getattr(self.trainer, 'datamodule', None)
        names: Sequence[str] = getattr(datamodule, 'official_metrics', ())
        if not names:
            return nn.ModuleDict()
        count = self.hparams['num_classes']
        return nn.ModuleDict(
            {stage: official_metrics(names, count, f'{stage}_') for stage in ('val', 'test')}
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes, with the reason.

        Raises:
            ConfigError: If its head has another number of classes, or other classes.
        """
        super().on_load_checkpoint(checkpoint)
        stored = len(checkpoint['state_dict'].get('model.head.bias', ()))
        if self.hparams['num_classes'] is None:
            self._set_classes(stored)
        if stored != self.hparams['num_classes']:
            raise ConfigError(
                f'The checkpoint has a head of {stored} classes, the data or the task has '
                f'{self.hparams["num_classes"]}: use the data it was trained on, or start from its '
                'backbone by giving the checkpoint as weights.'
            )

    def forward(self, images: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Return logits (B, classes).

        Args:
            images: (B, C, H, W), or (B, T, C, H, W) of a temporal model, in [0, 1], of any size.
            timestamps: (B, T, 3) for a temporal model.
        """
        flat = images.flatten(0, -4)  # dates as images
        small = resize_and_centre(flat.float(), self.resize, self.hparams['image_size'])
        return self._logits(small.unflatten(0, images.shape[:-3]), timestamps)

    def _logits(self, images: Tensor, timestamps: Tensor | None) -> Tensor:
        logits: Tensor = self.model(self.normalize(images), timestamps)
        return logits

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the loss of a batch, cropped and turned as its step draws."""
        images, labels = self._checked(batch)
        tokens = token_count(self.model.backbone, self._empty(images))
        with self.training_randomness(1 + tokens) as seed:
            logits = self._logits(self.views(images, seed), batch.get('timestamps'))
        loss: Tensor = self.criterion(logits, labels)
        self.train_metrics.update(logits, labels)
        self._count(labels)
        self.log('train_loss', loss, batch_size=len(images), prog_bar=True)
        return loss

    def _empty(self, images: Tensor) -> Tensor:
        size = self.hparams['image_size']
        return torch.empty((*images.shape[:-2], size, size), device='meta')

    def _checked(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        check_batch(batch)
        images: Tensor = batch['image']
        labels: Tensor = batch['label']
        check_labels(labels, self.hparams['num_classes'], self.hparams['ignore_index'])
        return images, labels

    def _count(self, labels: Tensor) -> None:
        count = self.hparams['num_classes']
        valid = labels[(labels >= 0) & (labels < count)].cpu()
        counts = torch.bincount(valid, minlength=count)
        self.seen = self.seen + counts if len(self.seen) == count else counts

    def on_train_epoch_start(self) -> None:
        """Begin to count the classes of the training images."""
        self.seen = torch.zeros(self.hparams['num_classes'], dtype=torch.long)
        self.whole_epoch = self.trainer.fit_loop.epoch_loop.batch_idx <= 0

    def on_train_epoch_end(self) -> None:
        """Log the metrics, and warn of classes without images after the first epoch."""
        super().on_train_epoch_end()
        if self.current_epoch == 0 and self.whole_epoch and self.trainer.world_size == 1:
            warn_of_unseen(self.seen, self.hparams['labels'])

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        images, labels = self._checked(batch)
        logits = self(images, batch.get('timestamps'))
        metrics = self.val_metrics if stage == 'val' else self.test_metrics
        metrics.update(logits, labels)
        if stage in self.official:
            self._official_metrics(stage).update(logits, labels)
        loss = self.criterion(logits, labels)
        self.log(f'{stage}_loss', loss, batch_size=len(images), sync_dist=True)

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score a batch of validation images."""
        self._evaluate(batch, 'val')

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of test images."""
        self._evaluate(batch, 'test')

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of validation."""
        super().on_validation_epoch_end()
        self._log_official('val')

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test."""
        super().on_test_epoch_end()
        self._log_official('test')

    def _official_metrics(self, stage: str) -> MetricCollection:
        metrics = self.official[stage]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def _log_official(self, stage: str) -> None:
        if stage in self.official:
            metrics = self._official_metrics(stage)
            self.log_dict(metrics.compute())
            metrics.reset()

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the probability of every class (B, classes)."""
        logits: Tensor = self(batch['image'], batch.get('timestamps'))
        return logits.float().softmax(dim=1)

    def export(self, folder: Path) -> list[Path]:
        """Write the fitted model, what changed as PEFT files, and what its images look like to it.

        Args:
            folder: Where ``model.safetensors``, ``peft`` and ``features.safetensors`` go.

        Returns:
            The paths written.
        """
        size = self.hparams['image_size']
        options = {'pooling': self.hparams['pooling'], **self._window()}
        spec = self.describe('classification', options, size)
        paths = [save_model(self.model, spec, folder / FITTED)]
        paths += write_reference(self, folder, size)
        if self.hparams['method'] == 'lora':
            start = self.load_report.source or 'random'
            paths += save_finetuned(self.model, spec, folder / PEFT_FOLDER, start)
        return paths

    def _window(self) -> dict[str, int]:
        """How much of an image of the data is seen, where it is resized for the model."""
        size, given = self.hparams['image_size'], self.facts.image_size
        side = size if given is None else round(given * size / self.resize)
        return {} if side == size else {'window': side}
