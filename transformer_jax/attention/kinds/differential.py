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
from transformer_jax.ranges import number


class Queries(NamedTuple):
    """The queries of both attention maps; H is d_k / 2."""

    first_BTNH: jax.Array
    second_BTNH: jax.Array


class KeysValues(NamedTuple):
    """The keys of both attention maps, and the values that they share."""

    first_BSKH: jax.Array
    second_BSKH: jax.Array
    v_BSKH: jax.Array


@dataclasses.dataclass(frozen=True)
class Differential(Scored):
    """(softmax(Q₁ K₁ᵀ / √d) − λ softmax(Q₂ K₂ᵀ / √d)) V, then an RMS norm of each head.

    Ye et al. 2024, equations 1 to 3. Q₁ and Q₂ are the halves of a head's query, so that d is
    d_k / 2 and a head has as many parameters as one of softmax attention. To build the paper's
    model, set half as many heads as the baseline has: values are then 2d wide, since d_v is d_k by
    default.

    λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init, with vectors that the heads of a layer share. The
    norm is multiplied by 1 − λ_init. Dropout drops the same places of both maps.

    Options:
        lambda_init: depth, which is 0.8 − 0.6 exp(−0.3 l) in layer l from 0; or a number.
    """

    lambda_init: float | str = number('depth', low=0, below=1)

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.lambda_init, str) and self.lambda_init != 'depth':
            raise ValueError(
                f'lambda_init={self.lambda_init!r}, it takes depth or a number from 0 to below 1'
            )

    @property
    def reads_layer(self) -> bool:
        """Whether λ_init follows from the number of the layer."""
        return self.lambda_init == 'depth'

    def tile_heads(self, heads: HeadDims) -> HeadDims:
        if heads.head_dim % 2:
            raise ConfigError(
                f'model.head_dim={heads.head_dim} is odd: differential attention halves queries '
                'and keys'
            )
        return dataclasses.replace(heads, head_dim=heads.head_dim // 2)

    def project_queries(self, scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> Queries:
        heads = self.tile_heads(scope.heads)
        both_BTNH = scope.project_to_heads(
            'query', x_BTD, heads.num_heads, 2 * heads.head_dim, 'heads'
        )
        return Queries(*_rotated_halves(scope, both_BTNH, tokens))

    def project_keys_values(
        self, scope: ParamScope, x_BSD: jax.Array, tokens: Tokens
    ) -> KeysValues:
        heads = self.tile_heads(scope.heads)
        both_BSKH = scope.project_to_heads(
            'key', x_BSD, heads.kv_heads, 2 * heads.head_dim, 'kv_heads'
        )
        v_BSKH = scope.project_to_heads('value', x_BSD, heads.kv_heads, heads.value_dim, 'kv_heads')
        first_BSKH, second_BSKH = _rotated_halves(scope, both_BSKH, tokens)
        return KeysValues(first_BSKH, second_BSKH, v_BSKH)

    def attention_params(self, scope: ParamScope) -> dict[str, Any]:
        heads = self.tile_heads(scope.heads)
        by_depth = self.lambda_init == 'depth'
        init = lambda_init(scope.layer) if by_depth else float(self.lambda_init)
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
            # With this factor gradients are as large as in softmax attention, for any λ_init.
            'scale_H': (1 - init) * norm_H,
        }

    @property
    def has_signed_weights(self) -> bool:
        return True

    def raw_scores(
        self, queries: softmax.Queries, keys: softmax.KeysValues, tile: Tile, params: Any
    ) -> jax.Array:
        return softmax.dot_product_scores(queries.q_BTNH * tile.scale, keys.k_BSKH)

    def attend(self, queries: Queries, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        attend = super().attend
        first_BTNH, second_BTNH = (attend(*pair, inputs) for pair in _split_maps(queries, keys))
        return first_BTNH - inputs.params['lambda'].astype(first_BTNH.dtype) * second_BTNH

    def weights(self, queries: Queries, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        weights = super().weights
        first_BNTS, second_BNTS = (weights(*pair, inputs) for pair in _split_maps(queries, keys))
        return first_BNTS - inputs.params['lambda'] * second_BNTS

    def logits(self, queries: Queries, keys: KeysValues, inputs: AttentionInputs) -> jax.Array:
        """Return the larger score of both maps, [B, N, T, S]."""
        logits = super().logits
        first_BNTS, second_BNTS = (logits(*pair, inputs) for pair in _split_maps(queries, keys))
        return jnp.maximum(first_BNTS, second_BNTS)

    def postprocess_heads(self, o_BTNH: jax.Array, params: Any) -> jax.Array:
        return rms_norm(o_BTNH, params['scale_H'])


def lambda_init(layer: int) -> float:
    """Return 0.8 − 0.6 exp(−0.3 l) in layer l from 0."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


def _rotated_halves(scope: ParamScope, y_BTNH: jax.Array, tokens: Tokens) -> list[jax.Array]:
    return [
        scope.position.rotate(half_BTNH, tokens.positions_BT)
        for half_BTNH in jnp.split(y_BTNH, 2, axis=-1)
    ]


def _split_maps(
    queries: Queries, keys: KeysValues
) -> tuple[tuple[softmax.Queries, softmax.KeysValues], ...]:
    """Return queries and keys of the first map and of the second, as of softmax attention."""
    return (
        (softmax.Queries(queries.first_BTNH), softmax.KeysValues(keys.first_BSKH, keys.v_BSKH)),
        (softmax.Queries(queries.second_BTNH), softmax.KeysValues(keys.second_BSKH, keys.v_BSKH)),
    )
