"""The interface of a position encoding."""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.ranges import Ranged


@flax.struct.dataclass
class Tile:
    """Some queries and some keys, any part of all: their positions, and what they contain.

    Query head n of q_BTNH reads key-value head n // G of k_BSKH. Kinds without queries and keys
    leave both None.
    """

    query_tokens: Tokens
    key_tokens: Tokens
    allowed_BTS: jax.Array
    q_BTNH: jax.Array | None
    k_BSKH: jax.Array | None
    heads: tuple[int, int] = flax.struct.field(pytree_node=False)  # (N, K)
    scale: float = flax.struct.field(pytree_node=False)  # the factor of q·k
    # Whether no query sees a key ahead of its own position.
    causal: bool = flax.struct.field(pytree_node=False, default=False)

    def offsets_BTS(self) -> jax.Array:
        """Return query position − key position, an array [B, T, S]."""
        return self.query_tokens.positions_BT[:, :, None] - self.key_tokens.positions_BT[:, None, :]

    def queries_keys(self) -> tuple[jax.Array, jax.Array]:
        """Return (q_BTNH, k_BSKH), for a position encoding with `reads_queries_keys`."""
        assert self.q_BTNH is not None, 'this position encoding is refused for such a kind'
        assert self.k_BSKH is not None, 'this position encoding is refused for such a kind'
        return self.q_BTNH, self.k_BSKH

    def group_heads(self, x_BTNH: jax.Array) -> jax.Array:
        """Reshape x_BTNH to x_BTKGH: the G query heads of each key-value head together."""
        N, K = self.heads
        return x_BTNH.reshape(*x_BTNH.shape[:2], K, N // K, x_BTNH.shape[-1])


@dataclasses.dataclass(frozen=True)
class Position(Ranged):
    """The base class of all position encodings, and the encoding `none`.

    A subclass overrides some of four methods: `embed` acts once on the embedded tokens, `rotate` on
    queries and keys, `score` on the scores of a tile, `value` on the weights of a tile. Positions
    are given as arrays, because packed rows and caches have them in any order. With `none`, a
    decoder knows the order of tokens by its causal mask alone.
    """

    max_len: int = dataclasses.field(default=0, init=False)  # the most positions; 0: no limit
    # Whether `score` or `value` reads q_BTNH or k_BSKH of the tile.
    reads_queries_keys: ClassVar[bool] = False
    # Whether the score of a key depends on the other keys of its row: there are no tiles along S.
    needs_all_keys: ClassVar[bool] = False
    # Whether all layers of a stack have the same `params`, or each layer its own.
    shared: bool = dataclasses.field(default=False, init=False)

    @classmethod
    def acts_on_scores(cls) -> bool:
        """Return whether `score` or `value` is overridden, so that the kind must have scores."""
        return cls.score is not Position.score or cls.value is not Position.value

    def incompatibility(self, d_model: int, head_dim: int) -> str:
        """Explain which size is not a multiple of what the encoding needs; '' where all are."""
        return ''

    def embed(self, scope: ParamScope, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return the embedded tokens x_BTD with what depends on their positions added."""
        return x_BTD

    def rotate(self, x_BTNH: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Return queries or keys rotated by their positions, in their shape and dtype."""
        return x_BTNH

    def params(self, scope: ParamScope) -> Any:
        """Declare the learned arrays that `score` and `value` read, as a pytree."""
        return ()

    def score(self, params: Any, scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        """Return the scores with what depends on the positions of query and key added.

        Args:
            params: from `params`.
            scores_BKGTS: float32, with the scale of q·k.
            tile: the queries and keys of these scores.
        """
        return scores_BKGTS

    def value(self, params: Any, weights_BKGTS: jax.Array, tile: Tile) -> jax.Array | None:
        """Return what relative positions add to the mixed values, o_BTKGH; None: nothing.

        The result must be linear in the weights, because engines add it up tile by tile.
        """
        return None


def group_bias(bias_BTSN: jax.Array, heads: tuple[int, int]) -> jax.Array:
    """Transpose bias_BTSN to bias_BKGTS; `heads` is (N, K)."""
    B, T, S, _ = bias_BTSN.shape
    N, K = heads
    return jnp.moveaxis(bias_BTSN, -1, 1).reshape(B, K, N // K, T, S)


def broadcast_heads(x_N: jax.Array, heads: tuple[int, int]) -> jax.Array:
    """Reshape x_N to x_1KG11, which multiplies scores_BKGTS; `heads` is (N, K)."""
    N, K = heads
    return x_N.reshape(1, K, N // K, 1, 1)
