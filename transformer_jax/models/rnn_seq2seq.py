"""The recurrent encoder-decoder, with and without attention: what the Transformer replaced, as
its baseline.

D units of a layer and size of an embedding, E size of the memory: D, or 2 D where both directions
read the source; I inputs of a layer, Z gates of a cell.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.attention.kinds.additive import additive_scores
from transformer_jax.attention.masks import Segments
from transformer_jax.attention.normalizers import Softmax
from transformer_jax.batch import Batch, Tokens
from transformer_jax.layers.linear import constrain, dropout, parameter, product
from transformer_jax.layers.recurrent import Recurrent, State, Weights, over_time, recur
from transformer_jax.models.token_model import TokenModel

GLOROT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
GLOROT_GATES = nn.initializers.variance_scaling(
    1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=2, batch_axis=1
)
GATES = (
    'embed',
    'rank',
    'mlp',
)  # logical axes of kernels to gates: a device has all gates of its units


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


class Layer(nn.Module):
    """Owns the parameters of a recurrent layer in one direction."""

    cell: Recurrent
    units: int

    @nn.compact
    def __call__(self, inputs: int) -> Weights:
        Z, D = self.cell.gates, self.units
        return Weights(
            parameter(self, 'input_kernel', (inputs, Z, D), GATES, GLOROT_GATES),
            parameter(self, 'recurrent_kernel', (D, Z, D), GATES, _orthogonal),
            parameter(self, 'bias', (4, D), ('rank', 'mlp'), self.cell.initial_bias),
        )


def _orthogonal(rng: jax.Array, shape: tuple[int, int, int], dtype: Any) -> jax.Array:
    """A random orthogonal matrix for each gate (Bahdanau et al. 2015, section B.1)."""
    D, Z, _ = shape
    gates = [nn.initializers.orthogonal()(key, (D, D), dtype) for key in jax.random.split(rng, Z)]
    return jnp.stack(gates, axis=1)


class Alignment(nn.Module):
    """Owns the parameters of attention, and of the output that what it finds is joined to."""

    score: str
    units: int

    @nn.compact
    def __call__(self, memory_size: int) -> dict[str, jax.Array]:
        """Arrays by name; those of a query belong to the additive score alone."""
        E, D = memory_size, self.units
        arrays = {
            'key_ED': parameter(self, 'key_kernel', (E, D), ('embed', 'mlp'), GLOROT),
            'out_CD': parameter(self, 'out_kernel', (E + D, D), ('embed', 'mlp'), GLOROT),
        }
        if self.score == 'additive':
            normal, zeros = nn.initializers.normal(D**-0.5), nn.initializers.zeros
            arrays |= {
                'query_ID': parameter(self, 'query_kernel', (D, D), ('embed', 'mlp'), GLOROT),
                'query_bias_D': parameter(self, 'query_bias', (D,), ('mlp',), zeros),
                'score_D': parameter(self, 'score', (D,), ('mlp',), normal),
            }
        return arrays


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
        q_BT1D = product(h_BTD, arrays['query_ID'], 1)[:, :, None]
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
        product(jnp.concatenate([mean_BTE, h_BTD], -1), arrays['out_CD'], 1)
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
        x_BZD += product(state.output_BD.astype(x_BZD.dtype), decoder.feed_DZD, 1)
    states = [cell.advance(decoder.layers[0], x_BZD, state.layers[0])]
    for layer, weights in enumerate(decoder.layers[1:], 1):
        h_BD = states[-1][0].astype(x_BZD.dtype) * (drops[layer - 1] if drops else 1)
        x_BZD = weights.project(h_BD[:, None])[:, 0]
        states.append(cell.advance(weights, x_BZD, state.layers[layer]))
    return tuple(states), states[-1][0].astype(x_BZD.dtype)


class RnnSeq2Seq(TokenModel):
    """An encoder and a decoder of recurrent layers (Sutskever et al. 2014), with attention where
    `model.rnn` has it.

    The decoder is that of Luong et al. (2015), Figures 2 and 4, whatever the score of attention.
    All that it carries starts from one vector, tanh(W m + b) of the encoder's last outputs m, as in
    Bahdanau et al. (2015), section A.2.2 (there of the backward one alone). Dropout acts on what
    layers read and on the features, never from one token to the next (Zaremba et al. 2014).
    `model.d_model` is the size of embeddings and of each layer in each direction; the keys of
    attention, positions, norms and feed-forward layers have no meaning here.
    """

    def setup(self):
        architecture = self.architecture
        self.cell = architecture.cell
        self.target_embedding = self._embedding()
        if not self._tied('source'):
            self.source_embedding = self._embedding()
        if not self._tied('output'):
            self.output = self._embedding()
        D, E = architecture.d_model, architecture.d_model * (1 + self.cell.bidirectional)
        self.encoder = [Layer(self.cell, D) for _ in range(architecture.encoder_layers)]
        if self.cell.bidirectional:
            self.encoder_backward = [
                Layer(self.cell, D) for _ in range(architecture.encoder_layers)
            ]
        self.decoder = [Layer(self.cell, D) for _ in range(architecture.decoder_layers)]
        self.bridge_ED = parameter(self, 'bridge_kernel', (E, D), ('embed', 'mlp'), GLOROT)
        self.bridge_bias_D = parameter(self, 'bridge_bias', (D,), ('mlp',), nn.initializers.zeros)
        if self.cell.attends:
            self.alignment = Alignment(self.cell.attention, D)
        if self.cell.input_feeding:
            self.feed_DZD = parameter(
                self, 'feed_kernel', (D, self.cell.gates, D), GATES, GLOROT_GATES
            )

    def features(self, batch: Batch, rate: jax.Array | None = None) -> jax.Array:
        """x_BTD: what the output layer turns into logits."""
        source, target = batch.source_tokens, batch.target_tokens
        memory = self._memory(self.encode(batch.source_BS, source, rate), source)
        x_BTD = constrain(self.target_embedding(batch.inputs_BT))
        decode = self._decode_fed if self.cell.input_feeding else self._decode
        x_BTD, weights_BTS = decode(x_BTD, target, memory, rate)
        if weights_BTS is not None:
            self.sow('intermediates', 'weights_BNTS', weights_BTS[:, None])
        return dropout(self, constrain(x_BTD), rate)

    def encode(
        self, source_BS: jax.Array, tokens: Tokens, rate: jax.Array | None = None
    ) -> jax.Array:
        """memory_BSE of the source: the outputs of the last layer, forward beside backward."""
        embedding = self.target_embedding if self._tied('source') else self.source_embedding
        x_BSI = constrain(embedding(source_BS))
        for index, layer in enumerate(self.encoder):
            x_BSI, (*_, inputs) = dropout(self, x_BSI, rate), x_BSI.shape
            outputs = [recur(self.cell, layer(inputs), x_BSI, tokens.segments_BT)]
            if self.cell.bidirectional:
                weights = self.encoder_backward[index](inputs)
                outputs.append(recur(self.cell, weights, x_BSI, tokens.segments_BT, reverse=True))
            x_BSI = constrain(jnp.concatenate(outputs, -1))
        return x_BSI

    def start(
        self, source_BS: jax.Array, source: Tokens, length: int
    ) -> tuple[DecoderState, Memory]:
        """The state of decoding before its first token, and what it reads; neither grows
        with `length`.
        """
        memory, zeros_B1 = (
            self._memory(self.encode(source_BS, source), source),
            jnp.zeros_like(source_BS[:, :1]),
        )
        return self._carried(self._initial(memory, Tokens(zeros_B1, zeros_B1 + 1))[:, 0]), memory

    def step(
        self, tokens_R: jax.Array, cache: DecoderState, memory: Memory
    ) -> tuple[jax.Array, DecoderState]:
        """logits_RV of the tokens that follow `tokens_R`, and the cache with them in it.

        R is B, or a multiple: the beams of a sentence side by side, which share its memory.
        """
        decoder = self._decoder()
        x_RZD = decoder.layers[0].project(self.target_embedding(tokens_R[:, None]))[:, 0]
        states, h_RD = advance(self.cell, decoder, x_RZD, cache, [])
        # The hypotheses of a sentence are to its memory what the times of a target are.
        h_BTD = h_RD.reshape(len(memory.memory_BSE), -1, h_RD.shape[-1])
        ones_BT = jnp.ones(h_BTD.shape[:2], jnp.int32)
        x_BTD, _ = self._align(decoder, h_BTD, Tokens(ones_BT, ones_BT), memory)
        logits_RV = self.logits(x_BTD).reshape(len(tokens_R), -1)
        return logits_RV, DecoderState(states, x_BTD.reshape(h_RD.shape).astype(jnp.float32))

    def _decode(
        self, x_BTD: jax.Array, target: Tokens, memory: Memory, rate: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """(features, weights_BTS) layer by layer, each for all tokens."""
        decoder, initial_BTD = self._decoder(), self._initial(memory, target)
        for weights in decoder.layers:
            x_BTD = recur(
                self.cell, weights, dropout(self, x_BTD, rate), target.segments_BT, initial_BTD
            )
        return self._align(decoder, x_BTD, target, memory)

    def _decode_fed(
        self, x_BTD: jax.Array, target: Tokens, memory: Memory, rate: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The same token by token, each through all layers and attention: it reads the output of
        the one before.
        """
        decoder, ones_BTD = self._decoder(), jnp.ones_like(x_BTD)
        drops = (
            [dropout(self, ones_BTD, rate) for _ in decoder.layers[1:]] if rate is not None else []
        )
        x_BTZD = decoder.layers[0].project(dropout(self, x_BTD, rate))
        inputs = x_BTZD, Segments().allowed(target, memory.tokens), drops

        def step(inputs, state):
            x_BZD, allowed_BS, drops = inputs
            states, h_BD = advance(self.cell, decoder, x_BZD, state, drops)
            found_B1 = align(decoder.alignment, h_BD[:, None], memory, allowed_BS[:, None])
            output_BD, weights_BS = (a_B1[:, 0] for a_B1 in found_B1)
            return DecoderState(states, output_BD.astype(jnp.float32)), (output_BD, weights_BS)

        return over_time(
            step,
            self._carried(x_BTD.shape[-1]),
            inputs,
            target.segments_BT,
            self._initial(memory, target),
        )

    def _decoder(self) -> Decoder:
        D = self.architecture.d_model
        return Decoder(
            [layer(D) for layer in self.decoder],
            self.feed_DZD if self.cell.input_feeding else None,
            self.alignment(len(self.bridge_ED)) if self.cell.attends else None,
        )

    def _memory(self, memory_BSE: jax.Array, source: Tokens) -> Memory:
        alignment = self._decoder().alignment
        return Memory(memory_BSE, alignment and product(memory_BSE, alignment['key_ED'], 1), source)

    def _initial(self, memory: Memory, target: Tokens) -> jax.Array:
        """The float32 vector_BTD from which the decoder starts a segment, at each of the
        segment's tokens.
        """
        m_BTE = last_outputs(memory.memory_BSE, memory.tokens, target, self.cell.bidirectional)
        initial_BTD = (
            product(m_BTE, self.bridge_ED, 1).astype(jnp.float32) + self.bridge_bias_D[None, None]
        )
        return jnp.tanh(initial_BTD)

    def _carried(self, value: Any) -> DecoderState:
        """All that the decoder carries, one `value` everywhere."""
        return DecoderState(
            self.architecture.decoder_layers * (self.cell.states * (value,),), value
        )

    def _align(
        self, decoder: Decoder, h_BTD: jax.Array, target: Tokens, memory: Memory
    ) -> tuple[jax.Array, jax.Array | None]:
        """(features, weights_BTS) of the decoder's last layer."""
        if decoder.alignment is None:
            return h_BTD, None
        return align(decoder.alignment, h_BTD, memory, Segments().allowed(target, memory.tokens))
