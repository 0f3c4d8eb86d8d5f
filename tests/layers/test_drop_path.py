"""Stochastic depth that saves work equals the plain form on the same draw, and timm's on average."""

import pytest
import torch
from timm.layers.drop import drop_path as timm_drop_path
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tests.vits import images_for, make_vit, shake_factors
from torchgeo_explora.adapters import apply_explora, lora_finetuning
from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers import (
    DropPathBlock,
    apply_drop_path,
    draw_kept,
    drop_path_rates,
    encode,
    seed_drop_path,
)


def drawn_mask(block: DropPathBlock, batch: int) -> tuple[Tensor, Tensor]:
    """What multiplies both branches in the plain form: 0, or 1 / (1 - rate)."""
    masks = torch.zeros(2, batch, 1, 1, dtype=torch.float64)
    for mask, kept in zip(masks, block.draw(batch), strict=True):
        mask[kept] = 1 / (1 - block.rate)
    return masks[0], masks[1]


def plain_blocks(vit: VisionTransformer, x: Tensor) -> Tensor:
    """The forward of timm, with every branch evaluated in full and multiplied by the mask."""
    for block in vit.blocks:
        assert isinstance(block, DropPathBlock)
        first, second = drawn_mask(block, len(x))
        x = x + first * block.ls1(block.attn(block.norm1(x)))
        x = x + second * block.ls2(block.mlp(block.norm2(x)))
    return x


@pytest.mark.parametrize('name', ['patch16', 'patch14_layerscale', 'qk_norm', 'swiglu'])
@pytest.mark.parametrize('adapted', [False, True])
def test_equals_the_plain_form(name: str, adapted: bool) -> None:
    vit = make_vit(name)
    apply_drop_path(vit, 0.6)
    if adapted:
        apply_explora(vit, lora_finetuning(2))
        shake_factors(vit)
    vit.train().double()
    x = torch.randn(7, 5, vit.embed_dim, generator=torch.Generator().manual_seed(0)).double()
    trained = [p for p in vit.blocks.parameters() if p.requires_grad]
    for seed in range(3):
        seed_drop_path(vit, seed)
        results = []
        for run in (lambda y: plain_blocks(vit, y), vit.blocks):
            out = run(x)
            gradients = torch.autograd.grad(out.square().mean(), trained)
            results.append((out.detach(), gradients))
        (plain, expected), (ours, found) = results
        torch.testing.assert_close(ours, plain, atol=1e-9, rtol=1e-9)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_dropped_samples_are_not_evaluated() -> None:
    vit = make_vit()
    apply_drop_path(vit, 0.8)
    vit.train()
    sizes: list[int] = []
    for block in vit.blocks:
        block.get_submodule('attn').register_forward_hook(lambda m, i, o: sizes.append(len(i[0])))
    seed_drop_path(vit, 3)
    encode(vit, images_for(vit, batch=16))
    blocks = [block for block in vit.blocks if isinstance(block, DropPathBlock)]
    assert sizes == [len(block.draw(16)[0]) for block in blocks]
    assert sizes[0] == 16 and sizes[-1] < 10


def test_expected_value_is_that_of_timm() -> None:
    vit = make_vit()
    apply_drop_path(vit, 0.5)
    block = vit.train().blocks[2]
    assert isinstance(block, DropPathBlock)
    x = torch.randn(400, 2, vit.embed_dim, generator=torch.Generator().manual_seed(0))
    x = x[:1].expand_as(x)
    block.seed = 1
    with torch.no_grad():
        ours = block(x)
        torch.manual_seed(0)
        y = x + timm_drop_path(block.attn(block.norm1(x)), 0.5, training=True)
        theirs = y + timm_drop_path(block.mlp(block.norm2(y)), 0.5, training=True)
    error = (ours.std(dim=0) + theirs.std(dim=0)) / len(x) ** 0.5
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 5 * error + 1e-6).all()
    torch.testing.assert_close(ours.std(dim=0), theirs.std(dim=0), atol=0.2, rtol=0.2)


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_nothing_kept_gives_gradients_of_zero(checkpointing: bool, dtype: torch.dtype) -> None:
    """Every rank of a distributed run has a gradient of every parameter, whatever it drew."""
    vit = make_vit()
    apply_drop_path(vit, 0.99)
    apply_explora(vit, lora_finetuning(2))
    vit.train().set_grad_checkpointing(checkpointing)
    seed_drop_path(vit, 0)
    last = vit.blocks[-1]
    assert isinstance(last, DropPathBlock)
    assert [len(kept) for kept in last.draw(2)] == [0, 0]
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        out = encode(vit, images_for(vit))
    out.float().square().sum().backward()
    factors = [p for p in last.parameters() if p.requires_grad]
    assert len(factors) == 3
    assert all(p.grad is not None and not p.grad.any() for p in factors)


def test_checkpointing_draws_the_same_twice() -> None:
    gradients = []
    for checkpointing in (False, True):
        vit = make_vit()
        apply_drop_path(vit, 0.7)
        vit.train().set_grad_checkpointing(checkpointing)
        seed_drop_path(vit, 5)
        encode(vit, images_for(vit, batch=8)).square().mean().backward()
        gradients.append([p.grad for p in vit.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_draws_hang_on_the_seed_alone() -> None:
    vit = make_vit()
    apply_drop_path(vit, 0.5)
    vit.train()
    images = images_for(vit, batch=8)
    outputs = []
    for seed, noise in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(noise)
        seed_drop_path(vit, seed)
        outputs.append(encode(vit, images))
        assert torch.equal(outputs[-1], encode(vit, images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_evaluation_and_keys_stay() -> None:
    vit, plain = make_vit('patch14_layerscale'), make_vit('patch14_layerscale')
    rates = apply_drop_path(vit, 0.2)
    assert rates == drop_path_rates(3, 0.2) == (0.0, 0.1, 0.2)
    assert list(vit.state_dict()) == list(plain.state_dict())
    images = images_for(vit)
    assert torch.equal(vit(images), plain(images))
    assert all(a is b for a, b in zip(vit.parameters(), list(vit.parameters()), strict=True))


def test_shares_of_samples_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = draw_kept(20_000, 0.3, generator)
    assert abs(len(kept) / 20_000 - 0.7) < 0.015
    assert torch.equal(kept, kept.unique())
    assert len(draw_kept(5, 0.0, generator)) == 5


def test_bad_input() -> None:
    vit = make_vit()
    with pytest.raises(ConfigError, match='probability from 0 to less than 1'):
        apply_drop_path(vit, 1.0)
    apply_drop_path(vit, 0.0)
    assert all(type(block) is Block for block in vit.blocks)
    other = make_vit(block_fn=ResPostBlock, init_values=1e-5)
    with pytest.raises(ConfigError, match='ResPostBlock'):
        apply_drop_path(other, 0.1)
    apply_drop_path(vit, 0.1)
    vit.train()
    with pytest.raises(ConfigError, match='no seed'):
        encode(vit, images_for(vit))
    with pytest.raises(ConfigError, match='DropPathBlock'):
        apply_drop_path(vit, 0.1)
    assert isinstance(vit.blocks, nn.Sequential)
