"""Queries, keys and values as most kinds have them: projected to heads, the first two turned by
their positions.
"""

import jax

from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope


def queries(scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> jax.Array:
    """q_BTNH of N query heads."""
    heads = scope.heads
    return scope.position.rotate(
        scope.project_to_heads('query', x_BTD, heads.num_heads, heads.head_dim, 'heads'),
        tokens.positions_BT,
    )


def keys_values(scope: ParamScope, x_BSD: jax.Array, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
    """(k_BSKH, v_BSKH) of K key-value heads."""
    heads = scope.heads
    k_BSKH = scope.position.rotate(
        scope.project_to_heads('key', x_BSD, heads.kv_heads, heads.head_dim, 'kv_heads'),
        tokens.positions_BT,
    )
    return k_BSKH, scope.project_to_heads(
        'value', x_BSD, heads.kv_heads, heads.value_dim, 'kv_heads'
    )
