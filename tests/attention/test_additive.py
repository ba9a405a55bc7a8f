"""Additive attention against the formula of Bahdanau et al. (2015) in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.reference import (
    double,
    mixed,
    out,
    outputs_and_weights,
    projected,
    rotated,
    softmax_weights,
)
from laws.contract import Case, N, distance, site

from transformer_jax.attention.kinds.additive import additive_scores


@pytest.mark.parametrize(
    ('kv_heads', 'name', 'position'), [(2, 'decoder', 'rope'), (1, 'cross', 'none')]
)
def test_outputs_and_weights_are_the_papers(kv_heads, name, position):
    at = site(Case('additive', position, kv_heads), name)
    (x_BTD, tokens, x_BSD, key_tokens), o_BTD, weights_BNTS = outputs_and_weights(at)
    params = double(at.params)
    q_BTNH, k_BSKH = (
        projected(x_BTD, params['queries']['query']),
        projected(x_BSD, params['keys']['key']),
    )
    if position == 'rope':
        q_BTNH, k_BSKH = (
            rotated(q_BTNH, tokens.positions_BT),
            rotated(k_BSKH, key_tokens.positions_BT),
        )

    def score(b, n, t, s):
        v_H, b_H = params['mix']['score'][n], params['mix']['score_bias'][n]
        return v_H @ np.tanh(q_BTNH[b, t, n] + k_BSKH[b, s, n * kv_heads // N] + b_H)

    expected = softmax_weights(score, tokens, key_tokens, name == 'decoder')
    np.testing.assert_allclose(weights_BNTS, expected, atol=1e-6)
    assert (
        distance(o_BTD, out(mixed(expected, projected(x_BSD, params['keys']['value'])), params))
        < 1e-6
    )


def random_scores_arguments(T=5, S=6, H=8, scale=1.0):
    rng = np.random.default_rng(0)
    shapes = (1, T, N, H), (1, S, 2, H), (N, H), (N, H)
    return [jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for shape in shapes]


def test_the_backward_pass_keeps_nothing_of_t_s_h():
    T, S, H = 5, 6, 8
    inputs = random_scores_arguments(T, S, H)
    scores_BKGTS, pull = jax.vjp(additive_scores, *inputs)
    assert scores_BKGTS.shape == (1, 2, 2, T, S)
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(pull))
        <= sum(x.size for x in inputs)
        < N * T * S * H
    )


def test_saturated_scores_have_finite_gradients():
    grads = jax.grad(lambda *x: additive_scores(*x).sum(), argnums=(0, 1, 2, 3))(
        *random_scores_arguments(scale=1e4)
    )
    assert all(np.isfinite(grad).all() for grad in grads)


def test_bfloat16_takes_its_tanh_in_float32():
    q_BTNH, k_BSKH, v_NH, b_NH = random_scores_arguments()
    q_BTNH, k_BSKH = q_BTNH.astype(jnp.bfloat16), k_BSKH.astype(jnp.bfloat16)
    scores_BKGTS = additive_scores(q_BTNH, k_BSKH, v_NH, b_NH)
    assert scores_BKGTS.dtype == jnp.float32
    same = additive_scores(q_BTNH.astype(jnp.float32), k_BSKH.astype(jnp.float32), v_NH, b_NH)
    np.testing.assert_array_equal(scores_BKGTS, same)
