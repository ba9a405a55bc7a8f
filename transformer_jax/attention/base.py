"""The boundary between a kind of attention and everything else."""

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

GATES = ('none', 'head', 'element')
MIN_READ = 64  # keys that are not worth a choice of how many to look at
# What a kind may promise; `Attention.supports` says which it keeps, and the contract tests hold it
# to them.
CAPABILITIES = ('encoder', 'causal', 'cross', 'padding', 'segments', 'decode', 'bias')


@flax.struct.dataclass
class AttentionInputs:
    """All that attention reads beside its queries and keys: who may see whom, where they stand,
    what was learned.
    """

    mask: Mask = flax.struct.field(pytree_node=False)
    query_tokens: Tokens
    key_tokens: Tokens
    position: Position = flax.struct.field(pytree_node=False, default=Position())
    params: Any = ()  # of the kind
    position_params: Any = ()
    dropout: tuple[jax.Array, jax.Array] | None = None  # (rng, rate) for the weights
    past_BTS: jax.Array | None = (
        None  # of a cache: the keys that each query has in its past, whatever the mask says
    )
    engine: str = flax.struct.field(pytree_node=False, default='dense')

    def allowed_BTS(self) -> jax.Array:
        """The whole matrix, for an engine that does not tile."""
        allowed_BTS = self.mask.allowed(self.query_tokens, self.key_tokens)
        return allowed_BTS if self.past_BTS is None else allowed_BTS & self.past_BTS

    def apply_dropout(self, weights: jax.Array) -> jax.Array:
        """Weights of any shape, some of them set to 0 and the rest scaled up where attention
        has dropout.
        """
        return (
            weights
            if self.dropout is None
            else apply_dropout(self.dropout[0], weights, self.dropout[1])
        )


@dataclasses.dataclass(frozen=True)
class Attention(abc.ABC):
    """One kind of attention: pure mathematics between projections.

    Queries and keys are pytrees of the kind's own, batch and time in front of every leaf. They are
    projected apart because cross-attention projects the keys of a sentence once and its queries at
    every step.
    """

    gate: str = dataclasses.field(
        default='none', kw_only=True
    )  # of the output, by x: none, head, element
    engines: ClassVar[tuple[str, ...]] = ()  # (): the kind has one form of its own
    mask: ClassVar[Mask] = Full()
    max_len: ClassVar[int] = 0  # 0: any length
    supports_dropout: ClassVar[bool] = True  # has weights that dropout can act on

    def __post_init__(self):
        if self.gate not in GATES:
            raise ValueError(f'gate={self.gate!r}, it takes {", ".join(GATES)}')

    @abc.abstractmethod
    def supports(self) -> frozenset[str]:
        """The CAPABILITIES that it keeps, with the options it has."""

    def tile_heads(self, heads: HeadDims) -> HeadDims:
        """Those of the queries, keys and values that position encodings meet, of a
        site's `heads`.
        """
        return heads

    def rotated_dim(self, heads: HeadDims) -> int:
        """The width of what position encodings rotate."""
        return self.tile_heads(heads).head_dim

    def incompatibility(self, position: Position, engine: str) -> str:
        """Why it cannot work with a position encoding or an engine, and what would; '' where
        it can.
        """
        if position.acts_on_scores() and 'bias' not in self.supports():
            return 'it has no scores that the position encoding could act on; none, sinusoidal, learned and rope work'
        if engine not in (*self.engines, 'auto') and self.engines:
            return f'engines that can: auto, {", ".join(self.engines)}'
        return ''

    @abc.abstractmethod
    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Any:
        """What asks."""

    @abc.abstractmethod
    def project_keys_values(self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens) -> Any:
        """What is asked, the values included."""

    def attention_params(self, scope: ParamScope) -> Any:
        """The learned arrays that `attend` reads."""
        return ()

    @abc.abstractmethod
    def attend(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        """o_BTNH: the mixed values; exactly 0 where a query may see nothing."""

    def weights(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        """weights_BNTS: how `attend` mixes. It is linear in the values, so unit vectors for values
        show the weights.
        """
        B, S, K, _ = keys.v_BSKH.shape
        v_BSKH = jnp.broadcast_to(jnp.eye(S, dtype=keys.v_BSKH.dtype)[None, :, None], (B, S, K, S))
        o_BTNH = self.attend(queries, keys._replace(v_BSKH=v_BSKH), inputs.replace(dropout=None))
        return jnp.moveaxis(o_BTNH, 2, 1)

    def logits(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array | None:
        """float32 scores_BNTS that become weights, forbidden pairs included; None: the kind has
        none for each pair.
        """
        return None

    def postprocess_heads(self, o_BTNH: jax.Array, params: Any) -> jax.Array:
        """What follows the mixing, such as a norm of each head; `parameters` as in the inputs."""
        return o_BTNH

    def attend_decode(self, queries: Any, keys: Any, inputs: AttentionInputs) -> jax.Array:
        """`attend` for the few queries of a decoding step."""
        return self.attend(queries, keys, inputs)

    def init_cache(self, keys: Any, length: int, mask: Mask) -> Any:
        """An empty cache with room for `length` keys a row, shaped like `keys` and seen
        through `mask`.
        """
        return GrowingCache.empty(keys, length)

    def step(
        self, queries: Any, keys: Any, inputs: AttentionInputs, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Attends from new tokens, inputs.query_tokens, to all so far: (o_RTNH, the cache with the new
        tokens in it).
        """
        (keys, tokens, past_RTS, end), cache = cache.append(keys, inputs.query_tokens)
        (R, T), S = inputs.query_tokens.positions_BT.shape, tokens.positions_BT.shape[1]

        # The hypotheses that share a row of keys are to them what the times of a query are: one
        # matrix product.
        def fold(a_RT):
            return a_RT.reshape(len(tokens.positions_BT), -1, *a_RT.shape[2:])

        queries, query, past_BTS = jax.tree.map(fold, (queries, inputs.query_tokens, past_RTS))

        def look(places):
            first_keys, key = jax.tree.map(lambda a_BS: a_BS[:, :places], (keys, tokens))
            past = past_BTS if past_BTS is None else past_BTS[..., :places]
            return self.attend_decode(
                queries,
                first_keys,
                inputs.replace(query_tokens=query, key_tokens=key, past_BTS=past),
            )

        # A step costs what there is to see, to a factor of two, and not what there is room for.
        sizes = (
            [S]
            if end is None
            else [S >> n for n in range(S.bit_length()) if S >> n >= MIN_READ or n == 0][::-1]
        )
        branch = 0 if len(sizes) == 1 else sum(end > size for size in sizes[:-1])
        o_BTNH = jax.lax.switch(branch, [functools.partial(look, size) for size in sizes])
        return o_BTNH.reshape(R, T, *o_BTNH.shape[2:]), cache
