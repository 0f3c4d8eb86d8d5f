"""Fine-tuning of a vision transformer for semantic segmentation, with low-rank updates."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchgeo.tasks import SemanticSegmentation
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapters.surgery import encoder_parameters
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.layers.tokens import token_count
from torchgeo_explora.models import save_model
from torchgeo_explora.models.segmentation import Segmenter, build_segmenter
from torchgeo_explora.objectives.finetuning import Method
from torchgeo_explora.tasks._facts import warn_of_unseen
from torchgeo_explora.tasks._finetuning import FITTED, FineTuningTask
from torchgeo_explora.tasks._masks import ValidPixels, check_masks
from torchgeo_explora.tasks._reference import centre, write_reference
from torchgeo_explora.transforms import JointTransform

# Keeps the draws of augmentation apart from those of dropout, which share the seed of the step
AUGMENTATION = 1 << 62
_POOLED = ('pspnet', 'upernet')  # their batch norm of one value an image needs two images


class LoRASemanticSegmentation(FineTuningTask, SemanticSegmentation):
    """A backbone with low-rank updates on Q and V of every block, and a decoder trained in full.

    The backbone is fine-tuned as the paper does it for classification: LoRA of
    rank 8, stochastic depth, AdamW without weight decay, warm-up and half a cosine, step by step.
    Loss and metrics are TorchGeo's; the decoder is one of segmentation-models-pytorch.

    Batches hold ``image`` in [0, 1], (B, C, H, W) of any size, or (B, T, C, H, W) with
    ``timestamps`` (B, T, 3) for a temporal model, and ``mask`` (B, H, W). Training images are
    cropped, flipped and turned with their masks, and all are normalised here. What is random hangs
    on ``seed`` and the step alone, so that a resumed run equals an unbroken one.

    A fit writes ``model.safetensors``, merged, which ``load_model`` and the prediction of rasters
    read.

    Args:
        model: Name of a timm vision transformer, stock or of this package.
        weights: What to start from: ``True`` for timm's own weights; a merged file, a delta, a
            fitted model or a checkpoint of this package's tasks; an enum or its name; None for
            random weights.
        base_weights: For a delta, the weights that it was trained from.
        decoder: ``dpt``, ``fpn``, ``linknet``, ``manet``, ``pspnet``, ``segformer``, ``unet``,
            ``unetplusplus`` or ``upernet``.
        decoder_options: Arguments of SMP's model of that name, for instance ``decoder_channels``.
        blocks: Blocks whose tokens the decoder sees; evenly spaced by default.
        norm: Whether the backbone's final norm is applied to the tokens of every block.
        num_classes: Number of classes; from the data module or ``labels`` by default. A class for
            padding counts.
        labels: Names of the classes; the data module's by default.
        bands: Names of the images' bands, in their order; the data module's by default.
        groups: For a group-channel model: the bands of each group.
        in_channels: Number of bands; that of ``bands``, or the model's own, by default.
        image_size: Side of the square that is cut out of training images, in pixels; None for
            whole images. Evaluation sees whole images.
        mean: Mean of each band in [0, 1]; that of the weights by default.
        std: Standard deviation of each band; that of the weights by default.
        method: ``lora``, ``full`` to train every weight, ``frozen`` to train the decoder alone.
        rank: Rank of the low-rank updates.
        alpha: Numerator of their scale ``alpha / rank``.
        targets: What gets updates, out of ``q``, ``k``, ``v``, ``proj`` and ``mlp``.
        unfreeze_blocks: Blocks trained in full beside, negative ones from the end.
        train_norms: Whether all norms of the backbone train too.
        train_patch_embed: Whether the patch embedding trains too; by default where the weights
            have none that fits as it is.
        drop_path: Probability of stochastic depth in the last block.
        grad_checkpointing: Recompute activations of backbone and decoder in the backward pass.
        loss: ``ce``, or ``focal``, ``jaccard`` or ``dice`` of TorchGeo; each over the pixels that
            count.
        class_weights: Weight of each class in ``ce``.
        ignore_index: Mask value that counts in no loss and no metric: no class (255) or one for
            padding (0); the data module's by default.
        flip: Whether training images are flipped.
        rotate: Whether training images are turned by quarters: views from above have no top.
        base_lr: Learning rate for 256 images; scaled with the images of an optimizer step. Larger
            than for classification, since a decoder starts from random weights.
        min_lr: Learning rate at the end.
        warmup_epochs: Epochs over which the rate rises from 0.
        weight_decay: Of matrices.
        betas: Of AdamW.
        layer_decay: Factor of the rate from a layer to the one below.
        reference_images: Training images whose features are summarised in ``features.safetensors``
            when the fit ends, so that maps can tell what is unlike them; 0 for no such file.
        seed: Seed of the new weights, augmentation, dropout and stochastic depth.

    Raises:
        ConfigError: If an argument is not possible.
        WeightsError: If the weights cannot be read or do not fit.
    """

    model: Segmenter

    def __init__(
        self,
        model: str = 'vit_small_patch14_dinov2',
        weights: WeightsEnum | str | bool | None = None,
        base_weights: WeightsEnum | str | bool | None = None,
        decoder: str = 'upernet',
        decoder_options: Mapping[str, Any] | None = None,
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        num_classes: int | None = None,
        labels: Sequence[str] | None = None,
        bands: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        in_channels: int | None = None,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        method: Method = 'lora',
        rank: int = 8,
        alpha: float = 1.0,
        targets: Sequence[str] = ('q', 'v'),
        unfreeze_blocks: Sequence[int] = (),
        train_norms: bool = False,
        train_patch_embed: bool | None = None,
        drop_path: float = 0.2,
        grad_checkpointing: bool = False,
        loss: Literal['ce', 'focal', 'jaccard', 'dice'] = 'ce',
        class_weights: Sequence[float] | None = None,
        ignore_index: int | None = None,
        flip: bool = True,
        rotate: bool = True,
        base_lr: float = 8e-3,
        min_lr: float = 1e-6,
        warmup_epochs: float = 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        layer_decay: float = 1.0,
        reference_images: int = 2000,
        seed: int = 0,
    ) -> None:
        self.weights, self.base_weights = weights, base_weights
        self.augment = JointTransform(image_size, flip, rotate)
        if num_classes is None and labels is not None:
            num_classes = len(labels)
        self.fitted_size = image_size
        super().__init__(weights=weights)
        self.seen = torch.zeros(0, dtype=torch.long)

    def configure_models(self) -> None:
        """Build backbone and decoder; the decoder again once the classes are known."""
        count = self.hparams['num_classes']
        self.model = self._build(self.make_backbone(None), 1 if count is None else count)
        self._leave_unused()

    def _leave_unused(self) -> None:
        """Freeze what the decoder never sees: ranks would wait for its gradient."""
        encoder, vit = self.model.encoder, self.model.backbone
        unused = [
            *list(vit.blocks)[max(encoder.blocks) + 1 :],
            *([] if encoder.norm else [vit.norm]),
        ]
        for part in unused:
            part.requires_grad_(False)
        parameters = dict(encoder_parameters(vit))
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        self.adapter_report = replace(
            self.adapter_report,
            trainable_parameters=sum(p.numel() for p in trained.values()),
            trained=tuple(trained),
            frozen=tuple(name for name in parameters if name not in trained),
        )

    def _build(self, vit: VisionTransformer, count: int) -> Segmenter:
        options = self.options()
        model = build_segmenter(vit, options.pop('decoder'), count, seed=self._seed(), **options)
        model.set_grad_checkpointing(self.hparams['grad_checkpointing'])
        return model

    def _seed(self) -> int:
        seed: int = self.hparams['seed'] + 1  # the adapter's is the seed itself
        return seed

    def options(self) -> dict[str, Any]:
        """What the network is built from beside the backbone and the number of classes."""
        hparams = self.hparams
        given: Mapping[str, Any] | None = hparams['decoder_options']
        blocks: Sequence[int] | None = hparams['blocks']
        return {
            'decoder': hparams['decoder'],
            'blocks': None if blocks is None else list(blocks),
            'norm': hparams['norm'],
            **({} if given is None else given),
        }

    def configure_losses(self) -> None:
        """Build TorchGeo's loss, over the pixels that count.

        Raises:
            ConfigError: If there is not one class weight a class.
        """
        weights, count = self.hparams['class_weights'], self.hparams['num_classes']
        if weights is not None and count is not None and len(weights) != count:
            raise ConfigError(
                f'class_weights has {len(weights)} values for {count} classes: give one a class.'
            )
        super().configure_losses()
        self.criterion = ValidPixels(self.criterion, self.hparams['ignore_index'], weights)

    def configure_metrics(self) -> None:
        """Build TorchGeo's metrics, once the number of classes is known."""
        # metrics that share their counts are right, and yet each says that it has seen nothing
        warnings.filterwarnings('ignore', 'The ``compute`` method of metric Multiclass')
        if self.hparams['num_classes'] is not None:
            super().configure_metrics()

    def setup(self, stage: str) -> None:
        """Take classes and the mask value to ignore from the data module where they are not given.

        Raises:
            ConfigError: If the classes are not known, or bands or classes are others.
        """
        super().setup(stage)
        labels, count = self.hparams['labels'], self.hparams['num_classes']
        if count is None and labels is None:
            raise ConfigError(
                'The classes are not known: the data module does not name them; set num_classes or '
                'labels.'
            )
        if count is not None and labels is not None and len(labels) != count:
            raise ConfigError(
                f'num_classes is {count}, and the data has {len(labels)} classes '
                f'({", ".join(labels)}): leave num_classes away.'
            )
        ignored = self.facts.ignore_index if self._ignored() is None else self._ignored()
        if count is None or ignored != self._ignored():
            self._settle(len(labels) if count is None else count, ignored)

    def _ignored(self) -> int | None:
        ignored: int | None = self.hparams['ignore_index']
        return ignored

    def _settle(self, count: int, ignored: int | None) -> None:
        """Build what hangs on the number of classes and the mask value to ignore."""
        if self.hparams['num_classes'] is None:
            device = self.device
            self.model = self._build(self.model.backbone, count).to(device)
        self.hparams['num_classes'], self.hparams['ignore_index'] = count, ignored
        self.configure_losses()
        self.configure_metrics()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the size of the training images too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint['image_size'] = self.fitted_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes, with the reason.

        Raises:
            ConfigError: If its head has another number of classes, or other classes.
        """
        super().on_load_checkpoint(checkpoint)
        self.fitted_size = checkpoint['image_size']
        head = 'model.segmentation_head.'
        biases = [v for k, v in checkpoint['state_dict'].items() if k.startswith(head)]
        stored, count = len(biases[-1]), self.hparams['num_classes']
        if count is None:
            self._settle(stored, self._ignored())
        elif stored != count:
            raise ConfigError(
                f'The checkpoint has a head of {stored} classes, the data or the task has {count}: '
                'use the data it was trained on, or start from its backbone by giving the '
                'checkpoint as weights.'
            )

    def forward(self, images: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Return logits (B, classes, H, W).

        Args:
            images: (B, C, H, W), or (B, T, C, H, W) of a temporal model, in [0, 1], of any size.
            timestamps: (B, T, 3) for a temporal model.
        """
        logits: Tensor = self.model(self.normalize(images), timestamps)
        return logits

    def _checked(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Images and masks (B, H, W) of a batch.

        Raises:
            ImageError: If there are none, or their sizes differ.
            LabelError: If a mask holds a value that is no class.
        """
        images, masks = batch.get('image'), batch.get('mask')
        if not isinstance(images, Tensor) or not isinstance(masks, Tensor):
            raise ImageError(
                f'The batch holds {", ".join(map(str, batch))}: segmentation needs image and mask; '
                'use a data module with masks, for instance VectorSegmentationDataModule.'
            )
        masks = masks.squeeze(1) if masks.ndim == 4 else masks
        check_masks(images, masks, self.hparams['num_classes'], self._ignored())
        return images, masks.long()

    def _tokens(self, images: Tensor) -> int:
        vit = self.model.backbone
        sides = (
            -(-side // patch) * patch
            for side, patch in zip(images.shape[-2:], vit.patch_embed.patch_size, strict=True)
        )
        shape = (*images.shape[:-2], *sides)
        return vit.num_prefix_tokens + token_count(vit, torch.empty(shape, device='meta'))

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Return the loss of a batch, cropped, flipped and turned as its step draws."""
        images, masks = self._checked(batch)
        times: Tensor | None = batch.get('timestamps')
        if len(images) == 1 and self.hparams['decoder'] in _POOLED:  # two views of the one image
            images, masks = torch.cat([images, images]), torch.cat([masks, masks])
            times = None if times is None else torch.cat([times, times])
        self._count(masks)
        with self.training_randomness(self._tokens(images)) as seed:
            generator = torch.Generator().manual_seed(seed ^ AUGMENTATION)
            images, masks = self.augment(images, masks, generator)
            logits = self(images, times)
        self.fitted_size = max(images.shape[-2:])
        loss: Tensor = self.criterion(logits, masks)
        self.train_metrics.update(logits.detach(), masks)
        self.log('train_loss', loss, batch_size=len(images), prog_bar=True)
        return loss

    def _count(self, masks: Tensor) -> None:
        """Count the pixels of every class in the first epoch."""
        if self.current_epoch == 0:
            count = self.hparams['num_classes']
            valid = masks[(masks >= 0) & (masks < count)]
            self.seen = self.seen + torch.bincount(valid, minlength=count).cpu()

    def on_train_epoch_start(self) -> None:
        """Begin to count."""
        self.seen = torch.zeros(self.hparams['num_classes'], dtype=torch.long)
        self.whole_epoch = self.trainer.fit_loop.epoch_loop.batch_idx <= 0

    def on_train_epoch_end(self) -> None:
        """Log the metrics, and warn of classes without pixels after the first epoch."""
        super().on_train_epoch_end()
        if self.current_epoch == 0 and self.whole_epoch and self.trainer.world_size == 1:
            ignored = self._ignored()
            if ignored is not None and 0 <= ignored < len(self.seen):
                self.seen[ignored] = 1  # is no class to learn
            warn_of_unseen(self.seen, self.hparams['labels'])

    def _evaluate(self, batch: dict[str, Any], stage: str) -> None:
        images, masks = self._checked(batch)
        logits = self(images, batch.get('timestamps'))
        metrics = self.val_metrics if stage == 'val' else self.test_metrics
        metrics.update(logits, masks)
        loss = self.criterion(logits, masks)
        self.log(f'{stage}_loss', loss, batch_size=len(images), sync_dist=True)

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score a batch of validation images."""
        self._evaluate(batch, 'val')

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of test images."""
        self._evaluate(batch, 'test')

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor | None]:
        """Return ``probabilities`` (B, classes, H, W), and where the images are if that is known."""
        logits: Tensor = self(batch['image'], batch.get('timestamps'))
        return {
            'probabilities': logits.float().softmax(dim=1),
            'bounds': batch.get('bounds'),
            'transform': batch.get('transform'),
        }

    def export(self, folder: Path) -> list[Path]:
        """Write the fitted model, and what its images look like to it; return the paths.

        Args:
            folder: Where ``model.safetensors`` and ``features.safetensors`` go.
        """
        size = self.fitted_size
        if size is None:
            rank_zero_warn('No model was written: the run did not do a single step.')
            return []
        spec = self.describe('segmentation', self.options(), size)
        path = save_model(self.model, spec, folder / FITTED)
        return [path, *write_reference(self, folder, size, partial(centre, size=size))]
