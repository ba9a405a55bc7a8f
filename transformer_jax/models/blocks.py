"""The blocks of encoder and decoder, and their residual connections."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from transformer_jax.attention import AttentionInputs
from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens
from transformer_jax.layers.dropout import dropout
from transformer_jax.layers.feed_forward import FeedForward, MixtureOfExperts, Moe
from transformer_jax.layers.norms import Norm
from transformer_jax.layers.parameters import constrain
from transformer_jax.models.architecture import Architecture
from transformer_jax.models.multi_head import PAST, MultiHead


class Connection(nn.Module):
    """The residual path past sublayers, with its norms, see `norms.PLACEMENTS`.

    Dropout is applied to the outputs of sublayers before they are added.

    Attributes:
        architecture: of the model.
        stack: 'encoder' or 'decoder'.
    """

    architecture: Architecture
    stack: str

    def setup(self):
        self.placement = self.architecture.placement
        self.norm = make_norm(self.architecture)
        if self.placement.inner:
            self.inner_norm = make_norm(self.architecture)

    def __call__(
        self, x_BTD: jax.Array, sublayer: Callable[[jax.Array], jax.Array], rate: jax.Array | None
    ) -> jax.Array:
        """Add the output of one `sublayer`, a function of [B, T, D], to x_BTD."""
        return self.join(x_BTD, rate, sublayer(self.branch(x_BTD)))

    def branch(self, x_BTD: jax.Array) -> jax.Array:
        """Return the input of the sublayers."""
        return self.norm(x_BTD) if self.placement.outer == 'before' else x_BTD

    def join(self, x_BTD: jax.Array, rate: jax.Array | None, *outputs_BTD: jax.Array) -> jax.Array:
        """Add the outputs of sublayers to x_BTD."""
        alpha, _ = self.architecture.residual_scales(self.stack)
        y_BTD = x_BTD if alpha == 1 else alpha * x_BTD
        for output_BTD in outputs_BTD:
            if self.placement.inner:
                output_BTD = self.inner_norm(output_BTD)
            y_BTD += dropout(self, output_BTD, rate)
        return constrain(self.norm(y_BTD) if self.placement.outer == 'after' else y_BTD)


def make_norm(architecture: Architecture) -> Norm:
    """Make the architecture's norm."""
    return Norm(architecture.norm)


def make_ffn(architecture: Architecture, stack: str) -> FeedForward | MixtureOfExperts:
    """Make the position-wise feed-forward network of a layer in the 'encoder' or 'decoder'."""
    kind, (_, beta) = architecture.ffn, architecture.residual_scales(stack)
    if isinstance(kind, Moe):
        return MixtureOfExperts(kind, architecture.d_ff, beta)
    return FeedForward(kind, architecture.d_ff, beta)


