"""Softmax attention against the equations of its paper, in NumPy with float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.attention import AttentionInputs
from transformer_jax.attention.kinds.softmax import KeysValues, Queries, Softmax
from transformer_jax.attention.masks import Mask
from transformer_jax.batch import Tokens

B, T, S, H, VALUE_H = 2, 5, 6, 8, 3
HEADS = [(4, 4), (4, 2), (4, 1)]  # multi-head, grouped, multi-query


@dataclasses.dataclass(frozen=True)
class Given(Mask):
    """A mask with any matrix, which is stored as bits in the `segments_BT` of the keys."""

    def allowed(self, query, key):
        return (key.segments_BT[:, None, :] >> query.positions_BT[:, :, None]) & 1 != 0


def dot_product_attention(q_BTNH, k_BSKH, v_BSKH, allowed_BTS):
    """Return (outputs, weights) of the kind `softmax` with any allowed_BTS."""
    bits_BS = (allowed_BTS << np.arange(T)[None, :, None]).sum(1)
    attention_inputs = AttentionInputs(
        Given(),
        Tokens(jnp.broadcast_to(jnp.arange(T)[None], (B, T)), jnp.ones((B, T), int)),
        Tokens(jnp.zeros((B, S), int), jnp.asarray(bits_BS)),
        params={'normalizer': ()},
    )
    arguments = Queries(q_BTNH), KeysValues(k_BSKH, v_BSKH), attention_inputs
    return Softmax().attend(*arguments), Softmax().weights(*arguments)


attend = jax.jit(dot_product_attention)


@jax.jit
def gradients(q_BTNH, k_BSKH, v_BSKH, allowed_BTS, r_BTNH):
    """Return the gradients of outputs · r with respect to queries, keys and values."""
    return jax.grad(
        lambda *x: (dot_product_attention(*x, allowed_BTS)[0] * r_BTNH).sum(), argnums=(0, 1, 2)
    )(q_BTNH, k_BSKH, v_BSKH)


def paper(q_BTNH, k_BSKH, v_BSKH, allowed_BTS):
    """Return (outputs, weights) by equation 1 of Vaswani et al. (2017), in float64.

    A loop over single queries.
    """
    q_BTNH, k_BSKH, v_BSKH = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH))
    N, K = q_BTNH.shape[2], k_BSKH.shape[2]
    o_BTNH = np.zeros((B, T, N, v_BSKH.shape[-1]))
    weights_BNTS = np.zeros((B, N, T, S))
    for b, t, n in np.ndindex(B, T, N):
        keys = np.flatnonzero(allowed_BTS[b, t])
        if not len(keys):
            continue
        shared = n * K // N
        scores = k_BSKH[b, keys, shared] @ q_BTNH[b, t, n] / np.sqrt(q_BTNH.shape[-1])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        weights_BNTS[b, n, t, keys] = weights
        o_BTNH[b, t, n] = weights @ v_BSKH[b, keys, shared]
    return o_BTNH, weights_BNTS


def arrays(heads, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    N, K = heads
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, VALUE_H)
    return [(scale * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


def some_allowed():
    """Return a random mask: query 1 of row 0 sees no key, query 2 of row 1 sees one."""
    allowed_BTS = np.random.default_rng(1).random((B, T, S)) < 0.6
    allowed_BTS[0, 1] = False
    allowed_BTS[1, 2] = np.arange(S) == 3
    return allowed_BTS


@pytest.mark.parametrize('heads', HEADS)
@pytest.mark.parametrize('scale', [0.1, 1.0, 100.0])  # 100: every softmax is saturated
def test_outputs_and_weights_are_the_papers(heads, scale):
    q, k, v = arrays(heads, scale)
    o_BTNH, weights_BNTS = attend(q, k, v, some_allowed())
    expected_o, expected_weights = paper(q, k, v, some_allowed())
    np.testing.assert_allclose(weights_BNTS, expected_weights, atol=2e-6 * max(scale, 1) ** 2)
    np.testing.assert_allclose(o_BTNH, expected_o, atol=2e-6 * max(scale, 1) ** 3)


@pytest.mark.parametrize('heads', HEADS)
@pytest.mark.parametrize('scale', [1.0, 10.0])
def test_gradients_are_the_papers(heads, scale, slope):
    inputs = arrays(heads, scale)
    r_BTNH = np.random.default_rng(2).normal(size=(B, T, heads[0], VALUE_H))
    grads = gradients(*inputs, some_allowed(), r_BTNH)
    for index, grad in enumerate(
        grads
    ):  # one input at a time, because a larger gradient could hide a smaller one
        directions = [
            np.random.default_rng(3).normal(size=x.shape) * (i == index)
            for i, x in enumerate(inputs)
        ]
        expected = slope(
            lambda *x: (paper(*x, some_allowed())[0] * r_BTNH).sum(), inputs, directions
        )
        found = (np.asarray(grad, np.float64) * directions[index]).sum()
        assert found == pytest.approx(
            expected, rel=1e-4 * scale, abs=1e-5 * float(np.linalg.norm(grad))
        )


def test_a_query_with_one_key_cannot_change_its_weights():
    r_BTNH = np.zeros((B, T, 4, VALUE_H))
    r_BTNH[1, 2] = 1
    dq_BTNH, dk_BSKH, dv_BSKH = gradients(*arrays((4, 2)), some_allowed(), r_BTNH)
    assert not np.any(dq_BTNH)
    assert not np.any(dk_BSKH)
    assert np.any(dv_BSKH)


def test_a_row_that_may_see_nothing_is_zero_with_finite_gradients():
    inputs = arrays((4, 2), scale=30.0)
    nothing_BTS = np.zeros((B, T, S), bool)
    for allowed_BTS in (some_allowed(), nothing_BTS):
        o_BTNH, weights_BNTS = attend(*inputs, allowed_BTS)
        assert not np.any(o_BTNH[0, 1])
        assert not np.any(weights_BNTS[0, :, 1])
        grads = gradients(*inputs, allowed_BTS, np.ones((B, T, 4, VALUE_H)))
        assert all(np.isfinite(grad).all() for grad in grads)
        assert not np.any(grads[0][0, 1])


def test_forbidden_keys_have_no_influence_whatever_they_hold():
    q, k, v = arrays((4, 2))
    allowed_BTS = some_allowed()
    allowed_BTS[:, :, 4] = False
    before = attend(q, k, v, allowed_BTS)
    k[:, 4], v[:, 4] = 1e30, -1e30
    for a, b in zip(before, attend(q, k, v, allowed_BTS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_takes_its_softmax_in_float32():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays((4, 2)))
    o_BTNH, weights_BNTS = attend(q, k, v, some_allowed())
    assert o_BTNH.dtype == jnp.bfloat16
    assert weights_BNTS.dtype == jnp.float32
    seen = some_allowed().any(-1)[:, None]
    # bfloat16 rounds by up to 4e-3.
    np.testing.assert_allclose(weights_BNTS.sum(-1), np.broadcast_to(seen, (B, 4, T)), atol=1e-6)
    expected, _ = paper(q, k, v, some_allowed())
    np.testing.assert_allclose(o_BTNH.astype(np.float32), expected, atol=0.03)
