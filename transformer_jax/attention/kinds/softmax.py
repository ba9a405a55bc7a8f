"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1) and its options."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention.base import AttentionInputs
from transformer_jax.attention.cache import GrowingCache, RingCache
from transformer_jax.attention.engines import dense
from transformer_jax.attention.masks import Mask
from transformer_jax.attention.scored import Scored
from transformer_jax.batch import Tokens
from transformer_jax.layers.functional import rms_norm
from transformer_jax.layers.param_scope import ParamScope
from transformer_jax.positions import Tile
from transformer_jax.ranges import number

TALKING = ('none', 'before', 'after', 'both')


class Queries(NamedTuple):
    """Projected queries of one call."""

    q_BTNH: jax.Array
    decay_BTN: jax.Array | None = None  # with a forget gate: Σ log f from the start of the row


class KeysValues(NamedTuple):
    """Projected keys and values; time is axis 1, along which a cache grows."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    # With a forget gate: log f of each token from the projection; Σ log f from the start of the row
    # in a cache and in a tile.
    decay_BSN: jax.Array | None = None


class ForgetCache(NamedTuple):
    """The cache with a forget gate: keys with their summed decay, and the sum so far."""

    cache: GrowingCache | RingCache
    total_RN: jax.Array


@dataclasses.dataclass(frozen=True)
class Softmax(Scored):
    """o_t = Σ_s softmax_s(q_t·k_s / √d_k) v_s, with N query heads and K key-value heads.

    Vaswani et al. 2017, equation 1. K = N is multi-head attention, K = 1 multi-query attention,
    K between them grouped-query attention; query head n reads key-value head n // (N/K).

    Options:
        scale: the factor of q·k. rsqrt, 1/√d_k; none, 1; or a number.
        qk_norm: RMS norm of queries and keys with a learned scale, before the position encoding
            (after Dehghani et al. 2023, who use a layer norm).
        talking: heads are mixed by learned N×N matrices before the normalizer, after it, or at both
            places (talking heads; Shazeer et al. 2020).
        forget: adds Σ log f_l over l = s+1 … t to the score of query t for key s, with the forget
            gate f = sigmoid(x W + b) of each head (Lin et al. 2025). Causal only.
    """

    scale: float | str = number('rsqrt', above=0, high=1e6)
    qk_norm: bool = False
    talking: str = 'none'
    forget: bool = False

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.scale, str) and self.scale not in ('rsqrt', 'none'):
            raise ValueError(f'scale={self.scale!r}, it takes rsqrt, none or a positive number')
        if self.talking not in TALKING:
            raise ValueError(f'talking={self.talking!r}, it takes {", ".join(TALKING)}')

    def supports(self) -> frozenset[str]:
        return super().supports() - ({'encoder', 'cross'} if self.forget else set())

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        return Queries(self._project('query', scope, x_BTD, tokens))

    def project_keys_values(
        self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens
    ) -> KeysValues:
        heads = scope.heads
        decay_BSN = forget_gate(scope, x_BSD, heads.num_heads, tokens) if self.forget else None
        return KeysValues(
            self._project('key', scope, x_BSD, tokens),
            scope.project_to_heads('value', x_BSD, heads.kv_heads, heads.value_dim, 'kv_heads'),
            decay_BSN,
        )

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        shape, axes = 2 * (scope.heads.num_heads,), ('read_heads', 'norm')
        return super().attention_params(scope) | {
            f'talking_{place}': scope.parameter(f'talking_{place}', shape, axes, _nearly_identity)
            for place in self._talking_places()
        }

    def tile(
        self, queries: Queries, keys: KeysValues, inputs: AttentionInputs, allowed_BTS: jax.Array
    ) -> Tile:
        tile = super().tile(queries, keys, inputs, allowed_BTS)
        scale = scale_of(self.scale, queries.q_BTNH.shape[-1])
        return dataclasses.replace(tile, scale=scale)

    def raw_scores(self, queries: Queries, keys: KeysValues, tile: Tile, params: Any) -> jax.Array:
        return dot_product_scores(queries.q_BTNH * tile.scale, keys.k_BSKH)

    def scores(
        self, queries: Queries, keys: KeysValues, tile: Tile, inputs: AttentionInputs
    ) -> jax.Array:
        scores_BKGTS = super().scores(queries, keys, tile, inputs)
        if self.forget:
            B, K, G, T, S = scores_BKGTS.shape
            q_BKGT1 = jnp.moveaxis(_present(queries.decay_BTN), 1, 2).reshape(B, K, G, T, 1)
            k_BKG1S = jnp.moveaxis(_present(keys.decay_BSN), 1, 2).reshape(B, K, G, 1, S)
            scores_BKGTS += q_BKGT1 - k_BKG1S
        if 'before' in self._talking_places():
            return mix_heads(scores_BKGTS, inputs.params['talking_before'])
        return scores_BKGTS

    @property
    def has_signed_weights(self) -> bool:
        return 'after' in self._talking_places()

    def postprocess_weights(self, weights_BKGTS: jax.Array, params: Any) -> jax.Array:
        if 'after' in self._talking_places():
            return mix_heads(weights_BKGTS, params['talking_after'])
        return weights_BKGTS

    def needs_all_keys(self) -> str:
        option = super().needs_all_keys()
        return option or (f'talking={self.talking}' if 'after' in self._talking_places() else '')

    def kernel_incompatibility(self) -> str:
        if self.forget:
            return 'the kernel has no forget gate'
        return '' if self.talking == 'none' else 'in the kernel heads do not talk'

    def expand_keys_values(
        self, queries: Queries, keys: KeysValues, inputs: AttentionInputs
    ) -> tuple[Queries, KeysValues]:
        if not self.forget:
            return queries, keys
        decay_BTN = jnp.cumsum(_present(keys.decay_BSN), axis=1)
        return queries._replace(decay_BTN=decay_BTN), keys._replace(decay_BSN=decay_BTN)

    def attend_decode(
        self, queries: Queries, keys: KeysValues, inputs: AttentionInputs
    ) -> jax.Array:
        # Without `expand_keys_values`: the decays in a cache are summed already.
        return dense.attend(self, queries, keys, inputs)

    def init_cache(self, keys: KeysValues, length: int, mask: Mask) -> Any:
        cache = super().init_cache(keys, length, mask)
        if not self.forget:
            return cache
        return ForgetCache(cache, jnp.zeros_like(_present(keys.decay_BSN)[:, 0]))

    def step(
        self, queries: Queries, keys: KeysValues, inputs: AttentionInputs, cache: Any
    ) -> tuple[jax.Array, Any]:
        if not self.forget:
            return super().step(queries, keys, inputs, cache)
        decay_RTN = cache.total_RN[:, None] + jnp.cumsum(_present(keys.decay_BSN), axis=1)
        queries, keys = queries._replace(decay_BTN=decay_RTN), keys._replace(decay_BSN=decay_RTN)
        o_RTNH, inner_cache = super().step(queries, keys, inputs, cache.cache)
        return o_RTNH, ForgetCache(inner_cache, decay_RTN[:, -1])

    def _talking_places(self) -> tuple[str, ...]:
        return {'none': (), 'both': ('before', 'after')}.get(self.talking, (self.talking,))

    def _project(self, name: str, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> jax.Array:
        """Project to the heads of 'query' or 'key', normalize and rotate them."""
        heads = scope.heads
        count, axis = (
            (heads.num_heads, 'heads') if name == 'query' else (heads.kv_heads, 'kv_heads')
        )
        y_BTNH = scope.project_to_heads(name, x_BTD, count, heads.head_dim, axis)
        if self.qk_norm:
            scale_H = scope.parameter(
                f'{name}_norm', (heads.head_dim,), ('head_dim',), jax.nn.initializers.ones
            )
            y_BTNH = rms_norm(y_BTNH, scale_H)
        return scope.position.rotate(y_BTNH, tokens.positions_BT)


def dot_product_scores(q_BTNH: jax.Array, k_BSKH: jax.Array) -> jax.Array:
    """Return q·k as float32 scores_BKGTS.

    Query head n = (k, g) reads key-value head k = n // G. Keys are not repeated in memory.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    return jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)


