"""Token by token equals timm's own forward pass; the pruned last block equals the whole one."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tests.vits import VARIANTS, images_for, make_vit, shake_factors
from torchgeo_explora._typing import GridSize
from torchgeo_explora.adapters import ExPLoRAConfig, apply_explora, lora_finetuning
from torchgeo_explora.errors import ImageError
from torchgeo_explora.layers.pos_embed import resample_pos_embed
from torchgeo_explora.layers.tokens import (
    embed_tokens,
    encode,
    encode_selected,
    fast_attention,
    global_token,
    intermediate_tokens,
    patch_grid,
    patch_tokens,
    select_tokens,
)

# Of these the last block is evaluated where it is needed, or, where it is not standard, in full.
BLOCKS: dict[str, dict[str, Any]] = {
    'post_norm': {'block_fn': ResPostBlock},
    'parallel': {'block_fn': ParallelScalingBlock},
}
WITH_CLASS = [name for name, options in VARIANTS.items() if options.get('class_token', True)]


def _mask(vit: VisionTransformer, counts: list[int], patches: int, seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(counts), patches, dtype=torch.bool)
    for row, count in zip(mask, counts, strict=True):
        row[torch.randperm(patches, generator=generator)[:count]] = True
    return mask


def _token(vit: VisionTransformer) -> Tensor:
    return torch.randn(1, vit.embed_dim, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
@pytest.mark.parametrize('variant', VARIANTS)
def test_encode_is_timms_forward(variant: str) -> None:
    vit = make_vit(variant)
    images = images_for(vit)
    expected = vit.forward_features(images)
    assert torch.equal(encode(vit, images), expected)
    grid = patch_grid(vit, images)
    assert (grid.height, grid.width) == vit.patch_embed.grid_size
    assert torch.equal(patch_tokens(vit, expected), expected[:, -grid.area :])
    first = expected[:, 0] if vit.cls_token is not None else expected[:, -grid.area :].mean(dim=1)
    assert torch.equal(global_token(vit, expected), first)


@torch.no_grad()
@pytest.mark.parametrize('name', BLOCKS)
def test_other_blocks_too(name: str) -> None:
    vit = make_vit('patch16', **BLOCKS[name])
    images = images_for(vit)
    assert torch.equal(encode(vit, images), vit.forward_features(images))


@torch.no_grad()
@pytest.mark.parametrize('size', [(32, 32), (96, 32), (64, 112)])
@pytest.mark.parametrize(
    'variant', ['patch16', 'fixed_size', 'registers', 'registers_without_positions', 'not_square']
)
def test_other_sizes_are_resampled_as_dinov2_does(variant: str, size: tuple[int, int]) -> None:
    """Equal to a model that was built at that size with positions resampled beforehand."""
    vit, resized = make_vit(variant), make_vit(variant, img_size=size)
    assert vit.pos_embed is not None
    state, count = vit.state_dict(), 0 if vit.no_embed_class else vit.num_prefix_tokens
    source = GridSize(*vit.patch_embed.grid_size)
    grid = GridSize(size[0] // 16, size[1] // 16)
    state['pos_embed'] = resample_pos_embed(vit.pos_embed, grid, count, source)
    resized.load_state_dict(state)
    images = images_for(resized)
    torch.testing.assert_close(encode(vit, images), resized.forward_features(images))
    assert patch_grid(vit, images) == grid


@torch.no_grad()
@pytest.mark.parametrize('variant', VARIANTS)
def test_masked_patches_are_hidden(variant: str) -> None:
    vit = make_vit(variant)
    images = images_for(vit)
    patches = patch_grid(vit, images).area
    mask, token = _mask(vit, [3, 0], patches), _token(vit)
    masked, plain = embed_tokens(vit, images, mask, token), embed_tokens(vit, images)
    hidden = torch.zeros(2, masked.shape[1], dtype=torch.bool)
    hidden[:, vit.num_prefix_tokens :] = mask
    assert torch.equal(masked[~hidden], plain[~hidden])
    noise = images + torch.randn(images.shape, generator=torch.Generator().manual_seed(6))
    assert torch.equal(embed_tokens(vit, noise, mask, token)[hidden], masked[hidden])
    assert not torch.equal(encode(vit, images, mask, token)[0], encode(vit, images)[0])
    assert torch.equal(encode(vit, images, mask, token)[1], encode(vit, images)[1])


@torch.no_grad()
def test_intermediate_tokens() -> None:
    vit = make_vit('registers')
    images = images_for(vit)
    by_hand, x = [], embed_tokens(vit, images)
    for block in vit.blocks:
        x = block(x)
        by_hand.append(x)
    raw = intermediate_tokens(vit, images, (0, -1, 1), norm=False)
    for found, expected in zip(raw, [by_hand[0], by_hand[2], by_hand[1]], strict=True):
        assert torch.equal(found, expected)
    (last,) = intermediate_tokens(vit, images, (-1,))
    assert torch.equal(last, vit.norm(by_hand[-1]))


def _prepared(variant: str, adapter: str, drop_path: float, block: str) -> VisionTransformer:
    vit = make_vit(variant, drop_path_rate=drop_path, **BLOCKS.get(block, {}))
    if adapter == 'explora':
        apply_explora(vit, ExPLoRAConfig(rank=4), torch.Generator().manual_seed(0))
    elif adapter == 'lora':  # also in the last block
        config = ExPLoRAConfig(
            rank=4, unfreeze_blocks=(), targets=('q', 'k', 'v', 'proj', 'mlp'), alpha=4.0
        )
        apply_explora(vit, config, torch.Generator().manual_seed(0))
    elif adapter == 'key':
        apply_explora(vit, lora_finetuning(4), torch.Generator().manual_seed(0))
    shake_factors(vit, scale=0.1)
    return vit.train(drop_path > 0)


def _assert_pruning_is_exact(vit: VisionTransformer, counts: list[int]) -> None:
    images = images_for(vit, len(counts))
    mask = _mask(vit, counts, patch_grid(vit, images).area)
    token = _token(vit).requires_grad_()
    selection = select_tokens(mask, vit.num_prefix_tokens)
    torch.manual_seed(7)  # of stochastic depth
    rows = encode_selected(vit, images, selection, mask, token)
    torch.manual_seed(7)
    tokens = encode(vit, images, mask, token)
    cls, patches = tokens[:, 0], patch_tokens(vit, tokens)[mask]
    torch.testing.assert_close(rows[selection.cls], cls, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows[selection.patches], patches, rtol=1e-5, atol=1e-5)
    assert len(rows) == len(counts) + sum(counts)
    _assert_same_gradients(vit, rows[selection.cls], rows[selection.patches], cls, patches, token)


def _assert_same_gradients(
    vit: VisionTransformer, cls: Tensor, patch: Tensor, cls_full: Tensor, patch_full: Tensor,
    token: Tensor,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(8)
    slopes = [torch.randn(part.shape, generator=generator) for part in (cls, patch)]
    trained = [p for p in (*vit.parameters(), token) if p.requires_grad]
    found = torch.autograd.grad([cls, patch], trained, slopes, allow_unused=True)
    expected = torch.autograd.grad([cls_full, patch_full], trained, slopes, allow_unused=True)
    used: list[Tensor | None] = list(expected)  # torch declares no None
    total = torch.cat([g.flatten() for g in used if g is not None]).norm()
    for own, full in zip(found, expected, strict=True):
        if full is None:
            assert own is None
        else:
            assert own is not None
            # a key's bias has no influence: its gradient is rounding alone
            assert (own - full).norm() <= 1e-5 * full.norm() + 1e-6 * total


@pytest.mark.parametrize('drop_path', [0.0, 0.6])
@pytest.mark.parametrize('variant', WITH_CLASS)
def test_selected_tokens_equal_all(variant: str, drop_path: float) -> None:
    _assert_pruning_is_exact(_prepared(variant, 'none', drop_path, ''), [3, 0, 1])


@pytest.mark.parametrize('drop_path', [0.0, 0.6])
@pytest.mark.parametrize('adapter', ['explora', 'lora', 'key'])
@pytest.mark.parametrize('variant', ['patch14_layerscale', 'registers', 'qk_norm', 'inner_norms'])
def test_selected_tokens_equal_all_when_adapted(
    variant: str, adapter: str, drop_path: float
) -> None:
    _assert_pruning_is_exact(_prepared(variant, adapter, drop_path, ''), [3, 0, 1])


@pytest.mark.parametrize('counts', [[0, 0], [16, 0], [16, 16], [1], [0]])
def test_any_number_of_masked_patches(counts: list[int]) -> None:
    _assert_pruning_is_exact(_prepared('patch16', 'explora', 0.0, ''), counts)


@pytest.mark.parametrize('block', BLOCKS)
def test_blocks_that_cannot_be_pruned(block: str) -> None:
    _assert_pruning_is_exact(_prepared('patch16', 'none', 0.0, block), [3, 0, 1])


def test_last_block_works_on_selected_tokens_only() -> None:
    vit = make_vit()
    seen: list[int] = []
    mlp: nn.Module = vit.get_submodule('blocks.2.mlp')
    mlp.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0].numel() // 24))
    images, mask = images_for(vit, 4), _mask(vit, [3, 0, 1, 0], 16)
    encode_selected(vit, images, select_tokens(mask, 1))
    assert seen == [4 + 4]


def test_selection_order() -> None:
    mask = torch.tensor([[False, True, False, True], [False] * 4, [True, False, False, False]])
    selection = select_tokens(mask, 3)
    # class tokens first, then the masked patches in row-major order, image by image
    chosen = selection.index.flatten()[selection.rows]
    image = selection.rows // selection.index.shape[1]
    assert image[selection.cls].tolist() == [0, 1, 2]
    assert chosen[selection.cls].tolist() == [0, 0, 0]
    assert image[selection.patches].tolist() == [0, 0, 2]
    assert chosen[selection.patches].tolist() == [3 + 1, 3 + 3, 3 + 0]


@pytest.mark.parametrize('adapter', ['none', 'explora'])
def test_checkpointing_changes_nothing(adapter: str) -> None:
    vit = _prepared('patch16', adapter, 0.0, '')
    images, results = images_for(vit), []
    for enabled in (False, True):
        vit.set_grad_checkpointing(enabled)
        out = encode(vit, images)
        trained = [p for p in vit.parameters() if p.requires_grad]
        results.append((out, torch.autograd.grad(out.square().sum(), trained)))
    assert torch.equal(results[0][0], results[1][0])
    for plain, again in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(plain, again)


def test_images_that_do_not_fit() -> None:
    vit = make_vit()
    with pytest.raises(ImageError, match='4 bands, the model takes 3'):
        patch_grid(vit, torch.zeros(1, 4, 64, 64))
    for height, width in ((8, 64), (64, 40), (0, 64)):
        with pytest.raises(ImageError, match=f'{height} x {width} pixels do not divide'):
            patch_grid(vit, torch.zeros(1, 3, height, width))


def test_fast_attention_gives_the_same_values() -> None:
    vit = make_vit(embed_dim=48)
    images = images_for(vit)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        usual = encode(vit, images)
        with fast_attention(torch.device('cpu'), 17):
            fast = encode(vit, images)
    exact = encode(vit, images)
    error = (usual.float() - exact).norm()
    assert (fast.float() - exact).norm() <= 1.5 * error
