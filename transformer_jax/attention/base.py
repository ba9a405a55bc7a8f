"""The boundary between a kind of attention and everything else."""

import abc
import dataclasses
from typing import Any, Protocol

import jax

from transformer_jax.attention.masks import Mask, Visible
from transformer_jax.batch import Tokens
from transformer_jax.cache import GrowingCache


class Scope(Protocol):
    """What a kind sees of the module that owns its parameters."""

    heads: tuple[int, int, int, int]  # N query heads, K key-value heads, d_k, d_v

    def heads_in(self, name: str, x_BTD: jax.Array, heads: int, size: int, axis: str) -> jax.Array:
        """Projects x_BTD to x_BTNH with a learned kernel."""


@dataclasses.dataclass(frozen=True)
class Attention(abc.ABC):
    """One kind of attention: pure mathematics behind two projections.

    Queries and keys are pytrees of the kind's own. They are projected apart because cross-attention projects the keys
    of a sentence once and its queries at every step.
    """

    @abc.abstractmethod
    def queries(self, scope: Scope, x_BTD: jax.Array) -> Any:
        """What asks."""

    @abc.abstractmethod
    def keys(self, scope: Scope, x_BSD: jax.Array) -> Any:
        """What is asked, the values included; the leaves have batch and time as their first two axes."""

    @abc.abstractmethod
    def attend(self, queries: Any, keys: Any, visible: Visible) -> tuple[jax.Array, jax.Array]:
        """(o_BTNH, weights_BNTS): the mixed values, and how they were mixed."""

    def init_cache(self, keys: Any, length: int) -> Any:
        """An empty cache for `length` steps of keys shaped like `keys`."""
        return GrowingCache.empty(keys, length)

    def step(self, queries: Any, keys: Any, tokens: Tokens, mask: Mask, cache: Any) -> tuple[jax.Array, jax.Array, Any]:
        """Attends from new tokens to all so far: (o_BTNH, weights_BNTS, the cache with the new tokens in it)."""
        cache = cache.append(keys, tokens)
        return *self.attend(queries, cache.keys, Visible(mask, tokens, cache.tokens)), cache
