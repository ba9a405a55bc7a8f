"""The ring engine: rows that are cut over devices, with the online softmax of `chunked`.

Every device holds the queries and the keys of its own piece of a row. The keys go round the devices
in a ring, and each device adds them to the sums of its queries as they pass (Liu et al. 2023, Ring
Attention). The backward pass sends keys round again, together with their gradients, so that a
device never holds more keys than those of two pieces.

Under a causal mask a late query sees more keys than an early one. So every device exchanges its two
halves for an early and a late piece of the row before the ring, and gives the result back after it:
outside, tokens are in their order. Scores, masks and position encodings read the positions of
tokens, never their places, and tiles that the mask forbids cost nothing.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.attention.engines import chunked
from transformer_jax.attention.engines.chunked import Chunks, RunningSums
from transformer_jax.attention.engines.pieces import Pieces, attend_in_pieces
from transformer_jax.attention.mask_base import Mask
from transformer_jax.attention.masks import Segments
from transformer_jax.attention.normalizers import Exponential

NO_GRADIENT: Any = None  # of tokens and of dropout


def attend(
    kind: Any, queries: Any, keys: Any, inputs: Any, chunk: int = chunked.CHUNK
) -> jax.Array:
    """Return o_BTNH of a scored kind.

    Args:
        kind: a kind that does not need all keys at once.
        queries: leaves [B, T, …].
        keys: leaves [B, S, …].
        inputs: mask, tokens and parameters.
        chunk: the most queries, and the most keys, of a tile.
    """
    inputs = inputs.replace(mask=inputs.mask & Segments())
    return attend_in_pieces(functools.partial(_attend_piece, kind, chunk), queries, keys, inputs)


def _attend_piece(
    kind: Any, chunk: int, pieces: Pieces, queries: Any, keys: Any, inputs: Any
) -> jax.Array:
    """Return o_BTNH of this device's piece."""
    T, S = (tokens.positions_BT.shape[1] for tokens in (inputs.query_tokens, inputs.key_tokens))
    balanced = pieces.count > 1 and T % 2 == S % 2 == 0 and is_lopsided(inputs.mask)
    query_tokens, key_tokens = inputs.query_tokens, inputs.key_tokens
    if balanced:
        (queries, query_tokens), (keys, key_tokens) = exchange_halves(
            pieces, ((queries, query_tokens), (keys, key_tokens))
        )
        chunk = min(chunk, T // 2, S // 2)  # so that a tile belongs to one half
    query_chunks = chunked.cut_chunks(queries, query_tokens, chunk)
    key_chunks = chunked.cut_chunks(keys, key_tokens, chunk)
    first = pieces.number() * len(key_chunks.numbers)
    key_chunks = key_chunks._replace(numbers=first + key_chunks.numbers)
    o_CBTNH = _ring(kind, pieces, query_chunks, key_chunks, inputs)
    o_BTNH = chunked.join_time(o_CBTNH)[:, :T].astype(kind.values(keys).dtype)
    return return_halves(pieces, o_BTNH) if balanced else o_BTNH


def is_lopsided(mask: Mask) -> bool:
    """Return whether late queries see more keys than early ones."""
    back, ahead = mask.reach()
    return back == math.inf and ahead < math.inf


def exchange_halves(pieces: Pieces, tree: Any) -> Any:
    """Give each device an early and a late piece of the row in place of its two halves.

    Of the 2n halves of n pieces, device d gets number d and number 2n − 1 − d, in any order.

    Args:
        pieces: how the row is cut.
        tree: leaves [B, T, …], where T is even.
    """
    sides = zip(_halves(tree), _routes(pieces.count), strict=True)
    return _join(*(pieces.send(half, routes) for half, routes in sides))


def return_halves(pieces: Pieces, tree: Any) -> Any:
    """Give each device its own halves back, see `exchange_halves`."""
    back = ([(there, here) for here, there in routes] for routes in _routes(pieces.count))
    sides = zip(_halves(tree), back, strict=True)
    return _join(*(pieces.send(half, routes) for half, routes in sides))


def _routes(count: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the routes of the first halves, and those of the second halves."""
    first, second = (
        [(d, min(2 * d + side, 2 * count - 1 - 2 * d - side)) for d in range(count)]
        for side in (0, 1)
    )
    return first, second


def _halves(tree: Any) -> tuple[Any, Any]:
    first = jax.tree.map(lambda leaf: leaf[:, : leaf.shape[1] // 2], tree)
    return first, jax.tree.map(lambda leaf: leaf[:, leaf.shape[1] // 2 :], tree)


def _join(first: Any, second: Any) -> Any:
    return jax.tree.map(lambda *halves: jnp.concatenate(halves, axis=1), first, second)


def _forward(
    kind: Any, pieces: Pieces, query_chunks: Chunks, key_chunks: Chunks, inputs: Any
) -> tuple[jax.Array, Any]:
    """Return float32 o_CBTNH of the queries over the keys of all devices, and what is kept."""
    n_CBT = _count_allowed(kind, pieces, inputs, query_chunks, key_chunks)
    sums_C = jax.lax.map(
        lambda query_chunk: chunked.initial_sums(kind, inputs, query_chunk, key_chunks),
        query_chunks,
    )

    def turn(carry: Any, _: Any) -> tuple[Any, None]:
        sums_C, key_chunks = carry
        sums_C = _add_keys(kind, inputs, sums_C, query_chunks, key_chunks, n_CBT)
        return (sums_C, pieces.pass_on(key_chunks)), None

    # After the last keys there is nobody to pass them on to.
    turns = pieces.count - 1
    (sums_C, last_chunks), _ = jax.lax.scan(turn, (sums_C, key_chunks), None, length=turns)
    sums_C = _add_keys(kind, inputs, sums_C, query_chunks, last_chunks, n_CBT)
    o_CBTNH = jax.vmap(functools.partial(chunked.finish, kind))(sums_C)
    return o_CBTNH, (query_chunks, key_chunks, inputs, n_CBT, sums_C)


def _backward(kind: Any, pieces: Pieces, kept: Any, do_CBTNH: jax.Array) -> tuple[Any, Any, Any]:
    """Return the gradients of the queries, the keys and the parameters.

    The largest score of all keys is known now. Relative to it, the sums of a row are plain sums
    over the keys of the devices. So the gradients of each device's keys need nothing of the others
    but the cotangents of these sums.
    """
    query_chunks, key_chunks, inputs, n_CBT, sums_C = kept
    _, pull_finish = jax.vjp(jax.vmap(functools.partial(chunked.finish, kind)), sums_C)
    (dsums_C,) = pull_finish(do_CBTNH)
    params = inputs.params, inputs.position_params
    no_sums_C = jax.tree.map(jnp.zeros_like, sums_C)._replace(top_BKGT1=sums_C.top_BKGT1)

    def turn(carry: Any, _: Any) -> tuple[Any, None]:
        key_chunks, (dkeys, dqueries, dparams) = carry

        def add(keys: Any, queries: Any, params: Any) -> RunningSums:
            return _add_keys(
                kind,
                inputs.replace(params=params[0], position_params=params[1]),
                no_sums_C,
                query_chunks._replace(projected=queries),
                key_chunks._replace(projected=keys),
                n_CBT,
            )

        _, pull = jax.vjp(add, key_chunks.projected, query_chunks.projected, params)
        dkeys, dqueries, dparams = _add_trees((dkeys, dqueries, dparams), pull(dsums_C))
        key_chunks, dkeys = pieces.pass_on((key_chunks, dkeys))
        return (key_chunks, (dkeys, dqueries, dparams)), None

    # As many turns as devices: the gradients of keys end where the keys belong.
    sides = key_chunks.projected, query_chunks.projected, params
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), sides)
    (_, grads), _ = jax.lax.scan(turn, (key_chunks, zeros), None, length=pieces.count)
    dkeys, dqueries, (dparams, dposition) = jax.tree.map(
        lambda grad, leaf: grad.astype(leaf.dtype), grads, sides
    )
    _, pull_extra = jax.vjp(
        lambda params: jax.vmap(functools.partial(chunked.extra_total, kind, params))(
            sums_C.top_BKGT1
        ),
        inputs.params,
    )
    (dextra,) = pull_extra(dsums_C.total_BKGT1)
    return (
        Chunks(NO_GRADIENT, dqueries, NO_GRADIENT),
        Chunks(NO_GRADIENT, dkeys, NO_GRADIENT),
        inputs.replace(
            query_tokens=NO_GRADIENT,
            key_tokens=NO_GRADIENT,
            params=_add_trees(dparams, dextra),
            position_params=dposition,
            dropout=NO_GRADIENT,
        ),
    )


# (kind, pieces, query_chunks, key_chunks, inputs) → o_CBTNH
_ring: Any = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0], nondiff_argnums=(0, 1))
_ring.defvjp(_forward, _backward)


def _add_keys(
    kind: Any,
    inputs: Any,
    sums_C: RunningSums,
    query_chunks: Chunks,
    key_chunks: Chunks,
    n_CBT: jax.Array | None,
) -> RunningSums:
    """Add the keys of one device to the sums of all chunks of queries."""

    @chunked.rematerialized
    def add(of_chunk: Any) -> RunningSums:
        sums, query_chunk, n_BT = of_chunk
        return chunked.add_keys(kind, inputs, sums, query_chunk, key_chunks, n_BT)

    return jax.lax.map(add, (sums_C, query_chunks, n_CBT))


def _count_allowed(
    kind: Any, pieces: Pieces, inputs: Any, query_chunks: Chunks, key_chunks: Chunks
) -> jax.Array | None:
    """Return n_CBT of all chunks of queries, see `chunked.count_allowed`."""
    if isinstance(kind.normalizer, Exponential):
        return None
    key_tokens = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), pieces.gather(key_chunks.tokens)
    )
    return jax.lax.map(
        lambda tokens: chunked.count_allowed(kind, inputs, tokens, key_tokens), query_chunks.tokens
    )


def _add_trees(left: Any, right: Any) -> Any:
    return jax.tree.map(jnp.add, left, right)
