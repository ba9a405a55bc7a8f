"""All scores at once: time and memory in T·S."""

from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.positions import Tile


def incompatibility(kind: Any, position: Any) -> str:
    """Nothing: it is what the others are held to."""
    return ''


def attend(kind: Any, queries: Any, keys: Any, inputs: Any) -> jax.Array:
    """o_BTNH of a scored kind."""
    weights_BKGTS, tile = weigh(kind, queries, keys, inputs)
    return mix(kind, inputs.apply_dropout(weights_BKGTS), keys, tile, inputs)


def weigh(kind: Any, queries: Any, keys: Any, inputs: Any) -> tuple[jax.Array, Tile]:
    """float32 weights_BKGTS before dropout, and the tile that they belong to."""
    scores_BKGTS, tile = score(kind, queries, keys, inputs)
    weights_BKGTS = kind.normalizer.weights(
        inputs.params['normalizer'], scores_BKGTS, tile.allowed_BTS
    )
    return kind.postprocess_weights(weights_BKGTS, inputs.params), tile


def score(kind: Any, queries: Any, keys: Any, inputs: Any) -> tuple[jax.Array, Tile]:
    """float32 scores_BKGTS as the normalizer takes them, before the mask, and the tile that they
    belong to.
    """
    tile = kind.tile(queries, keys, inputs, inputs.allowed_BTS())
    return kind.scores(queries, keys, tile, inputs), tile


def mix(
    kind: Any, weights_BKGTS: jax.Array, keys: Any, tile: Tile, inputs: Any, dtype: Any = None
) -> jax.Array:
    """o_BTNH: the values of a tile, weighted, and what the position encoding adds to them.

    `dtype` is the result's, by default the values'.
    """
    v_BSKH = kind.values(keys)
    # Times before heads only afterwards: asked for at once, XLA makes the product the other way
    # round, which took 2 to 6 times as long on CPUs.
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
