"""Decoders x patches x sizes, where a cell of the pyramid lies, and SMP's own models as reference."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import encoders
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from torch import Tensor, nn

from tests.token_vits import inputs_for, make_groups, make_temporal
from tests.vits import make_vit
from torchgeo_explora._typing import GridSize
from torchgeo_explora.errors import ConfigError, ImageError
from torchgeo_explora.models.pyramid import ViTPyramidEncoder, evenly_spaced
from torchgeo_explora.models.segmentation import (
    DECODERS,
    IMPOSSIBLE,
    Segmenter,
    build_segmenter,
    decoder_arguments,
    register_encoder,
)

# timm appends the registered names to it.
__all__ = ['TINY']

PATCHES = (8, 14, 16)
SIZES = ((32, 64), (41, 23))  # one that divides by everything but 14, one that divides by nothing
_NARROW = {'decoder_channels': (16, 8, 8, 8, 8)}
# The default DPT has 28 million weights, as many as a ViT-S
SMALL: dict[str, dict[str, Any]] = {
    'dpt': {'decoder_fusion_channels': 8, 'decoder_intermediate_channels': (8, 8, 8, 8)},
    'fpn': {'decoder_pyramid_channels': 16, 'decoder_segmentation_channels': 32},
    'linknet': {},
    'manet': _NARROW,
    'pspnet': {'psp_out_channels': 16},
    'segformer': {'decoder_segmentation_channels': 16},
    'unet': _NARROW,
    'unetplusplus': _NARROW,
    'upernet': {'decoder_channels': 16},
}
# A vit_tiny_patch16_224 of a moment
TINY: dict[str, Any] = {'img_size': 64, 'embed_dim': 24, 'depth': 4, 'num_heads': 3}
SMP_MODELS = {
    'fpn': smp.FPN, 'linknet': smp.Linknet, 'manet': smp.MAnet, 'pspnet': smp.PSPNet,
    'segformer': smp.Segformer, 'unet': smp.Unet, 'unetplusplus': smp.UnetPlusPlus,
    'upernet': smp.UPerNet,
}  # fmt: skip


@register_model
def tiny_segmentation_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:  # noqa: ANN401
    """A model that SMP can build by name."""
    options = {**TINY, 'patch_size': 16, **kwargs}
    model: VisionTransformer = _create_vision_transformer(
        'vit_tiny_patch16_224', pretrained=pretrained, **options
    )
    return model


def _vit(patch: int) -> VisionTransformer:
    return make_vit(patch_size=patch, img_size=4 * patch, depth=4)


def _build(decoder: str, vit: VisionTransformer, classes: int = 3, seed: int = 0) -> Segmenter:
    return build_segmenter(vit, decoder, classes, seed=seed, **SMALL[decoder])


def _images(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('patch', PATCHES)
@pytest.mark.parametrize('decoder', DECODERS)
def test_every_decoder_at_every_patch_and_size(
    decoder: str, patch: int, size: tuple[int, int]
) -> None:
    model = _build(decoder, _vit(patch)).train()
    images = _images(size).requires_grad_()
    logits = model(images)
    assert logits.shape == (2, 3, *size)
    logits.square().mean().backward()
    assert images.grad is not None
    # every pixel has a say, those of the last, incomplete patch too
    assert (images.grad.abs().amax(dim=(0, 1)) > 0).all()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize('make', [make_groups, make_temporal])
def test_models_with_several_tokens_a_patch(
    decoder: str, make: Callable[[], VisionTransformer]
) -> None:
    vit = make()
    images, times = inputs_for(vit, size=(24, 28))
    model = _build(decoder, vit).eval()
    given = (images,) if times is None else (images, times)
    with torch.no_grad():
        logits = model(*given)
        assert logits.shape == (2, 3, 24, 28)
        other = model(images.flip(-1), *given[1:])
    assert not torch.allclose(logits, other)


def test_dates_matter_and_their_order_does_not() -> None:
    vit = make_temporal()
    images, times = inputs_for(vit)
    assert times is not None
    model = _build('upernet', vit).eval()
    with torch.no_grad():
        logits = model(images, times)
        turned = model(images.flip(1), times.flip(1))
        later = model(images, times + 5)
    torch.testing.assert_close(logits, turned, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits, later, atol=1e-3)


@pytest.mark.parametrize(
    'variant', ['registers', 'no_class_token', 'no_class_but_registers', 'no_positions']
)
@pytest.mark.parametrize('decoder', ['dpt', 'unet'])
def test_variants_of_vision_transformers(decoder: str, variant: str) -> None:
    model = _build(decoder, make_vit(variant)).eval()
    assert model(_images((32, 48))).shape == (2, 3, 32, 48)


def _reader(patch: int) -> VisionTransformer:
    """A transformer whose tokens are the patches' mean values, and that changes nothing."""
    vit = VisionTransformer(
        img_size=8 * patch, patch_size=patch, embed_dim=12, depth=4, num_heads=2,
        num_classes=0, dynamic_img_size=True,
    )  # fmt: skip
    vit.norm = nn.Identity()
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if any(part in name for part in ('attn.proj', 'mlp.fc2', 'pos_embed', 'patch_embed')):
                parameter.zero_()
        for band in range(3):
            vit.patch_embed.proj.weight[band, band] = 1 / patch**2
    return vit.eval()


