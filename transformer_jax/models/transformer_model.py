"""The base of all Transformers, and what their decoding carries from step to step."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax

from transformer_jax.batch import Tokens
from transformer_jax.layers.dropout import dropout
from transformer_jax.layers.parameters import constrain
from transformer_jax.models.blocks import Projection, make_norm
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


class TransformerModel(TokenModel):
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
            Projection(position.params, self.architecture.heads, 0, position)
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
