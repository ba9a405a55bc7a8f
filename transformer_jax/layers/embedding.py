"""Token embeddings, and which tables a model shares."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.layers.parameters import parameter

# Which tables are one with the target embedding's, by model.tie_embeddings.
TIES = {'all': ('source', 'output'), 'decoder': ('output',), 'inputs': ('source',), 'none': ()}


class Embedding(nn.Module):
    """Tokens to vectors times `scale`, and back to logits (Vaswani et al. 2017, section 3.4,
    has √d_model).
    """

    vocab_size: int
    d_model: int
    dtype: str
    scale: float = 1.0

    def setup(self):
        # N(0, 1/d): the logits of a unit-variance output have unit variance, and times √d the input
        # has it too.
        self.table_VD = parameter(
            self,
            'table',
            (self.vocab_size, self.d_model),
            ('vocab', 'embedding'),
            nn.initializers.normal(self.d_model**-0.5),
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return self.table_VD.astype(self.dtype)[tokens_BT] * jnp.asarray(self.scale, self.dtype)
