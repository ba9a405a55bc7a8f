"""The dense engine: all scores at once, O(T·S) time and memory."""

from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.positions import Tile


def incompatibility(kind: Any, position: Any) -> str:
    """Return '': this engine can run everything, and the others are tested against it."""
    return ''


def attend(kind: Any, queries: Any, keys: Any, inputs: Any) -> jax.Array:
    """Return o_BTNH of a scored kind."""
    weights_BKGTS, tile = weigh(kind, queries, keys, inputs)
    return mix(kind, inputs.apply_dropout(weights_BKGTS), keys, tile, inputs)


def weigh(kind: Any, queries: Any, keys: Any, inputs: Any) -> tuple[jax.Array, Tile]:
    """Return float32 weights_BKGTS before dropout, and their tile."""
    scores_BKGTS, tile = score(kind, queries, keys, inputs)
    weights_BKGTS = kind.normalizer.weights(
        inputs.params['normalizer'], scores_BKGTS, tile.allowed_BTS
    )
    return kind.postprocess_weights(weights_BKGTS, inputs.params), tile


def score(kind: Any, queries: Any, keys: Any, inputs: Any) -> tuple[jax.Array, Tile]:
    """Return float32 scores_BKGTS before the mask and the normalizer, and their tile."""
    tile = kind.tile(queries, keys, inputs, inputs.allowed_BTS())
    return kind.scores(queries, keys, tile, inputs), tile


def mix(
    kind: Any, weights_BKGTS: jax.Array, keys: Any, tile: Tile, inputs: Any, dtype: Any = None
) -> jax.Array:
    """Return o_BTNH: the weighted values of a tile, and what the position encoding adds to them.

    `dtype` is that of the result; None: that of the values.
    """
    v_BSKH = kind.values(keys)
    # The axes are moved after the product. With 'BTKGH' as the output of einsum, XLA swaps the
    # operands of the product, which took 2 to 6 times as long on CPUs.
    o_BKGTH = jnp.einsum(
        'BKGTS,BSKH->BKGTH',
        weights_BKGTS.astype(v_BSKH.dtype),
        v_BSKH,
        preferred_element_type=dtype,
    )
    o_BTKGH = jnp.moveaxis(o_BKGTH, 3, 1)
    extra_BTKGH = inputs.position.value(inputs.position_params, weights_BKGTS, tile)
    if extra_BTKGH is not None:
        o_BTKGH += extra_BTKGH.astype(o_BTKGH.dtype)
    B, T, K, G, H = o_BTKGH.shape
    return o_BTKGH.reshape(B, T, K * G, H)
