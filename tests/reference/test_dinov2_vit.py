"""The encoder against features that the official DINOv2 printed, and state dicts of its shape."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.models.official import assert_accounted, prefixed, separate, shapes
from torchgeo_explora._typing import GridSize
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.layers.tokens import encode, intermediate_tokens
from torchgeo_explora.models import convert_state_dict, create_backbone, load_backbone
from torchgeo_explora.models._checkpoint import flatten_tensors

STOCK, OURS = 'vit_small_patch14_dinov2', 'explora_vit_small_patch14_dinov2'


class Reference(NamedTuple):
    """One file: state dict, inputs and outputs, constructor's arguments."""

    state: dict[str, Tensor]
    values: dict[str, Tensor]
    config: dict[str, Any]

    @property
    def resampled_as_released(self) -> bool:
        """Whether positions are resampled as for the released models without registers."""
        flags = self.config['interpolate_offset'], self.config['interpolate_antialias']
        return flags == (0.1, False)


def _read(path: Path) -> Reference:
    with np.load(path) as file:
        numbers = {key: torch.from_numpy(file[key]) for key in file.files if key != 'config'}
        config = {'interpolate_offset': 0.1, 'interpolate_antialias': False}
        config |= json.loads(str(file['config']))
    state = {k.removeprefix('param/'): v for k, v in numbers.items() if k.startswith('param/')}
    values = {key: value for key, value in numbers.items() if not key.startswith('param/')}
    return Reference(state, values, config)


@pytest.fixture(scope='module')
def references(reference_dir: Path) -> list[Reference]:
    """Every file of this form in the folder of references."""
    paths = sorted(reference_dir.glob('dinov2_vit*.npz'))
    if not paths:
        pytest.skip(f'{reference_dir} has no dinov2_vit*.npz')
    return [_read(path) for path in paths]


