"""Caches for step-by-step decoding: explicit values that a step returns.

A cache is of B rows and R hypotheses, the beams of a row side by side (before the search begins R
is B). `append(keys, tokens)` takes the keys (any pytree with R and time in front) of one or more
new tokens and returns the cache with them in it, and what they may attend to, as `Seen`. Places
that are not yet written have segment 0: to every mask they are padding.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from transformer_jax.batch import Tokens


class Seen(NamedTuple):
    """Keys with B or R rows in front of every leaf, their tokens, and which of them each query has
    in its past.
    """

    keys: Any
    tokens: Tokens
    past_RTS: jax.Array | None = None  # None: all of its row
    end: jax.Array | None = None  # after it no place is written; None: all are


@flax.struct.dataclass
class GrowingCache:
    """The keys of all steps so far; `index` is the next free place.

    A row's hypotheses share its places, each key stays where it was written, and `past_RS` says
    which of them lie in a hypothesis's past: beams that change their order move no key, and a
    prompt is there once for all of them.
    """

    keys: Any
    tokens: Tokens
    past_RS: jax.Array
    index: jax.Array

    @classmethod
    def empty(cls, keys: Any, length: int) -> 'GrowingCache':
        """Room for `length` keys a row, of all its hypotheses, shaped like `keys` (any number of
        steps on axis 1).
        """
        keys, tokens = _empty(keys, length)
        return cls(
            keys, tokens, jnp.zeros(tokens.segments_BT.shape, bool), jnp.zeros((), jnp.int32)
        )

    def append(self, keys: Any, tokens: Tokens) -> tuple[Seen, 'GrowingCache']:
        """Writes at `index`."""
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
        end = self.index + R // B * T
        return Seen(keys, tokens, past_RTS, end), GrowingCache(keys, tokens, past_RS, end)


@flax.struct.dataclass
class RingCache:
    """The keys of the last `size` positions: the one at position p lies at p mod size."""

    keys: Any
    tokens: Tokens

    @classmethod
    def empty(cls, keys: Any, size: int) -> 'RingCache':
        """Room for the keys of a window of `size` positions."""
        return cls(*_empty(keys, size))

    def append(self, keys: Any, tokens: Tokens) -> tuple[Seen, 'RingCache']:
        """Writes over what lies `size` positions back; padding is not written."""
        size = self.tokens.positions_BT.shape[1]
        positions_BT, segments_BT = tokens
        last_B1 = jnp.where(segments_BT != 0, positions_BT, -1).max(-1, keepdims=True)
        kept_BT = (segments_BT != 0) & (positions_BT > last_B1 - size)
        places_BT = jnp.where(kept_BT, positions_BT % size, size)  # Beyond the end: dropped.
        rows_B1 = jnp.arange(len(positions_BT))[:, None]

        def write(old, new):
            return old.at[rows_B1, places_BT].set(new.astype(old.dtype), mode='drop')

        written = RingCache(
            jax.tree.map(write, self.keys, keys), jax.tree.map(write, self.tokens, tokens)
        )
        if positions_BT.shape[1] == 1:
            return Seen(written.keys, written.tokens), written

        # Several tokens at once: the first of them still see what the last ones have overwritten.
        def join(old, new):
            return jnp.concatenate([old, new.astype(old.dtype)], axis=1)

        return Seen(*jax.tree.map(join, (self.keys, self.tokens), (keys, tokens))), written


def _empty(keys: Any, length: int) -> tuple[Any, Tokens]:
    def widen(leaf):
        return jnp.zeros((leaf.shape[0], length, *leaf.shape[2:]), leaf.dtype)

    batch = jax.tree.leaves(keys)[0].shape[0]
    return jax.tree.map(widen, keys), Tokens(*jnp.zeros((2, batch, length), jnp.int32))


def reorder(cache: Any, parents_BK: jax.Array) -> Any:
    """The cache whose hypothesis k of row b goes on from what was hypothesis parents_BK[b, k] of
    that row.

    All leaves have R rows, but for scalars and what the hypotheses of a row share. K may be more
    than there were: a row is widened to its beams by parents of 0.
    """
    B = len(parents_BK)

    def gather(leaf):
        if isinstance(leaf, GrowingCache):
            return leaf.replace(past_RS=gather(leaf.past_RS))
        if leaf.ndim == 0:
            return leaf
        rows_BK = len(leaf) // B * jnp.arange(B)[:, None] + parents_BK
        return jnp.take(leaf, rows_BK.reshape(-1), axis=0)

    return jax.tree.map(gather, cache, is_leaf=lambda node: isinstance(node, GrowingCache))
