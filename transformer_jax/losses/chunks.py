"""Chunks of target tokens, so that the logits of a whole batch are never in memory at once."""

import math

import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from transformer_jax.layers.parameters import axes_that_cut

# Tokens whose logits are in the memory of a device at once. On a CPU 512 × 10,000 float32 logits,
# 20 MB, still fit a cache of 32 MB; accelerators lose no speed with a loop of matrix products of
# this size.
CHUNK_TOKENS = 512


def split_rows(a_BT: jax.Array) -> jax.Array:
    """Make rows of the pieces of rows that lie on several devices: [P·B, T/P, …] of [B, T, …].

    So a chunk takes some tokens of every device, and no device waits for another one's. Without
    such a mesh P is 1.
    """
    (B, T, *rest), pieces = a_BT.shape, _count_parts('length', a_BT.shape[1])
    if pieces == 1:
        return a_BT
    a_PBT = jnp.moveaxis(a_BT.reshape(B, pieces, T // pieces, *rest), 1, 0)
    a_RT = a_PBT.reshape(pieces * B, T // pieces, *rest)
    return with_logical_constraint(a_RT, ('piece', *[None] * (a_RT.ndim - 1)))


def join_rows(a_RT: jax.Array, rows: int) -> jax.Array:
    """Undo `split_rows`: [P·B, T/P, …] to [B, T, …] with `rows` rows."""
    a_PBT = a_RT.reshape(-1, rows, *a_RT.shape[1:])
    return jnp.moveaxis(a_PBT, 0, 1).reshape(rows, -1, *a_RT.shape[2:])


def counted_first(weights_BT: jax.Array) -> jax.Array:
    """Return the order_BT of each row's places in which tokens with weight come first.

    The chunks of a prompt, or of padding, then have no tokens with weight and need no logits.
    """
    return jnp.argsort(weights_BT == 0, axis=1, stable=True)


def reorder(a_BT: jax.Array, order_BT: jax.Array) -> jax.Array:
    """Permute the places of each row of an array [B, T, …]."""
    order = order_BT.reshape(*order_BT.shape, *[1] * (a_BT.ndim - 2))
    return jnp.take_along_axis(a_BT, order, axis=1)


def time_chunks(a_BT: jax.Array) -> jax.Array:
    """Cut the time of an array [B, T, …] into chunks.

    Returns:
        [L, C, …]: L chunks of C tokens each, all rows' tokens of some times. On each of the
        devices that share the rows, C is at least CHUNK_TOKENS where the batch has as many: the
        devices add up the gradient of the output table after every chunk.
    """
    B, T = a_BT.shape[:2]
    least = CHUNK_TOKENS * max(_count_parts(axis, B) for axis in ('batch', 'piece'))
    steps = next(c for c in range(1, T + 1) if T % c == 0 and (c == T or B * c >= least))
    a_LBT = jnp.moveaxis(a_BT.reshape(B, T // steps, steps, *a_BT.shape[2:]), 1, 0)
    return a_LBT.reshape(T // steps, B * steps, *a_BT.shape[2:])


def join_chunks(a_LC: jax.Array, rows: int) -> jax.Array:
    """Undo `time_chunks`: [L, C, …] to [B, T, …] with `rows` rows."""
    chunks, _, *rest = a_LC.shape
    a_LBT = a_LC.reshape(chunks, rows, -1, *rest)
    return jnp.moveaxis(a_LBT, 0, 1).reshape(rows, -1, *rest)


def _count_parts(logical: str, size: int) -> int:
    """Count the parts that the mesh cuts a dimension with a logical axis into; else 1."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in axes_that_cut(logical, size))
