"""The masked-autoencoder objective, for plain, group-channel and temporal encoders.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"; Cong et al. 2022, "SatMAE".
Only visible patches are embedded and encoded, only masked tokens are
predicted. Nothing here changes in ``forward``.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.token_masks import (
    TokenMask,
    check_mask_ratio,
    draw_noise,
    mask_from_shared_noise,
)
from torchgeo_explora.layers.tokens import encode_visible, fast_attention, patch_grid, token_count
from torchgeo_explora.losses.mae import masked_patch_loss, normalize_patches, patch_statistics
from torchgeo_explora.models._token_decoder import TokenDecoder


@dataclass(frozen=True)
class MAEConfig:
    """Numbers of the objective.

    Args:
        mask_ratio: Share of masked tokens, above 0 and below 1.
        norm_pix_loss: Whether patches are normalised before they are compared; over all bands of
            a place, also where groups predict them apart.
        masking: ``independent`` draws every token, ``shared`` the same places in all groups of
            bands or at all dates.

    Raises:
        ConfigError: If a value is not possible.
    """

    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    masking: Literal['independent', 'shared'] = 'independent'

    def __post_init__(self) -> None:
        """Check the values."""
        check_mask_ratio(self.mask_ratio)
        if self.masking not in ('independent', 'shared'):
            raise ConfigError(f'masking is {self.masking!r}: use independent or shared.')


@dataclass(frozen=True)
class MAEOutput:
    """What the objective found for a batch.

    Args:
        loss: Mean over masked tokens of their mean squared error.
        prediction: For every prediction head the values of its masked tokens, one row a token,
            image by image; normalised where ``norm_pix_loss`` is on.
        masked: True at the masked tokens.
        ids_restore: For every token its place in the sequence of kept, then masked tokens.
    """

    loss: Float[Tensor, '']
    prediction: tuple[Float[Tensor, '_ _'], ...]
    masked: Bool[Tensor, 'b tokens']
    ids_restore: Int[Tensor, 'b tokens']


class MAEObjective(nn.Module):
    """Encoder and decoder, and the loss between predicted and true pixels.

    Args:
        encoder: A vision transformer whose trainable parameters are settled.
        decoder: The decoder that :func:`~torchgeo_explora.models.build_decoder` made for it.
        config: Numbers of the objective.
    """

    def __init__(
        self, encoder: VisionTransformer, decoder: TokenDecoder, config: MAEConfig
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.config = encoder, decoder, config

    def draw_noise(
        self, images: Float[Tensor, 'b *axes h w'], generator: torch.Generator
    ) -> Float[Tensor, 'b n']:
        """Draw the noise that decides what is masked, on the generator's device.

        Args:
            images: Images of the batch's shape.
            generator: Source of the values; best on the CPU.
        """
        return draw_noise(len(images), self._drawn(images), generator)

    def mask(self, images: Float[Tensor, 'b *axes h w'], noise: Float[Tensor, 'b n']) -> TokenMask:
        """Turn noise into a mask, on the noise's device.

        Raises:
            ConfigError: If there are not as many values as the images have tokens or, shared,
                places.
        """
        tokens, drawn = token_count(self.encoder, images), self._drawn(images)
        if noise.shape[1] != drawn:
            raise ConfigError(
                f'The noise has {noise.shape[1]} values an image, the mask is drawn from {drawn}: '
                'take the noise from draw_noise of this objective.'
            )
        return mask_from_shared_noise(noise, self.config.mask_ratio, tokens // drawn)

    def _drawn(self, images: Tensor) -> int:
        if self.config.masking == 'shared':
            return patch_grid(self.encoder, images).area
        return token_count(self.encoder, images)

    def forward(
        self,
        images: Float[Tensor, 'b *axes h w'],
        noise: Float[Tensor, 'b n'],
        timestamps: Float[Tensor, 'b dates 3'] | None = None,
    ) -> MAEOutput:
        """Compute the loss of a batch.

        Args:
            images: Normalised images; (b, dates, c, h, w) for a temporal encoder.
            noise: What :meth:`draw_noise` returned; best on the CPU.
            timestamps: (year - 2002, month - 1, hour) of every date, for a temporal encoder.
        """
        mask, grid = self.mask(images, noise), patch_grid(self.encoder, images)
        keep = mask.keep.to(images.device, non_blocking=True)
        with fast_attention(images.device, keep.shape[1]):
            latent = encode_visible(self.encoder, images, keep, timestamps)
        with fast_attention(images.device, noise.shape[1]):
            predicted = self.decoder.decode_masked(latent, mask, grid, timestamps)
        loss = masked_patch_loss(predicted, self._targets(images, mask))
        return MAEOutput(loss, tuple(predicted), mask.masked, mask.restore)

    @torch.no_grad()
    def _targets(self, images: Tensor, mask: TokenMask) -> list[Tensor]:
        """Return what every head has to predict: one row a masked token."""
        patches = self.decoder.patches(images)
        if self.config.norm_pix_loss:
            patches = normalize_patches(patches)
        parts = self.decoder.split(patches)
        pairs = zip(parts, mask.rows(len(parts)), strict=True)
        return [part.flatten(0, 1)[rows.to(images.device)] for part, rows in pairs]

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, 'b *axes h w'], output: MAEOutput
    ) -> Float[Tensor, 'b *axes h w']:
        """Return the images with predictions in the place of what was masked.

        Args:
            images: The images that the output is of.
            output: What :meth:`forward` returned for them.

        Returns:
            Images in the same units: normalised predictions get each patch's own mean and
            deviation back, visible patches are the true ones.
        """
        patches = self.decoder.patches(images)
        statistics = patch_statistics(patches)
        parts, masks = [], _by_head(output)
        for rows, hidden in zip(output.prediction, masks, strict=True):
            part = patches.new_zeros(*hidden.shape, rows.shape[1])
            part[hidden] = rows.to(part.dtype)
            if self.config.norm_pix_loss:
                part = part * statistics.std + statistics.mean
            parts.append(part)
        laid = self.decoder.overlay(patches, parts, masks)
        return self.decoder.assemble(laid, patch_grid(self.encoder, images))

    @torch.no_grad()
    def hidden_pixels(
        self, images: Float[Tensor, 'b *axes h w'], output: MAEOutput
    ) -> Bool[Tensor, 'b *axes h w']:
        """Return True where :meth:`reconstruct` shows predictions. Arguments as in the above."""
        patches = self.decoder.patches(torch.zeros_like(images))
        predicted = self.decoder.split(torch.ones_like(patches))
        laid = self.decoder.overlay(patches, predicted, _by_head(output))
        return self.decoder.assemble(laid, patch_grid(self.encoder, images)) > 0


def _by_head(output: MAEOutput) -> list[Tensor]:
    """Return each head's share (b, n) of the mask, where the predictions are."""
    masked = output.masked.to(output.loss.device)
    return list(masked.unflatten(1, (len(output.prediction), -1)).unbind(1))
