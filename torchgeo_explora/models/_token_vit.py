"""timm's dialect for vision transformers that have several tokens a patch."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.layers.embedder import TokenEmbedder
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.layers.sincos import sincos_grid
from torchgeo_explora.layers.tokens import divide, embed_tokens, encode, native_grid, run_blocks

# Parts of timm's vision transformer that SatMAE's have not, with the one value they may take.
_FIXED = {
    'class_token': True,
    'dynamic_img_pad': False,
    'no_embed_class': False,
    'patch_drop_rate': 0.0,
    'pos_embed': 'learn',
    'reg_tokens': 0,
}
Images = Tensor | tuple[Tensor, Tensor]


class TokenViT(TokenEmbedder, VisionTransformer):
    """A vision transformer whose position embedding is part space and part something else.

    Sequences are the class token, then all patches of the first copy (group of bands or date) in
    row-major order, then those of the second, and so on. ``pos_embed`` holds the spatial part,
    fixed sines and cosines; at another image size it is resampled as MAE does it (bicubic).

    Args:
        extra_dim: Length of the part of the position embedding that is not space.
        **kwargs: Arguments of timm's vision transformer.

    Raises:
        ConfigError: If an argument is not possible.
    """

    kind: ClassVar[str]
    """``group-channel`` or ``temporal``."""
    extra_argument: ClassVar[str]
    """Constructor's argument that sets ``extra_dim``."""
    channel_groups: tuple[tuple[int, ...], ...] = ()
    """0-based bands of every group, where bands are embedded in groups."""

    def __init__(
        self,
        extra_dim: int,
        **kwargs: Any,  # noqa: ANN401  # timm's own
    ) -> None:
        _check_fixed(type(self).__name__, kwargs)
        # subclasses draw the weights, once every parameter is there
        super().__init__(**{**kwargs, 'weight_init': 'skip'})
        asked = kwargs.get('weight_init', '')
        self.weight_init_mode = '' if asked == 'skip' else asked
        self.space_dim = self.embed_dim - extra_dim
        grid = native_grid(self)
        assert grid is not None, 'img_size is given'
        self.pos_embed = self._fixed(sincos_grid(grid, self.space_dim, num_prefix=1))

    def _fixed(self, values: Tensor) -> nn.Parameter:
        """An encoding that does not train, where the model is."""
        assert self.cls_token is not None, 'checked above'
        return nn.Parameter(values.to(self.cls_token), requires_grad=False)

    def init_weights(self, mode: str = '', needs_reset: bool = True) -> None:
        """Draw initial weights as timm does; encodings keep their fixed values.

        Args:
            mode: timm's name of the way.
            needs_reset: Whether modules draw again that drew when they were built.
        """
        kept, self.pos_embed = self.pos_embed, None  # timm would draw it as a learned one
        super().init_weights(mode, needs_reset)
        self.pos_embed = kept

    def _spatial(self, grid: GridSize) -> Tensor:
        """Encodings (1, 1 + patches, space) of a grid."""
        assert self.pos_embed is not None, 'made by the constructor'
        return resample_pos_embed(self.pos_embed, grid, 1, native_grid(self), offset=0)

    def _divided(self, images: Tensor) -> GridSize:
        grid = divide(images.shape, self.patch_embed.patch_size)
        if not self.dynamic_img_size and grid != native_grid(self):
            raise ImageError(
                f'The images have {images.shape[-2]} x {images.shape[-1]} pixels, the model takes '
                f'{self.patch_embed.img_size}: build it with dynamic_img_size=True.'
            )
        return grid

    @abstractmethod
    def split_input(self, x: Images, timestamps: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return images and timestamps, given apart or as a pair.

        Raises:
            ConfigError: If timestamps are missing, or given to a model without dates.
        """

    def forward_features(  # type: ignore[override]  # dates where timm has attention masks
        self, x: Images, timestamps: Tensor | None = None
    ) -> Tensor:
        """Return all tokens (b, 1 + tokens, width) after the final norm.

        Args:
            x: Normalised images, or (images, timestamps).
            timestamps: Of the dates, for a temporal model.
        """
        images, timestamps = self.split_input(x, timestamps)
        return encode(self, images, timestamps=timestamps)

    def forward(  # type: ignore[override]  # dates where timm has attention masks
        self, x: Images, timestamps: Tensor | None = None
    ) -> Tensor:
        """Return logits, or pooled features without a classifier. Arguments as above."""
        return self.forward_head(self.forward_features(x, timestamps))

    def forward_intermediates(  # type: ignore[override]  # dates where timm has attention masks
        self,
        x: Images,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        output_dict: bool = False,
        timestamps: Tensor | None = None,
    ) -> list[Any] | tuple[Tensor, list[Any]] | dict[str, Any]:
        """Return tokens after some blocks, as timm's models do.

        Args:
            x: Normalised images, or (images, timestamps).
            indices: The last n blocks, all, or these.
            return_prefix_tokens: Whether the class token comes along.
            norm: Whether the final norm is applied to each.
            stop_early: Whether blocks after the last one wanted are left out.
            output_fmt: ``NLC`` for all tokens; ``NCHW`` for maps (b, width, h, w), the mean over
                the copies (groups of bands, dates) of each patch.
            intermediates_only: Whether the final tokens are left out.
            output_dict: Whether to return a dictionary.
            timestamps: Of the dates, for a temporal model.

        Raises:
            ConfigError: If the format is another one.
        """
        if output_fmt not in ('NCHW', 'NLC'):
            raise ConfigError(f'output_fmt is {output_fmt}: use NCHW or NLC.')
        images, timestamps = self.split_input(x, timestamps)
        final, outputs = self._run(images, timestamps, indices, norm, stop_early)
        prefix = [tokens[:, :1] for tokens in outputs]
        maps = [tokens[:, 1:] for tokens in outputs]
        if output_fmt == 'NCHW':
            grid, copies = self.token_grid(images), self.token_copies(images)
            maps = [fold(tokens, grid, copies).contiguous() for tokens in maps]
        if output_dict:
            found: dict[str, Any] = {'image_intermediates': maps}
            found |= {'image_intermediates_prefix': prefix} if return_prefix_tokens else {}
            return found | ({} if intermediates_only else {'image_features': self.norm(final)})
        listed = list(zip(maps, prefix, strict=True)) if return_prefix_tokens else maps
        return listed if intermediates_only else (self.norm(final), listed)

    def _run(
        self,
        images: Tensor,
        timestamps: Tensor | None,
        indices: int | list[int] | None,
        norm: bool,
        stop_early: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Tokens after the last block evaluated, and after each block wanted."""
        wanted, last = feature_take_indices(len(self.blocks), indices)
        x = embed_tokens(self, images, timestamps=timestamps)
        outputs = []
        for index, block in enumerate(list(self.blocks)[: last + 1 if stop_early else None]):
            x = run_blocks(self, [block], x)
            if index in wanted:
                outputs.append(self.norm(x) if norm else x)
        return x, outputs

    def set_input_size(
        self,
        img_size: tuple[int, int] | None = None,
        patch_size: tuple[int, int] | None = None,
    ) -> None:
        """Store position embeddings for another image or patch size.

        Args:
            img_size: Height and width in pixels; unchanged when not given.
            patch_size: Height and width in pixels; unchanged when not given.
        """
        stored, source = self.pos_embed, native_grid(self)
        super().set_input_size(img_size, patch_size)
        target = native_grid(self)
        assert stored is not None and target is not None, 'made by the constructor'
        new = resample_pos_embed(stored.detach(), target, 1, source, offset=0)
        self.pos_embed = nn.Parameter(new, requires_grad=stored.requires_grad)


def _check_fixed(name: str, arguments: Mapping[str, Any]) -> None:
    for key, value in _FIXED.items():
        if arguments.get(key, value) != value:
            raise ConfigError(
                f'{name} was given {key}={arguments[key]}, and is only defined with {value}: leave '
                'the argument away.'
            )


def check_split(name: str, width: int, extra: int, multiple: int) -> None:
    """Check how a position embedding is divided into space and the rest.

    Args:
        name: Argument that sets ``extra``.
        width: Dimension of a token.
        extra: What is not space; a multiple of ``multiple``.
        multiple: Sines and cosines of so many parts.

    Raises:
        ConfigError: If it cannot be divided so.
    """
    if not 0 < extra < width or extra % multiple or (width - extra) % 4:
        raise ConfigError(
            f'{name} is {extra} of a width of {width}: choose a multiple of {multiple} that leaves '
            'a positive multiple of 4 for the position in the image.'
        )


def fold(tokens: Tensor, grid: GridSize, copies: int) -> Tensor:
    """Average the copies of each patch; a map (b, d, h, w), channels last in memory.

    Args:
        tokens: Patch tokens (b, copies * patches, d), copy by copy.
        grid: Of one copy.
        copies: Groups of bands or dates; 1 for a plain model.
    """
    patches = tokens.unflatten(1, (copies, grid.area)).mean(dim=1)  # (b, k*n, d) -> (b, n, d)
    folded = patches.unflatten(1, (grid.height, grid.width))
    out: Tensor = folded.permute(0, 3, 1, 2)  # (b, h, w, d) -> (b, d, h, w)
    return out
