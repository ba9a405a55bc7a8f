"""The recurrent encoder-decoder, with and without attention: what the Transformer replaced, as
its baseline.

D units of a layer and size of an embedding, E size of the memory: D, or 2 D where both directions
read the source; I inputs of a layer, Z gates of a cell.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Batch, Tokens
from transformer_jax.layers.dropout import dropout
from transformer_jax.layers.linear import matmul
from transformer_jax.layers.parameters import constrain, parameter
from transformer_jax.layers.recurrent import over_time, recur
from transformer_jax.models.rnn_decoder import (
    Decoder,
    DecoderState,
    Memory,
    advance,
    align,
    last_outputs,
)
from transformer_jax.models.rnn_layers import GATES, GLOROT, GLOROT_GATES, Alignment, Layer
from transformer_jax.models.token_model import TokenModel


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
        return Memory(memory_BSE, alignment and matmul(memory_BSE, alignment['key_ED'], 1), source)

    def _initial(self, memory: Memory, target: Tokens) -> jax.Array:
        """The float32 vector_BTD from which the decoder starts a segment, at each of the
        segment's tokens.
        """
        m_BTE = last_outputs(memory.memory_BSE, memory.tokens, target, self.cell.bidirectional)
        initial_BTD = (
            matmul(m_BTE, self.bridge_ED, 1).astype(jnp.float32) + self.bridge_bias_D[None, None]
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
