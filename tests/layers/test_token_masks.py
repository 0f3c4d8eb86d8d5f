"""Which tokens are kept: relations between noise, order and mask, and what is refused."""

import pytest
import torch

from torchgeo_explora.errors import ConfigError
from torchgeo_explora.layers.token_masks import (
    TokenMask,
    draw_noise,
    mask_from_noise,
    mask_from_shared_noise,
)


def _noise(batch: int = 4, tokens: int = 12, seed: int = 0) -> torch.Tensor:
    return draw_noise(batch, tokens, torch.Generator().manual_seed(seed))


def _assert_consistent(mask: TokenMask, tokens: int) -> None:
    every = torch.arange(tokens).expand(len(mask.keep), -1)
    both = torch.cat([mask.keep, mask.hidden], dim=1)
    assert torch.equal(both.sort(dim=1).values, every)  # every token is kept or masked, once
    assert torch.equal(mask.hidden.sort(dim=1).values, mask.hidden)
    assert torch.equal(mask.masked.nonzero()[:, 1].view_as(mask.hidden), mask.hidden)
    # the places of the kept tokens in the sequence are the first ones, in the order of ``keep``
    kept = mask.keep.shape[1]
    assert torch.equal(mask.restore.gather(1, mask.keep), every[:, :kept])
    assert torch.equal(mask.restore.sort(dim=1).values, every)
    assert torch.equal(mask.restore >= kept, mask.masked)


@pytest.mark.parametrize(('tokens', 'ratio'), [(12, 0.75), (9, 0.75), (196, 0.75), (7, 0.5), (2, 0.5), (5, 0.1)])  # fmt: skip
def test_smallest_noise_is_kept_in_its_order(tokens: int, ratio: float) -> None:
    noise = _noise(tokens=tokens)
    mask = mask_from_noise(noise, ratio)
    count = int(tokens * (1 - ratio))
    assert mask.keep.shape[1] == count
    _assert_consistent(mask, tokens)
    for row, kept in zip(noise.tolist(), mask.keep.tolist(), strict=True):
        assert kept == sorted(range(tokens), key=row.__getitem__)[:count]


@pytest.mark.parametrize('copies', [1, 2, 3])
def test_shared_masks_repeat_the_places(copies: int) -> None:
    noise = _noise(tokens=8)
    one, shared = mask_from_noise(noise, 0.75), mask_from_shared_noise(noise, 0.75, copies)
    _assert_consistent(shared, 8 * copies)
    assert torch.equal(shared.masked, one.masked.repeat(1, copies))
    assert torch.equal(shared.keep, torch.cat([one.keep + 8 * i for i in range(copies)], dim=1))


def test_rows_pick_masked_tokens_of_each_copy() -> None:
    mask = mask_from_noise(_noise(tokens=12), 0.75)
    values = torch.arange(4 * 12).view(4, 3, 4)  # (batch, copies, n)
    for copy, rows in enumerate(mask.rows(3)):
        hidden = mask.masked.view(4, 3, 4)[:, copy]
        assert torch.equal(values[:, copy].flatten()[rows], values[:, copy][hidden])


def test_noise_is_seeded_and_uniform() -> None:
    assert torch.equal(_noise(seed=3), _noise(seed=3))
    assert not torch.equal(_noise(seed=3), _noise(seed=4))
    noise = _noise(64, 64)
    assert noise.min() >= 0 and noise.max() < 1 and abs(noise.mean().item() - 0.5) < 0.02


def test_every_token_is_masked_as_often() -> None:
    masked = mask_from_noise(_noise(4000, 8), 0.75).masked.float().mean(dim=0)
    torch.testing.assert_close(masked, torch.full((8,), 0.75), atol=0.04, rtol=0)


@pytest.mark.parametrize('ratio', [0.0, 1.0, -0.5, 1.5, 75, float('nan')])
def test_impossible_ratios(ratio: float) -> None:
    with pytest.raises(ConfigError, match='mask ratio is'):
        mask_from_noise(_noise(), ratio)


@pytest.mark.parametrize('ratio', [0.99, 0.95])
def test_nothing_left_to_see(ratio: float) -> None:
    with pytest.raises(ConfigError, match=f'ratio of {ratio} keeps 0 of 12'):
        mask_from_noise(_noise(), ratio)


def test_same_mask_elsewhere() -> None:
    mask = mask_from_noise(_noise(), 0.75)
    moved = mask.to(torch.device('cpu'))
    for name in ('keep', 'hidden', 'restore', 'masked'):
        assert torch.equal(getattr(moved, name), getattr(mask, name))