class Block(nn.Module):
    """A block: self-attention, cross-attention in a decoder with a source, and feed-forward.

    Vaswani et al. (2017), Figure 1. With `model.block='parallel'` the sublayers read the same norm
    of the input, and their outputs are added at once.

    Attributes:
        architecture: of the model.
        stack: 'encoder', where tokens attend in both directions, or 'decoder', to the past alone.
        layer: from 0.
        crosses: whether it has cross-attention to a memory.
    """

    architecture: Architecture
    stack: str
    layer: int
    crosses: bool = False

    def setup(self):
        architecture, stack = self.architecture, self.stack
        self.mask = PAST if stack == 'decoder' else Segments()
        self.attention = MultiHead(architecture, stack, self.layer)
        self.attention_connection = Connection(architecture, stack)
        if self.crosses:
            self.cross = MultiHead(architecture, 'cross', self.layer)
        self.ffn = make_ffn(architecture, stack)
        if architecture.block == 'sequential':
            if self.crosses:
                self.cross_connection = Connection(architecture, stack)
            self.ffn_connection = Connection(architecture, stack)

    def __call__(
        self,
        x_BTD: jax.Array,
        tokens: Tokens,
        rate: jax.Array | None,
        memory: tuple[jax.Array, Tokens] | None = None,
        shared: Any = (),
    ) -> jax.Array:
        """Process all tokens at once.

        Args:
            x_BTD: the output of the block before.
            tokens: of x_BTD.
            rate: dropout's; None: no dropout.
            memory: (memory_BSD, its tokens), where the block has cross-attention.
            shared: the parameters of a position encoding that all layers share.
        """
        y_BTD = self.attention_connection.branch(x_BTD)
        keys = self.attention.keys(y_BTD, tokens)
        inputs = AttentionInputs(self.mask, tokens, tokens, position_params=shared)
        o_BTD = self.attention(y_BTD, keys, inputs, rate)
        if not self.crosses:
            return self._finish(x_BTD, y_BTD, o_BTD, tokens, None, rate)
        assert memory is not None, 'a block with cross-attention has a memory'
        memory_BSD, memory_tokens = memory
        memory_keys = self.cross.keys(memory_BSD, memory_tokens)
        cross_inputs = AttentionInputs(Segments(), tokens, memory_tokens)

        def cross(y_BTD: jax.Array) -> jax.Array:
            return self.cross(y_BTD, memory_keys, cross_inputs, rate)

        return self._finish(x_BTD, y_BTD, o_BTD, tokens, cross, rate)

    def init_cache(self, x_BSD: jax.Array, tokens: Tokens, length: int) -> Any:
        """Make the empty cache of self-attention, with room for `length` keys in each row."""
        first_B1 = jax.tree.map(lambda a_BS: a_BS[:, :1], tokens)
        return self.attention.init_cache(x_BSD[:, :1], first_B1, length, self.mask)

    def step(
        self,
        x_RTD: jax.Array,
        tokens: Tokens,
        cache: Any,
        memory: tuple[Any, Tokens] | None = None,
        shared: Any = (),
    ) -> tuple[jax.Array, Any]:
        """Process new tokens of R hypotheses: (x_RTD, the cache with the new tokens).

        Args:
            x_RTD: the output of the block before. With cross-attention T is 1, and R is B or a
                multiple of it: the hypotheses of a row of the memory are adjacent.
            tokens: of x_RTD.
            cache: of the tokens before.
            memory: (projected keys and values, tokens), where the block has cross-attention.
            shared: the parameters of a position encoding that all layers share.
        """
        y_RTD = self.attention_connection.branch(x_RTD)
        inputs = AttentionInputs(self.mask, tokens, tokens, position_params=shared)
        o_RTD, cache = self.attention.step(y_RTD, inputs, cache)
        if not self.crosses:
            return self._finish(x_RTD, y_RTD, o_RTD, tokens, None, None), cache
        assert memory is not None, 'a block with cross-attention has a memory'
        # The hypotheses of a sentence become the times of one target, so that cross-attention reads
        # the sentence's memory in one matrix product.
        memory_keys, memory_tokens = memory
        x_BTD, y_BTD, o_BTD, tokens = jax.tree.map(
            lambda a: a.reshape(len(memory_tokens.segments_BT), -1, *a.shape[2:]),
            (x_RTD, y_RTD, o_RTD, tokens),
        )
        inputs = AttentionInputs(Segments(), tokens, memory_tokens)

        def cross(y_BTD):
            return self.cross.attend_decode(y_BTD, memory_keys, inputs)

        x_BTD = self._finish(x_BTD, y_BTD, o_BTD, tokens, cross, None)
        return x_BTD.reshape(x_RTD.shape), cache

    def _finish(
        self,
        x_BTD: jax.Array,
        y_BTD: jax.Array,
        o_BTD: jax.Array,
        tokens: Tokens,
        cross: Callable[[jax.Array], jax.Array] | None,
        rate: jax.Array | None,
    ) -> jax.Array:
        """Apply all that follows self-attention.

        Args:
            x_BTD: the input of the block.
            y_BTD: the input of self-attention, the branch of x_BTD.
            o_BTD: the output of self-attention.
            tokens: of x_BTD.
            cross: cross-attention from an array like y_BTD; None: there is none.
            rate: dropout's.
        """
        if self.architecture.block == 'parallel':
            others = (*([cross(y_BTD)] if cross else []), self.ffn(y_BTD, tokens, rate))
            return self.attention_connection.join(x_BTD, rate, o_BTD, *others)
        x_BTD = self.attention_connection.join(x_BTD, rate, o_BTD)
        if cross:
            x_BTD = self.cross_connection(x_BTD, cross, rate)
        return self.ffn_connection(x_BTD, lambda y_BTD: self.ffn(y_BTD, tokens, rate), rate)
