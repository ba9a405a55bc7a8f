"""Normalizers against the papers' formulas in NumPy with float64.

Where the package sorts, the reference uses bisection.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.attention.normalizers import NORMALIZERS, Elementwise
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.models.multi_head import Projection
from transformer_jax.positions import Position

B, K, G, T, S = 2, 2, 2, 4, 7
SINK = np.linspace(-1, 2, K * G).astype(np.float32)  # of one head after another
SUM_TO_ONE = ('softmax', 'sparsemax', 'entmax15')
every = pytest.mark.parametrize('name', NORMALIZERS)


def learned(name):
    return jnp.asarray(SINK.reshape(K, G, 1, 1)) if name == 'sink' else ()


@functools.partial(jax.jit, static_argnums=0)
def weigh(name, scores_BKGTS, allowed_BTS, parameters=None):
    parameters = learned(name) if parameters is None else parameters
    return NORMALIZERS[name]().weights(parameters, scores_BKGTS, allowed_BTS)


@functools.partial(jax.jit, static_argnums=0)
def gradients(name, scores_BKGTS, allowed_BTS, r_BKGTS, parameters):
    """Return the gradients of weights · r with respect to scores and parameters."""
    return jax.grad(
        lambda scores, parameters: (
            NORMALIZERS[name]().weights(parameters, scores, allowed_BTS) * r_BKGTS
        ).sum(),
        (0, 1),
    )(scores_BKGTS, parameters)


def bisection(scores, alpha):
    """Return [(α − 1) s − τ]₊^(1/(α − 1)) with the τ for which it sums to 1.

    Peters et al. 2019, algorithm 1.
    """
    z = (alpha - 1) * scores
    low, high = z.max() - 1, z.max()  # p sums to 1 or more at the first, to 0 at the second
    for _ in range(100):
        tau = (low + high) / 2
        above = (np.maximum(z - tau, 0) ** (1 / (alpha - 1))).sum() > 1
        low, high = (tau, high) if above else (low, tau)
    return np.maximum(z - low, 0) ** (1 / (alpha - 1))


def exponential(scores, extra=None):
    """Return exp(s) / Σ exp(s), with the extra logit in the sum."""
    top = max(scores.max(), -np.inf if extra is None else extra)
    return np.exp(scores - top) / (
        np.exp(scores - top).sum() + (0 if extra is None else np.exp(extra - top))
    )


FORMULAS = {  # (scores of the allowed keys of a row, sink of the head) -> weights
    'softmax': lambda s, c: exponential(s),
    'off_by_one': lambda s, c: exponential(s, 0.0),
    'sink': lambda s, c: exponential(s, c),
    'sigmoid': lambda s, c: np.exp(-np.logaddexp(0, np.log(len(s)) - s)),
    'relu2': lambda s, c: np.maximum(s, 0) ** 2 / len(s),
    'sparsemax': lambda s, c: bisection(s, 2.0),
    'entmax15': lambda s, c: bisection(s, 1.5),
}


def formula(name, scores_BKGTS, allowed_BTS, sink=SINK):
    """Return float64 weights, in a loop over rows."""
    weights_BKGTS = np.zeros(np.shape(scores_BKGTS))
    for b, k, g, t in np.ndindex(weights_BKGTS.shape[:-1]):
        keys = np.flatnonzero(allowed_BTS[b, t])
        if len(keys):
            scores = np.asarray(scores_BKGTS[b, k, g, t, keys], np.float64)
            weights_BKGTS[b, k, g, t, keys] = FORMULAS[name](scores, np.float64(sink[k * G + g]))
    return weights_BKGTS


def some(scale=1.0, seed=0, keys=S):
    """Return random scores and a mask: query 1 of row 0 sees no key, query 2 of row 1 sees one."""
    rng = np.random.default_rng(seed)
    allowed_BTS = rng.random((B, T, keys)) < 0.7
    allowed_BTS[0, 1] = False
    allowed_BTS[1, 2] = np.arange(keys) == 3
    return (scale * rng.normal(size=(B, K, G, T, keys))).astype(np.float32), allowed_BTS


@every
@pytest.mark.parametrize('scale', [0.0, 0.1, 1.0, 10.0, 1e4])  # 0: all equal; 1e4: all saturated
def test_the_weights_are_the_papers(name, scale):
    scores, allowed = some(scale)
    weights = weigh(name, scores, allowed)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, formula(name, scores, allowed), rtol=1e-6, atol=1e-6)
    if name in SUM_TO_ONE:
        np.testing.assert_allclose(
            weights.sum(-1),
            np.broadcast_to(allowed.any(-1)[:, None, None], (B, K, G, T)),
            atol=1e-6,
        )


@every
@pytest.mark.parametrize('scale', [0.1, 1.0, 4.0])
def test_the_gradients_are_the_papers(name, scale, slope):
    scores, allowed = some(scale)
    rng = np.random.default_rng(1)
    r_BKGTS = rng.normal(size=scores.shape)
    found = gradients(name, scores, allowed, r_BKGTS, learned(name))
    directions = [rng.normal(size=scores.shape), rng.normal(size=SINK.shape)]
    expected = slope(
        lambda s, c: (formula(name, s, allowed, c) * r_BKGTS).sum(), (scores, SINK), directions
    )
    along = (np.asarray(found[0], np.float64) * directions[0]).sum()
    if name == 'sink':
        along += (np.asarray(found[1], np.float64).ravel() * directions[1]).sum()
    assert along == pytest.approx(expected, rel=1e-4)


@every
def test_saturated_scores_have_finite_gradients(name):
    scores, allowed = some(1e4)
    for found in jax.tree.leaves(
        gradients(name, scores, allowed, np.ones_like(scores), learned(name))
    ):
        assert np.isfinite(found).all()


@every
def test_forbidden_keys_and_empty_rows_get_exactly_nothing(name):
    scores, allowed = some()
    forbidden = np.broadcast_to(~allowed[:, None, None], scores.shape)
    before = np.asarray(weigh(name, scores, allowed))
    assert not before[forbidden].any()
    assert not before[0, :, :, 1].any()
    rng = np.random.default_rng(2)
    for content in (1e30, -1e30, np.nan):
        changed = np.where(forbidden, np.float32(content), scores)
        np.testing.assert_array_equal(weigh(name, changed, allowed), before)
        d_scores, d_parameters = gradients(
            name, changed, allowed, rng.normal(size=scores.shape), learned(name)
        )
        assert np.isfinite(d_scores).all()
        assert not np.asarray(d_scores)[forbidden].any()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(d_parameters))
    nothing = np.zeros_like(allowed)
    assert not np.any(weigh(name, scores, nothing))
    assert not any(
        np.any(leaf)
        for leaf in jax.tree.leaves(
            gradients(name, scores, nothing, np.ones_like(scores), learned(name))
        )
    )


@every
def test_more_forbidden_keys_change_nothing(name):
    scores, allowed = some()
    more = np.full((B, K, G, T, 5), 3.0, np.float32)
    weights = weigh(
        name, np.concatenate([more, scores], -1), np.pad(allowed, ((0, 0), (0, 0), (5, 0)))
    )
    np.testing.assert_allclose(weights[..., 5:], weigh(name, scores, allowed), rtol=1e-6, atol=1e-7)
    assert not np.any(weights[..., :5])


@every
def test_dense_ones_leave_no_allowed_key_out(name):
    scores, allowed = some(4.0)
    weights = np.asarray(weigh(name, scores, allowed))[
        np.broadcast_to(allowed[:, None, None], scores.shape)
    ]
    assert (weights > 0).all() == NORMALIZERS[name].dense


def test_only_the_sparse_ones_need_the_whole_row():
    assert [name for name in NORMALIZERS if NORMALIZERS[name].needs_all_keys] == [
        'sparsemax',
        'entmax15',
    ]


@pytest.mark.parametrize(
    'name', [name for name in NORMALIZERS if issubclass(NORMALIZERS[name], Elementwise)]
)
def test_elementwise_ones_go_tile_by_tile(name):
    scores, allowed = some()
    n_BT, part = np.maximum(allowed.sum(-1), 1), slice(2, 5)
    tile = (
        NORMALIZERS[name]().transform((), scores[..., part], n_BT) * allowed[:, None, None, :, part]
    )
    np.testing.assert_allclose(tile, weigh(name, scores, allowed)[..., part], rtol=1e-6)


@pytest.mark.parametrize(
    ('name', 'scores', 'expected'),
    [
        ('sparsemax', [1.0, 0.5, -1.0], [0.75, 0.25, 0.0]),
        ('sparsemax', [2.0, 0.0, 1.0], [1.0, 0.0, 0.0]),
        ('sparsemax', [0.3, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]),
        ('entmax15', [2.0, 0.0, -4.0], [1.0, 0.0, 0.0]),
        ('entmax15', [5.0, 5.0, 0.0], [0.5, 0.5, 0.0]),
        ('sigmoid', [np.log(3), np.log(9), -np.inf], [0.5, 0.75, 0.0]),
        ('relu2', [3.0, -3.0, 0.6], [3.0, 0.0, 0.12]),
        ('off_by_one', [0.0, np.log(2), -np.inf], [0.25, 0.5, 0.0]),
        ('off_by_one', [-100.0, -100.0, -100.0], [0.0, 0.0, 0.0]),
    ],
)
def test_small_rows_by_hand(name, scores, expected):
    scores, allowed = np.array(scores, np.float32)[None, None, None, None], np.ones((1, 1, 3), bool)
    np.testing.assert_allclose(weigh(name, scores, allowed)[0, 0, 0, 0], expected, atol=1e-7)


@pytest.mark.parametrize('name', ['sparsemax', 'entmax15'])
@pytest.mark.parametrize('scale', [1e-3, 0.1, 1.0])
def test_sparse_ones_stay_exact_in_long_rows(name, scale):
    scores = (scale * np.random.default_rng(3).normal(size=(1, 1, 1, 2, 2000))).astype(np.float32)
    weights, allowed = weigh(name, scores, np.ones((1, 2, 2000), bool)), np.ones((1, 2, 2000), bool)
    np.testing.assert_allclose(weights, formula(name, scores, allowed), atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize('name', ['sparsemax', 'entmax15'])
def test_sparse_ones_differentiate_forward_too(name):
    scores, allowed = some()
    rng = np.random.default_rng(4)
    u, r = rng.normal(size=(2, *scores.shape)).astype(np.float32)
    _, along = jax.jvp(lambda s: weigh(name, s, allowed), (scores,), (u,))
    d_scores, _ = gradients(name, scores, allowed, r, ())
    assert float((along * r).sum()) == pytest.approx(float((d_scores * u).sum()), rel=1e-4)


def test_a_sink_is_learned_for_each_head_and_starts_as_off_by_one():
    module = Projection(NORMALIZERS['sink']().params, HeadDims(K * G, K, 8, 8), 0, Position())
    sink_KG11, variables = module.init_with_output(jax.random.PRNGKey(0))
    assert variables['params']['sink'].names == ('heads',)
    scores, allowed = some()
    np.testing.assert_array_equal(
        NORMALIZERS['sink']().weights(sink_KG11, scores, allowed),
        weigh('off_by_one', scores, allowed),
    )
    trained = module.apply({'params': {'sink': SINK}})
    np.testing.assert_array_equal(trained, learned('sink'))
    assert nn.meta.unbox(variables)['params']['sink'].dtype == jnp.float32


def test_a_sink_may_grow_without_bound():
    scores, allowed = some(100.0)
    sinks = np.array([-1e4, -100, 100, 1e4], np.float32)
    weights = weigh('sink', scores, allowed, jnp.asarray(sinks.reshape(K, G, 1, 1)))
    np.testing.assert_allclose(
        weights, formula('sink', scores, allowed, sinks), rtol=1e-6, atol=1e-6
    )
    assert np.any(weights[:, 1, 0])
    assert not np.any(weights[:, 1, 1])
