"""Whole models, each built from an Architecture."""

from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.batch import BOS, EOS, Batch, Tokens
from transformer_jax.layers.linear import Embedding, HeadsIn, constrain, dropout
from transformer_jax.models.architecture import Architecture
from transformer_jax.models.blocks import Block, Projection, make_norm
from transformer_jax.models.rnn_seq2seq import RnnSeq2Seq
from transformer_jax.models.token_model import TokenModel


@flax.struct.dataclass
class DecodingCache:
    """What step-by-step decoding carries from token to token, of R hypotheses.

    One cache a layer, the position of the next token, and the token that decoding starts from.
    """

    layers: tuple[Any, ...]
    position_R: jax.Array
    first_R: jax.Array


@flax.struct.dataclass
class Memory:
    """What decoding reads and never changes: the encoder's output as each decoder layer
    projects it.
    """

    keys: tuple[Any, ...]
    tokens: Tokens | None


class Model(TokenModel):
    """What all Transformers share: positions beside the embeddings, and stacks."""

    @nn.nowrap
    def _positions(self) -> Projection:
        position = self.architecture.position
        return Projection(position.embed, self.architecture.heads, 0, position)

    @nn.nowrap
    def _relative(self) -> Projection | None:
        """A position encoding with one set of parameters for all layers of a stack."""
        position = self.architecture.position
        return (
            Projection(position.parameters, self.architecture.heads, 0, position)
            if position.shared
            else None
        )

    @nn.nowrap
    def _end(self) -> nn.Module | None:
        """A stack that normalises before each sublayer leaves the last sum for a norm of
        its own.
        """
        return (
            make_norm(self.architecture) if self.architecture.placement.outer == 'before' else None
        )

    @nn.nowrap
    def _embedding_norm(self) -> nn.Module | None:
        return make_norm(self.architecture) if self.architecture.embedding_norm else None

    def _enter(self, x_BTD: jax.Array, norm: nn.Module | None, rate: jax.Array | None) -> jax.Array:
        return constrain(dropout(self, norm(x_BTD) if norm else x_BTD, rate))


class EncoderDecoder(Model):
    """The Transformer of Vaswani et al. (2017)."""

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
            Block(architecture, 'encoder', n, self.encoder_relative)
            for n in range(architecture.encoder_layers)
        ]
        self.decoder = [
            Block(architecture, 'decoder', n, self.decoder_relative, True)
            for n in range(architecture.decoder_layers)
        ]
        self.encoder_norm, self.decoder_norm = self._end(), self._end()

    def features(self, batch: Batch, rate: jax.Array | None = None) -> jax.Array:
        """x_BTD: what the output layer turns into logits."""
        source, target = batch.source_tokens, batch.target_tokens
        memory = self.encode(batch.source_BS, source, rate), source
        x_BTD = self._embed_target(batch.inputs_BT, target.positions_BT, rate)
        for block in self.decoder:
            x_BTD = block(x_BTD, target, rate, memory)
        return self.decoder_norm(x_BTD) if self.decoder_norm else x_BTD

    def encode(
        self, source_BS: jax.Array, tokens: Tokens, rate: jax.Array | None = None
    ) -> jax.Array:
        """memory_BSD of the source."""
        embedding = self.target_embedding if self._tied('source') else self.source_embedding
        x_BSD = self.source_positions(embedding(source_BS), tokens.positions_BT)
        x_BSD = self._enter(x_BSD, self.source_norm, rate)
        for block in self.encoder:
            x_BSD = block(x_BSD, tokens, rate)
        return self.encoder_norm(x_BSD) if self.encoder_norm else x_BSD

    def start(
        self, source_BS: jax.Array, source: Tokens, length: int
    ) -> tuple[DecodingCache, Memory]:
        """The state of decoding before its first token, with room for `length` keys a row, and what
        it reads.
        """
        memory_BSD = self.encode(source_BS, source)
        layers = tuple(block.init_cache(memory_BSD, source, length) for block in self.decoder)
        keys = tuple(block.cross.keys(memory_BSD, source) for block in self.decoder)
        zero_R = jnp.zeros(len(source_BS), jnp.int32)
        return DecodingCache(layers, zero_R, zero_R + BOS), Memory(keys, source)

    def step(
        self, tokens_R: jax.Array, cache: DecodingCache, memory: Memory
    ) -> tuple[jax.Array, DecodingCache]:
        """logits_RV of the tokens that follow `tokens_R`, and the cache with them in it.

        R is B, or a multiple: the beams of a sentence side by side, which share its memory.
        """
        target = Tokens(cache.position_R[:, None], jnp.ones_like(cache.position_R)[:, None])
        x_R1D = self._embed_target(tokens_R[:, None], target.positions_BT, None)
        layers = []
        for block, layer, keys in zip(self.decoder, cache.layers, memory.keys, strict=True):
            x_R1D, layer = block.step(x_R1D, target, layer, (keys, memory.tokens))
            layers.append(layer)
        logits_RV = self.logits(self.decoder_norm(x_R1D) if self.decoder_norm else x_R1D)[:, 0]
        return logits_RV, cache.replace(layers=tuple(layers), position_R=cache.position_R + 1)

    def _embed_target(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, rate: jax.Array | None
    ) -> jax.Array:
        x_BTD = self.target_positions(self.target_embedding(tokens_BT), positions_BT)
        return self._enter(x_BTD, self.target_norm, rate)