@pytest.mark.parametrize('patch', PATCHES)
@pytest.mark.parametrize('size', [(224, 256), (130, 190)])
def test_every_cell_shows_the_place_it_covers(patch: int, size: tuple[int, int]) -> None:
    rows, columns = torch.meshgrid(
        torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing='ij'
    )
    image = torch.stack([rows, columns, torch.full_like(rows, 7.0)])[None]
    canvas = GridSize(*(-(-side // 32) * 32 for side in size))
    levels = ViTPyramidEncoder(_reader(patch)).levels(image, canvas)
    for power, level in enumerate(levels):
        stride = 2**power
        assert level.shape[-2:] == (canvas.height // stride, canvas.width // stride)
        if power < 2:
            assert level.shape[1] == 0
            continue
        margin = 1.5 * max(stride, patch)
        for axis, side in enumerate(size):
            centres = (torch.arange(level.shape[2 + axis]) + 0.5) * stride
            inside = (centres > margin) & (centres < side - margin)
            found = level[0, axis].movedim(axis, 0)[inside]
            expected = centres[inside][:, None].expand_as(found)
            # the low-pass of a stride above the patch moves values by a fraction of a patch
            tolerance = 0.07 * patch if stride > patch else 1e-2
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
        torch.testing.assert_close(level[0, 2], torch.full_like(level[0, 2], 7.0))


def test_maps_are_tokens_as_they_are_where_strides_agree() -> None:
    vit = make_vit(depth=4)
    images = _images((64, 64))
    level = ViTPyramidEncoder(vit, blocks=(0, 1, 2, 3)).levels(images, GridSize(64, 64))[4]
    _, maps = vit.forward_intermediates(images, indices=[2], norm=True)
    torch.testing.assert_close(level, maps[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('decoder', sorted(SMP_MODELS))
def test_the_same_as_smp_itself_where_that_takes_the_images(decoder: str) -> None:
    ours = _build(decoder, _vit(14)).eval()
    name = 'explora-for-this-test'
    encoders[name] = {
        'encoder': lambda depth, output_stride: ViTPyramidEncoder(ours.backbone, depth),
        'pretrained_settings': {},
        'params': {},
    }
    try:
        theirs = SMP_MODELS[decoder](name, encoder_weights=None, classes=3, **SMALL[decoder])
    finally:
        del encoders[name]
    theirs.eval().load_state_dict(ours.state_dict())
    images = _images((64, 96))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_dpt_is_smps_where_that_can_be_built() -> None:
    torch.manual_seed(0)
    name = 'tu-tiny_segmentation_vit'
    theirs = smp.DPT(name, encoder_weights=None, classes=3, **SMALL['dpt']).eval()
    vit = theirs.encoder.model
    vit.norm = nn.Identity()
    ours = build_segmenter(vit, 'dpt', 3, norm=False, **SMALL['dpt']).eval()
    ours.decoder.load_state_dict(theirs.decoder.state_dict())
    ours.segmentation_head.load_state_dict(theirs.segmentation_head.state_dict())
    images = _images((64, 64), batch=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('decoder', DECODERS)
def test_recomputed_activations_change_no_number(decoder: str) -> None:
    results = []
    for recompute in (False, True):
        model = _build(decoder, _vit(16)).train()
        model.set_grad_checkpointing(recompute)
        model.backbone.set_grad_checkpointing(recompute)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for dropout in decoders and heads
            logits = model(_images((32, 64)))
            logits.square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((logits, gradients, dict(model.named_buffers())))
    (logits, gradients, buffers), (found, others, statistics) = results
    assert torch.equal(found, logits)
    torch.testing.assert_close(others, gradients, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(statistics, buffers, rtol=0, atol=0)


@pytest.mark.parametrize('decoder', ['dpt', 'unet'])
def test_an_image_is_the_upper_left_part_of_what_it_is_continued_to(decoder: str) -> None:
    model = _build(decoder, _vit(14)).eval()
    small = _images((50, 75))  # 56 x 84 in patches; 64 x 96 for a decoder, either way
    large = nn.functional.pad(small, (0, 84 - 75, 0, 56 - 50), mode='replicate')
    with torch.no_grad():
        found, whole = model(small), model(large)
    torch.testing.assert_close(found, whole[..., :50, :75], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('decoder', sorted(IMPOSSIBLE))
def test_impossible_decoders_are_refused_with_the_reason(decoder: str) -> None:
    with pytest.raises(ConfigError, match='upernet'):
        build_segmenter(make_vit(), decoder, 2)


def test_a_decoder_that_dilates_is_refused_by_the_encoder_too() -> None:
    name = register_encoder('vit_tiny_patch16_224', name='explora-dilated', **TINY)
    try:
        with pytest.raises(ConfigError, match='dilated to stride 16'):
            smp.PAN(name, encoder_weights=None)
    finally:
        del encoders[name]


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        ({'decoder': 'unets'}, 'no decoder'),
        ({'num_classes': 0}, 'num_classes'),
        ({'decoder_chanels': 3}, 'decoder_channels'),
        ({'upsampling': 2}, 'no argument upsampling'),
        ({'blocks': (0, 1)}, 'name 4'),
        ({'blocks': (0, 1, 2, 9)}, 'from 0 to 2'),
        ({'encoder_depth': 6}, 'encoder_depth'),
        ({'decoder_channels': (8, 8)}, 'cannot be built'),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    given = {'decoder': 'unet', 'num_classes': 2, **arguments}
    with pytest.raises(ConfigError, match=match):
        build_segmenter(make_vit(), **given)


@pytest.mark.parametrize(
    ('shape', 'match'), [((2, 4, 32, 32), '4 bands'), ((3, 32, 32), '4 axes'), ((1, 3, 0, 32), '0')]
)
def test_wrong_images_are_refused(shape: tuple[int, ...], match: str) -> None:
    model = _build('unet', make_vit())
    with pytest.raises(ImageError, match=match):
        model(torch.zeros(shape))


def test_timestamps_are_asked_for_and_refused() -> None:
    images, times = inputs_for(make_temporal())
    with pytest.raises(ConfigError, match='timestamps'):
        _build('unet', make_temporal())(images)
    with pytest.raises(ConfigError, match='alone'):
        _build('unet', make_vit())(_images((32, 32)), times)


def test_a_readout_needs_a_class_token() -> None:
    with pytest.raises(ConfigError, match='no class token'):
        build_segmenter(make_vit('no_class_token'), 'dpt', 2, decoder_readout='cat')


def test_the_seed_alone_draws_the_decoder() -> None:
    vit = make_vit()

    def state(seed: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = _build('unet', vit, seed=seed).decoder.state_dict()
        return found

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = state(0), state(0), state(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ('depth', 'count', 'blocks'),
    [(12, 4, (2, 5, 8, 11)), (24, 4, (5, 11, 17, 23)), (3, 4, (0, 1, 2, 2)), (12, 2, (5, 11))],
)
def test_blocks_are_evenly_spaced(depth: int, count: int, blocks: tuple[int, ...]) -> None:
    assert evenly_spaced(depth, count) == blocks


@pytest.mark.parametrize('decoder', DECODERS)
def test_listed_arguments_are_smps(decoder: str) -> None:
    theirs = smp.DPT if decoder == 'dpt' else SMP_MODELS[decoder]
    assert set(decoder_arguments(decoder)) <= set(inspect.signature(theirs).parameters)
    assert any('channels' in name or 'norm' in name for name in decoder_arguments(decoder))


@pytest.fixture
def registered() -> Iterator[str]:
    options = {**TINY, 'in_chans': 4}
    name = register_encoder('vit_tiny_patch16_224', name='explora-four-bands', **options)
    yield name
    del encoders[name]


def test_smp_builds_registered_encoders_by_name(registered: str) -> None:
    model = smp.Unet(registered, encoder_weights=None, in_channels=4, classes=2).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 4, 32, 64)).shape == (1, 2, 32, 64)
    with pytest.raises(ConfigError, match='4 bands'):
        smp.Unet(registered, encoder_weights=None, in_channels=3)
    for name in ('vit_large_patch14_dinov2', 'explora_group_channel_vit_base_patch8_96'):
        assert f'explora-{name}' in encoders
