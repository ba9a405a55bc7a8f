"""Additive attention (Bahdanau et al. 2015) with several heads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.attention import projections
from transformer_jax.attention.kinds.softmax import KeysValues, Queries
from transformer_jax.attention.scored import Scored
from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.positions import Tile


@dataclasses.dataclass(frozen=True)
class Additive(Scored):
    """The score of query t for key s is vᵀ tanh(W x_t + U x_s + b), in each head.

    Bahdanau et al. 2015, section A.1.2. W and U are the projections of queries and keys to heads of
    size d_k; each head has its own v and b.

    RoPE rotates W x_t and U x_s. Their sum, other than their product, then depends on both
    positions and not on the offset alone. Position encodings that read queries and keys read W x_t
    and U x_s, with the scale 1/√d_k, as they would those of dot products.
    """

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        return Queries(projections.queries(scope, x_BTD, tokens))

    def project_keys_values(
        self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens
    ) -> KeysValues:
        return KeysValues(*projections.keys_values(scope, x_BSD, tokens))

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        heads = scope.heads
        shape, axes = (heads.num_heads, heads.head_dim), ('heads', 'head_dim')
        normal, zeros = jax.nn.initializers.normal, jax.nn.initializers.zeros
        return super().attention_params(scope) | {
            'v_NH': scope.parameter('score', shape, axes, normal(heads.head_dim**-0.5)),
            'b_NH': scope.parameter('score_bias', shape, axes, zeros),
        }

    def raw_scores(self, queries: Queries, keys: KeysValues, tile: Tile, params: Any) -> jax.Array:
        return additive_scores(queries.q_BTNH, keys.k_BSKH, params['v_NH'], params['b_NH'])


# The sum over H has T·S·H terms. Written as a sum of elementwise work, the compiler makes one loop
# that holds T·S numbers; an einsum would hold all T·S·H. `checkpoint` computes the tanh again in
# the backward pass, so that no layer keeps T·S·H numbers until then.
@jax.checkpoint
def additive_scores(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_NH: jax.Array, b_NH: jax.Array
) -> jax.Array:
    """Return vᵀ tanh(q + k + b) as float32 scores_BKGTS; query head n reads key head n // G."""
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTNH = q_BTNH.astype(jnp.float32) + b_NH[None, None]
    q_BKGT1H = jnp.moveaxis(q_BTNH, 1, 2).reshape(B, K, N // K, T, 1, H)
    k_BK11SH = jnp.moveaxis(k_BSKH.astype(jnp.float32), 1, 2).reshape(B, K, 1, 1, S, H)
    return (jnp.tanh(q_BKGT1H + k_BK11SH) * v_NH.reshape(1, K, N // K, 1, 1, H)).sum(-1)
