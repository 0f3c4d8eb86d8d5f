"""The timm models: registration, published files, and their position embeddings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from tests.models.official import (
    TINY,
    published_encoder,
    published_teacher,
    shapes,
    tensors,
    tiny,
)
from torchgeo_explora.errors import WeightsError
from torchgeo_explora.layers.tokens import encode
from torchgeo_explora.models import DINOv2VisionTransformer, load_backbone

BASE = 'explora_vit_base_patch14_dinov2'
SMALL: dict[str, Any] = TINY
Publish = Callable[[dict[str, Tensor]], dict[str, Any]]


def test_registered_with_their_published_files() -> None:
    names = [f'explora_vit_{size}_patch14_dinov2' for size in ('base', 'large', 'small')]
    assert timm.list_models('explora_vit_*') == names
    assert timm.list_pretrained('explora_vit_*') == [f'{name}.fmow_rgb' for name in names[:2]]
    for size in ('base', 'large'):
        cfg = timm.get_pretrained_cfg(f'explora_vit_{size}_patch14_dinov2.fmow_rgb')
        assert cfg is not None
        assert cfg.url == (
            'https://huggingface.co/samarkhanna/ExPLoRA/resolve/main/explora_dinov2_fmow_rgb/'
            f'explora_dinov2_vit_{size}_fmow_rgb_encoder_only.pth'
        )
        assert (cfg.license, cfg.num_classes, cfg.input_size) == ('unknown', 0, (3, 224, 224))
        assert cfg.mean == (0.485, 0.456, 0.406)
        assert cfg.first_conv == 'patch_embed.proj'


@pytest.mark.parametrize('publish', [published_encoder, published_teacher])
@pytest.mark.parametrize('place', ['file', 'url'])
def test_published_layouts_load_through_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish: Publish, place: str
) -> None:
    state = tensors(shapes(positions=257))
    path = tmp_path / 'weights.pth'
    torch.save(publish(state), path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    overlay = {place: str(path) if place == 'file' else path.as_uri()}
    model = timm.create_model(
        f'{BASE}.fmow_rgb', pretrained=True, pretrained_cfg_overlay=overlay, **SMALL
    )
    del state['mask_token']
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


def test_timm_arguments_reach_a_published_file(tmp_path: Path) -> None:
    state = tensors(shapes(positions=257))
    path = tmp_path / 'weights.pth'
    torch.save(published_encoder(state), path)
    build = {'pretrained': True, 'pretrained_cfg_overlay': {'file': str(path)}, **SMALL}
    model = timm.create_model(f'{BASE}.fmow_rgb', in_chans=6, num_classes=4, img_size=56, **build)
    assert model(torch.rand(2, 6, 56, 56)).shape == (2, 4)
    kernel = state['patch_embed.proj.weight'].repeat(1, 2, 1, 1) / 2
    torch.testing.assert_close(model.state_dict()['patch_embed.proj.weight'], kernel)
    features = timm.create_model(
        f'{BASE}.fmow_rgb', features_only=True, out_indices=(0, 2), **build
    )
    maps = features(torch.rand(1, 3, 70, 42))
    assert [m.shape[1:] for m in maps] == [(48, 5, 3), (48, 5, 3)]
    with pytest.raises(WeightsError, match='width 48'):
        timm.create_model(f'{BASE}.fmow_rgb', **{**build, 'embed_dim': 96})


@pytest.mark.parametrize(
    'kwargs',
    [{}, {'reg_tokens': 2}, {'reg_tokens': 2, 'no_embed_class': True}, {'pos_embed': 'none'},
     {'class_token': False, 'global_pool': 'avg', 'fc_norm': False}],
)  # fmt: skip
@pytest.mark.parametrize('size', [(56, 56), (28, 84)])
def test_forward_is_the_token_by_token_encoder(
    kwargs: dict[str, Any], size: tuple[int, int]
) -> None:
    model = tiny(name=BASE, **kwargs)
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.forward_features(image), encode(model, image))


def test_only_resampled_positions_differ_from_timm() -> None:
    ours, stock = tiny(name=BASE), tiny()
    for model in (ours, stock):
        load_backbone(model, tensors(shapes()))
    native, other = torch.rand(1, 3, 56, 56), torch.rand(1, 3, 28, 28)
    torch.testing.assert_close(ours(native), stock(native), rtol=0, atol=0)
    assert not torch.allclose(ours(other), stock(other), rtol=1e-3)
    fixed = tiny(name=BASE, dynamic_img_size=False)
    load_backbone(fixed, ours.state_dict())
    torch.testing.assert_close(fixed(native), ours(native), rtol=0, atol=0)


def test_set_input_size_resamples_as_forward_does() -> None:
    model, image = tiny(name=BASE), torch.rand(1, 3, 28, 98)
    assert isinstance(model, DINOv2VisionTransformer)
    model.get_parameter('pos_embed').requires_grad_(False)
    before = model(image)
    model.set_input_size((28, 98))
    assert model.get_parameter('pos_embed').shape == (1, 15, 48)
    assert not model.get_parameter('pos_embed').requires_grad
    torch.testing.assert_close(model(image), before)
