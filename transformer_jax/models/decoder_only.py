"""The decoder-only Transformer: a language model."""

import jax
import jax.numpy as jnp

from transformer_jax.batch import BOS, Batch, Tokens
from transformer_jax.models.blocks import Block
from transformer_jax.models.transformer_model import DecodingCache, Memory, TransformerModel


class DecoderOnly(TransformerModel):
    """A language model: a stack that sees the past, and no source (Radford et al. 2018; 2019)."""

    def setup(self):
        architecture = self.architecture
        self.target_embedding = self._embedding()
        if not self._tied('output'):
            self.output = self._embedding()
        self.target_norm, self.target_positions = self._embedding_norm(), self._positions()
        self.decoder_relative = self._relative()
        self.decoder = [
            Block(architecture, 'decoder', n, self.decoder_relative)
            for n in range(architecture.decoder_layers)
        ]
        self.decoder_norm = self._end()

    def features(self, batch: Batch, rate: jax.Array | None = None) -> jax.Array:
        """x_BTD: what the output layer turns into logits."""
        tokens = batch.target_tokens
        x_BTD = self._embed(batch.inputs_BT, tokens, rate)
        for block in self.decoder:
            x_BTD = block(x_BTD, tokens, rate)
        return self.decoder_norm(x_BTD) if self.decoder_norm else x_BTD

    def start(
        self, source_BS: jax.Array, source: Tokens, length: int
    ) -> tuple[DecodingCache, Memory]:
        """The state of decoding behind a prompt, which is read at once, with room for `length` more
        keys a row.
        """
        inputs_BS = jnp.pad(source_BS, ((0, 0), (1, 0)), constant_values=BOS)[:, :-1]
        first_B1 = jnp.maximum(source.segments_BT.sum(1, keepdims=True) - 1, 0)
        # The last token of a prompt is what decoding starts from; a prompt of none starts from BOS.
        last_B = jnp.take_along_axis(source_BS, first_B1, axis=1)[:, 0]
        lengths_B = source.segments_BT.sum(1)
        x_BSD = self._embed(inputs_BS, source, None)
        layers = []
        for block in self.decoder:
            cache = block.init_cache(x_BSD, source, source_BS.shape[1] + length)
            x_BSD, cache = block.step(x_BSD, source, cache)
            layers.append(cache)
        return DecodingCache(
            tuple(layers), lengths_B, jnp.where(lengths_B > 0, last_B, BOS)
        ), Memory((), None)

    def step(
        self, tokens_R: jax.Array, cache: DecodingCache, memory: Memory
    ) -> tuple[jax.Array, DecodingCache]:
        """logits_RV of the tokens that follow `tokens_R`, and the cache with them in it.

        BOS, which is never generated, stands for the last token of the prompt.
        """
        tokens_R = jnp.where(tokens_R == BOS, cache.first_R, tokens_R)
        tokens = Tokens(cache.position_R[:, None], jnp.ones_like(cache.position_R)[:, None])
        x_R1D = self._embed(tokens_R[:, None], tokens, None)
        layers = []
        for block, layer in zip(self.decoder, cache.layers, strict=True):
            x_R1D, layer = block.step(x_R1D, tokens, layer)
            layers.append(layer)
        logits_RV = self.logits(self.decoder_norm(x_R1D) if self.decoder_norm else x_R1D)[:, 0]
        return logits_RV, cache.replace(layers=tuple(layers), position_R=cache.position_R + 1)

    def _embed(self, tokens_BT: jax.Array, tokens: Tokens, rate: jax.Array | None) -> jax.Array:
        x_BTD = self.target_positions(self.target_embedding(tokens_BT), tokens.positions_BT)
        return self._enter(x_BTD, self.target_norm, rate)
