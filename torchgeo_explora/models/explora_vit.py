"""DINOv2's vision transformers as timm models, with the weights that ExPLoRA published.

They differ from timm's ``vit_*_patch14_dinov2`` in one thing: position embeddings are resampled
as DINOv2 does it (bicubic, offset 0.1, no antialiasing), so that the features of published
weights equal the official ones at any image size, and that the files load as they are.
"""

import logging
from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, cat, nn

from torchgeo_explora._typing import GridSize
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.models._convert import convert_state_dict

# A list, because timm appends the registered names to it.
__all__ = ['DINOv2VisionTransformer', 'checkpoint_filter', 'default_cfgs']

PUBLISHED = 'https://huggingface.co/samarkhanna/ExPLoRA/resolve/main/explora_dinov2_fmow_rgb/'

_logger = logging.getLogger(__name__)


class DINOv2VisionTransformer(VisionTransformer):
    """timm's vision transformer with DINOv2's way to resample position embeddings.

    timm offers no argument for it; the two methods that resample are replaced, nothing else.
    """

    def _pos_embed(self, x: Tensor) -> Tensor:
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        tokens = [token.expand(len(x), -1, -1) for token in prefix]
        positions = self._positions(x)
        if x.ndim == 4:
            x = x.flatten(1, 2)  # (b, h, w, d) -> (b, h*w, d)
        if positions is None:
            x = cat([*tokens, x], dim=1)
        elif self.no_embed_class:
            x = cat([*tokens, x + positions], dim=1)
        else:
            x = cat([*tokens, x], dim=1) + positions
        out: Tensor = self.pos_drop(x)
        return out

    def _positions(self, x: Tensor) -> Tensor | None:
        if self.pos_embed is None or x.ndim != 4:  # flat tokens: the image has the native size
            return self.pos_embed
        source = GridSize(*self.patch_embed.grid_size)
        return resample_pos_embed(
            self.pos_embed, GridSize(x.shape[1], x.shape[2]), self._prefix_positions(), source
        )

    def _prefix_positions(self) -> int:
        return 0 if self.no_embed_class else self.num_prefix_tokens

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
        stored, source = self.pos_embed, GridSize(*self.patch_embed.grid_size)
        super().set_input_size(img_size, patch_size)
        target = GridSize(*self.patch_embed.grid_size)
        if stored is not None:  # timm's own resampling is replaced
            new = resample_pos_embed(stored.detach(), target, self._prefix_positions(), source)
            self.pos_embed = nn.Parameter(new, requires_grad=stored.requires_grad)


def checkpoint_filter(state_dict: Mapping[str, Any], model: VisionTransformer) -> dict[str, Tensor]:
    """Convert a published file for timm; see :func:`convert_state_dict`.

    Args:
        state_dict: Content of the file, with its wrappers.
        model: The model to fit.
    """
    # timm itself adapts the patch embedding to other bands, after this filter
    found = convert_state_dict(state_dict, model, adapt_bands=False)
    _logger.info('Dropped: %s. Added: %s. Changed: %s.', found.dropped, found.added, found.changed)
    return found.state


def _cfg(url: str = '') -> dict[str, Any]:
    return {
        'url': url,
        'num_classes': 0,
        'input_size': (3, 224, 224),
        'pool_size': None,
        'crop_pct': 0.875,  # 224 of 256: the paper's evaluation
        'interpolation': 'bicubic',
        'fixed_input_size': True,
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'patch_embed.proj',
        'classifier': 'head',
        'license': 'unknown',
        'paper_ids': 'arXiv:2406.10973',
        'paper_name': 'ExPLoRA: Parameter-Efficient Extended Pre-Training to Adapt Vision '
        'Transformers under Domain Shifts',
        'origin_url': 'https://github.com/samar-khanna/ExPLoRA',
    }


# timm reads this when a function below is registered, so it has to stand before them.
default_cfgs = generate_default_cfgs(
    {
        'explora_vit_small_patch14_dinov2': _cfg(),
        'explora_vit_base_patch14_dinov2.fmow_rgb': _cfg(
            f'{PUBLISHED}explora_dinov2_vit_base_fmow_rgb_encoder_only.pth'
        ),
        'explora_vit_large_patch14_dinov2.fmow_rgb': _cfg(
            f'{PUBLISHED}explora_dinov2_vit_large_fmow_rgb_encoder_only.pth'
        ),
    }
)


def _create(
    name: str, pretrained: bool, sizes: dict[str, Any], given: dict[str, Any]
) -> DINOv2VisionTransformer:
    # LayerScale starts at 1e-5 and images may have any size, as in DINOv2
    arguments = {'patch_size': 14, 'init_values': 1e-5, 'dynamic_img_size': True, **sizes, **given}
    out_indices = arguments.pop('out_indices', 3)
    model: DINOv2VisionTransformer = build_model_with_cfg(
        DINOv2VisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter,
        feature_cfg={'out_indices': out_indices, 'feature_cls': 'getter'},
        **arguments,
    )
    return model


@register_model
def explora_vit_small_patch14_dinov2(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> DINOv2VisionTransformer:
    """ViT-S/14 of DINOv2. There are no published ExPLoRA weights of this size.

    Args:
        pretrained: Must stay False: there is nothing to download.
        **kwargs: Arguments of timm's vision transformer.
    """
    sizes = {'embed_dim': 384, 'depth': 12, 'num_heads': 6}
    return _create('explora_vit_small_patch14_dinov2', pretrained, sizes, kwargs)


@register_model
def explora_vit_base_patch14_dinov2(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> DINOv2VisionTransformer:
    """ViT-B/14 of DINOv2, adapted to fMoW-RGB by ExPLoRA.

    Args:
        pretrained: Whether to download the published weights.
        **kwargs: Arguments of timm's vision transformer.
    """
    sizes = {'embed_dim': 768, 'depth': 12, 'num_heads': 12}
    return _create('explora_vit_base_patch14_dinov2', pretrained, sizes, kwargs)


@register_model
def explora_vit_large_patch14_dinov2(
    pretrained: bool = False,
    **kwargs: Any,  # noqa: ANN401  # timm's own
) -> DINOv2VisionTransformer:
    """ViT-L/14 of DINOv2, adapted to fMoW-RGB by ExPLoRA.

    Args:
        pretrained: Whether to download the published weights.
        **kwargs: Arguments of timm's vision transformer.
    """
    sizes = {'embed_dim': 1024, 'depth': 24, 'num_heads': 16}
    return _create('explora_vit_large_patch14_dinov2', pretrained, sizes, kwargs)
