"""Symbolic masks: predicates on (query position, key position, segments), combined with & and |.

A mask is a frozen dataclass that says which keys a query may see; nothing is materialised until `allowed` is asked for
the tile at hand, so that an engine that tiles never holds a T×S matrix.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.batch import Tokens


class Mask(abc.ABC):
    """The base of all masks."""

    @abc.abstractmethod
    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        """allowed_BTS: whether each query may see each key."""

    def __and__(self, other: 'Mask') -> 'Mask':
        return And(self, other)

    def __or__(self, other: 'Mask') -> 'Mask':
        return Or(self, other)


@dataclasses.dataclass(frozen=True)
class And(Mask):
    """What both allow."""

    left: Mask
    right: Mask

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return self.left.allowed(query, key) & self.right.allowed(query, key)


@dataclasses.dataclass(frozen=True)
class Or(Mask):
    """What either allows."""

    left: Mask
    right: Mask

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return self.left.allowed(query, key) | self.right.allowed(query, key)


@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Keys of the query's own segment; padding (segment 0) is never seen and sees nothing."""

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        same_BTS = query.segments_BT[:, :, None] == key.segments_BT[:, None, :]
        return same_BTS & (key.segments_BT != 0)[:, None, :]


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Keys at or before the query's position."""

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return query.positions_BT[:, :, None] >= key.positions_BT[:, None, :]


@dataclasses.dataclass(frozen=True)
class Visible:
    """A mask and the tokens it is to be asked about: who may see whom, not yet materialised."""

    mask: Mask
    query: Tokens
    key: Tokens

    def allowed_BTS(self) -> jax.Array:
        """The whole matrix, for an engine that does not tile."""
        return self.mask.allowed(self.query, self.key)


def neg_inf(dtype: Any) -> jax.Array:
    """The score of a forbidden key: finite, so that a row that may see nothing stays finite."""
    return jnp.asarray(jnp.finfo(dtype).min, dtype)
