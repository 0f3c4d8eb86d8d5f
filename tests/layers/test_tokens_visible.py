"""Encoding some tokens only, against encoding all and against the equations."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.token_vits import inputs_for, make_groups, make_temporal
from tests.vits import VARIANTS, images_for, make_vit
from torchgeo_explora.layers.embedder import embed_patches
from torchgeo_explora.layers.sincos import encode_times
from torchgeo_explora.layers.tokens import (
    embed_tokens,
    embed_visible,
    encode,
    encode_visible,
    global_token,
    intermediate_tokens,
    patch_grid,
    patch_tokens,
    token_count,
)
from torchgeo_explora.models.group_channel_vit import GroupChannelViT
from torchgeo_explora.models.temporal_vit import TemporalViT

SEVERAL = {'groups': make_groups, 'temporal': make_temporal}


def _keep(rows: int, tokens: int, kept: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, tokens, generator=generator).argsort(dim=1)[:, :kept]


def _gather(tokens: Tensor, keep: Tensor) -> Tensor:
    return torch.stack([row[index] for row, index in zip(tokens, keep, strict=True)])


@torch.no_grad()
@pytest.mark.parametrize('variant', VARIANTS)
def test_all_tokens_of_a_plain_model_are_the_dense_forward(variant: str) -> None:
    vit = make_vit(variant)
    images = images_for(vit)
    dense, count = encode(vit, images), vit.num_prefix_tokens
    assert token_count(vit, images) == patch_grid(vit, images).area == dense.shape[1] - count
    keep = _keep(2, token_count(vit, images), token_count(vit, images))
    found = encode_visible(vit, images, keep)
    torch.testing.assert_close(found[:, :count], dense[:, :count], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found[:, count:], _gather(dense[:, count:], keep), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize('variant', ['patch16', 'registers_without_positions', 'not_square'])
def test_some_tokens_of_a_plain_model_are_embedded_alike(variant: str) -> None:
    vit = make_vit(variant)
    images, count = images_for(vit), vit.num_prefix_tokens
    dense = embed_tokens(vit, images)
    keep = _keep(2, token_count(vit, images), 3)
    found = embed_visible(vit, images, keep)
    torch.testing.assert_close(found[:, :count], dense[:, :count])
    torch.testing.assert_close(
        found[:, count:], _gather(dense[:, count:], keep), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('strips', [1, 2, 4])
def test_an_embedding_of_some_patches_is_the_convolution_at_them(strips: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 7, kernel_size=(4, 2), stride=(4, 2))
    images = torch.randn(2, 3, 12, 10)
    dense = conv(images).flatten(2).transpose(1, 2)  # (2, 15, 7)
    rows, cells = torch.tensor([1, 0, 1, 1]), torch.tensor([14, 0, 7, 7])
    weights = torch.randn(4, 7)
    found = embed_patches(conv, images, rows, cells, strips)
    torch.testing.assert_close(found, dense[rows, cells])
    gradients = [
        torch.autograd.grad((out * weights).sum(), list(conv.parameters()))
        for out in (found, dense[rows, cells])
    ]
    torch.testing.assert_close(*gradients)
    strided = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(embed_patches(conv, strided, rows, cells, strips), found)


def _patch(images: Tensor, cell: int) -> Tensor:
    """Pixels of an 8 x 8 patch of (c, h, w)."""
    row, column = divmod(cell, images.shape[2] // 8)
    return images[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]


def _slow_token(
    model: VisionTransformer, image: Tensor, times: Tensor | None, number: int
) -> Tensor:
    """One token by its equation: W pixels + b + (space || group or time)."""
    assert model.pos_embed is not None
    copy, cell = divmod(number, 16)
    space = model.pos_embed[0, 1 + cell]
    if isinstance(model, GroupChannelViT):
        proj, pixels = model.patch_embed[copy].proj, image[list(model.channel_groups[copy])]
        extra = model.channel_embed[0, copy]
    else:
        assert isinstance(model, TemporalViT) and times is not None
        proj, pixels = model.patch_embed.proj, image[copy]
        extra = encode_times(times[None, copy : copy + 1], model.time_embed_dim)[0, 0]
    value = (proj.weight * _patch(pixels, cell)).sum(dim=(1, 2, 3)) + proj.bias
    out: Tensor = value + torch.cat([space, extra])
    return out


@torch.no_grad()
@pytest.mark.parametrize('kind', SEVERAL)
def test_several_tokens_a_patch_by_their_equations(kind: str) -> None:
    model = SEVERAL[kind]()
    images, times = inputs_for(model)
    assert token_count(model, images) == 48
    expected = torch.stack([
        torch.stack([
            _slow_token(model, images[row], None if times is None else times[row], number)
            for number in range(48)
        ])
        for row in range(2)
    ])  # fmt: skip
    dense = embed_tokens(model, images, timestamps=times)
    torch.testing.assert_close(dense[:, 1:], expected, rtol=1e-4, atol=1e-5)
    keep = _keep(2, 48, 13)
    found = embed_visible(model, images, keep, times)
    torch.testing.assert_close(found[:, 1:], _gather(expected, keep), rtol=1e-4, atol=1e-5)
    # the class token has its position in the dense sequence, and none in the visible one
    assert model.cls_token is not None and model.pos_embed is not None
    extra = getattr(model, 'channel_cls_embed', torch.zeros(1, 1, 12))
    position = torch.cat([model.pos_embed[:, :1], extra], dim=-1)
    torch.testing.assert_close(dense[:, :1], (model.cls_token + position).expand(2, -1, -1))
    assert torch.equal(found[:, :1], model.cls_token.expand(2, -1, -1))


@torch.no_grad()
@pytest.mark.parametrize('kind', SEVERAL)
def test_all_tokens_are_the_dense_forward_where_the_class_position_is_zero(kind: str) -> None:
    model = SEVERAL[kind]()
    assert model.pos_embed is not None
    model.pos_embed[:, :1] = 0  # as SatMAE's fixed encodings are
    if isinstance(model, GroupChannelViT):
        model.channel_cls_embed.zero_()
    images, times = inputs_for(model, size=(24, 40))
    dense = encode(model, images, timestamps=times)
    keep = _keep(2, token_count(model, images), token_count(model, images))
    found = encode_visible(model, images, keep, times)
    torch.testing.assert_close(found[:, :1], dense[:, :1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 1:], _gather(dense[:, 1:], keep), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('kind', ['plain', *SEVERAL])
def test_no_hidden_pixel_is_read(kind: str) -> None:
    model = make_vit('patch8') if kind == 'plain' else SEVERAL[kind]()
    images, times = (images_for(model), None) if kind == 'plain' else inputs_for(model)
    keep = torch.tensor([[3, 12, 5], [0, 1, 15]])  # of the first group or date alone
    expected = encode_visible(model, images, keep, times)
    spoiled = torch.full_like(images, torch.nan)
    chosen = [0, 2] if kind == 'groups' else slice(None)
    for row, cells in enumerate(keep.tolist()):
        target = spoiled[row, 0] if kind == 'temporal' else spoiled[row]
        source = images[row, 0] if kind == 'temporal' else images[row]
        for cell in cells:
            _patch(target, cell)[chosen] = _patch(source, cell)[chosen]
    assert torch.equal(encode_visible(model, spoiled, keep, times), expected)


@torch.no_grad()
@pytest.mark.parametrize('kind', ['plain', *SEVERAL])
def test_tokens_come_in_the_order_kept(kind: str) -> None:
    model = make_vit('patch8') if kind == 'plain' else SEVERAL[kind]()
    images, times = (images_for(model), None) if kind == 'plain' else inputs_for(model)
    keep = _keep(2, 16, 7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    first = encode_visible(model, images, keep, times)
    second = encode_visible(model, images, keep[:, order], times)
    torch.testing.assert_close(second[:, 1:], first[:, 1:][:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second[:, 0], first[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', ['plain', *SEVERAL])
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    model = make_vit('patch8') if kind == 'plain' else SEVERAL[kind]()
    images, times = (images_for(model), None) if kind == 'plain' else inputs_for(model)
    keep, gradients = _keep(2, 16, 4), []
    parameters = [model.get_parameter('blocks.0.attn.qkv.weight'), *model.patch_embed.parameters()]
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        loss = encode_visible(model, images, keep, times).square().mean()
        gradients.append(torch.autograd.grad(loss, parameters, materialize_grads=True))
    torch.testing.assert_close(*gradients)


@torch.no_grad()
@pytest.mark.parametrize('kind', SEVERAL)
def test_probes_see_every_token(kind: str) -> None:
    model = SEVERAL[kind]()
    images, times = inputs_for(model)
    tokens = encode(model, images, timestamps=times)
    (last,) = intermediate_tokens(model, images, [-1], timestamps=times)
    assert torch.equal(last, tokens)
    assert patch_tokens(model, tokens).shape == (2, 48, 24)
    assert torch.equal(global_token(model, tokens), tokens[:, 0])
