"""Caches: decoding in steps sees the keys that all tokens at once would see."""

import functools

import jax
import numpy as np
import pytest

from transformer_jax.attention import AttentionInputs
from transformer_jax.attention.cache import GrowingCache, RingCache, reorder
from transformer_jax.attention.kinds.softmax import KeysValues, Queries, Softmax
from transformer_jax.attention.masks import Causal, Segments, Window
from transformer_jax.batch import Tokens

B, T, N, K, H = 2, 12, 4, 2, 4
SIZE = 4
PAST = Segments() & Causal()
KIND = Softmax()
PARAMETERS = {'normalizer': ()}
MASKS = {GrowingCache: PAST, RingCache: PAST & Window(SIZE)}
both = pytest.mark.parametrize('cache', MASKS)


def arrays(length=T, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, length, heads, H)).astype(np.float32) for heads in (N, K, K))
    return Queries(q), KeysValues(k, v)


def tokens_of(real_BT):
    """Return tokens whose positions count the real ones; padding has arbitrary positions."""
    real_BT = np.asarray(real_BT, np.int32)
    return Tokens(np.where(real_BT, np.cumsum(real_BT, axis=1) - 1, 77).astype(np.int32), real_BT)


@functools.partial(jax.jit, static_argnums=0)
def attend(mask, queries, keys, tokens):
    return KIND.attend(queries, keys, AttentionInputs(mask, tokens, tokens, params=PARAMETERS))


@functools.partial(jax.jit, static_argnums=0)
def step(mask, queries, keys, tokens, cache):
    return KIND.step(queries, keys, AttentionInputs(mask, tokens, tokens, params=PARAMETERS), cache)


def part(tree, start, stop):
    return jax.tree.map(lambda leaf: leaf[:, start:stop], tree)


def decoded(mask, queries, keys, tokens, lengths, room=T):
    """Return the outputs of steps of the given numbers of tokens, and the cache after them."""
    cache = KIND.init_cache(part(keys, 0, 1), room, mask)
    outputs, start = [], 0
    for length in lengths:
        stop = start + length
        o_BTNH, cache = step(
            mask, *(part(tree, start, stop) for tree in (queries, keys, tokens)), cache
        )
        outputs.append(o_BTNH)
        start = stop
    return np.concatenate(outputs, axis=1), cache


@both
def test_the_mask_chooses_the_cache(cache):
    assert type(KIND.init_cache(arrays()[1], T, MASKS[cache])) is cache


def test_a_window_that_is_no_shorter_than_the_text_needs_no_ring():
    _, keys = arrays()
    assert type(KIND.init_cache(keys, SIZE + 1, PAST & Window(SIZE))) is RingCache
    assert type(KIND.init_cache(keys, SIZE, PAST & Window(SIZE))) is GrowingCache


@both
@pytest.mark.parametrize(
    'lengths', [T * (1,), (7, 1, 1, 1, 1, 1), (1, 7, 1, 3), (3, 3, 6), (T,)], ids=str
)
def test_any_steps_are_as_good_as_all_at_once(cache, lengths):
    queries, keys = arrays()
    tokens = tokens_of(np.ones((B, T)))
    o_BTNH, last = decoded(MASKS[cache], queries, keys, tokens, lengths)
    np.testing.assert_allclose(o_BTNH, attend(MASKS[cache], queries, keys, tokens), atol=1e-6)
    assert type(last) is cache


# The first step is padded: in front, behind, and between; longer than the ring cache, and shorter.
REAL = [[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1]]


@both
@pytest.mark.parametrize(
    'lengths', [(7, 1, 1, 1, 1, 1), (2, 5, 1, 1, 3), (3, 4, 5), (6, 3, 1, 2)], ids=str
)
def test_padding_within_a_step_takes_no_place_in_the_window(cache, lengths):
    queries, keys = arrays()
    tokens = tokens_of(REAL)
    expected = attend(MASKS[cache], queries, keys, tokens)
    for filled in (0.0, 1e30):  # the contents of padding do not matter
        pad_BT11 = np.array(REAL)[:, :, None, None] == 0
        keys = KeysValues(*(np.where(pad_BT11, np.float32(filled), leaf) for leaf in keys[:2]))
        o_BTNH, _ = decoded(MASKS[cache], queries, keys, tokens, lengths)
        np.testing.assert_allclose(o_BTNH, expected, atol=1e-6)
        assert not o_BTNH[np.array(REAL) == 0].any()


