"""The decoder of a recurrent model, step by step: pure functions.

D, E and Z as in `rnn_layers`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.attention.kinds.additive import additive_scores
from transformer_jax.attention.masks import Segments
from transformer_jax.attention.normalizers import Softmax
from transformer_jax.batch import Tokens
from transformer_jax.layers.linear import matmul
from transformer_jax.layers.recurrent import Recurrent, State, Weights


@flax.struct.dataclass
class DecoderState:
    """What the decoder carries from token to token: float32 [B, D] in every leaf."""

    layers: tuple[State, ...]
    output_BD: jax.Array  # the last; input feeding reads it


@flax.struct.dataclass
class Memory:
    """What the decoder reads and never changes: the encoder's output, and as what attention
    compares with.
    """

    memory_BSE: jax.Array
    keys_BSD: jax.Array | None
    tokens: Tokens


class Decoder(NamedTuple):
    """The learned arrays of a decoder."""

    layers: list[Weights]
    feed_DZD: jax.Array | None  # from the last output to the first layer
    alignment: dict[str, jax.Array] | None


def align(
    arrays: dict[str, jax.Array], h_BTD: jax.Array, memory: Memory, allowed_BTS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(tanh(C [m̄; h]), weights_BTS), m̄ the mean of the memory by these weights, the softmax of
    the scores.

    Luong et al. (2015), equations 5 and 7, where the newest state h attends. The score is additive
    where there is a query among the `arrays`, else multiplicative.
    """
    if 'query_ID' in arrays:
        q_BT1D = matmul(h_BTD, arrays['query_ID'], 1)[:, :, None]
        scores_B11TS = additive_scores(
            q_BT1D,
            memory.keys_BSD[:, :, None],
            arrays['score_D'][None],
            arrays['query_bias_D'][None],
        )
    else:
        scores_BTS = jnp.einsum(
            'BTD,BSD->BTS', h_BTD, memory.keys_BSD, preferred_element_type=jnp.float32
        )
        scores_B11TS = scores_BTS[:, None, None]
    weights_BTS = Softmax().weights((), scores_B11TS, allowed_BTS)[:, 0, 0]
    mean_BTE = jnp.einsum('BTS,BSE->BTE', weights_BTS.astype(h_BTD.dtype), memory.memory_BSE)
    return jnp.tanh(
        matmul(jnp.concatenate([mean_BTE, h_BTD], -1), arrays['out_CD'], 1)
    ), weights_BTS


def last_outputs(
    memory_BSE: jax.Array, source: Tokens, target: Tokens, bidirectional: bool
) -> jax.Array:
    """m_BTE: what each direction put out last in the source segment that a target token belongs to;
    0 without one.
    """
    same_BTS = Segments().allowed(target, source)
    first_BT, last_BT = same_BTS.argmax(-1), same_BTS.shape[-1] - 1 - same_BTS[..., ::-1].argmax(-1)
    halves = zip(
        jnp.split(memory_BSE, 1 + bidirectional, axis=-1), (last_BT, first_BT), strict=False
    )
    taken = [
        jnp.take_along_axis(half_BSD, place_BT[..., None], axis=1) for half_BSD, place_BT in halves
    ]
    return jnp.where(same_BTS.any(-1, keepdims=True), jnp.concatenate(taken, -1), 0)


def advance(
    cell: Recurrent,
    decoder: Decoder,
    x_BZD: jax.Array,
    state: DecoderState,
    drops: Sequence[jax.Array],
) -> tuple[tuple[State, ...], jax.Array]:
    """One token through all layers of the decoder: (their states, h_BD of the last).

    Args:
        cell: of all layers.
        decoder: its arrays.
        x_BZD: the token's embedding as the first layer projects it.
        state: after the token before it.
        drops: factors [B, D] of what the layers from the second on read; none: nothing is dropped.
    """
    if decoder.feed_DZD is not None:
        x_BZD += matmul(state.output_BD.astype(x_BZD.dtype), decoder.feed_DZD, 1)
    states = [cell.advance(decoder.layers[0], x_BZD, state.layers[0])]
    for layer, weights in enumerate(decoder.layers[1:], 1):
        h_BD = states[-1][0].astype(x_BZD.dtype) * (drops[layer - 1] if drops else 1)
        x_BZD = weights.project(h_BD[:, None])[:, 0]
        states.append(cell.advance(weights, x_BZD, state.layers[layer]))
    return tuple(states), states[-1][0].astype(x_BZD.dtype)
