"""Linformer: attention to a fixed number of learned mixtures of the keys (Wang et al. 2020).

Letter of this file: R mixtures.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention import projections
from transformer_jax.attention.base import Attention, AttentionInputs
from transformer_jax.attention.kinds.softmax import dot_product_scores
from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.ranges import number

SHARE = ('none', 'heads', 'kv')


class Queries(NamedTuple):
    """Projected queries of one call."""

    q_BTNH: jax.Array


class KeysValues(NamedTuple):
    """Projected keys and values, before they are mixed along time."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Linformer(Attention):
    """softmax(Q (E K)ᵀ / √d_k) (F V), in time and memory O(T·rank).

    Wang et al. 2020, equation 7. E and F mix up to `length` keys along time. Their column s belongs
    to the key at index s of the row, so that more padding behind the keys changes nothing. Their
    entries start from N(0, 1/rank), as in Theorem 2.

    Padded keys and values are set to 0 before they are mixed. The softmax is over all R mixtures.
    A mixture that contains no key has score 0 and value 0 and takes its share of the weight, as in
    the paper, so that the weights on keys need not sum to 1. A position encoding rotates keys
    before they are mixed, so that scores do not depend on offsets alone.

    Options:
        length: the most keys.
        rank: R, the number of mixtures.
        share: which matrices are one (section 4, "Parameter sharing"). none, an E and an F for each
            key-value head; heads, one E and one F for all heads; kv, one matrix for both.
    """

    length: int = number(512, low=1, high=10_000_000)
    rank: int = number(64, low=1, high=1_000_000)
    share: str = 'none'

    def __post_init__(self):
        super().__post_init__()
        if self.rank > self.length:
            raise ValueError(f'rank={self.rank}, it takes 1 to length={self.length}')
        if self.share not in SHARE:
            raise ValueError(f'share={self.share!r}, it takes {", ".join(SHARE)}')

    @property
    def max_len(self) -> int:
        return self.length

    @property
    def has_signed_weights(self) -> bool:
        return True

    def supports(self) -> frozenset[str]:
        return frozenset({'encoder', 'cross', 'padding'})

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        return Queries(projections.queries(scope, x_BTD, tokens))

    def project_keys_values(
        self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens
    ) -> KeysValues:
        return KeysValues(*projections.keys_values(scope, x_BSD, tokens))

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        shape, axes = (self.length, self.rank), ('position', 'rank')
        if self.share == 'none':
            shape, axes = (scope.heads.kv_heads, *shape), ('kv_heads', *axes)
        init = jax.nn.initializers.normal(self.rank**-0.5)
        keys = scope.parameter('mix_keys', shape, axes, init)
        values = keys
        if self.share != 'kv':
            values = scope.parameter('mix_values', shape, axes, init)
        return {'keys': keys, 'values': values}

    def attend(self, queries: Queries, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        """Mix the values; each row has one segment at most.

        Returns:
            o_BTNH, 0 for a query of another segment than the keys.

        Raises:
            ValueError: there are more than `length` keys.
        """
        if keys.v_BSKH.shape[1] > self.length:
            raise ValueError(
                f'linformer(length={self.length}) was given {keys.v_BSKH.shape[1]} keys'
            )
        segment_B1 = inputs.key_tokens.segments_BT.max(-1, keepdims=True)
        real_BS = inputs.key_tokens.segments_BT != 0
        k_BRKH = mix(keys.k_BSKH, real_BS, inputs.params['keys'])
        v_BRKH = mix(keys.v_BSKH, real_BS, inputs.params['values'])
        scores_BKGTR = dot_product_scores(queries.q_BTNH, k_BRKH) * queries.q_BTNH.shape[-1] ** -0.5
        weights_BKGTR = inputs.apply_dropout(jax.nn.softmax(scores_BKGTR)).astype(v_BRKH.dtype)
        o_BTKGH = jnp.einsum('BKGTR,BRKH->BTKGH', weights_BKGTR, v_BRKH)
        B, T, K, G, H = o_BTKGH.shape
        seen_BT = (inputs.query_tokens.segments_BT == segment_B1) & (segment_B1 != 0)
        return jnp.where(seen_BT[..., None, None], o_BTKGH.reshape(B, T, K * G, H), 0)


def mix(x_BSKH: jax.Array, real_BS: jax.Array, w: jax.Array) -> jax.Array:
    """Return Σ_s w[s, r] x_s over the real tokens s, an array [B, R, K, H].

    Args:
        x_BSKH: keys or values.
        real_BS: False for padding.
        w: w_KLR, a matrix for each head, or w_LR for all heads; its first S of L rows are used.
    """
    S = x_BSKH.shape[1]
    x_BSKH = jnp.where(real_BS[..., None, None], x_BSKH, 0)
    if w.ndim == 2:
        w_SR = w[:S].astype(x_BSKH.dtype)
        return jnp.einsum('BSKH,SR->BRKH', x_BSKH, w_SR)
    w_KSR = w[:, :S].astype(x_BSKH.dtype)
    return jnp.einsum('BSKH,KSR->BRKH', x_BSKH, w_KSR)
