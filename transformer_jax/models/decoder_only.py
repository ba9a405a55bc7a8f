"""The decoder-only Transformer: a language model."""

import dataclasses

import jax
import jax.numpy as jnp

from transformer_jax.batch import BOS, Batch, Tokens
from transformer_jax.models.blocks import Block
from transformer_jax.models.layer_stack import run_layers, with_layers_apart
from transformer_jax.models.transformer_model import DecodingCache, Memory, TransformerModel


class DecoderOnly(TransformerModel):
    """A causal language model without an encoder (Radford et al. 2018; 2019)."""

    def setup(self):
        architecture = self.architecture
        self.target_embedding = self._embedding()
        if not self._tied('output'):
            self.output = self._embedding()
        self.target_norm, self.target_positions = self._embedding_norm(), self._positions()
        self.decoder_relative = self._relative()
        self.decoder = [
            Block(architecture, 'decoder', n) for n in range(architecture.decoder_layers)
        ]
        self.decoder_norm = self._final_norm()

    def features(self, batch: Batch, rate: jax.Array | None = None) -> jax.Array:
        """Compute x_BTD, the input of the output layer; `rate` is dropout's."""
        tokens = batch.target_tokens
        x_BTD = self._embed(batch.inputs_BT, tokens, rate)
        shared = self._shared('decoder')
        x_BTD = run_layers(self, 'decoder', self.decoder, x_BTD, tokens, rate, shared=shared)
        return self.decoder_norm(x_BTD) if self.decoder_norm else x_BTD

    @with_layers_apart
    def start(
        self, source_BS: jax.Array, source: Tokens, length: int
    ) -> tuple[DecodingCache, Memory]:
        """Read a prompt in one pass and make the state of decoding after it.

        Args:
            source_BS: the prompt's token ids.
            source: their positions and segments.
            length: the keys that the cache has room for in each row, beyond the prompt.
        """
        inputs_BS = jnp.pad(source_BS, ((0, 0), (1, 0)), constant_values=BOS)[:, :-1]
        last_place_B1 = jnp.maximum(source.segments_BT.sum(1, keepdims=True) - 1, 0)
        # Decoding starts from the last token of the prompt, or from BOS after an empty prompt.
        last_B = jnp.take_along_axis(source_BS, last_place_B1, axis=1)[:, 0]
        lengths_B = source.segments_BT.sum(1)
        x_BSD = self._embed(inputs_BS, source, None)
        layers, shared = [], self._shared('decoder')
        for block in self.decoder:
            cache = block.init_cache(x_BSD, source, source_BS.shape[1] + length)
            x_BSD, cache = block.step(x_BSD, source, cache, shared=shared)
            layers.append(cache)
        first_B = jnp.where(lengths_B > 0, last_B, BOS)
        return DecodingCache(tuple(layers), lengths_B, first_B), Memory((), None)

    @with_layers_apart
    def step(
        self, tokens_R: jax.Array, cache: DecodingCache, memory: Memory
    ) -> tuple[jax.Array, DecodingCache]:
        """Read one token of each hypothesis: (logits_RV of the next one, the new cache).

        BOS, which is never generated, stands for the last token of the prompt.
        """
        tokens_R = jnp.where(tokens_R == BOS, cache.first_R, tokens_R)
        tokens = Tokens(cache.position_R[:, None], jnp.ones_like(cache.position_R)[:, None])
        x_R1D = self._embed(tokens_R[:, None], tokens, None)
        layers, shared = [], self._shared('decoder')
        for block, layer in zip(self.decoder, cache.layers, strict=True):
            x_R1D, layer = block.step(x_R1D, tokens, layer, shared=shared)
            layers.append(layer)
        logits_RV = self.logits(self.decoder_norm(x_R1D) if self.decoder_norm else x_R1D)[:, 0]
        position_R = cache.position_R + 1
        return logits_RV, dataclasses.replace(cache, layers=tuple(layers), position_R=position_R)

    def _embed(self, tokens_BT: jax.Array, tokens: Tokens, rate: jax.Array | None) -> jax.Array:
        """Embed tokens as the input of the first block."""
        x_BTD = self.target_positions(self.target_embedding(tokens_BT), tokens.positions_BT)
        return self._enter(x_BTD, self.target_norm, rate)
