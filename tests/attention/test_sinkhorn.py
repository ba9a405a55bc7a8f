"""Sparse Sinkhorn attention (Tay et al. 2020) against loops in float64; limits of its sorting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import spec
from transformer_jax.attention import KINDS, AttentionInputs
from transformer_jax.attention.kinds.sinkhorn import (
    KeysValues,
    Queries,
    Sinkhorn,
    doubly_stochastic,
)
from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens
from transformer_jax.errors import ConfigError
from transformer_jax.layers.param_scope import HeadDims

B, T, N, H, VALUE_H = 2, 14, 4, 6, 3
REAL_BT = np.ones((B, T), np.int32)
REAL_BT[1, [1, 5, 10, 11, 12, 13]] = 0
R_BTNH = np.random.default_rng(2).normal(size=(B, T, N, VALUE_H)).astype(np.float32)
# 14 tokens in blocks of 4, 3 and 5: the last block is never full, in row 1 it has no token.
KINDS_TRIED = [(Sinkhorn(4, 3), 2), (Sinkhorn(3, 6, temperature=0.5), 4), (Sinkhorn(5, 1), 1)]
tried = pytest.mark.parametrize(('kind', 'K'), KINDS_TRIED)


def attention_inputs(real_BT, **changes):
    tokens = Tokens(
        jnp.broadcast_to(jnp.arange(real_BT.shape[1])[None], real_BT.shape), jnp.asarray(real_BT)
    )
    return AttentionInputs(Segments(), tokens, tokens, **changes)


def attend(kind, q, k, v, a, b, real_BT, **changes):
    return kind.attend(Queries(q, a), KeysValues(k, v, b), attention_inputs(real_BT, **changes))


@functools.partial(jax.jit, static_argnums=0)
def run(kind, inputs, real_BT, r_BTNH):
    """Return (outputs, gradients of their product with r)."""

    def product(inputs):
        o_BTNH = attend(kind, *inputs, real_BT)
        return (o_BTNH * r_BTNH).sum(), o_BTNH

    grads, o_BTNH = jax.grad(product, has_aux=True)(inputs)
    return o_BTNH, grads


def arrays(K, seed=0):
    """Return random q, k, v, and the projections a and b by which blocks are sorted."""
    rng = np.random.default_rng(seed)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, VALUE_H), (B, T, K, H), (B, T, K, H)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def balanced(logits_CE, iterations):
    """Return exponentials whose columns, then rows, are divided by their sums, repeatedly."""
    s_CE = np.exp(logits_CE)
    for _ in range(iterations):
        s_CE = s_CE / s_CE.sum(0, keepdims=True)
        s_CE = s_CE / s_CE.sum(1, keepdims=True)
    return s_CE


def paper(kind, q_BTNH, k_BSKH, v_BSKH, a_BTKH, b_BSKH, real_BT=REAL_BT):
    """Return the outputs in a loop over queries.

    A softmax over the tokens of the own block and the places of the sorted one.
    """
    arguments = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH, a_BTKH, b_BSKH))
    q_BTNH, k_BSKH, v_BSKH, a_BTKH, b_BSKH = arguments
    o_BTNH = np.zeros((*q_BTNH.shape[:3], v_BSKH.shape[-1]))
    for row, n in np.ndindex(*q_BTNH.shape[::2]):
        real = [t for t in range(T) if real_BT[row, t]]
        head = n * k_BSKH.shape[2] // N
        k_SH, v_SH, a_TH, b_SH = (x[row, :, head] for x in (k_BSKH, v_BSKH, a_BTKH, b_BSKH))
        blocks = [[t for t in real if t // kind.block == c] for c in range(-(-T // kind.block))]
        blocks = [tokens for tokens in blocks if tokens]
        logits_CE = np.array(
            [[a_TH[asks].sum(0) @ b_SH[comes].sum(0) for comes in blocks] for asks in blocks]
        )
        shares_CE = balanced(
            logits_CE / (kind.block * np.sqrt(H) * kind.temperature), kind.iterations
        )
        for asks, shares_E in zip(blocks, shares_CE, strict=True):
            keys = [(1.0, k_SH[t], v_SH[t]) for t in asks]
            for place in range(kind.block):
                found = [
                    (share, t)
                    for share, comes in zip(shares_E, blocks, strict=True)
                    for t in comes
                    if t % kind.block == place
                ]
                whole = sum(share for share, _ in found)
                if found:
                    keys.append(
                        (
                            whole,
                            *(
                                sum(share * x[t] for share, t in found) / whole
                                for x in (k_SH, v_SH)
                            ),
                        )
                    )
            for t in asks:
                exponentials = np.array(
                    [share * np.exp(k @ q_BTNH[row, t, n] / np.sqrt(H)) for share, k, _ in keys]
                )
                o_BTNH[row, t, n] = (
                    exponentials / exponentials.sum() @ np.array([v for *_, v in keys])
                )
    return o_BTNH


@tried
def test_outputs_are_the_papers(kind, K):
    inputs = arrays(K)
    o_BTNH, _ = run(kind, inputs, REAL_BT, R_BTNH)
    np.testing.assert_allclose(o_BTNH, paper(kind, *inputs), atol=3e-6)


@tried
def test_gradients_are_the_papers(kind, K, slope):
    inputs = arrays(K)
    _, grads = run(kind, inputs, REAL_BT, R_BTNH)
    for index, grad in enumerate(grads):
        directions = [
            np.random.default_rng(3).normal(size=x.shape) * (i == index)
            for i, x in enumerate(inputs)
        ]
        expected = slope(lambda *x: (paper(kind, *x) * R_BTNH).sum(), inputs, directions)
        found = (np.asarray(grad, np.float64) * directions[index]).sum()
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5 * float(np.linalg.norm(grad)))
        assert np.any(grad)


def test_rows_and_columns_sum_to_one_over_the_blocks_that_hold_tokens():
    C, real_BC = 6, np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0]], bool)
    logits_BKCE = np.random.default_rng(0).normal(size=(2, 3, C, C)).astype(np.float32)
    shares_BKCE = np.asarray(
        jax.jit(doubly_stochastic, static_argnums=2)(
            logits_BKCE, real_BC[:, :, None] & real_BC[:, None], 50
        )
    )
    for axis in (-1, -2):
        np.testing.assert_allclose(
            shares_BKCE.sum(axis), np.broadcast_to(real_BC[:, None], (2, 3, C)), atol=1e-4
        )
    for row, head in np.ndindex(2, 3):
        real = np.flatnonzero(real_BC[row])
        expected_CE = np.zeros((C, C))
        expected_CE[np.ix_(real, real)] = balanced(
            logits_BKCE[row, head][np.ix_(real, real)].astype(np.float64), 50
        )
        np.testing.assert_allclose(shares_BKCE[row, head], expected_CE, atol=1e-6)


def test_columns_sum_to_one_in_the_limit_only():
    logits_BKCE = np.random.default_rng(0).normal(size=(1, 1, 5, 5)).astype(np.float32)
    errors = [
        np.abs(doubly_stochastic(logits_BKCE, np.ones((1, 5, 5), bool), n).sum(2) - 1).max()
        for n in (1, 4, 16)
    ]
    assert errors[0] > 1e-2 > errors[1] > 1e-5 > errors[2]


def softmax_over(q_H, keys, k_SH, v_SH):
    exponentials = np.exp(k_SH[keys] @ q_H / np.sqrt(H))
    return exponentials / exponentials.sum() @ v_SH[keys]


def test_one_block_is_full_attention():
    """The sorted block is the block itself: each key counts twice, which a softmax ignores."""
    inputs = arrays(1)
    o_BTNH, _ = run(Sinkhorn(16, 2), inputs, REAL_BT, R_BTNH)
    q, k, v = (x.astype(np.float64) for x in inputs[:3])
    for row, t, n in zip(*np.nonzero(np.broadcast_to(REAL_BT[..., None], (B, T, N))), strict=True):
        expected = softmax_over(
            q[row, t, n], np.flatnonzero(REAL_BT[row]), k[row, :, 0], v[row, :, 0]
        )
        np.testing.assert_allclose(o_BTNH[row, t, n], expected, atol=2e-6)


def test_a_permutation_brings_each_block_its_neighbour_and_masks_its_padding():
    """Blocks 0, 1, 2 get blocks 1, 2, 0: a query sees the real keys of two blocks, once each."""
    kind, comes = Sinkhorn(4, 8, temperature=1e-3), (1, 2, 0)
    q, k, v, a, b = arrays(1)
    real_BT = REAL_BT.copy()
    real_BT[:, 12:] = 0
    for sorts, where in ((a, comes), (b, (0, 1, 2))):
        sorts[:] = 0
        for block in range(3):  # blocks differ only in the direction of their first real token
            for row in range(B):
                first = 4 * block + np.flatnonzero(real_BT[row, 4 * block : 4 * block + 4])[0]
                sorts[row, first, 0, where[block]] = 1
    o_BTNH, grads = run(kind, [q, k, v, a, b], real_BT, R_BTNH)
    for row, t, n in zip(*np.nonzero(np.broadcast_to(real_BT[..., None], (B, T, N))), strict=True):
        keys = [s for s in range(T) if real_BT[row, s] and s // 4 in (t // 4, comes[t // 4])]
        expected = softmax_over(q[row, t, n].astype(np.float64), keys, k[row, :, 0], v[row, :, 0])
        np.testing.assert_allclose(o_BTNH[row, t, n], expected, atol=2e-6)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_the_weights_are_how_it_mixes():
    (kind, K), inputs = KINDS_TRIED[0], arrays(2)
    assert K == 2
    q, k, v, a, b = inputs
    weights_BNTS = jax.jit(kind.weights)(
        Queries(q, a), KeysValues(k, v, b), attention_inputs(REAL_BT)
    )
    o_BTNH, _ = run(kind, inputs, REAL_BT, R_BTNH)
    mixed_BTNH = np.einsum('bnts,bsnh->btnh', weights_BNTS, np.repeat(v, N // K, axis=2))
    np.testing.assert_allclose(mixed_BTNH, o_BTNH, atol=2e-6)
    np.testing.assert_allclose(
        weights_BNTS.sum(-1), np.broadcast_to(REAL_BT[:, None], (B, N, T)), atol=1e-6
    )
    # Every block has a share.
    np.testing.assert_array_equal(weights_BNTS[0] > 0, np.ones((N, T, T), bool))


@pytest.mark.parametrize(('kind', 'K'), KINDS_TRIED[:2])
def test_more_padding_changes_nothing_whatever_it_holds(kind, K):
    """T = 14 and T = 25, which has several blocks more, give the same outputs."""

    def longer(x, fill):
        return np.concatenate([x, np.full((B, 11, *x.shape[2:]), fill, x.dtype)], axis=1)

    inputs = arrays(K)
    expected_BTNH, expected = run(kind, inputs, REAL_BT, R_BTNH)
    o_BTNH, grads = run(
        kind, [longer(x, 1e30) for x in inputs], longer(REAL_BT, 0), longer(R_BTNH, 1)
    )
    np.testing.assert_allclose(o_BTNH[:, :T], expected_BTNH, atol=1e-6)
    for grad, other in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad[:, :T], other, atol=2e-6)
        assert not grad[:, T:].any()


def test_rows_without_tokens_are_zero_with_finite_gradients():
    nothing_BT = REAL_BT.copy()
    nothing_BT[0] = 0
    o_BTNH, grads = run(KINDS_TRIED[0][0], arrays(2), nothing_BT, R_BTNH)
    assert not o_BTNH[0].any()
    assert o_BTNH[1].any()
    for grad in grads:
        assert np.isfinite(grad).all()
        assert not grad[0].any()


class FakeScope:
    """A scope with heads and a position encoding, which gives ones as projections."""

    heads, layer = HeadDims(4, 2, H, VALUE_H), 0

    def __init__(self):
        self.declared, self.position = {}, self

    def project_to_heads(self, name, x_BTD, heads, size, axis):
        self.declared[name] = heads, size, axis
        return jnp.ones((*x_BTD.shape[:2], heads, size))

    def rotate(self, x_BTNH, positions_BT):
        return x_BTNH * positions_BT[..., None, None]


def test_queries_and_keys_are_rotated_and_what_sorts_is_not():
    scope, x_BTD, tokens = FakeScope(), np.ones((B, T, 2)), attention_inputs(REAL_BT).query_tokens
    queries, keys = (
        Sinkhorn().project_queries(scope, x_BTD, tokens),
        Sinkhorn().project_keys_values(scope, x_BTD, tokens),
    )
    assert scope.declared == {
        'query': (4, H, 'heads'),
        'sort_query': (2, H, 'kv_heads'),
        'key': (2, H, 'kv_heads'),
        'value': (2, VALUE_H, 'kv_heads'),
        'sort_key': (2, H, 'kv_heads'),
    }
    for rotated in (queries.q_BTNH, keys.k_BSKH):
        np.testing.assert_array_equal(rotated[0, :, 0, 0], np.arange(T))
    for other in (queries.sort_BTKH, keys.sort_BSKH, keys.v_BSKH):
        assert (other == 1).all()


def test_dropout_leaves_the_mean_of_the_weights():
    (kind, _), (q, k, v, a, b) = KINDS_TRIED[0], arrays(2)
    total_BTNH = jax.jit(functools.partial(attend, kind))(
        q, k, np.ones_like(v), a, b, REAL_BT, dropout=(jax.random.PRNGKey(0), 0.3)
    )
    total = np.asarray(total_BTNH)[REAL_BT > 0]
    assert total.std() > 0.1
    assert total.mean() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(
    'option', ['block=0', 'iterations=0', 'temperature=0.0', 'temperature=-1.0']
)
def test_impossible_options_are_refused(option):
    with pytest.raises(ConfigError, match=f'{option} is outside'):
        spec.parse(f'sinkhorn({option})', KINDS, 'model.attention')
