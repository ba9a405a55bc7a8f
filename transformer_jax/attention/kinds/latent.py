"""Latent attention (MLA; DeepSeek-AI 2024, "DeepSeek-V2", section 2.1)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention.base import AttentionInputs
from transformer_jax.attention.engines import dense
from transformer_jax.attention.kinds.softmax import dot_product_scores
from transformer_jax.attention.scored import Scored
from transformer_jax.batch import Tokens
from transformer_jax.layers.functional import rms_norm
from transformer_jax.layers.param_scope import HeadDims, ParamScope
from transformer_jax.positions import Position, Tile


class Queries(NamedTuple):
    """What asks, by content and by position."""

    q_BTNH: jax.Array
    turned_BTNP: jax.Array


class Latents(NamedTuple):
    """What a cache holds of a token: its compressed keys and values, and the one turned key of
    all heads.
    """

    c_BSR: jax.Array
    turned_BSP: jax.Array


class KeysValues(NamedTuple):
    """What a query meets. Absorbed, all heads meet the latent itself: k and v have one head of
    width R.
    """

    k_BSKH: jax.Array
    turned_BS1P: jax.Array
    v_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Latent(Scored):
    """Keys and values are up-projected from one latent c = RMSNorm(x W) of `rank` numbers, all that
    is cached of them.

    Position enters beside it, since a rotation between W_uk and the query would keep the two from
    being merged: what the position encoding rotates are `rope_dim` more numbers of each query, and
    of one key that all heads share. The score is (q·k + q_turned·k_turned) / √(d_k + rope_dim).
    With `query_rank` the queries come from a normed latent too. 0 stands for the paper's
    proportions, rank 4 d_k and rope_dim d_k / 2 (made even), and for queries from x itself.

    R is the rank, P the rope_dim. K key-value heads are up-projected, in the paper all N.
    """

    rank: int = 0
    rope_dim: int = 0
    query_rank: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ('rank', 'rope_dim', 'query_rank'):
            if getattr(self, name) < 0:
                raise ValueError(
                    f'{name}={getattr(self, name)} must be positive, or 0 for its default'
                )
        if self.rope_dim % 2:
            raise ValueError(f'rope_dim={self.rope_dim} is odd: it is rotated in pairs')

    def rotated_dim(self, heads: HeadDims) -> int:
        return self.rope_dim or 2 * -(-heads.head_dim // 4)

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        heads = scope.heads
        if self.query_rank:
            x_BTD = _compressed(scope, 'query_latent', x_BTD, self.query_rank)
        both_BTNH = scope.project_to_heads(
            'query', x_BTD, heads.num_heads, heads.head_dim + self.rotated_dim(scope.heads), 'heads'
        )
        turned_BTNP = scope.position.rotate(both_BTNH[..., heads.head_dim :], tokens.positions_BT)
        return Queries(both_BTNH[..., : heads.head_dim], turned_BTNP)

    def project_keys_values(self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens) -> Latents:
        turned_BS1P = scope.position.rotate(
            scope.project_to_heads('turned_key', x_BSD, 1, self.rotated_dim(scope.heads), 'rank'),
            tokens.positions_BT,
        )
        return Latents(_compressed(scope, 'latent', x_BSD, self._rank(scope)), turned_BS1P[:, :, 0])

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        heads = scope.heads
        init = jax.nn.initializers.variance_scaling(
            1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=(1, 2)
        )
        axes = ('rank', 'kv_heads', 'head_dim')
        return super().attention_params(scope) | {
            'key_RKH': scope.parameter(
                'up_key', (self._rank(scope), heads.kv_heads, heads.head_dim), axes, init
            ),
            'value_RKH': scope.parameter(
                'up_value', (self._rank(scope), heads.kv_heads, heads.value_dim), axes, init
            ),
        }

    def tile(
        self, queries: Queries, keys: KeysValues, inputs: AttentionInputs, allowed_BTS: jax.Array
    ) -> Tile:
        # Heads and width are those of the expanded form, in the absorbed one too.
        _, K, H = inputs.params['key_RKH'].shape
        _, _, N, P = queries.turned_BTNP.shape
        return Tile(
            inputs.query_tokens,
            inputs.key_tokens,
            allowed_BTS,
            queries.q_BTNH,
            keys.k_BSKH,
            (N, K),
            (H + P) ** -0.5,
        )

    def raw_scores(self, queries: Queries, keys: KeysValues, tile: Tile, params: Any) -> jax.Array:
        B, T, S = tile.allowed_BTS.shape
        N, K = tile.heads
        parts = (
            dot_product_scores(q_BTNH * tile.scale, k_BSKH).reshape(B, K, N // K, T, S)
            for q_BTNH, k_BSKH in zip(queries, keys[:2], strict=True)
        )
        return sum(parts)

    def expand_keys_values(
        self, queries: Queries, keys: Latents, inputs: AttentionInputs
    ) -> tuple[Queries, KeysValues]:
        return queries, expand(keys, inputs.params)

    def attend_decode(self, queries: Queries, keys: Latents, inputs: AttentionInputs) -> jax.Array:
        position = inputs.position
        if (
            position.reads_queries_keys or type(position).value is not Position.value
        ):  # It reads keys, or adds to the values.
            return super().attend_decode(queries, keys, inputs)
        return self.absorbed(queries, keys, inputs)

    def absorbed(self, queries: Queries, keys: Latents, inputs: AttentionInputs) -> jax.Array:
        """`attend` without keys or values in full: W_uk is applied to the queries, W_uv to the
        mixed latents.
        """
        key_RKH, value_RKH = (
            inputs.params[name].astype(keys.c_BSR.dtype) for name in ('key_RKH', 'value_RKH')
        )
        B, T, N, H = queries.q_BTNH.shape
        R, K, _ = key_RKH.shape
        q_BTKGH = queries.q_BTNH.reshape(B, T, K, N // K, H)
        q_BTKGR = jnp.einsum('BTKGH,RKH->BTKGR', q_BTKGH, key_RKH)
        c_BS1R = keys.c_BSR[:, :, None]
        weights_BKGTS, _ = dense.weigh(
            self,
            queries._replace(q_BTNH=q_BTKGR.reshape(B, T, N, R)),
            KeysValues(c_BS1R, keys.turned_BSP[:, :, None], c_BS1R),
            inputs,
        )
        o_BKGTR = jnp.einsum('BKGTS,BSR->BKGTR', weights_BKGTS.astype(keys.c_BSR.dtype), keys.c_BSR)
        o_BTKGR = jnp.moveaxis(o_BKGTR, 3, 1)
        return jnp.einsum('BTKGR,RKH->BTKGH', o_BTKGR, value_RKH).reshape(B, T, N, -1)

    def _rank(self, scope: ParamScope) -> int:
        return self.rank or 4 * scope.heads.head_dim


def expand(latents: Latents, params: Any) -> KeysValues:
    """Keys and values in full, of the latents."""
    c_BSR, turned_BSP = latents
    key_RKH, value_RKH = (params[name].astype(c_BSR.dtype) for name in ('key_RKH', 'value_RKH'))
    return KeysValues(
        jnp.einsum('BSR,RKH->BSKH', c_BSR, key_RKH),
        turned_BSP[:, :, None],
        jnp.einsum('BSR,RKH->BSKH', c_BSR, value_RKH),
    )


def _compressed(scope: ParamScope, name: str, x_BTD: jax.Array, rank: int) -> jax.Array:
    c_BTR = scope.project_to_heads(name, x_BTD, 1, rank, 'rank')[:, :, 0]
    return rms_norm(
        c_BTR, scope.parameter(f'{name}_norm', (rank,), ('rank',), jax.nn.initializers.ones)
    )
