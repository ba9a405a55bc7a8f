"""The encoder-only Transformer: a classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.batch import BOS, EOS, Batch, Tokens
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.linear import ProjectToHeads
from transformer_jax.models.blocks import Block
from transformer_jax.models.layer_stack import run_layers
from transformer_jax.models.transformer_model import TransformerModel


class Classifier(TransformerModel):
    """An encoder whose output is pooled to one vector per source, which gives logits of classes.

    `model.pooling` is 'mean', over the tokens, or 'first', a token put before the text (BERT's
    [CLS]). With `model.towers=2` a source is two texts, each ended by EOS, that do not attend to
    one another (Tay et al. 2021). They are pooled to u and v, and the features are a dense layer
    of [u, v, u·v, u − v].
    """

    def setup(self):
        architecture = self.architecture
        self.source_embedding = self._embedding()
        self.source_norm, self.source_positions = self._embedding_norm(), self._positions()
        self.encoder_relative = self._relative()
        self.encoder = [
            Block(architecture, 'encoder', n) for n in range(architecture.encoder_layers)
        ]
        self.encoder_norm = self._final_norm()
        if architecture.towers == 2:
            self.match = ProjectToHeads(1, architecture.d_model, 'heads', bias=True)
        self.output = Embedding(architecture.num_classes, architecture.d_model, architecture.dtype)

    def features(self, batch: Batch, rate: jax.Array | None = None) -> jax.Array:
        """Compute x_B1D, the input of the output layer; `rate` is dropout's."""
        source_BS, tokens = batch.source_BS, batch.source_tokens
        if self.architecture.towers == 2:
            tokens = _split_texts(source_BS, tokens)
        if self.architecture.pooling == 'first':
            source_BS, tokens = _prepend_bos(source_BS, tokens, self.architecture.towers)
        x_BSD = self.source_positions(self.source_embedding(source_BS), tokens.positions_BT)
        x_BSD = self._enter(x_BSD, self.source_norm, rate)
        shared = self._shared('encoder')
        x_BSD = run_layers(self, 'encoder', self.encoder, x_BSD, tokens, rate, shared=shared)
        x_BSD = self.encoder_norm(x_BSD) if self.encoder_norm else x_BSD
        pooled = [
            self._pool(x_BSD, tokens.segments_BT == tower, tokens.positions_BT)
            for tower in range(1, self.architecture.towers + 1)
        ]
        if self.architecture.towers == 1:
            return pooled[0]
        u_B1D, v_B1D = pooled
        joint_B1D = jnp.concatenate([u_B1D, v_B1D, u_B1D * v_B1D, u_B1D - v_B1D], axis=-1)
        return nn.relu(self.match(joint_B1D)[:, :, 0])

    def output_table(self) -> jax.Array:
        """Return w_VD, where V counts the classes."""
        return self.output.table_VD

    def _pool(self, x_BSD: jax.Array, chosen_BS: jax.Array, positions_BS: jax.Array) -> jax.Array:
        """Average x_BSD over the chosen tokens, or take the first of them: x_B1D."""
        if self.architecture.pooling == 'first':
            chosen_BS &= positions_BS == 0
        share_BS = chosen_BS / jnp.maximum(chosen_BS.sum(1, keepdims=True), 1)
        return (x_BSD * share_BS[..., None].astype(x_BSD.dtype)).sum(1, keepdims=True)


def _split_texts(source_BS: jax.Array, tokens: Tokens) -> Tokens:
    """Make the two texts of a row segments 1 and 2; the first ends with the first EOS."""
    ended_BS = jnp.cumsum(source_BS == EOS, axis=1) - (source_BS == EOS)
    real_BS = tokens.segments_BT != 0
    second_BS = real_BS & (ended_BS > 0)
    first_length_B1 = (real_BS & ~second_BS).sum(1, keepdims=True)
    return Tokens(
        tokens.positions_BT - jnp.where(second_BS, first_length_B1, 0),
        jnp.where(second_BS, 2, real_BS),
    )


def _prepend_bos(source_BS: jax.Array, tokens: Tokens, towers: int) -> tuple[jax.Array, Tokens]:
    """Add a BOS at position 0 of the text of each tower.

    All of them are put at the start of the row: attention goes by positions and segments, not by
    places in the row.
    """
    B = len(source_BS)
    heads_BS = jnp.broadcast_to(jnp.arange(1, towers + 1)[None], (B, towers))
    present_BS = tokens.segments_BT.max(1, keepdims=True) >= heads_BS
    return (
        jnp.concatenate([jnp.full_like(heads_BS, BOS), source_BS], axis=1),
        Tokens(
            jnp.concatenate([jnp.zeros_like(heads_BS), tokens.positions_BT + 1], axis=1),
            jnp.concatenate([jnp.where(present_BS, heads_BS, 0), tokens.segments_BT], axis=1),
        ),
    )