class DecoderOnly(Model):
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


class Classifier(Model):
    """An encoder whose output is pooled to one vector for each source, and read as scores
    of classes.

    `model.pooling`: 'mean' over the tokens, or 'first', a token put before the text (BERT's [CLS]).
    With `model.towers=2` a source is two texts, each ended by EOS, that do not see one another (Tay
    et al. 2021): u and v, pooled apart, become a dense layer of [u, v, u·v, u − v].
    """

    def setup(self):
        architecture = self.architecture
        self.source_embedding = self._embedding()
        self.source_norm, self.source_positions = self._embedding_norm(), self._positions()
        self.encoder_relative = self._relative()
        self.encoder = [
            Block(architecture, 'encoder', n, self.encoder_relative)
            for n in range(architecture.encoder_layers)
        ]
        self.encoder_norm = self._end()
        if architecture.towers == 2:
            self.match = HeadsIn(1, architecture.d_model, 'heads', bias=True)
        self.output = Embedding(architecture.num_classes, architecture.d_model, architecture.dtype)

    def features(self, batch: Batch, rate: jax.Array | None = None) -> jax.Array:
        """x_B1D: what the output layer turns into scores of classes."""
        source_BS, tokens = batch.source_BS, batch.source_tokens
        if self.architecture.towers == 2:
            ended_BS = jnp.cumsum(source_BS == EOS, axis=1) - (source_BS == EOS)
            real_BS = tokens.segments_BT != 0
            second_BS = real_BS & (ended_BS > 0)
            first_length_B1 = (real_BS & ~second_BS).sum(1, keepdims=True)
            tokens = Tokens(
                tokens.positions_BT - jnp.where(second_BS, first_length_B1, 0),
                real_BS * (1 + second_BS),
            )
        towers = range(1, self.architecture.towers + 1)
        if self.architecture.pooling == 'first':
            source_BS, tokens = _headed(source_BS, tokens, self.architecture.towers)
        x_BSD = self.source_positions(self.source_embedding(source_BS), tokens.positions_BT)
        x_BSD = self._enter(x_BSD, self.source_norm, rate)
        for block in self.encoder:
            x_BSD = block(x_BSD, tokens, rate)
        x_BSD = self.encoder_norm(x_BSD) if self.encoder_norm else x_BSD
        pooled = [
            self._pool(x_BSD, tokens.segments_BT == tower, tokens.positions_BT) for tower in towers
        ]
        if self.architecture.towers == 1:
            return pooled[0]
        u_B1D, v_B1D = pooled
        joint_B1D = jnp.concatenate([u_B1D, v_B1D, u_B1D * v_B1D, u_B1D - v_B1D], axis=-1)
        return nn.relu(self.match(joint_B1D)[:, :, 0])

    def output_table(self) -> jax.Array:
        """w_VD of the V classes."""
        return self.output.table_VD

    def _pool(self, x_BSD: jax.Array, mine_BS: jax.Array, positions_BS: jax.Array) -> jax.Array:
        if self.architecture.pooling == 'first':
            mine_BS &= positions_BS == 0
        share_BS = mine_BS / jnp.maximum(mine_BS.sum(1, keepdims=True), 1)
        return (x_BSD * share_BS[..., None].astype(x_BSD.dtype)).sum(1, keepdims=True)


