"""Build an encoder and its decoder, load what a checkpoint has of them, and say what trains."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models._api import WeightsEnum

from torchgeo_explora.adapters import (
    AdapterReport,
    ExPLoRAConfig,
    apply_explora,
    apply_explora_to_decoder,
)
from torchgeo_explora.adapters.decoder import FIXED
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.embedder import TokenEmbedder
from torchgeo_explora.layers.sincos import sincos_grid
from torchgeo_explora.layers.tokens import native_grid
from torchgeo_explora.models import (
    SENTINEL2_GROUPS,
    DecoderReport,
    GroupChannelViT,
    LoadReport,
    build_decoder,
    create_backbone,
    load_decoder,
    resolve_groups,
)
from torchgeo_explora.objectives.mae import MAEObjective
from torchgeo_explora.objectives.mae_presets import MAERecipe

type Weights = WeightsEnum | str | Path | bool | None

PREDICTION = 'decoder_pred'


@dataclass(frozen=True)
class Channels:
    """Bands of the images, and their groups.

    Args:
        bands: Names in the images' order, if known.
        groups: Names of the bands of every group, if given.
        indices: 0-based bands of every group, if given.
        count: Number of bands; None for the model's own.
    """

    bands: tuple[str, ...] | None
    groups: dict[str, list[str]] | None
    indices: tuple[tuple[int, ...], ...] | None
    count: int | None

    def model_arguments(self) -> dict[str, Any]:
        """Arguments of the timm model."""
        return {} if self.indices is None else {'channel_groups': self.indices}


def find_channels(
    bands: Sequence[str] | None,
    groups: Mapping[str, Sequence[str]] | None,
    in_channels: int | None,
) -> Channels:
    """Find groups among bands by name.

    Args:
        bands: Names of the images' bands, in their order.
        groups: Names of the bands of each group.
        in_channels: Number of bands.

    Raises:
        ConfigError: If a group names a band that is not there, or the arguments disagree.
    """
    names = None if bands is None else tuple(str(band) for band in bands)
    if names is not None and in_channels not in (None, len(names)):
        raise ConfigError(
            f'in_channels is {in_channels}, but bands names {len(names)}: leave in_channels away.'
        )
    count = in_channels if names is None else len(names)
    if groups is None:
        return Channels(names, None, None, count)
    if names is None:
        raise ConfigError(
            'groups name bands, but the order of the bands in the images is not known: give their '
            'names as bands.'
        )
    listed = {name: [str(band) for band in group] for name, group in groups.items()}
    return Channels(names, listed, resolve_groups(names, listed), count)


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """An adapted encoder and decoder, and how they came about.

    Args:
        objective: Encoder, decoder and loss.
        encoder_source: What was loaded into the encoder.
        decoder_source: What was loaded into the decoder.
        encoder_report: What of the encoder trains.
        decoder_report: What of the decoder trains.
    """

    objective: MAEObjective
    encoder_source: LoadReport
    decoder_source: DecoderReport
    encoder_report: AdapterReport
    decoder_report: AdapterReport

    @property
    def trainable_parameters(self) -> int:
        """Number of weights that train, encoder and decoder together."""
        reports = (self.encoder_report, self.decoder_report)
        return sum(report.trainable_parameters for report in reports)

    def summaries(self) -> Iterator[str]:
        """Say in words what was loaded and what trains."""
        yield f'Encoder: {self.encoder_source.summary()}'
        yield self.decoder_source.summary()
        yield self.encoder_report.summary()
        yield self.decoder_report.summary()
        yield f'{self.trainable_parameters:,} weights train in all.'


def build_autoencoder(
    model: str,
    weights: Weights,
    decoder_weights: str | Path | None,
    recipe: MAERecipe,
    channels: Channels,
    *,
    drop_path: float = 0.0,
    seed: int = 0,
    train_patch_embed: bool | None = None,
) -> Autoencoder:
    """Build, load and adapt an encoder and its decoder.

    Args:
        model: Name of a timm vision transformer.
        weights: Where the encoder starts, and the decoder where the file has one.
        decoder_weights: Another file for the decoder.
        recipe: Sizes, and what trains.
        channels: Bands and groups.
        drop_path: Largest rate of stochastic depth in the encoder.
        seed: Seed of new weights.
        train_patch_embed: What the user wants; None for the recipe's choice, and True where the
            checkpoint has no patch embedding that fits as it is.

    Raises:
        ConfigError: If the model cannot be built or adapted so.
        WeightsError: If weights cannot be read or do not fit.
    """
    encoder, loaded = create_backbone(
        model,
        weights,
        img_size=recipe.views.image_size,
        in_chans=channels.count,
        seed=seed,
        drop_path_rate=drop_path,
        **channels.model_arguments(),
    )
    check_groups(encoder, channels)
    if loaded.source is None:
        _fix_positions(encoder)
    generator = torch.Generator().manual_seed(seed)
    sizes = recipe.decoder
    decoder = build_decoder(
        encoder,
        sizes.decoder_width,
        sizes.decoder_depth,
        sizes.decoder_heads,
        prediction_order=sizes.prediction_order,
        generator=generator,
    )
    found = load_decoder(decoder, weights if decoder_weights is None else decoder_weights)
    adapter = _with_new_patches(recipe.adapter, loaded, train_patch_embed)
    encoder_report = apply_explora(encoder, adapter, generator)
    decoder_report = apply_explora_to_decoder(
        decoder, generator=generator, **_decoder_training(recipe, found)
    )
    objective = MAEObjective(encoder, decoder, recipe.objective)
    return Autoencoder(objective, loaded, found, encoder_report, decoder_report)


def _fix_positions(encoder: VisionTransformer) -> None:
    """Give a new plain encoder MAE's fixed sines and cosines, in the place of drawn positions."""
    grid, prefix = native_grid(encoder), 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    if isinstance(encoder, TokenEmbedder) or encoder.pos_embed is None or grid is None:
        return
    table = sincos_grid(grid, encoder.embed_dim, prefix)
    encoder.pos_embed = nn.Parameter(table.to(encoder.pos_embed), requires_grad=False)


def check_groups(encoder: VisionTransformer, channels: Channels) -> None:
    """Refuse names of bands that would silently be grouped by their positions alone."""
    if not isinstance(encoder, GroupChannelViT) or channels.bands is None:
        return
    if channels.indices is None and (
        resolve_groups(channels.bands, SENTINEL2_GROUPS) != encoder.channel_groups
    ):
        raise ConfigError(
            f'The bands {", ".join(channels.bands)} are not in the order of the groups that the '
            f'model has, {[list(group) for group in encoder.channel_groups]}: name the groups.'
        )


def _with_new_patches(
    config: ExPLoRAConfig, loaded: LoadReport, wanted: bool | None
) -> ExPLoRAConfig:
    new = {*loaded.added, *loaded.changed}
    if wanted is None and any(key.startswith('patch_embed') for key in new):
        return replace(config, train_patch_embed=True)
    return config


def _decoder_training(recipe: MAERecipe, found: DecoderReport) -> dict[str, Any]:
    """Arguments of the decoder's surgery: what the checkpoint does not have trains."""
    config = recipe.decoder
    new = set(found.added) - set(FIXED)
    others = any(not name.startswith(PREDICTION) for name in new)
    everything = others if config.train_decoder_all is None else config.train_decoder_all
    pred = bool(new) if config.train_decoder_pred is None else config.train_decoder_pred
    return {
        'rank': 0 if everything else config.decoder_rank,
        'alpha': config.decoder_alpha,
        'train_norms': config.train_decoder_norms,
        'train_pred': pred,
        'train_all': everything,
    }