def test_a_ring_holds_a_window_of_keys_and_no_more():
    _, keys = arrays()
    for length in (100, 10_000):
        cache = KIND.init_cache(keys, length, PAST & Window(SIZE))
        assert all(leaf.shape[:2] == (B, SIZE) for leaf in jax.tree.leaves(cache))
    growing = KIND.init_cache(keys, 100, PAST)
    assert all(
        leaf.shape[:2] == (B, 100) for leaf in jax.tree.leaves((growing.keys, growing.tokens))
    )


@pytest.mark.parametrize('lengths', [T * (1,), (9, 2, 1), (2, 8, 2)], ids=str)
def test_a_ring_keeps_the_last_positions_each_in_its_place(lengths):
    queries, keys = arrays()
    tokens = tokens_of(REAL)
    _, cache = decoded(PAST & Window(SIZE), queries, keys, tokens, lengths)
    for row in range(B):
        last = np.flatnonzero(REAL[row])[-SIZE:]
        positions = tokens.positions_BT[row, last]
        order = np.argsort(positions % SIZE)
        np.testing.assert_array_equal(cache.tokens.positions_BT[row], positions[order])
        np.testing.assert_array_equal(cache.tokens.segments_BT[row], 1)
        np.testing.assert_array_equal(cache.keys.k_BSKH[row], keys.k_BSKH[row, last[order]])
        np.testing.assert_array_equal(cache.keys.v_BSKH[row], keys.v_BSKH[row, last[order]])


def test_a_step_of_padding_leaves_a_ring_as_it_is():
    queries, keys = arrays()
    tokens = tokens_of(np.ones((B, T)))
    _, before = decoded(PAST & Window(SIZE), queries, keys, tokens, (6,))
    nothing = Tokens(*np.zeros((2, B, 3), np.int32))
    o_BTNH, after = step(
        PAST & Window(SIZE), part(queries, 6, 9), part(keys, 6, 9), nothing, before
    )
    assert not np.any(o_BTNH)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def widened(cache, beams=2):
    """Return a cache without keys, for the given number of hypotheses in a row."""
    _, keys = arrays()
    return reorder(KIND.init_cache(keys, beams * T, MASKS[cache]), np.zeros((B, beams), np.int32))


@both
def test_beams_go_on_from_the_past_of_their_parents(cache):
    # Two hypotheses of each of two rows. In the first row both continue the second hypothesis; in
    # the other row the two change places.
    parents, early = np.array([[1, 1], [1, 0]]), 7
    rows = (2 * np.arange(B)[:, None] + parents).reshape(-1)
    real = np.array([*REAL, *REAL[::-1]])
    pairs, tokens = [arrays(seed=seed) for seed in (0, 1)], tokens_of(real)
    queries, keys = jax.tree.map(lambda *leaves: np.concatenate(leaves), *pairs)
    _, half = step(
        MASKS[cache], *(part(tree, 0, early) for tree in (queries, keys, tokens)), widened(cache)
    )
    half = reorder(half, parents)

    def joined(tree):
        return jax.tree.map(
            lambda leaf: np.concatenate([leaf[rows, :early], leaf[:, early:]], axis=1), tree
        )

    queries, keys = joined((queries, keys))
    tokens = tokens_of(np.concatenate([real[rows, :early], real[:, early:]], axis=1))
    expected = attend(MASKS[cache], queries, keys, tokens)
    for t in range(early, T):
        o_RTNH, half = step(
            MASKS[cache], *(part(tree, t, t + 1) for tree in (queries, keys, tokens)), half
        )
        np.testing.assert_allclose(o_RTNH, expected[:, t : t + 1], atol=1e-6)
    assert abs(expected[0, -1] - expected[1, -1]).max() > 0.01


def test_beams_that_change_their_order_move_no_key_of_a_growing_cache():
    cache = widened(GrowingCache)
    assert all(leaf.shape[:2] == (B, 2 * T) for leaf in jax.tree.leaves((cache.keys, cache.tokens)))
    after = reorder(cache, np.ones((B, 2), np.int32))
    for before, leaf in zip(
        jax.tree.leaves((cache.keys, cache.tokens)),
        jax.tree.leaves((after.keys, after.tokens)),
        strict=True,
    ):
        assert leaf is before


@both
def test_keys_are_kept_in_the_type_that_they_have(cache):
    _, keys = arrays()
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), keys)
    empty = KIND.init_cache(half, T, MASKS[cache])
    (seen, *_), after = empty.append(part(half, 0, 1), part(tokens_of(np.ones((B, T))), 0, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves((empty.keys, after.keys, seen))} == {
        np.dtype(np.float16)
    }