def scale_of(scale: float | str, head_dim: int) -> float:
    """Return the factor that the option `scale` stands for."""
    return {'rsqrt': head_dim**-0.5, 'none': 1.0}[scale] if isinstance(scale, str) else scale


def mix_heads(x_BKGTS: jax.Array, w_MN: jax.Array) -> jax.Array:
    """Return Σ_m x_m w_mn as an array [B, K, G, T, S]; m and n are heads (k, g)."""
    B, K, G, T, S = x_BKGTS.shape
    x_BMTS = x_BKGTS.reshape(B, K * G, T, S)
    return jnp.einsum('BMTS,MN->BNTS', x_BMTS, w_MN).reshape(B, K, G, T, S)


def forget_gate(scope: ParamScope, x_BSD: jax.Array, heads: int, tokens: Tokens) -> jax.Array:
    """Return log f [B, S, N] in float32, f = sigmoid(x W + b); 0 for padding."""
    logits_BSN = scope.project_to_heads('forget', x_BSD, heads, 1, 'heads')[..., 0]
    bias_N = scope.parameter('forget_bias', (heads,), ('heads',), jax.nn.initializers.zeros)
    log_f_BSN = jax.nn.log_sigmoid(logits_BSN.astype(jnp.float32) + bias_N[None, None])
    return log_f_BSN * (tokens.segments_BT != 0)[..., None]


def _nearly_identity(rng: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """Return the identity plus N(0, 0.1²): heads hardly mix at the start."""
    return jnp.eye(shape[0], dtype=dtype) + 0.1 * jax.random.normal(rng, shape, dtype)


def _present(decay: jax.Array | None) -> jax.Array:
    """Return the decays of a forget gate, which its queries and keys always have."""
    assert decay is not None, 'the forget gate projects decays'
    return decay
