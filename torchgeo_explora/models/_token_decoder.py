"""What the decoders of masked autoencoders share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchgeo_explora._typing import GridSize, PatchSize
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.layers.token_masks import TokenMask
from torchgeo_explora.layers.tokens import block_slots

# Standard deviation of the normal that a new mask token is drawn from (MAE, official code).
TOKEN_STD = 0.02


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a decoder; the defaults are those of MAE and SatMAE for every encoder.

    Args:
        embed_dim: Width of the encoder's tokens.
        grid: Patches that the positions are stored for.
        patch: Size of a patch.
        bands: Bands of the images.
        width: Width of the decoder's tokens.
        depth: Number of blocks.
        heads: Attention heads of a block.
        mlp_ratio: Width of the MLP's hidden layer, relative to ``width``.
        prefix: Class and register tokens of the encoder.
        norm_eps: Added to the variance by the layer norms.

    Raises:
        ConfigError: If a size is not possible.
    """

    embed_dim: int
    grid: GridSize
    patch: PatchSize
    bands: int
    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.0
    prefix: int = 1
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        """Check the values."""
        if min(self.width, self.depth, self.heads) < 1 or self.mlp_ratio <= 0:
            raise ConfigError(
                f'The decoder has width {self.width}, depth {self.depth}, {self.heads} heads and '
                f'MLP ratio {self.mlp_ratio}: each has to be positive (512, 8, 16, 4 in the paper).'
            )
        if self.width % self.heads:
            raise ConfigError(
                f"The decoder's width {self.width} does not divide into {self.heads} heads: "
                'choose a width that is a multiple of the heads.'
            )

    def check_split(self, name: str, extra: int, multiple: int) -> None:
        """Check that the width divides into position and the rest.

        Args:
            name: Argument that sets ``extra``.
            extra: What is not position.
            multiple: What ``extra`` must be a multiple of.

        Raises:
            ConfigError: If it does not.
        """
        if extra < 0 or extra % multiple or self.width - extra < 4 or (self.width - extra) % 4:
            raise ConfigError(
                f'{name} is {extra} of a decoder width of {self.width}: choose a multiple of '
                f'{multiple} that leaves a positive multiple of 4 for the position.'
            )


