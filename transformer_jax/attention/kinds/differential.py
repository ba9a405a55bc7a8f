"""Differential attention (Ye et al. 2024, "Differential Transformer")."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention.base import AttentionInputs
from transformer_jax.attention.kinds import softmax
from transformer_jax.attention.scored import Scored
from transformer_jax.batch import Tokens
from transformer_jax.errors import ConfigError
from transformer_jax.layers.functional import rms_norm
from transformer_jax.layers.param_scope import HeadDims, ParamScope
from transformer_jax.positions import Tile


class Queries(NamedTuple):
    """What asks, once for each map."""

    first_BTNH: jax.Array
    second_BTNH: jax.Array


class KeysValues(NamedTuple):
    """What a query meets: a key for each map, one value."""

    first_BSKH: jax.Array
    second_BSKH: jax.Array
    v_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Differential(Scored):
    """(softmax(Q₁ K₁ᵀ / √d) − λ softmax(Q₂ K₂ᵀ / √d)) V, each head then normed (Ye et al. 2024,
    equations 1 to 3).

    Q₁ and Q₂ are the halves of a head's query, so d = d_k / 2 and a head has as many parameters as
    one of softmax attention. The paper's model is the one with half the heads: its values are 2d
    wide, as d_v is by default.

    λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init with vectors that the heads of a layer share.
    `lambda_init`: depth, which is 0.8 − 0.6 exp(−0.3 l) in layer l from 0, or a number. Dropout
    falls on the same places of both maps.
    """

    lambda_init: float | str = 'depth'

    def __post_init__(self):
        super().__post_init__()
        if self.lambda_init != 'depth' and not (
            isinstance(self.lambda_init, float) and 0 <= self.lambda_init < 1
        ):
            raise ValueError(
                f'lambda_init={self.lambda_init!r}, it takes depth or a number from 0 to below 1'
            )

    def tile_heads(self, heads: HeadDims) -> HeadDims:
        if heads.head_dim % 2:
            raise ConfigError(
                f'model.head_dim={heads.head_dim} is odd: differential attention halves queries and keys'
            )
        return dataclasses.replace(heads, head_dim=heads.head_dim // 2)

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        heads = self.tile_heads(scope.heads)
        return Queries(
            *self._halves(
                scope,
                scope.project_to_heads(
                    'query', x_BTD, heads.num_heads, 2 * heads.head_dim, 'heads'
                ),
                tokens,
            )
        )

    def project_keys_values(
        self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens
    ) -> KeysValues:
        heads = self.tile_heads(scope.heads)
        halves = self._halves(
            scope,
            scope.project_to_heads('key', x_BSD, heads.kv_heads, 2 * heads.head_dim, 'kv_heads'),
            tokens,
        )
        return KeysValues(
            *halves,
            scope.project_to_heads('value', x_BSD, heads.kv_heads, heads.value_dim, 'kv_heads'),
        )

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        heads = self.tile_heads(scope.heads)
        init = lambda_init(scope.layer) if self.lambda_init == 'depth' else self.lambda_init
        q1_H, k1_H, q2_H, k2_H = (
            scope.parameter(
                f'lambda_{name}', (heads.head_dim,), ('head_dim',), jax.nn.initializers.normal(0.1)
            )
            for name in ('q1', 'k1', 'q2', 'k2')
        )
        norm_H = scope.parameter(
            'norm', (heads.value_dim,), ('head_dim',), jax.nn.initializers.ones
        )
        return super().attention_params(scope) | {
            'lambda': jnp.exp(jnp.vdot(q1_H, k1_H)) - jnp.exp(jnp.vdot(q2_H, k2_H)) + init,
            # So that gradients flow as in softmax attention, whatever λ is at first.
            'scale_H': (1 - init) * norm_H,
        }

    def raw_scores(
        self, queries: softmax.Queries, keys: softmax.KeysValues, tile: Tile, params: Any
    ) -> jax.Array:
        return softmax.dot_product_scores(queries.q_BTNH * tile.scale, keys.k_BSKH)

    def attend(self, queries: Queries, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        attend = super().attend
        first_BTNH, second_BTNH = (attend(*one, inputs) for one in _maps(queries, keys))
        return first_BTNH - inputs.params['lambda'].astype(first_BTNH.dtype) * second_BTNH

    def weights(self, queries: Queries, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        weights = super().weights
        first_BNTS, second_BNTS = (weights(*one, inputs) for one in _maps(queries, keys))
        return first_BNTS - inputs.params['lambda'] * second_BNTS

    def logits(self, queries: Queries, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        """The larger of both maps' scores."""
        logits = super().logits
        first_BNTS, second_BNTS = (logits(*one, inputs) for one in _maps(queries, keys))
        return jnp.maximum(first_BNTS, second_BNTS)

    def postprocess_heads(self, o_BTNH: jax.Array, params: Any) -> jax.Array:
        return rms_norm(o_BTNH, params['scale_H'])

    def _halves(self, scope: ParamScope, y_BTNH: jax.Array, tokens: Tokens) -> list[jax.Array]:
        return [
            scope.position.rotate(half_BTNH, tokens.positions_BT)
            for half_BTNH in jnp.split(y_BTNH, 2, axis=-1)
        ]


def lambda_init(layer: int) -> float:
    """0.8 − 0.6 exp(−0.3 l) in layer l from 0."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def _maps(
    queries: Queries, keys: KeysValues
) -> tuple[tuple[softmax.Queries, softmax.KeysValues], ...]:
    return (
        (softmax.Queries(queries.first_BTNH), softmax.KeysValues(keys.first_BSKH, keys.v_BSKH)),
        (softmax.Queries(queries.second_BTNH), softmax.KeysValues(keys.second_BSKH, keys.v_BSKH)),
    )
