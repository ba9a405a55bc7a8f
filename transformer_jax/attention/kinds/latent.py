"""Latent attention: MLA of DeepSeek-V2 (DeepSeek-AI 2024, section 2.1).

Letters of this file: R the rank of the latents, P the rotated dimensions.
"""

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
from transformer_jax.ranges import number


class Queries(NamedTuple):
    """Projected queries: the part that reads content, and the part that is rotated."""

    q_BTNH: jax.Array
    rotated_BTNP: jax.Array


class Latents(NamedTuple):
    """What is cached of each token: its latent, and the one rotated key that all heads share."""

    c_BSR: jax.Array
    rotated_BSP: jax.Array


class KeysValues(NamedTuple):
    """Keys and values as `raw_scores` reads them.

    In the absorbed form, see `Latent.absorbed`, keys and values are both the latent: one head of
    size R.
    """

    k_BSKH: jax.Array
    rotated_BS1P: jax.Array
    v_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Latent(Scored):
    """Softmax attention whose keys and values are projected from a latent c = RMSNorm(x W).

    DeepSeek-AI 2024, section 2.1. Only the latent of `rank` numbers and one rotated key are cached.
    The keys W_uk c and the values W_uv c have K heads; in the paper K = N.

    Position encodings that rotate act on `rope_dim` further dimensions of each query and of one key
    that all heads share: a rotation between W_uk and the query would prevent the two from being
    merged while decoding. The score is (q·k + q_rotated·k_rotated) / √(d_k + rope_dim).

    Options:
        rank: the size of the latent; 0: 4 d_k, the paper's proportion.
        rope_dim: the rotated dimensions, an even number; 0: d_k / 2, the paper's proportion,
            rounded up to an even number.
        query_rank: the size of a normed latent from which queries are projected; 0: queries are
            projected from x.
    """

    rank: int = number(0, low=0, high=1_000_000)
    rope_dim: int = number(0, low=0, high=1_000_000)
    query_rank: int = number(0, low=0, high=1_000_000)

    def __post_init__(self):
        super().__post_init__()
        if self.rope_dim % 2:
            raise ValueError(f'rope_dim={self.rope_dim} is odd: it is rotated in pairs')

    def rotated_dim(self, heads: HeadDims) -> int:
        return self.rope_dim or 2 * -(-heads.head_dim // 4)

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        heads = scope.heads
        if self.query_rank:
            x_BTD = _compress(scope, 'query_latent', x_BTD, self.query_rank)
        size = heads.head_dim + self.rotated_dim(heads)
        both_BTNH = scope.project_to_heads('query', x_BTD, heads.num_heads, size, 'heads')
        rotated_BTNP = scope.position.rotate(both_BTNH[..., heads.head_dim :], tokens.positions_BT)
        return Queries(both_BTNH[..., : heads.head_dim], rotated_BTNP)

    def project_keys_values(self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens) -> Latents:
        size = self.rotated_dim(scope.heads)
        rotated_BS1P = scope.position.rotate(
            scope.project_to_heads('turned_key', x_BSD, 1, size, 'rank'), tokens.positions_BT
        )
        c_BSR = _compress(scope, 'latent', x_BSD, self._rank(scope))
        return Latents(c_BSR, rotated_BS1P[:, :, 0])

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        heads, R = scope.heads, self._rank(scope)
        axes = ('rank', 'kv_heads', 'head_dim')
        init = jax.nn.initializers.variance_scaling(
            1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=(1, 2)
        )
        return super().attention_params(scope) | {
            'key_RKH': scope.parameter('up_key', (R, heads.kv_heads, heads.head_dim), axes, init),
            'value_RKH': scope.parameter(
                'up_value', (R, heads.kv_heads, heads.value_dim), axes, init
            ),
        }

    def tile(
        self, queries: Queries, keys: KeysValues, inputs: AttentionInputs, allowed_BTS: jax.Array
    ) -> Tile:
        # Heads and scale are those of the expanded keys, in the absorbed form too.
        _, K, H = inputs.params['key_RKH'].shape
        _, _, N, P = queries.rotated_BTNP.shape
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
        first_BKGTS, second_BKGTS = (
            dot_product_scores(q_BTNH * tile.scale, k_BSKH).reshape(B, K, N // K, T, S)
            for q_BTNH, k_BSKH in zip(queries, keys[:2], strict=True)
        )
        return first_BKGTS + second_BKGTS

    def expand_keys_values(
        self, queries: Queries, keys: Latents, inputs: AttentionInputs
    ) -> tuple[Queries, KeysValues]:
        return queries, expand(keys, inputs.params)

    def attend_decode(self, queries: Queries, keys: Latents, inputs: AttentionInputs) -> jax.Array:
        position = inputs.position
        adds_values = type(position).value is not Position.value
        if position.reads_queries_keys or adds_values:  # these need keys or values in full
            return super().attend_decode(queries, keys, inputs)
        return self.absorbed(queries, keys, inputs)

    def absorbed(self, queries: Queries, keys: Latents, inputs: AttentionInputs) -> jax.Array:
        """Return o_BTNH as `attend` does, without computing keys and values in full.

        W_uk is applied to the queries and W_uv to the mixed latents (DeepSeek-AI 2024, section
        2.1.2).
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
            KeysValues(c_BS1R, keys.rotated_BSP[:, :, None], c_BS1R),
            inputs,
        )
        o_BKGTR = jnp.einsum('BKGTS,BSR->BKGTR', weights_BKGTS.astype(keys.c_BSR.dtype), keys.c_BSR)
        o_BTKGR = jnp.moveaxis(o_BKGTR, 3, 1)
        return jnp.einsum('BTKGR,RKH->BTKGH', o_BTKGR, value_RKH).reshape(B, T, N, -1)

    def _rank(self, scope: ParamScope) -> int:
        return self.rank or 4 * scope.heads.head_dim


def expand(latents: Latents, params: Any) -> KeysValues:
    """Compute keys and values in full from the latents."""
    c_BSR, rotated_BSP = latents
    key_RKH, value_RKH = (params[name].astype(c_BSR.dtype) for name in ('key_RKH', 'value_RKH'))
    return KeysValues(
        jnp.einsum('BSR,RKH->BSKH', c_BSR, key_RKH),
        rotated_BSP[:, :, None],
        jnp.einsum('BSR,RKH->BSKH', c_BSR, value_RKH),
    )


def _compress(scope: ParamScope, name: str, x_BTD: jax.Array, rank: int) -> jax.Array:
    """Return RMSNorm(x W), an array [B, T, rank]."""
    c_BTR = scope.project_to_heads(name, x_BTD, 1, rank, 'rank')[:, :, 0]
    scale_R = scope.parameter(f'{name}_norm', (rank,), ('rank',), jax.nn.initializers.ones)
    return rms_norm(c_BTR, scale_R)
