"""The interface of masks, and their combination with & and |.

A mask is a frozen dataclass that says which keys a query may see. It is evaluated by `allowed`, for
any part of the queries and keys, so that an engine that works in tiles never holds a T×S matrix.
Positions count within a segment. Patterns look in both directions; causality and segments are added
by the site where the attention is.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_jax.batch import Tokens
from transformer_jax.ranges import Ranged


class Mask(Ranged, abc.ABC):
    """The base class of all masks: hashable, so that compiled programs are keyed by it."""

    def reach(self) -> tuple[float, float]:
        """Return the farthest (back, ahead) that a query may see, in positions from its own.

        math.inf stands for no bound.
        """
        return math.inf, math.inf

    @abc.abstractmethod
    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        """Return which key each query may see, as booleans [B, T, S].

        Args:
            query: positions_BT and segments_BT of the queries.
            key: positions_BS and segments_BS of the keys.
        """

    def within(self, site: 'Mask') -> 'Mask':
        """Return what both a site's mask and this one allow.

        A `Prefix` anywhere in this mask is exempt from the causality of the site.
        """
        return site.opened(self.prefix_length()) & self

    def prefix_length(self) -> int:
        """Return how many first positions of a segment every query may see, even ahead of it."""
        return 0

    def opened(self, length: int) -> 'Mask':
        """Return this mask with every `Causal` in it replaced by `Prefix(length)`."""
        return self

    def __and__(self, other: 'Mask') -> 'Mask':
        return And(self, other)

    def __or__(self, other: 'Mask') -> 'Mask':
        return Or(self, other)


@dataclasses.dataclass(frozen=True)
class _Pair(Mask):
    left: Mask
    right: Mask
    symbol: ClassVar[str]  # in a spec string

    def prefix_length(self) -> int:
        return max(self.left.prefix_length(), self.right.prefix_length())

    def opened(self, length: int) -> Mask:
        return type(self)(self.left.opened(length), self.right.opened(length))


class And(_Pair):
    """A key is seen where both masks allow it."""

    symbol = '&'

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return self.left.allowed(query, key) & self.right.allowed(query, key)

    def reach(self) -> tuple[float, float]:
        (back, ahead), (right_back, right_ahead) = self.left.reach(), self.right.reach()
        return min(back, right_back), min(ahead, right_ahead)


class Or(_Pair):
    """A key is seen where at least one of the masks allows it."""

    symbol = '|'

    def allowed(self, query: Tokens, key: Tokens) -> jax.Array:
        return self.left.allowed(query, key) | self.right.allowed(query, key)

    def reach(self) -> tuple[float, float]:
        (back, ahead), (right_back, right_ahead) = self.left.reach(), self.right.reach()
        return max(back, right_back), max(ahead, right_ahead)


def neg_inf(dtype: Any) -> jax.Array:
    """Return the score of a forbidden key: the lowest finite number of a dtype.

    It is finite so that the exponentials of a row without any allowed key are not NaN.
    """
    return jnp.asarray(jnp.finfo(dtype).min, dtype)


def offsets(query: Tokens, key: Tokens, block: int = 1) -> jax.Array:
    """Return query position − key position [B, T, S], counted in blocks of `block` positions."""
    return (query.positions_BT // block)[:, :, None] - (key.positions_BT // block)[:, None, :]
