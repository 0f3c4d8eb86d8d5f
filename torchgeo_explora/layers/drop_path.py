"""Stochastic depth that leaves the work of dropped samples out, instead of multiplying it by zero.

Huang et al. 2016, "Deep Networks with Stochastic Depth": in training a sample skips the residual
branch with some probability, and the branch of the others is divided by the probability of keeping
it, so that its expectation stays. timm evaluates every branch and zeroes some outputs; here the
branch sees the kept samples only. Both give the same numbers for the same draw.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from torchgeo_explora.errors import ConfigError

# Apart from anything else that is drawn from the seed of a step
_STREAM = 0x5D0


def drop_path_rates(depth: int, rate: float) -> tuple[float, ...]:
    """Return the probability of each block, increasing linearly from 0 to ``rate``.

    Args:
        depth: Number of blocks.
        rate: Probability of the last one.
    """
    return tuple(rate * index / max(depth - 1, 1) for index in range(depth))


def draw_kept(batch: int, rate: float, generator: torch.Generator) -> Int[Tensor, ' kept']:
    """Draw which samples keep a branch, each on its own, as their increasing indices.

    Args:
        batch: Number of samples.
        rate: Probability of dropping one.
        generator: CPU generator, the only source of randomness: the number of samples kept is then
            known without waiting for a GPU.
    """
    drawn = torch.rand(batch, generator=generator, dtype=torch.float64)
    return (drawn >= rate).nonzero()[:, 0]


def add_branch(
    x: Float[Tensor, 'b *axes dim'],
    branch: Callable[[Tensor], Tensor],
    kept: Int[Tensor, ' kept'],
    rate: float,
) -> Float[Tensor, 'b *axes dim']:
    """Add a residual branch to the samples that keep it, and evaluate it for no others.

    With no sample kept the branch sees an empty batch: its parameters then have gradients of zero,
    and no rank of a distributed run waits for them.

    Args:
        x: Input of the block.
        branch: The residual branch.
        kept: Indices of the samples that keep it.
        rate: Probability with which it is dropped; outputs are divided by ``1 - rate``.
    """
    if len(kept) == len(x):
        return torch.add(x, branch(x), alpha=1 / (1 - rate))
    kept = kept.to(x.device, non_blocking=True)
    out = branch(x.index_select(0, kept))
    return x.index_add(0, kept, out.to(x.dtype), alpha=1 / (1 - rate))


@final
class DropPathBlock(Block):
    """timm's block with stochastic depth that saves work; made from one by :meth:`of`.

    Its parameters are those of the block that it is made from, under the same names. In training
    what is dropped depends on ``seed`` alone, so that a checkpointed block draws the same twice.

    Attributes:
        seed: Seed of the present step, see :func:`seed_drop_path`; None before the first.
        rate: Probability of dropping each of the two branches.
        index: Number of the block, which keeps the draws of blocks apart.
    """

    seed: int | None
    rate: float
    index: int

    @classmethod
    def of(cls, block: Block, rate: float, index: int) -> 'DropPathBlock':
        """Take a block's modules over.

        Args:
            block: The block; not to be used on its own any more.
            rate: Probability of dropping each of the two branches.
            index: Number of the block in its model.
        """
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        for name, module in block.named_children():
            own = name.startswith('drop_path')
            new.add_module(name, nn.Identity() if own else module)
        new.seed, new.rate, new.index = None, rate, index
        return new.train(block.training)

    def forward(
        self,
        x: Float[Tensor, 'b tokens dim'],
        *args: Any,  # noqa: ANN401  # timm's own
        **kwargs: Any,  # noqa: ANN401
    ) -> Float[Tensor, 'b tokens dim']:
        """Do what timm's block does, each branch for the samples that keep it.

        Args:
            x: Tokens.
            *args: Attention masks of timm; not possible in training.
            **kwargs: Likewise.
        """
        if not self.training or self.rate == 0:
            whole: Tensor = super().forward(x, *args, **kwargs)
            return whole
        assert not any(isinstance(a, Tensor) for a in (*args, *kwargs.values())), 'masks fit all'
        first, second = self.draw(len(x))
        x = add_branch(x, lambda y: self.ls1(self.attn(self.norm1(y))), first, self.rate)
        return add_branch(x, lambda y: self.ls2(self.mlp(self.norm2(y))), second, self.rate)

    def draw(self, batch: int) -> tuple[Int[Tensor, ' first'], Int[Tensor, ' second']]:
        """Return which samples keep the attention branch, and which the MLP branch.

        Args:
            batch: Number of samples.

        Raises:
            ConfigError: If no seed was set.
        """
        if self.seed is None:
            raise ConfigError(
                'Stochastic depth has no seed for this step: call seed_drop_path(model, seed) '
                'before every forward pass in training.'
            )
        mixed = ((self.seed * 1_000_003 + self.index) * 4096 + _STREAM) % 2**63
        generator = torch.Generator().manual_seed(mixed)
        return draw_kept(batch, self.rate, generator), draw_kept(batch, self.rate, generator)

    def extra_repr(self) -> str:
        """Describe the block in ``print(model)``."""
        return f'drop_path={self.rate:g}'


def apply_drop_path(vit: VisionTransformer, rate: float) -> tuple[float, ...]:
    """Give a model stochastic depth, increasing linearly with depth; its weights stay as they are.

    Args:
        vit: The model; its blocks are replaced by ones with the same parameters under the same
            names. Nothing changes with a rate of 0.
        rate: Probability in the last block, from 0 to less than 1.

    Returns:
        The rate of each block.

    Raises:
        ConfigError: If the rate is out of range, or a block is not timm's standard one. The model
            is unchanged then.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f'drop_path is {rate}: give a probability from 0 to less than 1.')
    rates = drop_path_rates(len(vit.blocks), rate)
    if rate == 0:
        return rates
    for index, block in enumerate(vit.blocks):
        if type(block) is not Block:
            raise ConfigError(
                f'Block {index} is a {type(block).__name__}, and stochastic depth is made for '
                "timm's standard Block: set drop_path to 0, or use a plain vit_* model."
            )
    made = [DropPathBlock.of(b, r, i) for i, (b, r) in enumerate(_pairs(vit, rates))]
    vit.blocks = nn.Sequential(*made)
    return rates


def _pairs(vit: VisionTransformer, rates: Sequence[float]) -> list[tuple[Block, float]]:
    blocks = [block for block in vit.blocks if isinstance(block, Block)]
    return list(zip(blocks, rates, strict=True))


def seed_drop_path(module: nn.Module, seed: int) -> None:
    """Say what the next training step draws from, in every block inside a module.

    Args:
        module: A model, or something that holds one.
        seed: Of the step, and of the rank.
    """
    for block in module.modules():
        if isinstance(block, DropPathBlock):
            block.seed = seed
