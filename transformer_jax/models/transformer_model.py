"""The base of all Transformers, and the state of their decoding."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax

from transformer_jax.batch import Tokens
from transformer_jax.layers.dropout import dropout
from transformer_jax.layers.parameters import constrain
from transformer_jax.models.blocks import make_norm
from transformer_jax.models.multi_head import Projection
from transformer_jax.models.token_model import LayerState, TokenModel


@flax.struct.dataclass
class DecodingCache:
    """The state of step-by-step decoding of R hypotheses."""

    layers: tuple[Any, ...]  # the cache of each layer's self-attention
    position_R: jax.Array  # int32, of the next token
    first_R: jax.Array  # int32, the token that decoding starts from


@flax.struct.dataclass
class Memory:
    """The encoder's output, which decoding reads and never changes."""

    keys: tuple[Any, ...]  # the keys and values that each decoder layer projects it to
    tokens: Tokens | None  # of the source; None in a model without an encoder


class TransformerModel(TokenModel):
    """A model of embeddings, positions and stacks of blocks."""

    @nn.nowrap
    def _positions(self) -> Projection:
        """Make the module that adds positions to embeddings."""
        position = self.architecture.position
        return Projection(position.embed, self.architecture.heads, 0, position)

    @nn.nowrap
    def _relative(self) -> Projection | None:
        """Make the parameters of a position encoding that all layers of a stack share."""
        position = self.architecture.position
        if not position.shared:
            return None
        return Projection(position.params, self.architecture.heads, 0, position)

    def _shared(self, stack: str) -> Any:
        """Return the parameters of a position encoding that the layers of a stack share."""
        relative = getattr(self, f'{stack}_relative')
        return relative() if relative else ()

    @nn.nowrap
    def _final_norm(self) -> nn.Module | None:
        """Make the norm after the last block.

        Where norms come before the sublayers, nothing else would normalize the last sum.
        """
        before = self.architecture.placement.outer == 'before'
        return make_norm(self.architecture) if before else None

    @nn.nowrap
    def _embedding_norm(self) -> nn.Module | None:
        """Make the norm after the embedding, where the architecture has one."""
        return make_norm(self.architecture) if self.architecture.embedding_norm else None

    @nn.nowrap
    def layer_states(self, cache: DecodingCache, memory: Memory) -> tuple[LayerState, ...]:
        """Return what each layer keeps of the state that `start` or `step` returns."""
        keys = memory.keys or len(cache.layers) * ((),)
        return tuple(
            LayerState(f'decoder_{n}', layer, source)
            for n, (layer, source) in enumerate(zip(cache.layers, keys, strict=True))
        )

    def _enter(self, x_BTD: jax.Array, norm: nn.Module | None, rate: jax.Array | None) -> jax.Array:
        """Prepare embeddings for the first block: norm, dropout and sharding."""
        return constrain(dropout(self, norm(x_BTD) if norm else x_BTD, rate))
