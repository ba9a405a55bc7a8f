"""Caches of keys and values for decoding step by step.

A cache is a pytree that each step takes and returns. It has B rows and R hypotheses: the beams of a
row are adjacent (R is B before the beam search begins). `append(keys, tokens)` takes the keys and
values of one or more new tokens, a pytree with leaves [R, T, …], and returns what the queries of
these tokens may read, as a `CacheView`, and the new cache. Slots that are not yet written have
segment 0, so that every mask treats them as padding.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.batch import Tokens


class CacheView(NamedTuple):
    """The keys that the new queries may read."""

    keys: Any  # leaves [B or R, S, …]
    tokens: Tokens  # positions and segments of the keys
    past_RTS: jax.Array | None = None  # which keys are in the past of each query; None: all
    num_written: jax.Array | None = None  # slots from here on are not written; None: all are


@flax.struct.dataclass
class GrowingCache:
    """The keys of all tokens so far; `index` is the next free slot.

    The hypotheses of a row share its slots. A key stays in the slot where it was written, and
    `past_RS` says which slots belong to the past of a hypothesis. So beams that change their order
    move no key, and a prompt is stored once for all beams.
    """

    keys: Any
    tokens: Tokens
    past_RS: jax.Array
    index: jax.Array

    @classmethod
    def empty(cls, keys: Any, length: int) -> 'GrowingCache':
        """Return a cache with `length` slots in each row, for all hypotheses of the row together.

        Args:
            keys: a pytree with leaves [B, any, …], whose shapes and dtypes are used.
            length: the number of slots.
        """
        keys, tokens = _empty(keys, length)
        return cls(
            keys, tokens, jnp.zeros(tokens.segments_BT.shape, bool), jnp.zeros((), jnp.int32)
        )

    def append(self, keys: Any, tokens: Tokens) -> tuple[CacheView, 'GrowingCache']:
        """Write keys [R, T, …] and their tokens into the next R/B · T slots of each row."""
        (R, T), B = tokens.positions_BT.shape, len(self.tokens.positions_BT)

        def write(old_BS, new_BT):
            return jax.lax.dynamic_update_slice_in_dim(
                old_BS, new_BT.astype(old_BS.dtype), self.index, axis=1
            )

        keys, tokens = jax.tree.map(
            lambda old_BS, new_RT: write(old_BS, new_RT.reshape(B, -1, *new_RT.shape[2:])),
            (self.keys, self.tokens),
            (keys, tokens),
        )
        own_RT = jnp.tile(jnp.repeat(jnp.eye(R // B, dtype=bool), T, axis=1), (B, 1))
        past_RS = write(self.past_RS, own_RT)
        past_RTS = jnp.broadcast_to(past_RS[:, None], (R, T, past_RS.shape[1]))
        index = self.index + R // B * T
        return CacheView(keys, tokens, past_RTS, index), GrowingCache(keys, tokens, past_RS, index)


@flax.struct.dataclass
class RingCache:
    """The keys of the last `size` positions: position p is in slot p mod size.

    Each hypothesis has its own slots.
    """

    keys: Any
    tokens: Tokens

    @classmethod
    def empty(cls, keys: Any, size: int) -> 'RingCache':
        """Return a cache for a window of `size` positions, shaped like `keys`."""
        return cls(*_empty(keys, size))

    def append(self, keys: Any, tokens: Tokens) -> tuple[CacheView, 'RingCache']:
        """Overwrite the slots of the positions `size` earlier; padding is not written."""
        size = self.tokens.positions_BT.shape[1]
        positions_BT, segments_BT = tokens
        last_B1 = jnp.where(segments_BT != 0, positions_BT, -1).max(-1, keepdims=True)
        kept_BT = (segments_BT != 0) & (positions_BT > last_B1 - size)
        slots_BT = jnp.where(kept_BT, positions_BT % size, size)  # `size` is no slot: not written
        rows_B1 = jnp.arange(len(positions_BT))[:, None]

        def write(old, new):
            return old.at[rows_B1, slots_BT].set(new.astype(old.dtype), mode='drop')

        written = RingCache(
            jax.tree.map(write, self.keys, keys), jax.tree.map(write, self.tokens, tokens)
        )
        if positions_BT.shape[1] == 1:
            return CacheView(written.keys, written.tokens), written

        # With several new tokens, the first of them still see keys that the last ones overwrite.
        def join(old, new):
            return jnp.concatenate([old, new.astype(old.dtype)], axis=1)

        joined = jax.tree.map(join, (self.keys, self.tokens), (keys, tokens))
        return CacheView(*joined), written


def _empty(keys: Any, length: int) -> tuple[Any, Tokens]:
    def widen(leaf):
        return jnp.zeros((leaf.shape[0], length, *leaf.shape[2:]), leaf.dtype)

    batch = jax.tree.leaves(keys)[0].shape[0]
    return jax.tree.map(widen, keys), Tokens(*jnp.zeros((2, batch, length), jnp.int32))


def reorder(cache: Any, parents_BK: jax.Array) -> Any:
    """Return the cache of new hypotheses, each the continuation of an old one of the same row.

    Args:
        cache: any pytree of caches. Every leaf has R rows, but for scalars and the shared slots of
            a `GrowingCache`.
        parents_BK: parents_BK[b, k] is the old hypothesis, counted within row b, that the new
            hypothesis k continues. K may be more than the row had: a search begins with parents of
            0, which gives each row K beams.
    """
    B = len(parents_BK)

    def gather(leaf):
        if isinstance(leaf, GrowingCache):
            return dataclasses.replace(leaf, past_RS=gather(leaf.past_RS))
        if leaf.ndim == 0:
            return leaf
        rows_BK = len(leaf) // B * jnp.arange(B)[:, None] + parents_BK
        return jnp.take(leaf, rows_BK.reshape(-1), axis=0)

    return jax.tree.map(gather, cache, is_leaf=lambda node: isinstance(node, GrowingCache))
