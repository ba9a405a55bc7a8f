"""The decoder of a recurrent model, step by step, as pure functions.

Letters of shapes as in `rnn_layers`.
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
    """The state of the decoder between tokens; every leaf is float32 [B, D]."""

    layers: tuple[State, ...]
    output_BD: jax.Array  # the last output, which input feeding reads


@flax.struct.dataclass
class Memory:
    """The encoder's output, which the decoder reads and never changes."""

    memory_BSE: jax.Array
    keys_BSD: jax.Array | None  # the memory projected for the score; None without attention
    tokens: Tokens  # of the source


class Decoder(NamedTuple):
    """The learned arrays of a decoder."""

    layers: list[Weights]
    feed_DZD: jax.Array | None  # from the last output to the first layer, for input feeding
    alignment: dict[str, jax.Array] | None  # see `rnn_layers.Alignment`; None without attention


def align(
    arrays: dict[str, jax.Array], h_BTD: jax.Array, memory: Memory, allowed_BTS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Attend from the decoder's newest states h to the memory (Luong et al. 2015).

    Equations 5 and 7: the weights are the softmax of the scores, and the output is tanh(C [m̄; h]),
    where m̄ is the weighted mean of the memory.

    Args:
        arrays: of `Alignment`; the score is additive if they have a query, else multiplicative.
        h_BTD: states.
        memory: of the source.
        allowed_BTS: the source tokens that each state may attend to.

    Returns:
        (output [B, T, D], weights_BTS).
    """
    keys_BSD = memory.keys_BSD
    assert keys_BSD is not None, 'a memory that is attended to has keys'
    if 'query_ID' in arrays:
        q_BT1D = matmul(h_BTD, arrays['query_ID'], 1)[:, :, None]
        scores_B11TS = additive_scores(
            q_BT1D,
            keys_BSD[:, :, None],
            arrays['score_D'][None],
            arrays['query_bias_D'][None],
        )
    else:
        scores_BTS = jnp.einsum('BTD,BSD->BTS', h_BTD, keys_BSD, preferred_element_type=jnp.float32)
        scores_B11TS = scores_BTS[:, None, None]
    weights_BTS = Softmax().weights((), scores_B11TS, allowed_BTS)[:, 0, 0]
    mean_BTE = jnp.einsum('BTS,BSE->BTE', weights_BTS.astype(h_BTD.dtype), memory.memory_BSE)
    joint_BTC = jnp.concatenate([mean_BTE, h_BTD], -1)
    return jnp.tanh(matmul(joint_BTC, arrays['out_CD'], 1)), weights_BTS


def last_outputs(
    memory_BSE: jax.Array, source: Tokens, target: Tokens, bidirectional: bool
) -> jax.Array:
    """Find the encoder's last outputs m_BTE in the source segment of each target token.

    The last output of the layer that reads backward is its output at the segment's first token. A
    target token without a source segment gets 0.

    Args:
        memory_BSE: outputs of the encoder, forward and backward ones concatenated.
        source: tokens of the memory.
        target: tokens of the target.
        bidirectional: whether there are backward outputs.
    """
    same_BTS = Segments().allowed(target, source)
    first_BT, last_BT = same_BTS.argmax(-1), same_BTS.shape[-1] - 1 - same_BTS[..., ::-1].argmax(-1)
    places = (last_BT, first_BT) if bidirectional else (last_BT,)
    outputs = [
        jnp.take_along_axis(part_BSD, place_BT[..., None], axis=1)
        for part_BSD, place_BT in zip(
            jnp.split(memory_BSE, len(places), axis=-1), places, strict=True
        )
    ]
    return jnp.where(same_BTS.any(-1, keepdims=True), jnp.concatenate(outputs, -1), 0)


def advance(
    cell: Recurrent,
    decoder: Decoder,
    x_BZD: jax.Array,
    state: DecoderState,
    drops: Sequence[jax.Array],
) -> tuple[tuple[State, ...], jax.Array]:
    """Pass one token through all layers: (the states of the layers, h_BD of the last layer).

    Args:
        cell: of all layers.
        decoder: its arrays.
        x_BZD: the token's embedding, projected for the gates of the first layer.
        state: after the token before.
        drops: dropout's factors [B, D] on the inputs of the second and later layers; empty: no
            dropout.
    """
    if decoder.feed_DZD is not None:
        x_BZD += matmul(state.output_BD.astype(x_BZD.dtype), decoder.feed_DZD, 1)
    states = [cell.advance(decoder.layers[0], x_BZD, state.layers[0])]
    for layer, weights in enumerate(decoder.layers[1:], 1):
        h_BD = states[-1][0].astype(x_BZD.dtype) * (drops[layer - 1] if drops else 1)
        x_BZD = weights.project(h_BD[:, None])[:, 0]
        states.append(cell.advance(weights, x_BZD, state.layers[layer]))
    return tuple(states), states[-1][0].astype(x_BZD.dtype)
