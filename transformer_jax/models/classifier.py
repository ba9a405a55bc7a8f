"""The encoder-only Transformer: a classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.batch import BOS, EOS, Batch, Tokens
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.linear import ProjectToHeads
from transformer_jax.models.blocks import Block
from transformer_jax.models.transformer_model import TransformerModel


class Classifier(TransformerModel):
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
            self.match = ProjectToHeads(1, architecture.d_model, 'heads', bias=True)
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
