"""Multi-head attention with its parameters, and the encoder's and decoder's layers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from transformer_jax import spec
from transformer_jax.attention import Attention
from transformer_jax.attention.masks import Causal, Segments, Visible
from transformer_jax.batch import Tokens
from transformer_jax.config import ModelConfig
from transformer_jax.layers import FFNS, NORMS, FeedForward, HeadsIn, HeadsOut, Norm, constrain, dropout


class Projection(nn.Module):
    """Owns the parameters that one side of a kind of attention, its queries or its keys, asks for."""

    project: Callable[..., Any]
    heads: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> Any:
        return self.project(self, x_BTD)

    @nn.nowrap
    def heads_in(self, name: str, x_BTD: jax.Array, heads: int, size: int, axis: str) -> jax.Array:
        """Projects x_BTD to x_BTNH with a learned kernel."""
        return HeadsIn(heads, size, axis, name=name)(x_BTD)


class MultiHead(nn.Module):
    """A kind of attention with its parameters: MultiHead of Vaswani et al. (2017), section 3.2.2."""

    kind: Attention
    heads: tuple[int, int, int, int]
    d_model: int

    def setup(self):
        self.queries = Projection(self.kind.queries, self.heads)
        self.keys = Projection(self.kind.keys, self.heads)
        self.out = HeadsOut(self.d_model)

    def __call__(self, x_BTD: jax.Array, keys: Any, visible: Visible) -> jax.Array:
        """Attends from x_BTD to projected `keys`."""
        return self._mix(*self.kind.attend(self.queries(x_BTD), keys, visible))

    def step(self, x_BTD: jax.Array, tokens: Tokens, mask: Any, cache: Any) -> tuple[jax.Array, Any]:
        """Attends from x_BTD to itself and to all that the cache holds."""
        o_BTNH, weights_BNTS, cache = self.kind.step(self.queries(x_BTD), self.keys(x_BTD), tokens, mask, cache)
        return self._mix(o_BTNH, weights_BNTS), cache

    def init_cache(self, x_B1D: jax.Array, length: int) -> Any:
        """An empty cache for `length` steps."""
        return self.kind.init_cache(self.keys(x_B1D), length)

    def _mix(self, o_BTNH: jax.Array, weights_BNTS: jax.Array) -> jax.Array:
        self.sow('intermediates', 'weights_BNTS', weights_BNTS)
        return self.out(o_BTNH)


class Connection(nn.Module):
    """Add & Norm: LayerNorm(x + Dropout(Sublayer(x))), or with placement 'pre' x + Dropout(Sublayer(LayerNorm(x)))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, sublayer: Callable[[jax.Array], Any], rate: jax.Array | None) -> Any:
        """`sublayer` maps x_BTD to y_BTD, or to (y_BTD, anything), which is then returned beside the result."""
        norm = Norm(spec.parse(self.config.norm, NORMS, 'model.norm'), name='norm')
        pre = self.config.norm_placement == 'pre'
        result = sublayer(norm(x_BTD) if pre else x_BTD)
        y_BTD, *extra = result if isinstance(result, tuple) else (result,)
        y_BTD = x_BTD + dropout(self, y_BTD, rate)
        y_BTD = constrain(y_BTD if pre else norm(y_BTD))
        return (y_BTD, *extra) if extra else y_BTD


def multi_head(config: ModelConfig, site: str) -> MultiHead:
    """The attention of a site: 'encoder', 'decoder' or 'cross'."""
    return MultiHead(config.attention_at(site), config.heads(), config.d_model)


def feed_forward(config: ModelConfig) -> FeedForward:
    """The position-wise feed-forward network."""
    return FeedForward(spec.parse(config.ffn, FFNS, 'model.ffn'), config.d_ff)


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward (Vaswani et al. 2017, Figure 1 left)."""

    config: ModelConfig

    def setup(self):
        self.attention = multi_head(self.config, 'encoder')
        self.attention_connection = Connection(self.config)
        self.ffn = feed_forward(self.config)
        self.ffn_connection = Connection(self.config)

    def __call__(self, x_BSD: jax.Array, tokens: Tokens, rate: jax.Array | None) -> jax.Array:
        visible = Visible(Segments(), tokens, tokens)
        x_BSD = self.attention_connection(
            x_BSD, lambda y_BSD: self.attention(y_BSD, self.attention.keys(y_BSD), visible), rate)
        return self.ffn_connection(x_BSD, self.ffn, rate)


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward (Vaswani et al. 2017, Figure 1 right)."""

    config: ModelConfig

    def setup(self):
        self.attention = multi_head(self.config, 'decoder')
        self.attention_connection = Connection(self.config)
        self.cross = multi_head(self.config, 'cross')
        self.cross_connection = Connection(self.config)
        self.ffn = feed_forward(self.config)
        self.ffn_connection = Connection(self.config)

    def __call__(self, x_BTD: jax.Array, tokens: Tokens, memory_BSD: jax.Array, memory_tokens: Tokens,
                 rate: jax.Array | None) -> jax.Array:
        """All target tokens at once."""
        visible = Visible(Segments() & Causal(), tokens, tokens)
        x_BTD = self.attention_connection(
            x_BTD, lambda y_BTD: self.attention(y_BTD, self.attention.keys(y_BTD), visible), rate)
        return self._rest(x_BTD, tokens, self.cross.keys(memory_BSD), memory_tokens, rate)

    def init_cache(self, x_BSD: jax.Array, length: int) -> Any:
        """The empty cache of self-attention, for as many rows as `x_BSD` has."""
        return self.attention.init_cache(x_BSD[:, :1], length)

    def step(self, x_R1D: jax.Array, tokens: Tokens, cache: Any, memory_keys: Any,
             memory_tokens: Tokens) -> tuple[jax.Array, Any]:
        """One new token for each of R hypotheses, given the cache of those before them."""
        x_R1D, cache = self.attention_connection(
            x_R1D, lambda y_R1D: self.attention.step(y_R1D, tokens, Segments() & Causal(), cache), None)
        # The hypotheses of a sentence are to its memory what the times of a target are: rows of one matrix product.
        x_BTD, tokens = jax.tree.map(
            lambda a: a.reshape(len(memory_tokens.segments_BT), -1, *a.shape[2:]), (x_R1D, tokens))
        return self._rest(x_BTD, tokens, memory_keys, memory_tokens, None).reshape(x_R1D.shape), cache

    def _rest(self, x_BTD: jax.Array, tokens: Tokens, memory_keys: Any, memory_tokens: Tokens,
              rate: jax.Array | None) -> jax.Array:
        visible = Visible(Segments(), tokens, memory_tokens)
        x_BTD = self.cross_connection(x_BTD, lambda y_BTD: self.cross(y_BTD, memory_keys, visible), rate)
        return self.ffn_connection(x_BTD, self.ffn, rate)
