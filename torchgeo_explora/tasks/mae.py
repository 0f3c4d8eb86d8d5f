"""M-ExPLoRA as a TorchGeo task: adapt a masked autoencoder to images of a new domain or sensor."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchvision.models._api import WeightsEnum

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.tokens import encode, global_token, patch_tokens
from torchgeo_explora.models import GroupChannelViT
from torchgeo_explora.models._decoder_loading import decoder_texts
from torchgeo_explora.models.trained import describe_training
from torchgeo_explora.objectives.mae import MAEOutput
from torchgeo_explora.objectives.mae_presets import (
    MAERecipe,
    get_mae_preset,
    mae_learning_rate,
    mae_recipe_fields,
)
from torchgeo_explora.objectives.mae_steps import (
    clip_mae_gradients,
    mae_micro_batch,
    make_mae_optimizer,
    random_views,
    set_mae_rates,
)
from torchgeo_explora.objectives.schedules import HalfCosine
from torchgeo_explora.objectives.steps import step_seed
from torchgeo_explora.tasks._autoencoder import build_autoencoder, find_channels
from torchgeo_explora.tasks._pretraining import MicroBatch, PretrainingTask
from torchgeo_explora.tasks._publish import normalization, publish, publish_decoder
from torchgeo_explora.transforms.normalize import IMAGENET_MEAN, IMAGENET_STD, EvalTransform
from torchgeo_explora.transforms.spectral import SpectralAugmentation

# Keeps its draws apart from those of views, masks and stochastic depth, which share the seed
AUGMENTATION = 1 << 61


class ExPLoRAMAE(PretrainingTask):
    """Continue MAE pre-training with most weights frozen, for any bands or dates.

    Batches hold ``image``, float32 (B, C, H, W) in [0, 1], or (B, T, C, H, W) with ``timestamps``
    (B, T, 3) for a temporal model; cropping and normalisation happen here, on the device. The
    model decides what is pre-trained: a plain vision transformer, one of groups of bands
    (``explora_group_channel_vit_*``) or of dates (``explora_temporal_vit_*``). Every argument from
    ``rank`` on replaces one number of the preset; ``None`` keeps the preset's.

    Args:
        model: Name of a timm vision transformer, of this package or any plain one.
        weights: Where to start: ``True`` for the model's own weights, a file, an enum or its name;
            ``None`` for random weights. What fits is loaded, also the decoder where there is one.
        decoder_weights: Another file for the decoder.
        preset: ``paper``, ``script``, ``sentinel``, ``temporal`` or ``small``, see
            :mod:`torchgeo_explora.objectives.mae_presets`.
        bands: Names of the images' bands, in their order.
        groups: Names of the bands of each group, for a group-channel model; a band may be in
            several. Without them the model keeps its own, which are Sentinel-2's.
        in_channels: Number of bands; that of ``bands``, or the model's own, by default.
        mean: Mean of each band in [0, 1]; ImageNet's when not given and there are 3 bands.
        std: Standard deviation of each band.
        pool: What ``predict`` returns: the ``mean`` patch, or the class ``token``, which no loss
            of MAE acts on directly.
        augmentation: Further changes of the training images, for any bands; none in the paper.
        drop_path: Largest rate of stochastic depth in the encoder.
        seed: Seed of the new weights, crops and masks.
        grad_checkpointing: Recompute activations in the backward pass to save memory.
        rank: Rank of the low-rank updates of the encoder.
        unfreeze_blocks: Blocks of the encoder trained in full; the paper's [1, L] is ``[0, -1]``.
        alpha: Numerator of the low-rank scale.
        targets: What gets low-rank updates.
        mlp_rank: Rank in the MLP.
        train_norms: Whether the encoder's norms train.
        train_cls_token: Whether the class token trains.
        train_patch_embed: Whether patch embeddings train; by default the preset's choice, and
            always where the checkpoint has none that fit as they are.
        train_channel_embed: Whether the encoding of the groups trains.
        train_all: Train the whole encoder instead.
        decoder_width: Width of the decoder.
        decoder_depth: Number of its blocks.
        decoder_heads: Its attention heads.
        prediction_order: ``satmae`` to go on from a decoder of SatMAE's checkpoints.
        decoder_rank: Rank of the low-rank updates of the decoder.
        decoder_alpha: Numerator of their scale.
        train_decoder_norms: Whether the decoder's norms train.
        train_decoder_pred: Whether predictions train; by default where they are new.
        train_decoder_all: Train the whole decoder; by default where the checkpoint has none.
        mask_ratio: Share of masked tokens, above 0 and below 1.
        norm_pix_loss: Whether patches are normalised before they are compared.
        masking: ``independent``, or ``shared`` by groups or dates.
        image_size: Side of the images that the model sees, in pixels.
        random_crop: Whether random parts of the images are seen; off where the data module cuts.
        crop_scale: Range of the share of an image's area that is seen.
        flip_p: Probability of a horizontal flip.
        steps: Micro-batches of the run; as many as the trainer does where the preset has none.
        accumulate: Micro-batches an optimizer step averages over.
        base_lr: Learning rate for an effective batch of 256 images.
        min_lr: Learning rate at the end.
        warmup: Share of the run over which the rate rises.
        weight_decay: Weight decay.
        clip: Largest norm of all gradients; 0 for no clipping.

    Raises:
        ConfigError: If an argument is not possible.
        WeightsError: If the weights cannot be read or do not fit.
    """

    ignore: Sequence[str] = ('weights', 'decoder_weights', 'augmentation')

    def __init__(
        self,
        model: str = 'vit_base_patch16_224',
        weights: WeightsEnum | str | bool | None = None,
        decoder_weights: str | None = None,
        preset: Literal['paper', 'script', 'sentinel', 'temporal', 'small'] = 'paper',
        bands: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        in_channels: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pool: Literal['mean', 'token'] = 'mean',
        augmentation: SpectralAugmentation | None = None,
        drop_path: float = 0.0,
        seed: int = 0,
        grad_checkpointing: bool = False,
        rank: int | None = None,
        unfreeze_blocks: Sequence[int] | None = None,
        alpha: float | None = None,
        targets: Sequence[str] | None = None,
        mlp_rank: int | None = None,
        train_norms: bool | None = None,
        train_cls_token: bool | None = None,
        train_patch_embed: bool | None = None,
        train_channel_embed: bool | None = None,
        train_all: bool | None = None,
        decoder_width: int | None = None,
        decoder_depth: int | None = None,
        decoder_heads: int | None = None,
        prediction_order: Literal['group', 'satmae'] | None = None,
        decoder_rank: int | None = None,
        decoder_alpha: float | None = None,
        train_decoder_norms: bool | None = None,
        train_decoder_pred: bool | None = None,
        train_decoder_all: bool | None = None,
        mask_ratio: float | None = None,
        norm_pix_loss: bool | None = None,
        masking: Literal['independent', 'shared'] | None = None,
        image_size: int | None = None,
        random_crop: bool | None = None,
        crop_scale: tuple[float, float] | None = None,
        flip_p: float | None = None,
        steps: int | None = None,
        accumulate: int | None = None,
        base_lr: float | None = None,
        min_lr: float | None = None,
        warmup: float | None = None,
        weight_decay: float | None = None,
        clip: float | None = None,
    ) -> None:
        arguments = dict(locals())
        overrides = {key: arguments[key] for key in mae_recipe_fields() & arguments.keys()}
        self.recipe: MAERecipe = get_mae_preset(preset).override(**overrides)
        self.channels = find_channels(bands, groups, in_channels)
        if pool not in ('mean', 'token'):
            raise ConfigError(f'pool is {pool!r}: use mean or token.')
        self.weights, self.decoder_weights = weights, decoder_weights
        self.begin(self.recipe.optimization.steps, self.recipe.optimization.accumulate)
        super().__init__()
        self.augmentation = augmentation  # a module: only now may it be set
        self.automatic_optimization = False

    def configure_models(self) -> None:
        """Build encoder, decoder and transforms."""
        hparams = self.hparams
        self.parts = build_autoencoder(
            hparams['model'],
            self.weights,
            self.decoder_weights,
            self.recipe,
            self.channels,
            drop_path=hparams['drop_path'],
            seed=hparams['seed'],
            train_patch_embed=hparams['train_patch_embed'],
        )
        self.model = self.parts.objective
        self.encoder.set_grad_checkpointing(hparams['grad_checkpointing'])
        self.model.decoder.set_grad_checkpointing(hparams['grad_checkpointing'])
        self.in_channels = input_bands(self.encoder)
        self.mean = normalization(hparams['mean'], IMAGENET_MEAN, self.in_channels, 'mean')
        self.std = normalization(hparams['std'], IMAGENET_STD, self.in_channels, 'std')
        self.eval_transform = EvalTransform(self.recipe.views.image_size, self.mean, self.std)

    @property
    def encoder(self) -> VisionTransformer:
        """The network that is adapted."""
        encoder: VisionTransformer = self.model.encoder
        return encoder

    def backbones(self) -> dict[str, VisionTransformer]:
        """Return the network that online probes look at."""
        return {'encoder': self.encoder}

    def summaries(self) -> Iterator[str]:
        """Say in words what the run starts from and what trains."""
        return self.parts.summaries()

    def forward(self, images: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Return tokens (B, tokens, D) of normalised images."""
        return encode(self.encoder, images, timestamps=timestamps)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over what trains; its rates are set before every step."""
        return make_mae_optimizer(self.model, self.recipe.optimization)

    def band_names(self) -> Sequence[str] | None:
        """Return the names of the images' bands, in their order, if they are known."""
        return self.channels.bands

    def on_train_start(self) -> None:
        """Do nothing where a run was done already."""
        self.stop_when_done()

    def learning_rate(self, batch_size: int) -> HalfCosine:
        """Return the curve of this run.

        Args:
            batch_size: Images of a micro-batch on one device.
        """
        effective = self.effective_batch(batch_size)
        return mae_learning_rate(self.recipe.optimization, self.run_length, effective)

    def micro_batch(self, batch: dict[str, Any], window_start: int) -> MicroBatch:
        """Cut, mask and evaluate, with randomness that depends on the step alone."""
        seed = step_seed(self.hparams['seed'], self.micro_step, self.global_rank)
        images = self.training_views(batch['image'], seed)
        output = mae_micro_batch(self.model, images, seed, batch.get('timestamps'))
        rate = self.learning_rate(len(images))(window_start)
        return MicroBatch(output.loss, {'lr': rate}, len(images))

    def training_views(self, images: Tensor, seed: int) -> Tensor:
        """Cut, augment and normalise, in float32 whatever the run's precision.

        Args:
            images: (B, C, H, W) or (B, T, C, H, W) in [0, 1].
            seed: Draws the cuts and changes.
        """
        with torch.autocast(images.device.type, enabled=False):
            views = random_views(images, self.recipe.views, seed)
            if self.augmentation is not None:
                views = self.augmentation(views, seed ^ AUGMENTATION)
            normalized: Tensor = self.eval_transform.normalize(views)
        return normalized

    def set_rates(self, optimizer: torch.optim.Optimizer, window_start: int, images: int) -> None:
        """Set the rate of everything that trains."""
        rate = self.learning_rate(images)(window_start)
        set_mae_rates(optimizer, self.recipe.optimization, rate)

    def after_optimizer_step(self, window_start: int, images: int) -> None:
        """Nothing follows: there is no teacher."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip here, where float16's loss scale has been taken out of the gradients."""
        clip_mae_gradients(self.model, self.recipe.optimization.clip)

    def prepare(self, images: Tensor) -> Tensor:
        """Return images of the model's size, normalised, for evaluation.

        Args:
            images: (B, C, H, W) or (B, T, C, H, W) in [0, 1].
        """
        flat: Tensor = self.eval_transform(images.flatten(0, -4))
        prepared: Tensor = flat.unflatten(0, images.shape[:-3])
        return prepared

    def masked(self, images: Tensor, seed: int, timestamps: Tensor | None = None) -> MAEOutput:
        """Mask prepared images with a seed of their own and predict what was masked.

        Args:
            images: From :meth:`prepare`.
            seed: Draws the masks.
            timestamps: Of the dates.
        """
        return mae_micro_batch(self.model, images, seed, timestamps)

    def evaluate(self, batch: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """Return the loss, and the squared error of masked pixels in units of [0, 1]."""
        images = self.prepare(batch['image'])
        seed = step_seed(seed, 0, self.global_rank)
        output = self.masked(images, seed, batch.get('timestamps'))
        made = self.model.reconstruct(images, output)
        hidden = self.model.hidden_pixels(images, output)
        error = (made - images) * self.eval_transform.normalize.std[:, None, None]
        return {'loss': output.loss, 'pixel_error': error[hidden].square().mean()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the losses of a batch, with masks that hang on its number alone."""
        losses = {f'val_{name}': value for name, value in self.evaluate(batch, batch_idx).items()}
        self.log_dict(losses, batch_size=len(batch['image']), sync_dist=True)

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean patch or the class token (B, D) of every image."""
        tokens = self(self.prepare(batch['image']), batch.get('timestamps'))
        if self.hparams['pool'] == 'token':
            return global_token(self.encoder, tokens)
        return patch_tokens(self.encoder, tokens).mean(dim=1)

    def describe_network(self) -> str:
        """Say in a checkpoint what its encoder is."""
        facts = {'base': self.hparams['model'], **self._images()}
        facts |= decoder_texts(self.model.decoder)
        config = self.parts.encoder_report.config
        return describe_training(self.encoder, 'model.encoder.', config, facts)

    def export(self, folder: Path) -> list[Path]:
        """Write merged weights, the delta and the decoder; return their paths.

        Args:
            folder: Where ``explora.safetensors``, ``adapter.safetensors`` and
                ``decoder.safetensors`` go.
        """
        parts = self.parts
        metadata = {
            'base': self.hparams['model'],
            'start': parts.encoder_source.source or 'random',
            'method': 'M-ExPLoRA',
            'micro_steps': self.micro_step,
            'groups': self.channels.groups,
            **self._images(),
        }
        known = {key: value for key, value in metadata.items() if value is not None}
        config, trained = parts.encoder_report.config, parts.encoder_report.trained
        paths = publish(self.encoder, config, folder, known, trained)
        return [*paths, publish_decoder(self.model.decoder, folder, known)]

    def _images(self) -> dict[str, Any]:
        """What the weights are to say of their images."""
        bands, size = self.channels.bands, self.recipe.views.image_size
        own = {'bands': bands, 'mean': self.mean, 'std': self.std, 'size': size}
        return self.image_facts | {name: v for name, v in own.items() if v is not None}


def input_bands(encoder: VisionTransformer) -> int:
    """Number of bands of the images that an encoder takes."""
    embed = encoder.patch_embed
    count: int = embed.in_chans if isinstance(encoder, GroupChannelViT) else embed.proj.in_channels
    return count