def _build(
    reference: Reference, name: str, size: tuple[int, int] | None = None
) -> VisionTransformer:
    """Build the model of a file; at another size, with positions resampled by the file's flags."""
    config, state = reference.config, dict(reference.state)
    patch = config['patch_size']
    native = config['img_size'] // patch
    if size is not None:
        state['pos_embed'] = resample_pos_embed(
            state['pos_embed'],
            GridSize(size[0] // patch, size[1] // patch),
            1,
            GridSize(native, native),
            config['interpolate_offset'],
            config['interpolate_antialias'],
        )
    registers = state['register_tokens'].shape[1] if 'register_tokens' in state else 0
    model, _ = create_backbone(
        name,
        img_size=config['img_size'] if size is None else size,
        in_chans=config.get('in_chans', 3),
        patch_size=patch,
        embed_dim=config['embed_dim'],
        depth=config['depth'],
        num_heads=config['num_heads'],
        mlp_ratio=config['mlp_ratio'],
        init_values=config['init_values'],
        reg_tokens=registers,
        no_embed_class=registers > 0,
    )
    report = load_backbone(model, state)
    assert report.dropped == ()
    assert set(report.added) <= {'mask_token'}
    return model


def _sizes(reference: Reference) -> Iterator[str]:
    return (key.removesuffix('/image') for key in reference.values if key.endswith('/image'))


def _assert_equal(tokens: Tensor, model: VisionTransformer, cls: Tensor, patch: Tensor) -> None:
    for found, expected in (
        (tokens[:, 0], cls),
        (tokens[:, model.num_prefix_tokens :], patch),
    ):
        # relative to the size of the features: single ones pass through zero
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


@torch.no_grad()
def test_features_at_every_size(references: list[Reference]) -> None:
    for reference in references:
        for size in _sizes(reference):
            image = reference.values[f'{size}/image']
            cls, patch = reference.values[f'{size}/cls'], reference.values[f'{size}/patch']
            resized = _build(reference, STOCK, (image.shape[2], image.shape[3]))
            _assert_equal(encode(resized, image), resized, cls, patch)
            if reference.resampled_as_released:
                stock, ours = _build(reference, STOCK), _build(reference, OURS)
                _assert_equal(encode(stock, image), stock, cls, patch)
                _assert_equal(ours.forward_features(image), ours, cls, patch)
                pooled = ours(image)
                torch.testing.assert_close(
                    pooled, cls, rtol=1e-5, atol=1e-5 * cls.abs().max().item()
                )


def _image_of(reference: Reference, patches: int) -> Tensor:
    """The square image of so many patches: masks and blocks were printed for it."""
    images = [reference.values[f'{size}/image'] for size in _sizes(reference)]
    area = patches * reference.config['patch_size'] ** 2
    fitting = [image for image in images if image.shape[2] * image.shape[3] == area]
    return min(fitting, key=lambda image: abs(image.shape[2] - image.shape[3]))


def _at(reference: Reference, image: Tensor) -> VisionTransformer:
    return _build(reference, STOCK, (image.shape[2], image.shape[3]))


@torch.no_grad()
def test_masked_tokens(references: list[Reference]) -> None:
    for reference in references:
        mask = reference.values['masked/mask']
        image = _image_of(reference, mask.shape[1])
        model = _at(reference, image)
        tokens = encode(model, image, mask, reference.state['mask_token'])
        cls, patch = reference.values['masked/cls'], reference.values['masked/patch']
        _assert_equal(tokens, model, cls, patch)


@torch.no_grad()
def test_last_blocks(references: list[Reference]) -> None:
    for reference in references:
        count = sum(key.startswith('intermediate') for key in reference.values) // 2
        image = _image_of(reference, reference.values['intermediate0/patch'].shape[1])
        model = _at(reference, image)
        found = intermediate_tokens(model, image, range(-count, 0))
        for index, tokens in enumerate(found):
            cls = reference.values[f'intermediate{index}/cls']
            patch = reference.values[f'intermediate{index}/patch']
            _assert_equal(tokens, model, cls, patch)


Layout = dict[str, Tensor]
WRAPPERS: dict[str, Callable[[Layout], dict[str, Any]]] = {
    'bare': dict,
    'module': lambda s: prefixed(s, 'module.'),
    'backbone': lambda s: prefixed(s, 'backbone.'),
    'teacher': lambda s: {'teacher': prefixed(s, 'backbone.')},
    'model': lambda s: {'model': s},
    'all': lambda s: {
        'teacher': prefixed(separate(s, keep_fused=True), 'module.backbone.')
        | {'module.dino_head.mlp.0.bias': torch.zeros(3)},
        'student': prefixed(s, 'backbone.'),
    },
}


def _layouts(folder: Path) -> list[Path]:
    paths = sorted((folder / 'keys').glob('dinov2_*.json'))
    if not paths:
        pytest.skip(f'{folder}/keys has no dinov2_*.json')
    return paths


@cache
def _timm_model(width: int) -> VisionTransformer:
    name = {384: 'small', 768: 'base', 1024: 'large'}[width]
    with torch.device('meta'):  # keys and shapes are compared, values elsewhere
        model = timm.create_model(f'explora_vit_{name}_patch14_dinov2', num_classes=0)
    assert isinstance(model, VisionTransformer)
    return model


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize('positions', [1370, 257])
@pytest.mark.parametrize('mask_token', [True, False])
def test_official_layouts_load_strictly(
    reference_dir: Path, wrap: Callable[[Layout], dict[str, Any]], positions: int, mask_token: bool
) -> None:
    for path in _layouts(reference_dir):
        layout = json.loads(path.read_text())
        layout['pos_embed'][1] = positions
        if not mask_token:
            del layout['mask_token']
        model = _timm_model(layout['cls_token'][-1])
        source = wrap({k: torch.empty(shape, device='meta') for k, shape in layout.items()})
        found = convert_state_dict(source, model)
        assert_accounted(flatten_tensors(source), found, model)
        model.load_state_dict(found.state, strict=True, assign=True)
        assert found.added == (() if mask_token else ('mask_token',))
        assert set(found.changed) == ({'pos_embed'} if positions == 1370 else set())


def test_computed_layouts_are_the_official_ones(reference_dir: Path) -> None:
    for path in _layouts(reference_dir):
        official = json.loads(path.read_text())
        depth = sum(key.endswith('.norm1.weight') for key in official)
        width, positions = official['cls_token'][-1], official['pos_embed'][1]
        assert shapes(width, depth, positions) == official
