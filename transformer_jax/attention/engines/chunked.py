"""The chunked engine: the online softmax over chunks of queries and of keys, O(T + S) memory.

The scores of a chunk of queries for all keys are never held at once. Exponentials and weighted
values are summed over the chunks of keys, relative to the largest score so far (Milakov &
Gimelshein 2018, algorithm 3), and the backward pass computes the scores again (Rabe & Staats 2021,
section 3; Dao et al. 2022, section 3.1).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention.engines import dense
from transformer_jax.attention.engines.tiles import cut_time, pad_time
from transformer_jax.attention.mask_base import neg_inf
from transformer_jax.attention.masks import Segments
from transformer_jax.attention.normalizers import Exponential
from transformer_jax.batch import Tokens

CHUNK = 256  # the most queries, and the most keys, of a tile

# prevent_cse=False: inside a loop the compiler cannot undo the rematerialization anyway.
rematerialized = functools.partial(jax.checkpoint, prevent_cse=False)


class RunningSums(NamedTuple):
    """Sums over the keys so far, in float32, relative to the largest score so far."""

    top_BKGT1: jax.Array  # the largest score
    total_BKGT1: jax.Array  # Σ exp(score − top)
    o_BTNH: jax.Array  # Σ exp(score − top) · value


class Chunks(NamedTuple):
    """Queries, or keys, cut into C chunks: the first axis of every leaf is C."""

    numbers: jax.Array  # 0 to C − 1
    projected: Any  # queries, or keys and values: leaves [C, B, T, …]
    tokens: Tokens  # leaves [C, B, T]


def incompatibility(kind: Any, position: Any) -> str:
    """Explain what needs all keys of a row at once; '' where nothing does."""
    needs = kind.needs_all_keys() or (position.needs_all_keys and 'the position encoding')
    if not needs:
        return ''
    return (
        f'{needs} needs all keys of a row at once: engines that can: dense, blocked (of windows), '
        'allgather'
    )


def attend(kind: Any, queries: Any, keys: Any, inputs: Any, chunk: int = CHUNK) -> jax.Array:
    """Return o_BTNH of a scored kind.

    Args:
        kind: a kind that does not need all keys at once.
        queries: leaves [B, T, …].
        keys: leaves [B, S, …].
        inputs: mask, tokens and parameters.
        chunk: the most queries, and the most keys, of a tile.
    """
    T = inputs.query_tokens.positions_BT.shape[1]
    # The last chunk is filled up with tokens of segment 0, which `Segments` masks.
    inputs = inputs.replace(mask=inputs.mask & Segments())
    query_chunks = cut_chunks(queries, inputs.query_tokens, chunk)
    key_chunks = cut_chunks(keys, inputs.key_tokens, chunk)

    @rematerialized
    def attend_chunk(query_chunk: Chunks) -> jax.Array:
        n_BT = count_allowed(kind, inputs, query_chunk.tokens, key_chunks.tokens)
        sums = initial_sums(kind, inputs, query_chunk, key_chunks)
        sums = add_keys(kind, inputs, sums, query_chunk, key_chunks, n_BT)
        return finish(kind, sums).astype(kind.values(keys).dtype)

    return join_time(jax.lax.map(attend_chunk, query_chunks))[:, :T]


def cut_chunks(projected: Any, tokens: Tokens, chunk: int) -> Chunks:
    """Cut the time axis into chunks of one length, at most `chunk`."""
    length = tokens.positions_BT.shape[1]
    count = -(-length // chunk)
    size = -(-length // count)
    cut = cut_time(pad_time((projected, tokens), 0, count * size - length), size)
    return Chunks(jnp.arange(count), *jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), cut))


def join_time(leaf_CBT: jax.Array) -> jax.Array:
    """Join the chunks [C, B, T, …] of an array to [B, C·T, …]."""
    C, B, T, *rest = leaf_CBT.shape
    return jnp.moveaxis(leaf_CBT, 0, 1).reshape(B, C * T, *rest)


def add_keys(
    kind: Any,
    inputs: Any,
    sums: RunningSums,
    query_chunk: Chunks,
    key_chunks: Chunks,
    n_BT: jax.Array | None,
) -> RunningSums:
    """Add chunks of keys to the sums of one chunk of queries.

    Args:
        kind: the attention kind.
        inputs: mask and parameters; the tokens are those of the chunks.
        sums: over the keys so far.
        query_chunk: without the axis C.
        key_chunks: of some keys.
        n_BT: from `count_allowed`.
    """

    @rematerialized
    def add(sums: RunningSums, key_chunk: Chunks) -> RunningSums:
        return add_tile(kind, inputs, sums, query_chunk, key_chunk, n_BT)

    def step(sums: RunningSums, key_chunk: Chunks) -> tuple[RunningSums, None]:
        visible = is_visible(inputs, query_chunk, key_chunk)
        return jax.lax.cond(visible, add, lambda sums, _: sums, sums, key_chunk), None

    return jax.lax.scan(step, sums, key_chunks)[0]


def is_visible(inputs: Any, query_chunk: Chunks, key_chunk: Chunks) -> jax.Array:
    """Return whether any query of a tile may see any of its keys.

    Other tiles, for example above the diagonal of a causal mask, are skipped.
    """
    return inputs.mask.allowed(query_chunk.tokens, key_chunk.tokens).any()


def add_tile(
    kind: Any,
    inputs: Any,
    sums: RunningSums,
    query_chunk: Chunks,
    key_chunk: Chunks,
    n_BT: jax.Array | None,
) -> RunningSums:
    """Add one chunk of keys to the sums of one chunk of queries; arguments as of `add_keys`."""
    queries, keys = query_chunk.projected, key_chunk.projected
    inputs = inputs.replace(query_tokens=query_chunk.tokens, key_tokens=key_chunk.tokens)
    if inputs.dropout is not None:  # each tile has a key of its own
        rng, rate = inputs.dropout
        for number in (query_chunk.numbers, key_chunk.numbers):
            rng = jax.random.fold_in(rng, number)
        inputs = inputs.replace(dropout=(rng, rate))
    tile = kind.tile(queries, keys, inputs, inputs.allowed_BTS())
    scores_BKGTS = kind.scores(queries, keys, tile, inputs)
    weights_BKGTS, top_BKGT1 = _weigh(kind, scores_BKGTS, tile, inputs.params, sums, n_BT)
    shrink_BKGT1 = jnp.exp(sums.top_BKGT1 - top_BKGT1)
    dropped_BKGTS = inputs.apply_dropout(weights_BKGTS)
    mixed_BTNH = dense.mix(kind, dropped_BKGTS, keys, tile, inputs, jnp.float32)
    return RunningSums(
        top_BKGT1,
        shrink_BKGT1 * sums.total_BKGT1 + weights_BKGTS.sum(-1, keepdims=True),
        heads_last(shrink_BKGT1) * sums.o_BTNH + mixed_BTNH,
    )


def finish(kind: Any, sums: RunningSums) -> jax.Array:
    """Return float32 o_BTNH: the weighted values, divided by the sum of weights where they are."""
    if not isinstance(kind.normalizer, Exponential):
        return sums.o_BTNH
    # The total is at least 1, or 0 where a row may see nothing.
    return sums.o_BTNH / heads_last(jnp.maximum(sums.total_BKGT1, 0.5))


def initial_sums(kind: Any, inputs: Any, query_chunk: Chunks, key_chunks: Chunks) -> RunningSums:
    """Return the sums of one chunk of queries before the first key.

    They include the logit that some normalizers have beside those of the keys. Of `key_chunks` the
    shapes are used.
    """
    keys, key_tokens = jax.tree.map(lambda leaf: leaf[0], (key_chunks.projected, key_chunks.tokens))
    inputs = inputs.replace(query_tokens=query_chunk.tokens, key_tokens=key_tokens)
    N, K = kind.tile(query_chunk.projected, keys, inputs, inputs.allowed_BTS()).heads
    B, T = query_chunk.tokens.positions_BT.shape
    top_BKGT1 = jnp.full((B, K, N // K, T, 1), neg_inf(jnp.float32))
    extra_KG11 = extra_logit(kind, inputs.params)
    if extra_KG11 is not None:
        top_BKGT1 = jnp.broadcast_to(jax.lax.stop_gradient(extra_KG11)[None], top_BKGT1.shape)
    value_dim = kind.values(keys).shape[-1]
    return RunningSums(
        top_BKGT1, extra_total(kind, inputs.params, top_BKGT1), jnp.zeros((B, T, N, value_dim))
    )


def extra_total(kind: Any, params: Any, top_BKGT1: jax.Array) -> jax.Array:
    """Return total_BKGT1 of the logit beside those of the keys, relative to the largest score."""
    extra_KG11 = extra_logit(kind, params)
    if extra_KG11 is None:
        return jnp.zeros_like(top_BKGT1)
    return jnp.exp(extra_KG11[None] - top_BKGT1)


def extra_logit(kind: Any, params: Any) -> jax.Array | None:
    """Return the logit extra_KG11 that a normalizer has beside those of the keys, if it has."""
    if not isinstance(kind.normalizer, Exponential):
        return None
    return kind.normalizer.extra_KG11(params['normalizer'])


def _weigh(
    kind: Any,
    scores_BKGTS: jax.Array,
    tile: Any,
    params: Any,
    sums: RunningSums,
    n_BT: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Return (weights_BKGTS, top_BKGT1) of a tile.

    Weights of an exponential normalizer are exp(score − top), where top is the largest score so far
    with those of this tile; the others are final, given `n_BT` keys that each query may see.
    """
    allowed_BKGTS = tile.allowed_BTS[:, None, None]
    if n_BT is not None:
        scores_BKGTS = jnp.where(allowed_BKGTS, scores_BKGTS, 0)
        weights_BKGTS = kind.normalizer.transform(params['normalizer'], scores_BKGTS, n_BT)
        return jnp.where(allowed_BKGTS, weights_BKGTS, 0), sums.top_BKGT1
    scores_BKGTS = jnp.where(allowed_BKGTS, scores_BKGTS, neg_inf(jnp.float32))
    tile_top_BKGT1 = jax.lax.stop_gradient(scores_BKGTS.max(-1, keepdims=True))
    top_BKGT1 = jnp.maximum(sums.top_BKGT1, tile_top_BKGT1)
    return jnp.where(allowed_BKGTS, jnp.exp(scores_BKGTS - top_BKGT1), 0), top_BKGT1


def count_allowed(
    kind: Any, inputs: Any, query_tokens: Tokens, key_tokens: Tokens
) -> jax.Array | None:
    """Return n_BT: how many keys each query may see, at least 1; key tokens have the axis C first.

    None for a normalizer that does not need it.
    """
    if isinstance(kind.normalizer, Exponential):
        return None

    def count(n_BT, tokens):
        return n_BT + inputs.mask.allowed(query_tokens, tokens).sum(-1), None

    n_BT, _ = jax.lax.scan(count, jnp.zeros_like(query_tokens.positions_BT), key_tokens)
    return jnp.maximum(n_BT, 1)


def heads_last(x_BKGT1: jax.Array) -> jax.Array:
    """Reshape x_BKGT1 to x_BTN1."""
    B, K, G, T, _ = x_BKGT1.shape
    return jnp.moveaxis(x_BKGT1.reshape(B, K * G, T, 1), 1, 2)
