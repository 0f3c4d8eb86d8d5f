"""Models with groups of bands or dates: timm's dialect, and relations to plain models."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.token_vits import GROUPS, SIZES, inputs_for, make_groups, make_temporal
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.layers.sincos import encode_times, sincos_grid, sincos_index
from torchgeo_explora.layers.tokens import encode, native_grid
from torchgeo_explora.models import GroupChannelViT, TemporalViT, create_backbone
from torchgeo_explora.models._token_vit import TokenViT

KINDS = {'groups': make_groups, 'temporal': make_temporal}
GROUP, TEMPORAL = 'explora_group_channel_vit', 'explora_temporal_vit'


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> TokenViT:
    """A small model of each kind."""
    built: TokenViT = KINDS[request.param]()
    return built


def _call(model: nn.Module, images: Tensor, times: Tensor | None) -> Tensor:
    out: Tensor = model(images) if times is None else model(images, times)
    return out


def _plain(model: VisionTransformer, position: Tensor, bands: int, **arguments: Any) -> nn.Module:  # noqa: ANN401
    """Build timm's own model with these weights and this whole position embedding."""
    plain = VisionTransformer(**{**SIZES, 'in_chans': bands, **arguments}).eval()
    state = {k.replace('patch_embed.0.', 'patch_embed.'): t for k, t in model.state_dict().items()}
    state = {k: t for k, t in state.items() if not k.startswith('channel_')}
    plain.load_state_dict({**state, 'pos_embed': position})
    return plain


@torch.no_grad()
@pytest.mark.parametrize('pooling', ['token', 'avg'])
def test_one_group_is_a_plain_model(pooling: str) -> None:
    model = make_groups(channel_groups=[[0, 1, 2]], in_chans=3, global_pool=pooling, num_classes=4)
    images, _ = inputs_for(model)
    channel = model.channel_embed.expand(-1, 16, -1)
    extra = torch.cat([model.channel_cls_embed, channel], dim=1)
    position = torch.cat([model.get_parameter('pos_embed'), extra], dim=-1)
    plain = _plain(model, position, 3, global_pool=pooling, num_classes=4)
    torch.testing.assert_close(model(images), plain(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_date_is_a_plain_model() -> None:
    model = make_temporal()
    images, _ = inputs_for(model, batch=1, dates=1)
    times = torch.tensor([[[13.0, 5.0, 10.0]]])
    time = torch.cat([torch.zeros(1, 1, 12), encode_times(times, 12).expand(-1, 16, -1)], dim=1)
    position = torch.cat([model.get_parameter('pos_embed'), time], dim=-1)
    plain = _plain(model, position, 2)
    found = model.forward_features(images, times)
    torch.testing.assert_close(found, plain.forward_features(images[:, 0]), rtol=1e-4, atol=1e-5)  # type: ignore[operator]


@torch.no_grad()
def test_the_order_of_bands_is_a_matter_of_the_groups() -> None:
    first, order = make_groups(), [4, 2, 5, 0, 1, 3]
    second = make_groups(channel_groups=[[order.index(i) for i in group] for group in GROUPS])
    images, _ = inputs_for(first)
    torch.testing.assert_close(second(images[:, order]), first(images), rtol=0, atol=0)


@torch.no_grad()
def test_a_band_in_no_group_is_not_looked_at() -> None:
    model = make_groups()
    images, _ = inputs_for(model)
    expected = model(images)
    images[:, 5] = torch.nan
    assert torch.equal(model(images), expected)


@torch.no_grad()
def test_dates_may_come_in_any_order() -> None:
    model = make_temporal()
    images, times = inputs_for(model)
    assert times is not None
    tokens = model.forward_features(images, times)
    turned = model.forward_features(images.flip(1), times.flip(1))
    expected = torch.cat([tokens[:, :1], *tokens[:, 1:].chunk(3, dim=1)[::-1]], dim=1)
    torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-5)
    other = model.forward_features(images, times.flip(1))
    assert not torch.allclose(other, tokens, rtol=1e-2), 'the times matter'


@torch.no_grad()
def test_timms_dialect(model: Any) -> None:  # noqa: ANN401  # unions of what it may return
    images, times = inputs_for(model)
    tokens = encode(model, images, timestamps=times)
    pair = images if times is None else (images, times)
    assert model.num_prefix_tokens == 1
    assert torch.equal(model.forward_features(pair), tokens)
    assert torch.equal(_call(model, images, times), model.forward_head(tokens))
    final, steps = model.forward_intermediates(
        images, norm=True, output_fmt='NLC', timestamps=times
    )
    assert torch.equal(final, tokens)
    assert torch.equal(steps[-1], tokens[:, 1:])
    assert len(steps) == 3
    some = model.forward_intermediates(
        pair, [0, 2], return_prefix_tokens=True, norm=True, intermediates_only=True
    )
    for (map_, prefix), index in zip(some, (0, 2), strict=True):
        assert torch.equal(
            map_.flatten(2).transpose(1, 2), steps[index].unflatten(1, (3, 16)).mean(dim=1)
        )
        assert prefix.shape == (2, 1, 24)
    found = model.forward_intermediates(pair, 1, return_prefix_tokens=True, output_dict=True)
    assert isinstance(found, dict)
    assert set(found) == {'image_intermediates', 'image_intermediates_prefix', 'image_features'}
    assert torch.equal(found['image_features'], tokens)
    early, (first,) = model.forward_intermediates(pair, [0], stop_early=True, output_fmt='NLC')
    assert torch.equal(early[:, 1:], model.norm(first))
    with pytest.raises(ConfigError, match='NHWC'):
        model.forward_intermediates(pair, output_fmt='NHWC')


@torch.no_grad()
def test_any_size_is_the_size_stored_for(model: TokenViT) -> None:
    images, times = inputs_for(model, size=(24, 56))
    expected = _call(model, images, times)
    resized = copy.deepcopy(model)
    resized.set_input_size((24, 56))
    assert resized.get_parameter('pos_embed').shape[1] == 1 + 3 * 7
    assert not resized.get_parameter('pos_embed').requires_grad
    torch.testing.assert_close(_call(resized, images, times), expected)


@pytest.mark.parametrize('make', KINDS.values(), ids=KINDS.keys())
def test_one_size_alone_where_asked_for(make: Callable[..., TokenViT]) -> None:
    model = make(dynamic_img_size=False)
    assert _call(model, *inputs_for(model)).shape == (2, 24)
    with pytest.raises(ImageError, match='24 x 56'):
        _call(model, *inputs_for(model, size=(24, 56)))


def test_patches_of_another_size_take_the_place(model: TokenViT) -> None:
    model.set_input_size((32, 32), (16, 16))
    images, times = inputs_for(model)
    assert encode(model, images, timestamps=times).shape == (2, 1 + 3 * 4, 24)


def test_encodings_are_fixed_and_start_as_satmaes() -> None:
    sizes = {**SIZES, 'img_size': (16, 40)}
    group = GroupChannelViT(GROUPS, channel_embed_dim=8, **sizes)
    temporal = TemporalViT(time_embed_dim=12, **sizes)
    for built, space in ((group, 16), (temporal, 12)):
        grid = native_grid(built)
        assert grid is not None
        torch.testing.assert_close(
            built.get_parameter('pos_embed').data, sincos_grid(grid, space, 1), rtol=0, atol=0
        )
        assert not built.get_parameter('pos_embed').requires_grad
    torch.testing.assert_close(group.channel_embed.data, sincos_index(3, 8), rtol=0, atol=0)
    assert not group.channel_cls_embed.any()
    assert not (group.channel_embed.requires_grad or group.channel_cls_embed.requires_grad)
    assert {'pos_embed', 'channel_embed', 'channel_cls_embed'} <= group.no_weight_decay()
    assert group.patch_embed.in_chans == 5, 'as many bands as the groups need'


def test_initial_weights_follow_the_seed_and_timms_ways() -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(GroupChannelViT(GROUPS, 8, **SIZES, weight_init='skip').state_dict())
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])
    differs = {key for key in drawn[0] if not torch.equal(drawn[0][key], drawn[2][key])}
    assert {'patch_embed.2.proj.weight', 'blocks.0.mlp.fc1.weight', 'cls_token'} <= differs
    assert not differs & {'pos_embed', 'channel_embed', 'channel_cls_embed'}


