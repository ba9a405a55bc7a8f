"""The projections to queries, keys and values that most kinds use."""

import jax

from transformer_jax.batch import Tokens
from transformer_jax.layers.param_scope import ParamScope


def queries(scope: ParamScope, x_BTD: jax.Array, tokens: Tokens) -> jax.Array:
    """Project x_BTD to the queries q_BTNH and rotate them where the position encoding does."""
    heads = scope.heads
    q_BTNH = scope.project_to_heads('query', x_BTD, heads.num_heads, heads.head_dim, 'heads')
    return scope.position.rotate(q_BTNH, tokens.positions_BT)


def keys_values(scope: ParamScope, x_BSD: jax.Array, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
    """Project x_BSD to keys and values.

    Returns:
        (k_BSKH, v_BSKH) of the K key-value heads; keys are rotated where the position encoding
        rotates.
    """
    heads = scope.heads
    k_BSKH = scope.project_to_heads('key', x_BSD, heads.kv_heads, heads.head_dim, 'kv_heads')
    k_BSKH = scope.position.rotate(k_BSKH, tokens.positions_BT)
    v_BSKH = scope.project_to_heads('value', x_BSD, heads.kv_heads, heads.value_dim, 'kv_heads')
    return k_BSKH, v_BSKH
