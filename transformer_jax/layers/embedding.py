"""Token embeddings, and the tables that a model ties to one another."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.layers.parameters import parameter

# By model.tie_embeddings: the tables that are the same array as the target embedding's.
TIES = {'all': ('source', 'output'), 'decoder': ('output',), 'inputs': ('source',), 'none': ()}


class Embedding(nn.Module):
    """A table of vectors, one for each token (Vaswani et al. 2017, section 3.4).

    The same table can serve as the output layer: its products with features are logits.

    Attributes:
        vocab_size: V.
        d_model: D.
        dtype: of the activations; the table is float32.
        scale: factor on what is looked up; √d_model in the paper.
    """

    vocab_size: int
    d_model: int
    dtype: str
    scale: float = 1.0

    def setup(self):
        # N(0, 1/D): features of variance 1 then have logits of variance 1, and with a scale of √D
        # the input has variance 1 too.
        self.table_VD = parameter(
            self,
            'table',
            (self.vocab_size, self.d_model),
            ('vocab', 'embedding'),
            nn.initializers.normal(self.d_model**-0.5),
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Look up x_BTD of tokens_BT, times the scale."""
        return self.table_VD.astype(self.dtype)[tokens_BT] * jnp.asarray(self.scale, self.dtype)