class TokenDecoder(nn.Module, ABC):
    """Turn the tokens that were seen into the pixels of those that were not.

    Args:
        sizes: Widths, depth and patches.
    """

    decoder_pos_embed: nn.Parameter

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.grad_checkpointing = False
        norm = partial(nn.LayerNorm, eps=sizes.norm_eps)
        self.decoder_embed = nn.Linear(sizes.embed_dim, sizes.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.decoder_blocks = nn.ModuleList(
            Block(
                sizes.width,
                sizes.heads,
                sizes.mlp_ratio,
                qkv_bias=True,
                norm_layer=norm,  # type: ignore[arg-type]  # timm only calls it
            )
            for _ in range(sizes.depth)
        )
        self.decoder_norm = norm(sizes.width)

    def init_weights(self, generator: torch.Generator | None) -> None:
        """Draw all weights: Glorot-uniform, biases zero, as in MAE's official code.

        Args:
            generator: Source of the values; None for torch's default one.
        """
        nn.init.normal_(self.mask_token, std=TOKEN_STD, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)

    @abstractmethod
    def positions(
        self, grid: GridSize, timestamps: Float[Tensor, 'b dates 3'] | None
    ) -> Float[Tensor, 'rows tokens width']:
        """Return the encodings of the prefix tokens and all others; one row serves all images.

        Args:
            grid: Patches of one group, of one date.
            timestamps: (year - 2002, month - 1, hour) of every date, for a temporal model.
        """

    @abstractmethod
    def tokens_read(self, mask: TokenMask) -> Int[Tensor, 'b n']:
        """Return the tokens that the predictions of the masked ones are read from."""

    @abstractmethod
    def predict_masked(
        self, tokens: Float[Tensor, 'b n width'], mask: TokenMask
    ) -> list[Float[Tensor, '_ _']]:
        """Return for every head the values of its masked tokens.

        Args:
            tokens: What was decoded at :meth:`tokens_read`.
            mask: Which tokens were kept.
        """

    @abstractmethod
    def predict_all(self, tokens: Float[Tensor, 'b n width']) -> list[Float[Tensor, 'b _ _']]:
        """Return for every head the values of all its tokens, given all decoded tokens."""

    @abstractmethod
    def patches(self, images: Float[Tensor, 'b *axes h w']) -> Float[Tensor, 'b places values']:
        """Cut images into what is normalised together: patches of all bands, date by date."""

    @abstractmethod
    def assemble(
        self, patches: Float[Tensor, 'b places values'], grid: GridSize
    ) -> Float[Tensor, 'b *axes h w']:
        """Put patches together to images: the inverse of :meth:`patches`."""

    @abstractmethod
    def split(self, patches: Float[Tensor, 'b places values']) -> list[Float[Tensor, 'b n _']]:
        """Return for every head what its tokens are to predict."""

    @abstractmethod
    def overlay(
        self,
        patches: Float[Tensor, 'b places values'],
        parts: Sequence[Float[Tensor, 'b n _']],
        masked: Sequence[Tensor],
    ) -> Float[Tensor, 'b places values']:
        """Replace the values that no visible token shows by predictions.

        Args:
            patches: True patches.
            parts: Predictions, in the form of :meth:`split`.
            masked: For every head True (b, n) at its masked tokens.
        """

    def decode_masked(
        self,
        latent: Float[Tensor, 'b seen embed'],
        mask: TokenMask,
        grid: GridSize,
        timestamps: Float[Tensor, 'b dates 3'] | None = None,
    ) -> list[Float[Tensor, '_ _']]:
        """Predict the masked tokens, with no more work than they need.

        The last block computes keys and values for all tokens, everything else for the masked
        ones only.

        Args:
            latent: Prefix tokens, then those kept in the order of the mask.
            mask: Which tokens were kept; best on the CPU.
            grid: Patches of one group, of one date.
            timestamps: As in :meth:`positions`.

        Returns:
            For every head the values of its masked tokens, image by image in ascending order:
            what :meth:`TokenMask.rows` picks from the form of :meth:`split`.
        """
        x = self._run(list(self.decoder_blocks)[:-1], self._fill(latent, mask, grid, timestamps))
        index = self.tokens_read(mask).to(x.device) + self.sizes.prefix
        x = block_slots(self.decoder_blocks[-1], x, index)
        return self.predict_masked(self.decoder_norm(x), mask)

    def forward(
        self,
        latent: Float[Tensor, 'b seen embed'],
        mask: TokenMask,
        grid: GridSize,
        timestamps: Float[Tensor, 'b dates 3'] | None = None,
    ) -> list[Float[Tensor, 'b n _']]:
        """Return the raw values of all tokens, head by head. Arguments as in the above."""
        x = self._run(list(self.decoder_blocks), self._fill(latent, mask, grid, timestamps))
        return self.predict_all(self.decoder_norm(x[:, self.sizes.prefix :]))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping what they computed."""
        self.grad_checkpointing = enable

    def _fill(
        self, latent: Tensor, mask: TokenMask, grid: GridSize, timestamps: Tensor | None
    ) -> Float[Tensor, 'b tokens width']:
        """Put the tokens seen in their places, the mask token in the others; add positions."""
        count = self.sizes.prefix
        x = self.decoder_embed(latent).to(self.mask_token.dtype)  # (b, prefix + kept, width)
        prefix = torch.arange(count, device=x.device).expand(len(x), -1)
        keep = mask.keep.to(x.device, non_blocking=True)
        index = torch.cat([prefix, keep + count], dim=1)[..., None].expand_as(x)
        empty = self.mask_token.expand(len(x), count + mask.masked.shape[1], -1)
        return empty.scatter(1, index, x) + self.positions(grid, timestamps)

    def _run(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        for block in blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def stored_positions(self, grid: GridSize) -> Float[Tensor, '1 positions dim']:
        """Return the positions of prefix tokens and patches, resampled to a grid."""
        table, sizes = self.decoder_pos_embed, self.sizes
        return resample_pos_embed(table, grid, sizes.prefix, sizes.grid, offset=0)


class OneHeadDecoder(TokenDecoder, ABC):
    """A decoder whose tokens are patches of all bands, with one prediction head.

    Args:
        sizes: Widths, depth and patches.
    """

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__(sizes)
        self.decoder_pred = nn.Linear(sizes.width, sizes.patch.area * sizes.bands)

    def tokens_read(self, mask: TokenMask) -> Int[Tensor, 'b n']:
        """Return the masked tokens: each predicts itself."""
        return mask.hidden

    def predict_masked(
        self, tokens: Float[Tensor, 'b n width'], mask: TokenMask
    ) -> list[Float[Tensor, '_ _']]:
        """Return the values of masked tokens, all bands of a pixel together."""
        return [self.decoder_pred(tokens).flatten(0, 1)]

    def predict_all(self, tokens: Float[Tensor, 'b n width']) -> list[Float[Tensor, 'b _ _']]:
        """Return the values of all tokens."""
        return [self.decoder_pred(tokens)]

    def split(self, patches: Float[Tensor, 'b places values']) -> list[Float[Tensor, 'b n _']]:
        """Return the patches as they are."""
        return [patches]

    def overlay(
        self,
        patches: Float[Tensor, 'b places values'],
        parts: Sequence[Float[Tensor, 'b n _']],
        masked: Sequence[Tensor],
    ) -> Float[Tensor, 'b places values']:
        """Replace masked patches by predictions."""
        return torch.where(masked[0][..., None], parts[0], patches)
