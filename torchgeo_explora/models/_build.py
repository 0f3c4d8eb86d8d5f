"""Build a plain vision transformer by its timm name, or say why that is not possible."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models import split_model_name_tag
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from torchgeo_explora.errors import ConfigError, ExploraError
from torchgeo_explora.models._token_vit import TokenViT

_ALLOWED = (
    'use a plain vision transformer of timm, for instance vit_small_patch14_dinov2, '
    'vit_base_patch16_224, explora_vit_base_patch14_dinov2 or '
    'explora_group_channel_vit_base_patch8_96'
)


def image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of an image size given as one side or as both.

    Args:
        size: Pixels, positive.

    Raises:
        ConfigError: If it is neither.
    """
    pair: tuple[object, ...] = (size, size) if isinstance(size, int) else tuple(size)
    sides = [side for side in pair if isinstance(side, int) and side > 0]
    if len(pair) != 2 or len(sides) != 2:
        raise ConfigError(
            f'img_size is {size}: give one side, or height and width, as positive whole pixels.'
        )
    return sides[0], sides[1]


def build_backbone(
    name: str,
    img_size: tuple[int, int] | None,
    in_chans: int | None,
    seed: int | None,
    arguments: Mapping[str, Any],
) -> VisionTransformer:
    """Build a timm vision transformer without classifier and without weights.

    Args:
        name: Name in timm's registry, with or without a tag.
        img_size: Height and width in pixels that position embeddings are made for; the model's
            own when not given.
        in_chans: Bands; the model's own when not given.
        seed: Seed of the initialisation; the global generator when not given.
        arguments: Further arguments of the timm model.

    Raises:
        ConfigError: If the name is unknown, no plain vision transformer, or an argument is wrong.
    """
    check_name(name)
    if in_chans is not None and in_chans < 1:
        raise ConfigError(f'in_chans is {in_chans}: images need at least one band.')
    options = {'num_classes': 0, 'dynamic_img_size': True, **arguments}
    sizes = {'img_size': img_size, 'in_chans': in_chans}
    options |= {key: value for key, value in sizes.items() if value is not None}
    model = _create(name, seed, options)
    if not is_plain(model):
        raise _not_plain(name, model)
    return model


def check_name(name: str) -> None:
    """Check that timm knows a model and its tag.

    Raises:
        ConfigError: If not; the nearest names are listed.
    """
    stem, tag = split_model_name_tag(name)
    if not timm.is_model(stem):
        near = difflib.get_close_matches(stem, timm.list_models(), n=3)
        hint = f'; near it are {", ".join(near)}' if near else ''
        raise ConfigError(f'There is no timm model {stem}{hint}: {_ALLOWED}.')
    tags = [split_model_name_tag(full)[1] for full in timm.list_pretrained(f'{stem}.*')]
    if tag and tag not in tags:
        known = ', '.join(tags) if tags else 'none'
        raise ConfigError(
            f'{stem} has no weights tag {tag}; it has {known}: choose one, or leave the tag away.'
        )


def is_plain(model: torch.nn.Module) -> TypeGuard[VisionTransformer]:
    """Whether a model is a vision transformer whose tokens are patches, a class and registers.

    Patches may be those of groups of bands or of dates.
    """
    if isinstance(model, TokenViT):
        return True
    if not isinstance(model, VisionTransformer) or isinstance(model, VisionTransformerDistilled):
        return False
    return isinstance(model.patch_embed, PatchEmbed)


def _create(name: str, seed: int | None, options: dict[str, Any]) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            return timm.create_model(name, pretrained=False, **options)
        except ExploraError:
            raise
        except (TypeError, RuntimeError, ValueError, AssertionError) as error:
            model_class(name)
            given = ', '.join(f'{key}={value}' for key, value in options.items())
            raise ConfigError(
                f'{name} cannot be built with {given} ({error}): correct the argument, or {_ALLOWED}.'
            ) from error


def model_class(name: str) -> type[VisionTransformer]:
    """Return the class of a model.

    Raises:
        ConfigError: If the name is unknown or that of no plain vision transformer.
    """
    check_name(name)
    with torch.device('meta'):  # its class is asked for, not its tensors
        model = timm.create_model(name, pretrained=False)
    if not is_plain(model):
        raise _not_plain(name, model)
    return type(model)


def _not_plain(name: str, model: torch.nn.Module) -> ConfigError:
    return ConfigError(f'{name} is a {type(model).__name__}, which has other parts: {_ALLOWED}.')


def check_divides(model: VisionTransformer, img_size: tuple[int, int]) -> None:
    """Check that an image size divides into a model's patches; timm would cut the rest off.

    Raises:
        ConfigError: If it does not.
    """
    height, width = model.patch_embed.patch_size
    if img_size[0] % height or img_size[1] % width:
        near = max(height, round(img_size[0] / height) * height)
        raise ConfigError(
            f'img_size {img_size[0]} x {img_size[1]} does not divide into the {height} x {width} '
            f'patches of the model: choose a multiple, for instance {near}.'
        )
