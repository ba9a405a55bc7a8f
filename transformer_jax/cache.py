"""Caches for step-by-step decoding: explicit values that a step returns."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.batch import Tokens


@flax.struct.dataclass
class GrowingCache:
    """Keys (any pytree with batch and time in front) of the steps so far; `index` is the next free place.

    Places that are not yet written have segment 0: to every mask they are padding.
    """

    keys: Any
    tokens: Tokens
    index: jax.Array

    @classmethod
    def empty(cls, keys: Any, length: int) -> 'GrowingCache':
        """Room for `length` steps of keys shaped like `keys` (leaves with one step on axis 1)."""
        def widen(leaf):
            return jnp.zeros((leaf.shape[0], length, *leaf.shape[2:]), leaf.dtype)
        batch = jax.tree.leaves(keys)[0].shape[0]
        return cls(jax.tree.map(widen, keys), Tokens(*jnp.zeros((2, batch, length), jnp.int32)),
                   jnp.zeros((), jnp.int32))

    def append(self, keys: Any, tokens: Tokens) -> 'GrowingCache':
        """Writes the keys of new tokens at `index`."""
        def write(old, new):
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), self.index, axis=1)
        steps = tokens.positions_BT.shape[1]
        return GrowingCache(jax.tree.map(write, self.keys, keys), jax.tree.map(write, self.tokens, tokens),
                            self.index + steps)


def reorder(cache: Any, rows_B: jax.Array) -> Any:
    """Gathers batch rows of every leaf but the scalars: beams that survive, or a sentence widened to its beams."""
    return jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else jnp.take(leaf, rows_B, axis=0), cache)
