"""Encodings whose positions depend on the content of the text."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.positions.base import Position, Tile
from transformer_jax.ranges import number


@dataclasses.dataclass(frozen=True)
class Cope(Position):
    """Contextual position encoding, CoPE (Golovneva et al. 2024, section 4).

    The position p_ij of key j for query i is the sum of the gates sigmoid(score_il) over the keys l
    at or after j that query i may see. q_i·e[p_ij] is added to the score, where e is interpolated
    between learned embeddings, and is the last one for all larger positions. As in the paper's
    listing, the gates read scores with their scale, q·e has no scale, and heads share e. In
    encoders, positions count from the end of the text and not from the query.

    Options:
        max_positions: how many embeddings.
    """

    max_positions: int = number(64, low=2, high=1_000_000)
    reads_queries_keys: ClassVar[bool] = True
    needs_all_keys: ClassVar[bool] = True

    def params(self, scope: ParamScope) -> jax.Array:
        return scope.parameter(
            'embeddings',
            (self.max_positions, scope.heads.head_dim),
            ('position', 'head_dim'),
            jax.nn.initializers.zeros,
        )

    def score(self, params: jax.Array, scores_BKGTS: jax.Array, tile: Tile) -> jax.Array:
        seen_BKGTS = jnp.where(tile.allowed_BTS[:, None, None], scores_BKGTS, -jnp.inf)
        counts_BKGTS = _sum_from(jax.nn.sigmoid(seen_BKGTS), tile.key_tokens.positions_BT)
        P = self.max_positions
        q_BTNH, _ = tile.queries_keys()
        q_BTKGH = tile.group_heads(q_BTNH)
        e_PH = params.astype(q_BTKGH.dtype)
        products_BKGTP = jnp.einsum(
            'BTKGH,PH->BKGTP', q_BTKGH, e_PH, preferred_element_type=jnp.float32
        )
        counts_BKGTS = jnp.minimum(counts_BKGTS, P - 1)
        below_BKGTS = jnp.minimum(counts_BKGTS.astype(jnp.int32), P - 2)
        above_BKGTS = counts_BKGTS - below_BKGTS  # the weight of the next embedding, 0 to 1
        low_BKGTS, high_BKGTS = (
            jnp.take_along_axis(products_BKGTP, below_BKGTS + step, axis=-1) for step in (0, 1)
        )
        return scores_BKGTS + (1 - above_BKGTS) * low_BKGTS + above_BKGTS * high_BKGTS


def _sum_from(gates_BKGTS: jax.Array, positions_BS: jax.Array) -> jax.Array:
    """Return the sum of the gates of all keys at or after the position of each key.

    The keys may be in any order, for example in that of a ring cache.
    """
    order_BS = jnp.argsort(positions_BS)
    back_BS = jnp.argsort(order_BS)
    sorted_BKGTS = jnp.take_along_axis(gates_BKGTS, order_BS[:, None, None, None], axis=-1)
    sums_BKGTS = jax.lax.cumsum(sorted_BKGTS, axis=4, reverse=True)
    return jnp.take_along_axis(sums_BKGTS, back_BS[:, None, None, None], axis=-1)