def _headed(source_BS: jax.Array, tokens: Tokens, towers: int) -> tuple[jax.Array, Tokens]:
    """Source and tokens with BOS before the text of each tower; where in a row a token stands does
    not matter.
    """
    B = len(source_BS)
    heads_BS = jnp.broadcast_to(jnp.arange(1, towers + 1)[None], (B, towers))
    present_BS = tokens.segments_BT.max(1, keepdims=True) >= heads_BS
    return (
        jnp.concatenate([jnp.full_like(heads_BS, BOS), source_BS], axis=1),
        Tokens(
            jnp.concatenate([jnp.zeros_like(heads_BS), tokens.positions_BT + 1], axis=1),
            jnp.concatenate([heads_BS * present_BS, tokens.segments_BT], axis=1),
        ),
    )


class ModelKind(NamedTuple):
    """A row of MODELS: all that the program needs to know of a kind of model beside its module."""

    module: type[TokenModel]
    sites: tuple[str, ...]  # where it attends: encoder, decoder, cross
    stacks: tuple[str, ...]  # the layers that it has: encoder, decoder
    learns: tuple[str, ...]  # the forms of tasks that it can learn
    commands: tuple[str, ...]  # what it can be asked for, beside train, evaluate and inspect
    size_key: str = 'd_ff'  # the key of the configuration that is solved for at equal size
    reads_source: bool = True  # a batch has a source; else a pair is read as one sequence
    predicts_class: bool = False  # a target is one class; else it is text


MODELS: dict[str, ModelKind] = {
    'encoder_decoder': ModelKind(
        EncoderDecoder,
        sites=('encoder', 'decoder', 'cross'),
        stacks=('encoder', 'decoder'),
        learns=('translation',),
        commands=('translate', 'attention'),
    ),
    'decoder_only': ModelKind(
        DecoderOnly,
        sites=('decoder',),
        stacks=('decoder',),
        learns=('language', 'translation'),
        commands=('generate',),
        reads_source=False,
    ),
    'classifier': ModelKind(
        Classifier,
        sites=('encoder',),
        stacks=('encoder',),
        learns=('classification',),
        commands=('classify',),
        predicts_class=True,
    ),
    'rnn_seq2seq': ModelKind(
        RnnSeq2Seq,
        sites=(),
        stacks=('encoder', 'decoder'),
        learns=('translation',),
        commands=('translate', 'attention'),
        size_key='d_model',
    ),
}


def build_model(architecture: Architecture) -> TokenModel:
    """The linen module of an architecture."""
    return MODELS[architecture.kind].module(architecture)


def dummy_batch(architecture: Architecture, rows: int = 1, length: int = 1) -> Batch:
    """A batch of ones of the right types, to initialise and to trace with; source and target have
    `length` tokens.
    """
    kind = MODELS[architecture.kind]
    source = jnp.ones((rows, length), jnp.int32) if kind.reads_source else None
    target = jnp.ones((rows, 1 if kind.predicts_class else length), jnp.int32)
    return Batch(*[source] * 3, *[target] * 4, target.astype(jnp.float32))
