"""Rows of linear attention: their chunks, their padding, and the states of their pieces.

Letters of this file: as of `linear`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention.engines.pieces import Pieces
from transformer_jax.batch import Tokens


class KeysValues(NamedTuple):
    """Projected keys and values, and the logarithm of the decay at each token."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    decay_BSKR: jax.Array  # K and R may be 1


class CausalInputs(NamedTuple):
    """Queries and keys of the same tokens, for the recurrence.

    Padding holds zeros: its keys, values and log decays change nothing.
    """

    q_BTNH: jax.Array
    keys: KeysValues
    tokens: Tokens


class State(NamedTuple):
    """S = Σ φ(k) vᵀ over the past of one segment, with its decay: the cache of this kind."""

    sums_BKRH: jax.Array
    segment_B: jax.Array  # the segment that was summed; 0: none yet, and the sums are 0


def state_before(
    pieces: Pieces, end: State, decay_BKR: jax.Array, backwards: bool = False
) -> State:
    """Return the state of the past of this device's piece, where devices cut the row.

    Args:
        pieces: how the row is cut.
        end: the state after this piece, if it had no past.
        decay_BKR: the product of the decays of all tokens of this piece; K and R may be 1.
        backwards: the past are the pieces that come after this one in the row.
    """
    ends, decays = pieces.gather((end, decay_BKR))

    def step(carry: tuple[State, State], piece: Any) -> tuple[tuple[State, State], None]:
        before, state = carry
        number, end, decay_BKR = piece
        here = number == pieces.number()
        before = jax.tree.map(lambda new, old: jnp.where(here, new, old), state, before)
        # A piece of padding alone leaves the state as it is. One in which another segment ends
        # forgets it.
        last_B = jnp.where(end.segment_B == 0, state.segment_B, end.segment_B)
        same_B111 = append_axes(state.segment_B == last_B, 4)
        sums_BKRH = jnp.where(same_B111, state.sums_BKRH * decay_BKR[..., None], 0)
        return (before, State(sums_BKRH + end.sums_BKRH, last_B)), None

    zero = jax.tree.map(jnp.zeros_like, end)
    numbers = jnp.arange(pieces.count)
    (before, _), _ = jax.lax.scan(step, (zero, zero), (numbers, ends, decays), reverse=backwards)
    return before


def turn_around(causal: CausalInputs) -> CausalInputs:
    """Return the row from its last token to its first, so that the past is the future."""
    q_BTNH, keys, (positions_BT, segments_BT) = jax.tree.map(reverse_time, causal)
    return CausalInputs(q_BTNH, keys, Tokens(-positions_BT, segments_BT))


def reverse_time(x_BT: jax.Array) -> jax.Array:
    """Reverse the time axis of an array [B, T, …]."""
    return jnp.flip(x_BT, axis=1)


def append_queries_to_keys(
    q_BTNH: jax.Array, keys: KeysValues, inputs: Any
) -> tuple[CausalInputs, jax.Array]:
    """Build a row of L = S + T tokens in which the keys of each segment come before its queries.

    In this row the past of a query is all keys of its segment. So self-attention in both
    directions and cross-attention cost what causal attention costs, packed or not.

    Returns:
        (the row, indices_BT of the queries in it).
    """
    T, S = q_BTNH.shape[1], keys.k_BSKH.shape[1]
    segments_BL = jnp.concatenate(
        [inputs.key_tokens.segments_BT, inputs.query_tokens.segments_BT], axis=1
    )
    order_BL = jnp.argsort(segments_BL, axis=1, stable=True)

    def place(x, before=0, after=0):
        x_BL = jnp.pad(x, ((0, 0), (before, after), *(x.ndim - 2) * ((0, 0),)))
        return jnp.take_along_axis(x_BL, append_axes(order_BL, x.ndim), axis=1)

    positions_BL = jnp.broadcast_to(jnp.arange(S + T)[None], segments_BL.shape)
    causal = CausalInputs(
        place(q_BTNH, before=S),
        jax.tree.map(lambda x: place(x, after=T), keys),
        Tokens(positions_BL, place(segments_BL)),
    )
    return causal, jnp.argsort(order_BL, axis=1)[:, S:]


def last_segment(segment_B: jax.Array, segments_BC: jax.Array) -> jax.Array:
    """Return the segment of the last token that is not padding; `segment_B` where all are."""
    segments_BC = jnp.concatenate([segment_B[:, None], segments_BC], axis=1)
    index_BC = jnp.where(segments_BC != 0, jnp.arange(segments_BC.shape[1])[None], 0)
    return jnp.take_along_axis(segments_BC, index_BC.max(1, keepdims=True), axis=1)[:, 0]


def zero_padding(x: jax.Array, tokens: Tokens) -> jax.Array:
    """Set an array [B, T, …] to 0 where its token is padding."""
    return jnp.where(append_axes(tokens.segments_BT != 0, x.ndim), x, 0)


def split_chunks(x_BT: jax.Array, C: int) -> jax.Array:
    """Cut an array [B, T, …] into chunks [M, B, C, …], the last one filled up with padding."""
    B, T, *rest = x_BT.shape
    x_BT = jnp.pad(x_BT, ((0, 0), (0, -T % C), *len(rest) * ((0, 0),)))
    return jnp.moveaxis(x_BT.reshape(B, -1, C, *rest), 1, 0)


def append_axes(x: jax.Array, ndim: int) -> jax.Array:
    """Append axes of size 1, so that the array has `ndim` axes."""
    return x.reshape(*x.shape, *(ndim - x.ndim) * (1,))
