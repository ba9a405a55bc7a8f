"""Blocks of a window: every block of queries meets its slab of keys alone, time and memory
in T·window.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.attention.engines import dense
from transformer_jax.attention.engines.tiles import SiteSpec, cut_time, pad_time
from transformer_jax.attention.masks import Segments

MIN_BLOCK = 8


def incompatibility(kind: Any, position: Any) -> str:
    """A mask that does not bound how far a query sees."""
    if math.inf in kind.mask.reach():
        return 'its mask reaches any distance; bounded ones, as mask=window(64), work, or the engines dense and chunked'
    return ''


def site_incompatibility(kind: Any, site: SiteSpec) -> str:
    """Cross-attention: how far two sequences lie apart in their arrays says nothing of
    their positions.
    """
    return (
        ''
        if site.name != 'cross'
        else (
            "the distance between two sequences' tokens is not bounded by their positions'; model.engine='auto' takes the "
            'blocked engine where it can, in self-attention, and another here'
        )
    )


def block_size(reach: int) -> int:
    """Half of what a query sees to one side: a causal window's slab is 1.5 windows, and keys are
    there three times.
    """
    return max(MIN_BLOCK, 8 * math.ceil(reach / 16))


def attend(kind: Any, queries: Any, keys: Any, inputs: Any, size: int = 0) -> jax.Array:
    """o_BTNH of a scored kind in self-attention, where places in a segment's array are as far apart
    as positions.

    Blocks become rows of the batch, each with its slab: keys as far as the mask reaches to both
    sides of the block. So all keys of a row are there, and whatever needs them at once works.
    `size` of a block; 0: by the mask's reach.
    """
    (B, T), S = inputs.query_tokens.positions_BT.shape, inputs.key_tokens.positions_BT.shape[1]
    if T != S:
        raise ValueError(f'{T} queries and {S} keys: the blocked engine is for self-attention')
    back, ahead = (int(min(distance, T)) for distance in inputs.mask.reach())
    size = size or block_size(max(back, ahead))
    before, after = math.ceil(back / size), math.ceil(ahead / size)
    if (before + 1 + after) * size >= T:
        size, before, after = T, 0, 0
    fill, blocks = -T % size, math.ceil(T / size)

    def slabs(cut_BCT: jax.Array) -> jax.Array:
        parts = [cut_BCT[:, place : place + blocks] for place in range(before + 1 + after)]
        return jnp.concatenate(parts, axis=2)

    def rows(cut_BCT: jax.Array) -> jax.Array:
        return cut_BCT.reshape(-1, *cut_BCT.shape[2:])

    queries, query = jax.tree.map(
        rows, cut_time(pad_time((queries, inputs.query_tokens), 0, fill), size)
    )
    padded = pad_time((keys, inputs.key_tokens), before * size, after * size + fill)
    keys, key = jax.tree.map(lambda leaf: rows(slabs(leaf)), cut_time(padded, size))
    # Of another segment, a key may be near in position and far away in the array.
    inputs = inputs.replace(query_tokens=query, key_tokens=key, mask=inputs.mask & Segments())
    o_BTNH = dense.attend(kind, queries, keys, inputs)
    return o_BTNH.reshape(B, -1, *o_BTNH.shape[2:])[:, :T]
