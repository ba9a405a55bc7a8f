"""The hooks through which a position encoding acts."""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope


@flax.struct.dataclass
class Tile:
    """Queries and keys that meet, any part of the whole: where they stand, and what they hold.

    Query head n of q_BTNH reads key-value head n // G of k_BSKH. Kinds that have no queries and
    keys leave both None.
    """

    query_tokens: Tokens
    key_tokens: Tokens
    allowed_BTS: jax.Array
    q_BTNH: jax.Array | None
    k_BSKH: jax.Array | None
    heads: tuple[int, int] = flax.struct.field(pytree_node=False)  # N, K
    scale: float = flax.struct.field(pytree_node=False)  # of the products of queries and keys
    causal: bool = flax.struct.field(
        pytree_node=False, default=False
    )  # no query sees a key ahead of its own position

    def offsets_BTS(self) -> jax.Array:
        """Query position − key position."""
        return self.query_tokens.positions_BT[:, :, None] - self.key_tokens.positions_BT[:, None, :]

    def group_heads(self, x_BTNH: jax.Array) -> jax.Array:
        """x_BTNH as x_BTKGH: the query heads of each key-value head together."""
        N, K = self.heads
        return x_BTNH.reshape(*x_BTNH.shape[:2], K, N // K, x_BTNH.shape[-1])


@dataclasses.dataclass(frozen=True)
class Position:
    """The base of all position encodings: `none`, order enters by the causal mask alone.

    A subclass overrides some of four hooks: `embed` once on the embedded tokens; `rotate` on
    queries and keys; `score` on a tile of scores; `value` on a tile of weights. Positions are
    explicit arrays: packing and caches permute them.
    """

    max_len: int = dataclasses.field(default=0, init=False)  # 0: any length
    reads_queries_keys: ClassVar[bool] = (
        False  # `score` or `value` reads q_BTNH or k_BSKH of the tile
    )
    needs_all_keys: ClassVar[bool] = (
        False  # the score of one key depends on the row's other keys: no tiles along S
    )
    shared: bool = dataclasses.field(
        default=False, init=False
    )  # `parameters` belong to the stack, not to each layer

    @classmethod
    def acts_on_scores(cls) -> bool:
        """Whether `score` or `value` does anything: the kind must have scores."""
        return cls.score is not Position.score or cls.value is not Position.value

    def incompatibility(self, d_model: int, head_dim: int) -> str:
        """The width that cannot be cut into the pairs it works on; '' where it can."""
        return ''

    def embed(self, scope: ParamScope, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Adds what depends on the absolute position to the embedded tokens."""
        return x_BTD

    def rotate(self, x_BTNH: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Queries or keys, turned by their positions."""
        return x_BTNH

    def params(self, scope: ParamScope) -> Any:
        """The pytree of learned arrays that `score` and `value` read."""
        return ()

    def score(self, params: Any, scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        """float32 scores, already scaled, with what depends on both positions added."""
        return scores_BKGTS

    def value(self, params: Any, weights_BKGTS: jax.Array, tile: Tile) -> jax.Array | None:
        """What the relative positions add to the mixed values, o_BTKGH, linear in the weights;
        None: nothing.
        """
        return None


def group_bias(bias_BTSN: jax.Array, heads: tuple[int, int]) -> jax.Array:
    """bias_BTSN as bias_BKGTS."""
    B, T, S, _ = bias_BTSN.shape
    N, K = heads
    return jnp.moveaxis(bias_BTSN, -1, 1).reshape(B, K, N // K, T, S)


def broadcast_heads(x_N: jax.Array, heads: tuple[int, int]) -> jax.Array:
    """x_N as x_1KG11, which multiplies scores_BKGTS."""
    N, K = heads
    return x_N.reshape(1, K, N // K, 1, 1)
