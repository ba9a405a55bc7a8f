"""The online softmax over chunks of queries and of keys: memory in T + S.

The scores of a chunk of queries are never all there: exponentials and weighted values are summed up
chunk by chunk, relative to the largest score so far (Milakov & Gimelshein 2018, algorithm 3), and
the backward pass makes the scores again (Rabe & Staats 2021, section 3; Dao et al. 2022,
section 3.1).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.attention.engines import dense
from transformer_jax.attention.engines.tiles import cut_time, pad_time
from transformer_jax.attention.masks import Segments, neg_inf
from transformer_jax.attention.normalizers import Exponential

CHUNK = 256  # so many queries meet so many keys, at most

rematerialized = functools.partial(
    jax.checkpoint, prevent_cse=False
)  # Inside a loop there is nothing to share it with.


class Sums(NamedTuple):
    """Over the keys so far, in float32: the largest score, Σ exp(score − largest), and the values
    weighted alike.
    """

    top_BKGT1: jax.Array
    total_BKGT1: jax.Array
    o_BTNH: jax.Array


def incompatibility(kind: Any, position: Any) -> str:
    """What needs all keys of a row at once."""
    needs = kind.needs_all_keys() or (position.needs_all_keys and 'the position encoding')
    return (
        f'{needs} needs all keys of a row at once: engines that can: dense, blocked (of windows)'
        if needs
        else ''
    )


def attend(kind: Any, queries: Any, keys: Any, inputs: Any, chunk: int = CHUNK) -> jax.Array:
    """o_BTNH of a scored kind."""
    T = inputs.query_tokens.positions_BT.shape[1]
    inputs = inputs.replace(
        mask=inputs.mask & Segments()
    )  # What fills up the last chunk has segment 0.
    asking, asked = (
        _chunks(tree, chunk) for tree in ((queries, inputs.query_tokens), (keys, inputs.key_tokens))
    )
    o_CBTNH = jax.lax.map(rematerialized(functools.partial(_chunk, kind, inputs, asked)), asking)
    _, B, _, N, H = o_CBTNH.shape
    return jnp.moveaxis(o_CBTNH, 0, 1).reshape(B, -1, N, H)[:, :T]


def _chunks(tree: Any, chunk: int) -> Any:
    """(numbers, the leaves of `tree` as (chunks, batch, time, …)), all chunks of one length."""
    length = jax.tree.leaves(tree)[0].shape[1]
    count = -(-length // chunk)
    size = -(-length // count)
    cut = cut_time(pad_time(tree, 0, count * size - length), size)
    return jnp.arange(count), *jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), cut)


def _chunk(kind: Any, inputs: Any, asked: Any, asking: Any) -> jax.Array:
    """o_BTNH of a chunk of queries over all chunks of keys; both are (number, queries or
    keys, tokens).
    """
    number, queries, query = asking
    inputs = inputs.replace(query_tokens=query)
    seen_BT = None if isinstance(kind.normalizer, Exponential) else _seen_BT(inputs, asked[2])

    @rematerialized
    def add(sums: Sums, one: Any) -> Sums:
        place, keys, key = one
        here = inputs.replace(key_tokens=key)
        if inputs.dropout is not None:
            rng, rate = inputs.dropout
            here = here.replace(
                dropout=(jax.random.fold_in(rng, number * len(asked[0]) + place), rate)
            )
        tile = kind.tile(queries, keys, here, here.allowed_BTS())
        weights_BKGTS, top_BKGT1 = _weigh(
            kind, kind.scores(queries, keys, tile, here), tile, here, sums, seen_BT
        )
        shrunk_BKGT1 = jnp.exp(sums.top_BKGT1 - top_BKGT1)
        return Sums(
            top_BKGT1,
            shrunk_BKGT1 * sums.total_BKGT1 + weights_BKGTS.sum(-1, keepdims=True),
            _by_head(shrunk_BKGT1) * sums.o_BTNH
            + dense.mix(kind, here.apply_dropout(weights_BKGTS), keys, tile, here, jnp.float32),
        )

    def step(sums: Sums, one: Any) -> tuple[Sums, None]:
        # A tile outside the triangle of a causal mask, or the band of a window, costs nothing.
        sees = inputs.mask.allowed(query, one[2]).any()
        return jax.lax.cond(sees, add, lambda sums, _: sums, sums, one), None

    _, first, key = jax.tree.map(lambda leaf: leaf[0], asked)
    sums, _ = jax.lax.scan(
        step, _nothing(kind, queries, first, inputs.replace(key_tokens=key)), asked
    )
    o_BTNH = sums.o_BTNH
    if isinstance(kind.normalizer, Exponential):
        o_BTNH /= _by_head(
            jnp.maximum(sums.total_BKGT1, 0.5)
        )  # 1 or more, and 0 where a row may see nothing.
    return o_BTNH.astype(kind.values(first).dtype)


def _nothing(kind: Any, queries: Any, keys: Any, inputs: Any) -> Sums:
    """The sums before the first key: of a logit without key, where the normalizer has one."""
    N, K = kind.tile(queries, keys, inputs, inputs.allowed_BTS()).heads
    B, T = inputs.query_tokens.positions_BT.shape
    top_BKGT1 = jnp.full((B, K, N // K, T, 1), neg_inf(jnp.float32))
    total_BKGT1 = jnp.zeros_like(top_BKGT1)
    extra_KG11 = None
    if isinstance(kind.normalizer, Exponential):
        extra_KG11 = kind.normalizer.extra_KG11(inputs.params['normalizer'])
    if extra_KG11 is not None:
        top_KG11 = jax.lax.stop_gradient(extra_KG11)
        top_BKGT1 = jnp.broadcast_to(top_KG11[None], top_BKGT1.shape)
        total_BKGT1 += jnp.exp(extra_KG11 - top_KG11)[None]  # 1, with a gradient
    return Sums(top_BKGT1, total_BKGT1, jnp.zeros((B, T, N, kind.values(keys).shape[-1])))


def _weigh(
    kind: Any,
    scores_BKGTS: jax.Array,
    tile: Any,
    inputs: Any,
    sums: Sums,
    seen_BT: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """(weights_BKGTS, the new top_BKGT1); exponentials are relative to it."""
    allowed_BKGTS = tile.allowed_BTS[:, None, None]
    if seen_BT is not None:
        weights_BKGTS = kind.normalizer.transform(
            inputs.params['normalizer'], jnp.where(allowed_BKGTS, scores_BKGTS, 0), seen_BT
        )
        return jnp.where(allowed_BKGTS, weights_BKGTS, 0), sums.top_BKGT1
    scores_BKGTS = jnp.where(allowed_BKGTS, scores_BKGTS, neg_inf(jnp.float32))
    top_BKGT1 = jnp.maximum(
        sums.top_BKGT1, jax.lax.stop_gradient(scores_BKGTS.max(-1, keepdims=True))
    )
    return jnp.where(allowed_BKGTS, jnp.exp(scores_BKGTS - top_BKGT1), 0), top_BKGT1


def _seen_BT(inputs: Any, keys: Any) -> jax.Array:
    """How many keys each query may see, at least 1."""

    def count(seen_BT, key):
        return seen_BT + inputs.mask.allowed(inputs.query_tokens, key).sum(-1), None

    seen_BT, _ = jax.lax.scan(count, jnp.zeros_like(inputs.query_tokens.positions_BT), keys)
    return jnp.maximum(seen_BT, 1)


def _by_head(x_BKGT1: jax.Array) -> jax.Array:
    """x_BKGT1 as x_BTN1."""
    B, K, G, T, _ = x_BKGT1.shape
    return jnp.moveaxis(x_BKGT1.reshape(B, K * G, T, 1), 1, 2)
