"""The blocked engine, for windows: each block of queries meets only the keys near it.

Time and memory are O(T·window).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.attention.engines import dense
from transformer_jax.attention.engines.pieces import Pieces, attend_in_pieces
from transformer_jax.attention.engines.tiles import SiteSpec, cut_time, pad_time
from transformer_jax.attention.masks import Segments

MIN_BLOCK = 8


def incompatibility(kind: Any, position: Any) -> str:
    """Explain that a mask does not limit how far a query sees; '' for a mask that does."""
    if math.inf in kind.mask.reach():
        return (
            'its mask reaches any distance; bounded ones, as mask=window(64), work, or the engines '
            'dense and chunked'
        )
    return ''


def site_incompatibility(kind: Any, site: SiteSpec) -> str:
    """Explain that this engine cannot run cross-attention; '' for self-attention.

    The distance of two tokens in the arrays of two sequences says nothing about the distance of
    their positions.
    """
    if site.name != 'cross':
        return ''
    return (
        "the distance between two sequences' tokens is not bounded by their positions'; "
        "model.engine='auto' takes the blocked engine where it can, in self-attention, and another "
        'here'
    )


def block_size(reach: int) -> int:
    """Return the size of a block: about half of `reach`, the farthest that a query sees.

    With a causal window each block then meets 1.5 windows of keys, and each key is copied 3 times.
    """
    return max(MIN_BLOCK, 8 * math.ceil(reach / 16))


def attend(kind: Any, queries: Any, keys: Any, inputs: Any, size: int = 0) -> jax.Array:
    """Return o_BTNH of a scored kind in self-attention.

    Blocks of queries become rows of the batch. Each has its slab of keys: those of the block and as
    many before and after it as the mask reaches. So all keys that a query sees are in its row, and
    normalizers that need all of them work. Where devices cut the row, they send each other the
    keys within that reach, and no others. Within a segment, tokens are as far apart in the arrays
    as their positions, so that a slab holds every key that the mask allows.

    Args:
        kind: a kind whose mask has a bounded reach.
        queries: leaves [B, T, …].
        keys: leaves [B, T, …].
        inputs: mask, tokens and parameters.
        size: of a block; 0: `block_size` of the mask's reach.

    Raises:
        ValueError: there are more or fewer keys than queries.
    """
    T, S = (tokens.positions_BT.shape[1] for tokens in (inputs.query_tokens, inputs.key_tokens))
    if T != S:
        raise ValueError(f'{T} queries and {S} keys: the blocked engine is for self-attention')
    return attend_in_pieces(functools.partial(_attend_piece, kind, size), queries, keys, inputs)


def _attend_piece(
    kind: Any, size: int, pieces: Pieces, queries: Any, keys: Any, inputs: Any
) -> jax.Array:
    """Return o_BTNH of this device's piece; other devices send the keys that it sees of theirs."""
    B, T = inputs.query_tokens.positions_BT.shape
    back, ahead = (int(min(distance, pieces.count * T)) for distance in inputs.mask.reach())
    size = size or block_size(max(back, ahead))
    before, after = math.ceil(back / size), math.ceil(ahead / size)
    if pieces.count == 1 and (before + 1 + after) * size >= T:
        size, before, after, back, ahead = T, 0, 0, 0, 0
    fill, blocks = -T % size, math.ceil(T / size)

    def slabs(cut_BCT: jax.Array) -> jax.Array:
        parts = [cut_BCT[:, start : start + blocks] for start in range(before + 1 + after)]
        return jnp.concatenate(parts, axis=2)

    def rows(cut_BCT: jax.Array) -> jax.Array:
        return cut_BCT.reshape(-1, *cut_BCT.shape[2:])

    padded_queries = pad_time((queries, inputs.query_tokens), 0, fill)
    queries, query_tokens = jax.tree.map(rows, cut_time(padded_queries, size))
    near_keys = surround(pieces, (keys, inputs.key_tokens), back, ahead)
    padded_keys = pad_time(near_keys, before * size - back, after * size - ahead + fill)
    keys, key_tokens = jax.tree.map(lambda leaf: rows(slabs(leaf)), cut_time(padded_keys, size))
    # A key of another segment can be near in position and far away in the array: some of them would
    # be in the slab and others not, so all of them are masked.
    inputs = inputs.replace(
        query_tokens=query_tokens, key_tokens=key_tokens, mask=inputs.mask & Segments()
    )
    o_BTNH = dense.attend(kind, queries, keys, inputs)
    return o_BTNH.reshape(B, -1, *o_BTNH.shape[2:])[:, :T]


def surround(pieces: Pieces, tree: Any, before: int, after: int) -> Any:
    """Put the tokens that come before and after this device's piece in the row around it.

    Beyond the ends of the row there are zeros; tokens become segment 0. Nothing else is sent.

    Args:
        pieces: how the row is cut.
        tree: leaves [B, T, …].
        before: how many tokens, of one device or of several.
        after: the same, after the piece.
    """
    left, right = _from_neighbors(pieces, tree, before, 1), _from_neighbors(pieces, tree, after, -1)
    present = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=1), *reversed(left), tree, *right
    )
    sent = [sum(jax.tree.leaves(part)[0].shape[1] for part in side) for side in (left, right)]
    return pad_time(present, before - sent[0], after - sent[1])


def _from_neighbors(pieces: Pieces, tree: Any, tokens: int, step: int) -> list[Any]:
    """Return the nearest `tokens` of the pieces before this one, or, with step −1, after it.

    The nearest piece comes first, and of the farthest only what is needed.
    """
    T, parts = jax.tree.leaves(tree)[0].shape[1], []
    for distance in range(1, min(pieces.count, math.ceil(tokens / T) + 1)):
        size = min(T, tokens - (distance - 1) * T)
        near = slice(T - size, T) if step == 1 else slice(0, size)
        ends = range(pieces.count - distance)
        routes = [(n, n + distance) if step == 1 else (n + distance, n) for n in ends]
        part = jax.tree.map(lambda leaf, near=near: leaf[:, near], tree)
        parts.append(pieces.send(part, routes))
    return parts
