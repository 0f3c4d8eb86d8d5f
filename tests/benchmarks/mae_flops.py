"""Arithmetic of one step of a masked autoencoder, from the sizes of its matrix products.

A product of (m, k) and (k, n) counts as 2 m k n floating-point operations. What is counted, for
width D, MLP width H, T tokens in sequences of n:

* a block's linear layers: ``T (8 D^2 + 4 D H)`` forward, as much again for the gradient of its
  input, and once more for the gradient of its weights where they train;
* its attention: ``4 T n D`` forward, twice that backward (nothing for recomputation);
* the patch embedding: ``2 E i D`` forward for E embedded tokens of i values, and again for its
  weights where they train, but nothing for the pixels;
* from encoder to decoder ``2 T D W``; the predictions ``2 R W o`` for R tokens of o values; like
  a block's linear layers, input and weight gradients apart;
* a low-rank update of rank r on an output of width D: ``8 T D r`` backward (two projections and
  two gradients); its forward is merged into the weight and costs ``2 r D^2`` a merge, forward and
  backward.

Norms, activations, softmax, pixels and the optimizer are not counted: they are bound by memory. A
pruned decoder computes keys and values of its last block at all tokens, everything behind them and
the predictions at the masked tokens only.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Some blocks.

    Args:
        width: Width of the tokens.
        hidden: Width of the MLP.
        depth: Number of blocks.
        length: Tokens of a sequence.
    """

    width: int
    hidden: int
    depth: int
    length: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of one step.

    Args:
        batch: Images.
        encoder: Blocks over the visible tokens.
        decoder: Blocks over all tokens.
        tokens: Tokens of an image besides class and register tokens.
        masked: How many of them are masked.
        values: Mean number of pixel values of a token.
    """

    batch: int
    encoder: Stack
    decoder: Stack
    tokens: int
    masked: int
    values: float


@dataclass(frozen=True)
class Training:
    """What trains, and what is saved.

    Args:
        unfrozen: Encoder blocks trained in full; None for every weight of the encoder.
        rank: Rank of the updates of Q and V in the other blocks.
        decoder_rank: Rank in the decoder; None for every weight of the decoder.
        new_bands: Whether patch embedding and predictions train besides.
        visible_only: Whether only visible patches are embedded.
        pruned: Whether only masked tokens are predicted.
    """

    unfrozen: int | None
    rank: int = 0
    decoder_rank: int | None = None
    new_bands: bool = False
    visible_only: bool = True
    pruned: bool = True


@dataclass(frozen=True)
class Operations:
    """Operations of a part of the model: linear layers, by what trains, and attention."""

    linear: float
    trained: float
    attention: float
    low_rank: float

    def step(self) -> float:
        """Return forward and backward together."""
        return 2 * self.linear + self.trained + 3 * self.attention + self.low_rank


def step_flops(sizes: Sizes, training: Training) -> float:
    """Return the floating-point operations of a step.

    Args:
        sizes: Sizes of the step.
        training: What trains, and what is saved.
    """
    parts = embed_flops(sizes, training)
    return parts + _encoder(sizes, training).step() + _decoder(sizes, training).step()


def embed_flops(sizes: Sizes, training: Training) -> float:
    """Return the operations of the patch embedding, forward and backward."""
    kept = sizes.tokens - sizes.masked if training.visible_only else sizes.tokens
    forward = 2 * sizes.batch * kept * sizes.values * sizes.encoder.width
    return (2 if training.unfrozen is None or training.new_bands else 1) * forward


def _linear(stack: Stack, tokens: float, selected: float) -> float:
    """Return a block's linear layers: keys and values of all tokens, the rest of the selected."""
    width = stack.width
    return 4 * width**2 * tokens + (4 * width**2 + 4 * width * stack.hidden) * selected


def _updates(stack: Stack, rank: int, blocks: int, queries: float, values: float) -> float:
    merges = blocks * 2 * 2 * 2 * rank * stack.width**2  # Q and V, forward and backward
    return merges + 8 * stack.width * rank * (queries + values)


def _encoder(sizes: Sizes, training: Training) -> Operations:
    stack = sizes.encoder
    tokens = sizes.batch * stack.length
    one, blocks = _linear(stack, tokens, tokens), stack.depth
    in_full = blocks if training.unfrozen is None else training.unfrozen
    adapted = blocks - in_full if training.rank > 0 else 0
    attention = blocks * 4 * tokens * stack.length * stack.width
    update = _updates(stack, training.rank, adapted, adapted * tokens, adapted * tokens)
    return Operations(blocks * one, in_full * one, attention, update)


def _decoder(sizes: Sizes, training: Training) -> Operations:
    stack, width = sizes.decoder, sizes.decoder.width
    tokens = sizes.batch * stack.length
    read = sizes.batch * sizes.masked if training.pruned else tokens
    shown = sizes.batch * sizes.encoder.length
    earlier = stack.depth - 1
    blocks = earlier * _linear(stack, tokens, tokens) + _linear(stack, tokens, read)
    enter = 2 * shown * sizes.encoder.width * width
    rows = sizes.batch * (sizes.masked if training.pruned else sizes.tokens)
    leave = 2 * rows * width * sizes.values
    attention = 4 * stack.length * width * (earlier * tokens + read)
    linear = blocks + enter + leave
    if training.decoder_rank is None:
        return Operations(linear, linear, attention, 0.0)
    update = _updates(
        stack, training.decoder_rank, stack.depth, earlier * tokens + read, stack.depth * tokens
    )
    return Operations(linear, leave if training.new_bands else 0.0, attention, update)
