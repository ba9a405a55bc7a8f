"""The base of all models: token embeddings, and logits by an output table."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_jax.batch import Batch
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.functional import softcap
from transformer_jax.models.architecture import Architecture


class LayerState(NamedTuple):
    """What one layer keeps between the steps of decoding."""

    name: str  # 'decoder_0'
    past: Any  # of the tokens before: a cache, or the state of a recurrence; (): nothing
    source: Any  # of the encoder's output, which no step changes; (): nothing


class TokenModel(nn.Module):
    """A model of tokens: features of a batch, and logits by an output table.

    The output table can be the target embedding's, see `layers.embedding.TIES`.
    """

    architecture: Architecture

    def __call__(self, batch: Batch, rate: jax.Array | None = None) -> jax.Array:
        """Compute logits_BTV of the targets; `rate` is dropout's, None: no dropout."""
        return self.logits(self.features(batch, rate))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Compute float32 logits_BTV of features x_BTD."""
        w_VD = self.output_table().astype(x_BTD.dtype)
        logits_BTV = jnp.einsum('BTD,VD->BTV', x_BTD, w_VD, preferred_element_type=jnp.float32)
        return softcap(logits_BTV, self.architecture.logit_softcap)

    def output_table(self) -> jax.Array:
        """Return w_VD, whose products with the features are the logits."""
        return (self.target_embedding if self._tied('output') else self.output).table_VD

    @nn.nowrap
    def _tied(self, table: str) -> bool:
        """Tell whether a table, 'source' or 'output', is the target embedding's."""
        return table in self.architecture.tied

    @nn.nowrap
    def _embedding(self) -> Embedding:
        """Make an embedding of the architecture's sizes."""
        architecture = self.architecture
        return Embedding(
            architecture.vocab_size,
            architecture.d_model,
            architecture.dtype,
            architecture.embedding_scale,
        )
