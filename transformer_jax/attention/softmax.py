"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention import masks
from transformer_jax.attention.base import Attention, Scope


class KeysValues(NamedTuple):
    """What a query meets; time is axis 1, so that a cache can grow it."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Softmax(Attention):
    """softmax(Q Kᵀ / √d_k) V, in N query heads over K ≤ N key-value heads."""

    def queries(self, scope: Scope, x_BTD: jax.Array) -> jax.Array:
        num_heads, _, head_dim, _ = scope.heads
        return scope.heads_in('query', x_BTD, num_heads, head_dim, 'heads')

    def keys(self, scope: Scope, x_BSD: jax.Array) -> KeysValues:
        _, kv_heads, head_dim, value_dim = scope.heads
        return KeysValues(scope.heads_in('key', x_BSD, kv_heads, head_dim, 'kv_heads'),
                          scope.heads_in('value', x_BSD, kv_heads, value_dim, 'kv_heads'))

    def attend(self, queries: jax.Array, keys: KeysValues, visible: masks.Visible) -> tuple[jax.Array, jax.Array]:
        return dot_product_attention(queries, *keys, visible.allowed_BTS())


def dot_product_attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
                          allowed_BTS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Equation 1 of Vaswani et al. (2017); the softmax is taken in float32.

    Query head n reads key-value head n // G; K and V are never repeated. A query that may see no key yields exactly 0.

    Returns:
        o_BTNH in the queries' dtype (H is the values' here), and the float32 weights_BNTS.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H ** -0.5
    scores_BKGTS = jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    weights_BKGTS = masked_softmax(scores_BKGTS, allowed_BTS[:, None, None])
    o_BTKGH = jnp.einsum('BKGTS,BSKH->BTKGH', weights_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    S = k_BSKH.shape[1]
    return o_BTKGH.reshape(B, T, N, -1), weights_BKGTS.reshape(B, N, T, S)


def masked_softmax(scores_BKGTS: jax.Array, allowed_BKGTS: jax.Array) -> jax.Array:
    """Softmax over the allowed keys; forbidden ones, and rows with none allowed, are exactly 0."""
    scores_BKGTS = jnp.where(allowed_BKGTS, scores_BKGTS, masks.neg_inf(scores_BKGTS.dtype))
    top_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(-1, keepdims=True))
    weights_BKGTS = jnp.where(allowed_BKGTS, jnp.exp(scores_BKGTS - top_BKGT1), 0)
    # A row with an allowed key sums to exp(0) = 1 or more, an empty one to 0: a floor between them touches empty rows
    # alone. A floor of 1 would tie where one key holds all the weight, and a tie halves the gradient of the maximum.
    return weights_BKGTS / jnp.maximum(weights_BKGTS.sum(-1, keepdims=True), 0.5)
