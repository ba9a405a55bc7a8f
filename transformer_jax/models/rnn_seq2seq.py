"""The recurrent encoder-decoder, with and without attention: the Transformer's baseline.

Letters of shapes as in `rnn_layers`.
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
from transformer_jax.models.token_model import LayerState, TokenModel


class RnnSeq2Seq(TokenModel):
    """An encoder and a decoder of recurrent layers (Sutskever et al. 2014).

    `model.rnn` is the cell and says whether there is attention. The decoder is that of Luong et al.
    (2015), Figures 2 and 4, for both scores of attention. Its whole state starts as one vector,
    tanh(W m + b), where m are the encoder's last outputs (Bahdanau et al. 2015, section A.2.2, has
    the backward one alone). Dropout is applied to the inputs of layers and to the features, never
    between one token and the next (Zaremba et al. 2014). `model.d_model` is the size of embeddings
    and of each layer in each direction; the keys of attention, positions, norms and feed-forward
    layers have no effect.
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
        """Compute x_BTD, the input of the output layer; `rate` is dropout's."""
        source, target = batch.source_tokens, batch.target_tokens
        memory = self._memory(self.encode(batch.source_BS, source, rate), source)
        x_BTD = constrain(self.target_embedding(batch.inputs_BT))
        decode = self._decode_by_token if self.cell.input_feeding else self._decode_by_layer
        x_BTD, weights_BTS = decode(x_BTD, target, memory, rate)
        if weights_BTS is not None:
            self.sow('intermediates', 'weights_BNTS', weights_BTS[:, None])
        return dropout(self, constrain(x_BTD), rate)

    def encode(
        self, source_BS: jax.Array, tokens: Tokens, rate: jax.Array | None = None
    ) -> jax.Array:
        """Encode the source as memory_BSE: forward and backward outputs of the last layer."""
        embedding = self.target_embedding if self._tied('source') else self.source_embedding
        x_BSI = constrain(embedding(source_BS))
        for index, layer in enumerate(self.encoder):
            x_BSI = dropout(self, x_BSI, rate)
            inputs = x_BSI.shape[-1]
            outputs = [recur(self.cell, layer(inputs), x_BSI, tokens.segments_BT)]
            if self.cell.bidirectional:
                weights = self.encoder_backward[index](inputs)
                outputs.append(recur(self.cell, weights, x_BSI, tokens.segments_BT, reverse=True))
            x_BSI = constrain(jnp.concatenate(outputs, -1))
        return x_BSI

    def start(
        self, source_BS: jax.Array, source: Tokens, length: int
    ) -> tuple[DecoderState, Memory]:
        """Encode the source and make the state of decoding before its first token.

        Args:
            source_BS: token ids.
            source: their positions and segments.
            length: not used: the state does not grow.
        """
        memory = self._memory(self.encode(source_BS, source), source)
        zeros_B1 = jnp.zeros_like(source_BS[:, :1])
        initial_BD = self._initial(memory, Tokens(zeros_B1, zeros_B1 + 1))[:, 0]
        return self._fill_state(initial_BD), memory

    def step(
        self, tokens_R: jax.Array, cache: DecoderState, memory: Memory
    ) -> tuple[jax.Array, DecoderState]:
        """Read one token of each hypothesis: (logits_RV of the next one, the new state).

        R is B or a multiple of it: the beams of a sentence are adjacent rows and share its memory.
        """
        decoder = self._decoder()
        x_RZD = decoder.layers[0].project(self.target_embedding(tokens_R[:, None]))[:, 0]
        states, h_RD = advance(self.cell, decoder, x_RZD, cache, [])
        # The hypotheses of a sentence become the times of one target: one attention to its memory.
        h_BTD = h_RD.reshape(len(memory.memory_BSE), -1, h_RD.shape[-1])
        ones_BT = jnp.ones(h_BTD.shape[:2], jnp.int32)
        x_BTD, _ = self._align(decoder, h_BTD, Tokens(ones_BT, ones_BT), memory)
        logits_RV = self.logits(x_BTD).reshape(len(tokens_R), -1)
        return logits_RV, DecoderState(states, x_BTD.reshape(h_RD.shape).astype(jnp.float32))

    @nn.nowrap
    def layer_states(self, cache: DecoderState, memory: Memory) -> tuple[LayerState, ...]:
        """Return what each layer keeps of the state that `start` or `step` returns.

        The last output and the memory count where something reads them: input feeding, attention.
        """
        cell = self.architecture.cell
        layers = [LayerState(f'decoder_{n}', layer, ()) for n, layer in enumerate(cache.layers)]
        if cell.attends:
            fed = cache.output_BD if cell.input_feeding else ()
            layers.append(LayerState('attention', fed, (memory.memory_BSE, memory.keys_BSD)))
        return tuple(layers)

    def _decode_by_layer(
        self, x_BTD: jax.Array, target: Tokens, memory: Memory, rate: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Decode layer by layer, each for all tokens: (features, weights_BTS)."""
        decoder, initial_BTD = self._decoder(), self._initial(memory, target)
        for weights in decoder.layers:
            x_BTD = recur(
                self.cell, weights, dropout(self, x_BTD, rate), target.segments_BT, initial_BTD
            )
        return self._align(decoder, x_BTD, target, memory)

    def _decode_by_token(
        self, x_BTD: jax.Array, target: Tokens, memory: Memory, rate: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Decode token by token, through all layers and attention: (features, weights_BTS).

        With input feeding a token reads the output of the token before.
        """
        decoder, ones_BTD = self._decoder(), jnp.ones_like(x_BTD)
        drops = (
            [dropout(self, ones_BTD, rate) for _ in decoder.layers[1:]] if rate is not None else []
        )
        x_BTZD = decoder.layers[0].project(dropout(self, x_BTD, rate))
        inputs = x_BTZD, Segments().allowed(target, memory.tokens), drops

        alignment = decoder.alignment
        assert alignment is not None, 'input feeding needs attention'

        def step(inputs, state):
            x_BZD, allowed_BS, drops = inputs
            states, h_BD = advance(self.cell, decoder, x_BZD, state, drops)
            aligned_B1 = align(alignment, h_BD[:, None], memory, allowed_BS[:, None])
            output_BD, weights_BS = (a_B1[:, 0] for a_B1 in aligned_B1)
            return DecoderState(states, output_BD.astype(jnp.float32)), (output_BD, weights_BS)

        return over_time(
            step,
            self._fill_state(x_BTD.shape[-1]),
            inputs,
            target.segments_BT,
            self._initial(memory, target),
        )

    def _decoder(self) -> Decoder:
        """Collect the learned arrays of the decoder."""
        D = self.architecture.d_model
        return Decoder(
            [layer(D) for layer in self.decoder],
            self.feed_DZD if self.cell.input_feeding else None,
            self.alignment(len(self.bridge_ED)) if self.cell.attends else None,
        )

    def _memory(self, memory_BSE: jax.Array, source: Tokens) -> Memory:
        """Add the keys of attention to the encoder's output."""
        alignment = self._decoder().alignment
        if alignment is None:
            return Memory(memory_BSE, None, source)
        return Memory(memory_BSE, matmul(memory_BSE, alignment['key_ED'], 1), source)

    def _initial(self, memory: Memory, target: Tokens) -> jax.Array:
        """Compute the decoder's initial state of each target token's segment: float32 [B, T, D]."""
        m_BTE = last_outputs(memory.memory_BSE, memory.tokens, target, self.cell.bidirectional)
        initial_BTD = (
            matmul(m_BTE, self.bridge_ED, 1).astype(jnp.float32) + self.bridge_bias_D[None, None]
        )
        return jnp.tanh(initial_BTD)

    def _fill_state(self, value: Any) -> DecoderState:
        """Make a state of the decoder whose leaves are all `value`."""
        layer = self.cell.states * (value,)
        return DecoderState(self.architecture.decoder_layers * (layer,), value)

    def _align(
        self, decoder: Decoder, h_BTD: jax.Array, target: Tokens, memory: Memory
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attend from the decoder's last layer: (features, weights_BTS or None)."""
        if decoder.alignment is None:
            return h_BTD, None
        return align(decoder.alignment, h_BTD, memory, Segments().allowed(target, memory.tokens))
