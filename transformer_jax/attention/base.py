"""The interface of an attention kind.

A kind is a frozen dataclass whose fields are the options of its spec string. Its methods are pure
functions of arrays. The module `models.multi_head.MultiHead` owns the parameters and calls them:

    queries = kind.project_queries(scope, x_BTD, query_tokens)
    keys = kind.project_keys_values(scope, x_BSD, key_tokens)
    inputs = AttentionInputs(mask, query_tokens, key_tokens, params=kind.attention_params(scope), …)
    o_BTNH = kind.attend(queries, keys, inputs)
    o_BTNH = kind.postprocess_heads(o_BTNH, inputs.params)

Then it applies the output gate and the output projection. While decoding, `step` with a cache takes
the place of `attend`.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.attention.cache import GrowingCache
from transformer_jax.attention.masks import Full, Mask
from transformer_jax.batch import Tokens
from transformer_jax.layers.dropout import apply_dropout
from transformer_jax.layers.param_scope import HeadDims, ParamScope
from transformer_jax.positions import Position
from transformer_jax.ranges import Ranged

GATES = ('none', 'head', 'element')
MIN_READ = 64  # a decoding step reads at least so many slots of its cache
# What a kind can support. `Attention.supports` says which of these it does; tests/laws check it.
# encoder: self-attention in both directions. causal: self-attention of a decoder. cross: attention
# to another sequence. padding: padded rows. segments: several segments packed in a row. decode: a
# cache. bias: position encodings that change scores. context: rows that are cut over devices.
CAPABILITIES = ('encoder', 'causal', 'cross', 'padding', 'segments', 'decode', 'bias', 'context')


@flax.struct.dataclass
class AttentionInputs:
    """Everything that attention reads besides its queries, keys and values."""

    mask: Mask = flax.struct.field(pytree_node=False)  # of the site and of the kind
    query_tokens: Tokens  # positions_BT and segments_BT of the queries
    key_tokens: Tokens  # positions_BS and segments_BS of the keys
    position: Position = flax.struct.field(pytree_node=False, default=Position())
    params: Any = ()  # from the kind's `attention_params`
    position_params: Any = ()  # from the position encoding's `params`
    dropout: tuple[jax.Array, jax.Array] | None = None  # (key, rate) for the weights; None: none
    # With a cache: which keys belong to the past of each query, in addition to the mask. None: all.
    past_BTS: jax.Array | None = None
    engine: str = flax.struct.field(pytree_node=False, default='dense')

    def allowed_BTS(self) -> jax.Array:
        """Return the whole mask as booleans [B, T, S]."""
        allowed_BTS = self.mask.allowed(self.query_tokens, self.key_tokens)
        return allowed_BTS if self.past_BTS is None else allowed_BTS & self.past_BTS

    def apply_dropout(self, weights: jax.Array) -> jax.Array:
        """Apply dropout to weights of any shape; without dropout return them unchanged."""
        if self.dropout is None:
            return weights
        rng, rate = self.dropout
        return apply_dropout(rng, weights, rate)


@dataclasses.dataclass(frozen=True)
class Attention(Ranged, abc.ABC):
    """The base class of all attention kinds.

    `queries` and `keys` are pytrees that each kind chooses; batch and time are the first two axes
    of every leaf. They are projected by two methods because cross-attention projects the keys of a
    source sentence once, and queries at every step.

    Options:
        gate: multiplies the output o_BTNH by sigmoid(x W + b) before the output projection. none;
            head, one gate for each head; element, one for each element of a head.
    """

    gate: str = dataclasses.field(default='none', kw_only=True)
    engines: ClassVar[tuple[str, ...]] = ()  # that can run the kind; (): it has its own algorithm
    mask: ClassVar[Mask] = Full()
    max_len: ClassVar[int] = 0  # the most tokens in a row; 0: no limit
    supports_dropout: ClassVar[bool] = True  # False: there are no weights to drop
    reads_layer: ClassVar[bool] = False  # True: it reads `ParamScope.layer`

    def __post_init__(self):
        super().__post_init__()
        if self.gate not in GATES:
            raise ValueError(f'gate={self.gate!r}, it takes {", ".join(GATES)}')

    @abc.abstractmethod
    def supports(self) -> frozenset[str]:
        """Return the CAPABILITIES of the kind with its present options."""

    def tile_heads(self, heads: HeadDims) -> HeadDims:
        """Return the sizes of the heads that a position encoding meets.

        Args:
            heads: the sizes of the heads of the layer.
        """
        return heads

    def rotated_dim(self, heads: HeadDims) -> int:
        """Return the number of dimensions that a rotary position encoding rotates."""
        return self.tile_heads(heads).head_dim

    def incompatibility(self, position: Position, engine: str) -> str:
        """Explain why the kind cannot work with a position encoding or an engine.

        Returns:
            the reason and what would work; '' where the kind can work with both.
        """
        if position.acts_on_scores() and 'bias' not in self.supports():
            return (
                'it has no scores that the position encoding could act on; none, sinusoidal, '
                'learned and rope work'
            )
        if engine not in (*self.engines, 'auto') and self.engines:
            return f'engines that can: auto, {", ".join(self.engines)}'
        return ''

    @abc.abstractmethod
    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Any:
        """Project activations to queries.

        Args:
            scope: declares the learned arrays of the projection.
            x_BTD: activations of the query side.
            tokens: their positions_BT and segments_BT.

        Returns:
            a pytree whose leaves are [B, T, …], for example q_BTNH.
        """

    @abc.abstractmethod
    def project_keys_values(self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens) -> Any:
        """Project activations to keys and values.

        Args:
            scope: declares the learned arrays of the projections.
            x_BSD: activations of the key side: of the same sequence, or of another one.
            tokens: their positions_BS and segments_BS.

        Returns:
            a pytree whose leaves are [B, S, …], for example (k_BSKH, v_BSKH). A cache stores it.
        """

    def attention_params(self, scope: ParamScope) -> Any:
        """Declare the learned arrays that `attend` reads, as a pytree of any shape."""
        return ()

    @abc.abstractmethod
    def attend(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        """Mix the values by the attention weights.

        Args:
            queries: from `project_queries`.
            keys: from `project_keys_values`.
            inputs: mask, tokens, position encoding, parameters, dropout and engine.

        Returns:
            o_BTNH in the dtype of the values, exactly 0 for a query that may see no key. H is the
            size of a value.
        """

    def weights(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        """Return the attention weights [B, N, T, S] that `attend` uses, without dropout.

        `attend` is linear in the values, so that unit vectors as values give the weights.
        """
        B, S, K, _ = keys.v_BSKH.shape
        v_BSKH = jnp.broadcast_to(jnp.eye(S, dtype=keys.v_BSKH.dtype)[None, :, None], (B, S, K, S))
        o_BTNH = self.attend(
            queries, keys._replace(v_BSKH=v_BSKH), dataclasses.replace(inputs, dropout=None)
        )
        return jnp.moveaxis(o_BTNH, 2, 1)

    def logits(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array | None:
        """Return the scores [B, N, T, S] before the mask and the normalizer, in float32.

        None where the kind has no score for each pair of query and key.
        """
        return None

    @property
    def has_scores(self) -> bool:
        """Whether `logits` returns scores."""
        return type(self).logits is not Attention.logits

    @property
    def has_signed_weights(self) -> bool:
        """Whether the weights may be of either sign, so that they are no shares."""
        return False

    def postprocess_heads(self, o_BTNH: jax.Array, params: Any) -> jax.Array:
        """Return o_BTNH after what follows the mixing, for example a norm of each head.

        Args:
            o_BTNH: from `attend` or `step`.
            params: from `attention_params`.
        """
        return o_BTNH

    def attend_decode(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        """Return what `attend` returns, computed in the best way for the few queries of a step."""
        return self.attend(queries, keys, inputs)

    def init_cache(self, keys: Any, length: int, mask: Mask) -> Any:
        """Return an empty cache.

        Args:
            keys: as from `project_keys_values`, of any number of tokens: their shapes are used.
            length: the number of keys that a row of the cache can hold.
            mask: through which queries will see the keys; a window needs a smaller cache.
        """
        return GrowingCache.empty(keys, length)

    def step(
        self, queries: Any, keys: Any, inputs: AttentionInputs, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Attend from new tokens to themselves and to the tokens in the cache.

        Args:
            queries: of the new tokens; the first axis is R, the hypotheses of all rows.
            keys: of the new tokens.
            inputs: `inputs.query_tokens` are the new tokens.
            cache: from `init_cache` or the last step.

        Returns:
            (o_RTNH, the cache with the new tokens in it).
        """
        view, cache = cache.append(keys, inputs.query_tokens)
        keys, tokens, past_RTS, num_written = view
        (R, T), S = inputs.query_tokens.positions_BT.shape, tokens.positions_BT.shape[1]

        # The hypotheses of a row share its keys. They become further queries of that row, so that
        # the scores of all of them are one matrix product.
        def fold(a_RT):
            return a_RT.reshape(len(tokens.positions_BT), -1, *a_RT.shape[2:])

        queries, query_tokens, past_BTS = jax.tree.map(
            fold, (queries, inputs.query_tokens, past_RTS)
        )

        def attend_to_first(size):
            first_keys, key_tokens = jax.tree.map(lambda a_BS: a_BS[:, :size], (keys, tokens))
            past = None if past_BTS is None else past_BTS[..., :size]
            return self.attend_decode(
                queries,
                first_keys,
                dataclasses.replace(
                    inputs, query_tokens=query_tokens, key_tokens=key_tokens, past_BTS=past
                ),
            )

        if num_written is None:
            sizes, branch = [S], 0
        else:
            sizes = _read_sizes(S)
            branch = sum(num_written > size for size in sizes[:-1])
        branches = [functools.partial(attend_to_first, size) for size in sizes]
        o_BTNH = jax.lax.switch(branch, branches)
        return o_BTNH.reshape(R, T, *o_BTNH.shape[2:]), cache


def _read_sizes(length: int) -> list[int]:
    """Return the numbers of cache slots that a step may read, in increasing order.

    They are the length of the cache and its halves, down to MIN_READ. A step reads the smallest
    that holds all written slots. So its cost follows the length of the text so far, within a
    factor of 2, and not the length of the cache.
    """
    sizes = [length]
    while sizes[0] // 2 >= MIN_READ:
        sizes.insert(0, sizes[0] // 2)
    return sizes
