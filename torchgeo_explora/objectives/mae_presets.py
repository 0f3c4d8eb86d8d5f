"""Complete recipes for M-ExPLoRA: the paper, the published script, Sentinel-2, time, small data.

A step is one micro-batch; the optimizer steps once every ``accumulate`` of them. Warm-ups are
shares of the run, so that a recipe keeps its shape at any number of epochs.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from torchgeo_explora.adapters.config import ExPLoRAConfig
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.objectives.mae import MAEConfig
from torchgeo_explora.objectives.presets import override_parts
from torchgeo_explora.objectives.schedules import HalfCosine, linearly_scaled_learning_rate

PARTS = ('adapter', 'decoder', 'objective', 'views', 'optimization')


@dataclass(frozen=True)
class DecoderConfig:
    """Size of the decoder and what of it trains.

    Args:
        decoder_width: Width.
        decoder_depth: Number of blocks.
        decoder_heads: Attention heads.
        prediction_order: What the outputs for groups of bands mean; ``satmae`` only to go on from
            a decoder of SatMAE's own checkpoints.
        decoder_rank: Rank of the low-rank updates on Q and V of all blocks; 0 for none.
        decoder_alpha: Numerator of their scale.
        train_decoder_norms: Whether the norms train.
        train_decoder_pred: Whether the predictions train; by default where they are new, because
            the checkpoint has none of their shape.
        train_decoder_all: Train the whole decoder; by default where the checkpoint has none.
    """

    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    prediction_order: Literal['group', 'satmae'] = 'group'
    decoder_rank: int = 8
    decoder_alpha: float = 1.0
    train_decoder_norms: bool = True
    train_decoder_pred: bool | None = None
    train_decoder_all: bool | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        sizes = (self.decoder_width, self.decoder_depth, self.decoder_heads)
        if min(sizes) < 1 or self.decoder_width % self.decoder_heads:
            raise ConfigError(
                f'decoder_width {sizes[0]}, decoder_depth {sizes[1]}, decoder_heads {sizes[2]}: '
                'give numbers of at least 1, the width a multiple of the heads.'
            )
        if not 0 <= self.decoder_rank <= self.decoder_width or self.decoder_alpha <= 0:
            raise ConfigError(
                f'decoder_rank {self.decoder_rank} and decoder_alpha {self.decoder_alpha}: give a '
                f'rank from 0 to {self.decoder_width} and a positive alpha.'
            )


@dataclass(frozen=True)
class ViewConfig:
    """How images become what the encoder sees.

    Args:
        image_size: Side of the images in pixels.
        random_crop: Whether a random part of each image is resized to that side. Switch it off
            where the data module delivers random crops already: then the centre is taken.
        crop_scale: Range of the share of the image's area that a crop covers.
        flip_p: Probability of a horizontal flip.
    """

    image_size: int = 224
    random_crop: bool = True
    crop_scale: tuple[float, float] = (0.2, 1.0)
    flip_p: float = 0.5

    def __post_init__(self) -> None:
        """Check the values."""
        low, high = self.crop_scale
        if not 0 < low <= high <= 1 or not 0 <= self.flip_p <= 1 or self.image_size < 1:
            raise ConfigError(
                f'image_size {self.image_size}, crop_scale {tuple(self.crop_scale)}, flip_p '
                f'{self.flip_p}: give at least 1 pixel, two shares with 0 < smallest <= largest '
                '<= 1, and a probability.'
            )


@dataclass(frozen=True)
class MAEOptimizationConfig:
    """How long and how fast.

    Args:
        steps: Micro-batches of the whole run; ``None`` for as many as the trainer will do.
        accumulate: Micro-batches an optimizer step averages over.
        base_lr: Learning rate for an effective batch of 256; proportional to the batch.
        min_lr: Learning rate at the end.
        warmup: Share of the run over which the rate rises from 0.
        weight_decay: Weight decay; none for biases, norms and tokens.
        betas: Of AdamW.
        clip: Largest norm of all gradients together; 0 for no clipping.
    """

    steps: int | None = None
    accumulate: int = 4
    base_lr: float = 1.5e-4
    min_lr: float = 0.0
    warmup: float = 1 / 200
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.accumulate < 1 or (self.steps is not None and self.steps < 1):
            raise ConfigError(
                f'steps {self.steps} and accumulate {self.accumulate} were given: use 1 or more.'
            )
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f'warmup is {self.warmup}: give a share of the run, 0 to 1.')
        if min(self.base_lr, self.min_lr, self.weight_decay, self.clip) < 0:
            raise ConfigError(
                f'base_lr {self.base_lr}, min_lr {self.min_lr}, weight_decay {self.weight_decay} '
                f'and clip {self.clip}: none of them may be negative.'
            )


@dataclass(frozen=True)
class MAERecipe:
    """All numbers of an M-ExPLoRA run.

    Args:
        adapter: What of the encoder trains.
        decoder: Size of the decoder, and what of it trains.
        objective: Masks and loss.
        views: Crops.
        optimization: Rates and length.
        batch_size: Images of a micro-batch that the numbers were chosen for.
        epochs: Passes over the images that the numbers were chosen for.
        source: Where the numbers come from.
    """

    adapter: ExPLoRAConfig = field(default_factory=ExPLoRAConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    objective: MAEConfig = field(default_factory=MAEConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    optimization: MAEOptimizationConfig = field(default_factory=MAEOptimizationConfig)
    batch_size: int = 64
    epochs: int = 200
    source: str = ''

    def override(self, **values: Any) -> 'MAERecipe':  # noqa: ANN401
        """Return the recipe with some fields of its parts replaced.

        Args:
            values: Field names of any part; ``None`` leaves a field as it is.

        Raises:
            ConfigError: If no part has such a field, or a value is not possible.
        """
        return override_parts(self, PARTS, values)


def mae_recipe_fields() -> set[str]:
    """Return the names of all numbers of a recipe."""
    parts = (ExPLoRAConfig, DecoderConfig, MAEConfig, ViewConfig, MAEOptimizationConfig)
    return {field.name for part in parts for field in dataclasses.fields(part)}


def mae_learning_rate(
    config: MAEOptimizationConfig, steps: int, effective_batch: int
) -> HalfCosine:
    """Lay a recipe's learning rate over a run.

    Args:
        config: The recipe's numbers.
        steps: Micro-batches of the run.
        effective_batch: Images an optimizer step sees.
    """
    peak = linearly_scaled_learning_rate(config.base_lr, effective_batch)
    return HalfCosine(peak, config.min_lr, steps, round(config.warmup * steps))


MAE_PRESETS: dict[str, MAERecipe] = {
    'paper': MAERecipe(
        source='ICML 2024 workshop version, appendix D.1: batch 1,024 (64 images x 4 GPUs x 4 '
        'accumulated), 1.5e-4, 200 epochs; ranks and norm_pix_loss, which it does not state, from '
        'the script',
    ),
    'script': MAERecipe(
        optimization=MAEOptimizationConfig(base_lr=4.5e-4, warmup=1 / 400),
        epochs=400,
        source='published script pretrain_mae.sh: 64 images x 4 GPUs x 4 accumulated = 1,024',
    ),
    'sentinel': MAERecipe(
        adapter=ExPLoRAConfig(rank=32, unfreeze_blocks=(0, -1), train_patch_embed=True),
        decoder=DecoderConfig(decoder_rank=32, train_decoder_pred=True),
        views=ViewConfig(image_size=96),
        optimization=MAEOptimizationConfig(base_lr=4.5e-4, warmup=1 / 50),
        epochs=50,
        source='workshop version, appendices B and D.2: blocks [1, L], 4.5e-4, 50 epochs; rank 32 '
        'from the number of trained weights; the rest as for RGB',
    ),
    'temporal': MAERecipe(
        adapter=ExPLoRAConfig(rank=32),
        decoder=DecoderConfig(decoder_rank=32),
        # a stack is cut at random by the data module, with one place for all its dates
        views=ViewConfig(random_crop=False, flip_p=0.0),
        source='workshop version, appendix C.2: block [L], rank 32; the decoder has the same rank, '
        "as the code does without one of its own; rates and length of 'paper', for want of others",
    ),
    'small': MAERecipe(
        adapter=ExPLoRAConfig(rank=32, unfreeze_blocks=(0, -1)),
        decoder=DecoderConfig(decoder_rank=32),
        views=ViewConfig(image_size=96),
        optimization=MAEOptimizationConfig(
            accumulate=1,
            base_lr=2.4e-3,  # 6e-4 at 64 images, what the paper has at 1,024
            warmup=0.05,
        ),
        epochs=100,
        source="this package's own, for a few thousand images and one GPU or a CPU",
    ),
}


def get_mae_preset(name: str) -> MAERecipe:
    """Return a recipe by name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in MAE_PRESETS:
        raise ConfigError(f'There is no preset {name!r}: use one of {", ".join(MAE_PRESETS)}.')
    return MAE_PRESETS[name]
