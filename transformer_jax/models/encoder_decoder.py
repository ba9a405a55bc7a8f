"""The encoder-decoder Transformer, for translation."""

import dataclasses

import jax
import jax.numpy as jnp

from transformer_jax.batch import BOS, Batch, Tokens
from transformer_jax.models.blocks import Block
from transformer_jax.models.layer_stack import run_layers, with_layers_apart
from transformer_jax.models.transformer_model import DecodingCache, Memory, TransformerModel


class EncoderDecoder(TransformerModel):
    """The Transformer of Vaswani et al. (2017), Figure 1."""

    def setup(self):
        architecture = self.architecture
        self.target_embedding = self._embedding()
        if not self._tied('source'):
            self.source_embedding = self._embedding()
        if not self._tied('output'):
            self.output = self._embedding()
        self.source_norm, self.target_norm = self._embedding_norm(), self._embedding_norm()
        self.source_positions, self.target_positions = self._positions(), self._positions()
        self.encoder_relative, self.decoder_relative = self._relative(), self._relative()
        self.encoder = [
            Block(architecture, 'encoder', n) for n in range(architecture.encoder_layers)
        ]
        self.decoder = [
            Block(architecture, 'decoder', n, crosses=True)
            for n in range(architecture.decoder_layers)
        ]
        self.encoder_norm, self.decoder_norm = self._final_norm(), self._final_norm()

    def features(self, batch: Batch, rate: jax.Array | None = None) -> jax.Array:
        """Compute x_BTD, the input of the output layer; `rate` is dropout's."""
        source, target = batch.source_tokens, batch.target_tokens
        memory = self.encode(batch.source_BS, source, rate), source
        x_BTD = self._embed_target(batch.inputs_BT, target.positions_BT, rate)
        shared = self._shared('decoder')
        x_BTD = run_layers(
            self, 'decoder', self.decoder, x_BTD, target, rate, memory=memory, shared=shared
        )
        return self.decoder_norm(x_BTD) if self.decoder_norm else x_BTD

    def encode(
        self, source_BS: jax.Array, tokens: Tokens, rate: jax.Array | None = None
    ) -> jax.Array:
        """Encode the source as memory_BSD; `rate` is dropout's."""
        embedding = self.target_embedding if self._tied('source') else self.source_embedding
        x_BSD = self.source_positions(embedding(source_BS), tokens.positions_BT)
        x_BSD = self._enter(x_BSD, self.source_norm, rate)
        shared = self._shared('encoder')
        x_BSD = run_layers(self, 'encoder', self.encoder, x_BSD, tokens, rate, shared=shared)
        return self.encoder_norm(x_BSD) if self.encoder_norm else x_BSD

    @with_layers_apart
    def start(
        self, source_BS: jax.Array, source: Tokens, length: int
    ) -> tuple[DecodingCache, Memory]:
        """Encode the source and make the state of decoding before its first token.

        Args:
            source_BS: token ids.
            source: their positions and segments.
            length: the keys that the cache has room for in each row.
        """
        memory_BSD = self.encode(source_BS, source)
        layers = tuple(block.init_cache(memory_BSD, source, length) for block in self.decoder)
        keys = tuple(block.cross.keys(memory_BSD, source) for block in self.decoder)
        zero_R = jnp.zeros(len(source_BS), jnp.int32)
        return DecodingCache(layers, zero_R, zero_R + BOS), Memory(keys, source)

    @with_layers_apart
    def step(
        self, tokens_R: jax.Array, cache: DecodingCache, memory: Memory
    ) -> tuple[jax.Array, DecodingCache]:
        """Read one token of each hypothesis: (logits_RV of the next one, the new cache).

        R is B or a multiple of it: the beams of a sentence are adjacent rows and share its memory.
        """
        target = Tokens(cache.position_R[:, None], jnp.ones_like(cache.position_R)[:, None])
        x_R1D = self._embed_target(tokens_R[:, None], target.positions_BT, None)
        assert memory.tokens is not None, 'the memory of an encoder has tokens'
        layers, shared = [], self._shared('decoder')
        for block, layer, keys in zip(self.decoder, cache.layers, memory.keys, strict=True):
            x_R1D, layer = block.step(x_R1D, target, layer, (keys, memory.tokens), shared)
            layers.append(layer)
        logits_RV = self.logits(self.decoder_norm(x_R1D) if self.decoder_norm else x_R1D)[:, 0]
        position_R = cache.position_R + 1
        return logits_RV, dataclasses.replace(cache, layers=tuple(layers), position_R=position_R)

    def _embed_target(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, rate: jax.Array | None
    ) -> jax.Array:
        """Embed target tokens as the input of the first block."""
        x_BTD = self.target_positions(self.target_embedding(tokens_BT), positions_BT)
        return self._enter(x_BTD, self.target_norm, rate)