def test_models_on_the_meta_device_and_copies(model: TokenViT) -> None:
    extra: dict[str, Any] = {model.extra_argument: 12}
    with torch.device('meta'):
        empty = type(model)(**SIZES, **extra)
    assert all(parameter.is_meta for parameter in empty.parameters())
    images, times = inputs_for(model)
    twin = copy.deepcopy(model)
    assert torch.equal(_call(twin, images, times), _call(model, images, times))


@torch.no_grad()
@pytest.mark.parametrize('name', [f'{GROUP}_small_patch8_96', f'{TEMPORAL}_small_patch16_224'])
def test_features_only(name: str) -> None:
    options: dict[str, Any] = {'embed_dim': 48, 'depth': 4, 'num_heads': 4, 'img_size': 32}
    options |= {'channel_embed_dim': 16} if name.startswith(GROUP) else {'time_embed_dim': 24}
    options |= {'patch_size': 8, 'features_only': True, 'out_indices': (1, 3)}
    net: Any = timm.create_model(name, **options).eval()
    assert net.feature_info.channels() == [48, 48]
    assert net.feature_info.reduction() == [8, 8]
    chip = torch.rand(2, 10, 32, 48) if name.startswith(GROUP) else torch.rand(2, 3, 3, 32, 48)
    given = chip if name.startswith(GROUP) else (chip, torch.ones(2, 3, 3))
    maps = net(given)
    assert [tuple(map_.shape) for map_ in maps] == [(2, 48, 4, 6)] * 2
    expected = net.model.forward_intermediates(given, [1, 3], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_registered_with_their_published_files() -> None:
    sizes = ('base', 'large', 'small')
    for stem, tail in ((GROUP, 'patch8_96'), (TEMPORAL, 'patch16_224')):
        assert timm.list_models(f'{stem}_*') == [f'{stem}_{size}_{tail}' for size in sizes]
    urls = {
        name: timm.get_pretrained_cfg(name).url  # type: ignore[union-attr]
        for stem in (GROUP, TEMPORAL)
        for name in timm.list_pretrained(f'{stem}_*')
    }
    explora = 'https://huggingface.co/samarkhanna/ExPLoRA/resolve/main/explora_mae_multispectral/'
    assert urls == {
        f'{GROUP}_base_patch8_96.satmae_fmow_sentinel':
            'https://zenodo.org/records/7338613/files/pretrain-vit-base-e199.pth',
        f'{GROUP}_large_patch8_96.fmow_sentinel':
            f'{explora}explora_mae_fmow_sentinel_encoder_only.pth',
        f'{GROUP}_large_patch8_96.satmae_fmow_sentinel':
            'https://zenodo.org/records/7338613/files/pretrain-vit-large-e199.pth',
        f'{TEMPORAL}_large_patch16_224.satmae_fmow':
            'https://zenodo.org/records/7369797/files/pretrain_fmow_temporal.pth',
    }  # fmt: skip


@pytest.mark.parametrize(
    ('name', 'width', 'extra', 'space'),
    [
        (f'{GROUP}_small_patch8_96', 384, 128, (1, 145, 256)),
        (f'{GROUP}_base_patch8_96', 768, 256, (1, 145, 512)),
        (f'{GROUP}_large_patch8_96', 1024, 256, (1, 145, 768)),
        (f'{TEMPORAL}_small_patch16_224', 384, 192, (1, 197, 192)),
        (f'{TEMPORAL}_base_patch16_224', 768, 384, (1, 197, 384)),
        (f'{TEMPORAL}_large_patch16_224', 1024, 384, (1, 197, 640)),
    ],
)
def test_sizes(name: str, width: int, extra: int, space: tuple[int, ...]) -> None:
    with torch.device('meta'):
        model = timm.create_model(name)
    assert isinstance(model, TokenViT)
    assert (model.embed_dim, model.embed_dim - model.space_dim) == (width, extra)
    assert model.get_parameter('pos_embed').shape == space
    if isinstance(model, GroupChannelViT):
        assert model.channel_groups == ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
        assert model.patch_embed.in_chans == 10


def test_own_groups_set_the_bands() -> None:
    model, _ = create_backbone(f'{GROUP}_small_patch8_96', channel_groups=[[0, 3], [1]], depth=1)
    assert model(torch.rand(1, 4, 96, 96)).shape == (1, 384)
    model, _ = create_backbone(
        f'{GROUP}_small_patch8_96', channel_groups=[[0, 3], [1]], in_chans=7, depth=1
    )
    assert model(torch.rand(1, 7, 40, 96)).shape == (1, 384)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ({'channel_groups': []}, 'one or more groups'),
        ({'channel_groups': [[0], []]}, 'one or more groups'),
        ({'channel_groups': [[0, 0]]}, 'different'),
        ({'channel_groups': [[0, -1]]}, '0-based'),
        ({'channel_groups': [['B2']]}, 'resolve_groups'),
        ({'channel_groups': ['B2']}, 'resolve_groups'),
        ({'channel_groups': [[0, 9]], 'in_chans': 3}, 'set in_chans to 10'),
        ({'channel_embed_dim': 7}, 'channel_embed_dim is 7'),
        ({'channel_embed_dim': 24}, 'channel_embed_dim is 24'),
        ({'channel_embed_dim': 6}, 'multiple of 4'),
        ({'reg_tokens': 2}, 'reg_tokens=2'),
        ({'class_token': False}, 'class_token=False'),
    ],
)
def test_impossible_groups(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GroupChannelViT(**{'channel_embed_dim': 8, **SIZES, **arguments})
    with pytest.raises(ConfigError, match=said):
        create_backbone('tiny_group_channel_vit', **arguments)


def test_impossible_dates() -> None:
    with pytest.raises(ConfigError, match='time_embed_dim is 8'):
        make_temporal(time_embed_dim=8)
    model = make_temporal()
    images, times = inputs_for(model)
    for arguments in ((images,), ((images, times), times)):
        with pytest.raises(ConfigError, match='timestamps'):
            model(*arguments)
    with pytest.raises(ConfigError, match='pass them beside the images'):
        encode(model, images)
    with pytest.raises(ImageError, match='add the axis of dates'):
        model(images[:, 0], times)
    with pytest.raises(ImageError, match='have 1 bands, the model takes 2'):
        model(images[:, :, :1], times)


def test_images_that_do_not_fit_groups() -> None:
    model = make_groups()
    images, _ = inputs_for(model)
    with pytest.raises(ImageError, match='have 5 bands, the model takes 6'):
        model(images[:, :5])
    with pytest.raises(ImageError, match='30 x 32'):
        model(images[:, :, :30])
    with pytest.raises(ConfigError, match='leave the timestamps away'):
        model(images, torch.zeros(2, 1, 3))
