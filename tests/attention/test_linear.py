"""Linear attention: each of its forms against its definition; features and decays as published.

The definitions are loops in float64.
"""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import spec
from transformer_jax.attention import KINDS, AttentionInputs
from transformer_jax.attention.kinds.linear import KeysValues, Linear
from transformer_jax.attention.kinds.linear_decays import Fixed, Gated, NoDecay
from transformer_jax.attention.kinds.linear_features import (
    Elu,
    Favor,
    Identity,
    Relu,
    Taylor,
    orthogonal_gaussians,
)
from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens
from transformer_jax.errors import ConfigError
from transformer_jax.layers.param_scope import HeadDims
from transformer_jax.models.multi_head import PAST, Projection
from transformer_jax.positions import Position

B, T, N, K, H, VALUE_H = 2, 13, 4, 2, 4, 3
FEATURES = [Identity(), Elu(), Relu(), Taylor(), Favor(features=6, seed=1)]
DECAYS = [NoDecay(), Fixed(), Gated()]
PAIRS = [
    pytest.param(feature, decay, id=f'{type(feature).__name__}-{type(decay).__name__}')
    for feature in FEATURES
    for decay in DECAYS
    if feature != Identity() or decay != NoDecay()
]
# Row 0: two segments with padding between and after them. Row 1: one segment with padding inside,
# as in a cache after a padded prompt.
ROWS = Tokens(
    np.array([[0, 1, 2, 3, 4, 0, 0, 0, 1, 2, 3, 4, 0], [*range(6), 0, 0, *range(6, 11)]], np.int32),
    np.array([[1, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2, 0], 6 * [1] + 2 * [0] + 5 * [1]], np.int32),
)


def phi(feature, x_H, query=False):
    """Return the features of one vector by the formula of the paper, in float64."""
    x_H = np.asarray(x_H, np.float64)
    scaled_H = x_H / len(x_H) ** 0.25  # then φ(q)·φ(k) reads q·k / √d
    match feature:
        case Identity():
            return scaled_H
        case Elu():
            return np.array([x + 1 if x > 0 else math.exp(x) for x in x_H])
        case Relu():
            return np.array([max(x, 0) + 0.001 for x in x_H])
        case Taylor():
            return np.array(
                [1, *scaled_H, *(a * b / math.sqrt(2) for a in scaled_H for b in scaled_H)]
            )
        case Favor(features=R):
            w_RH = orthogonal_gaussians(R, len(x_H), feature.seed).astype(np.float64)
            phi_R = np.array(
                [math.exp(w_H @ scaled_H - scaled_H @ scaled_H / 2) / math.sqrt(R) for w_H in w_RH]
            )
            return phi_R / (phi_R.max() * math.sqrt(R)) if query else phi_R


def definition(kind, q_BTNH, k_BSKH, v_BSKH, decay_BSKR, allowed_BTS):
    """Return o_t = Σ_s (Σ_r φ(q_t)_r φ(k_s)_r Π_{s<u≤t} a_ur) v_s in float64.

    Without decay it is divided by the sum of weights.
    """
    divides = kind.decay == NoDecay()
    o_BTNH = np.zeros((*q_BTNH.shape[:3], v_BSKH.shape[-1]))
    for b, t, n in np.ndindex(*q_BTNH.shape[:3]):
        shared, total = n * k_BSKH.shape[2] // q_BTNH.shape[2], 0
        q_R = phi(kind.feature, q_BTNH[b, t, n], query=True)
        for s in np.flatnonzero(allowed_BTS[b, t]):
            log_R = (
                0
                if divides
                else np.asarray(decay_BSKR, np.float64)[b, s + 1 : t + 1, shared].sum(0)
            )
            weight = (q_R * phi(kind.feature, k_BSKH[b, s, shared]) * np.exp(log_R)).sum()
            o_BTNH[b, t, n] += weight * np.asarray(v_BSKH, np.float64)[b, s, shared]
            total += weight
        if divides and total:
            o_BTNH[b, t, n] /= total
    return o_BTNH


def arrays(kind, length=T, keys=None, seed=0):
    """Return random (q, k, v, log decay), with decays at padding too, which must not count."""
    rng = np.random.default_rng(seed)
    S = keys or length
    shapes = (B, length, N, H), (B, S, K, H), (B, S, K, VALUE_H)
    q_BTNH, k_BSKH, v_BSKH = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    logits_BSKR = rng.normal(size=(B, S, K, kind.feature.size(H)))
    decay_BSKR = {
        NoDecay: np.zeros((B, S, 1, 1)),
        Gated: -np.exp(logits_BSKR - 1),
        Fixed: np.broadcast_to(np.log([31 / 32, 63 / 64])[:, None], (B, S, K, 1)),
    }[type(kind.decay)]
    return q_BTNH, k_BSKH, v_BSKH, decay_BSKR.astype(np.float32)


def attend(kind, inputs, q_BTNH, *keys):
    return kind.attend(q_BTNH, KeysValues(*keys), inputs)


forward = jax.jit(attend, static_argnums=0)


def stepwise(kind, inputs, splits, q_BTNH, *keys):
    """Return the outputs of `step` on the tokens between splits, one after another."""
    cache, outputs = kind.init_cache(KeysValues(*keys), T, PAST), []
    for start, stop in itertools.pairwise(splits):
        qkv = jax.tree.map(
            lambda a_BT, i=start, j=stop: a_BT[:, i:j],
            (q_BTNH, KeysValues(*keys), inputs.query_tokens),
        )
        o_BTNH, cache = kind.step(*qkv[:2], AttentionInputs(PAST, qkv[2], qkv[2]), cache)
        outputs.append(o_BTNH)
    return jnp.concatenate(outputs, axis=1)


def recurrent(kind, inputs, q_BTNH, *keys):
    """Return the outputs of `step` on every token in turn."""

    def step(cache, qkv):
        q_B1NH, keys, tokens = jax.tree.map(lambda a_B: a_B[:, None], qkv)
        o_B1NH, cache = kind.step(q_B1NH, keys, AttentionInputs(PAST, tokens, tokens), cache)
        return cache, o_B1NH[:, 0]

    qkv = jax.tree.map(
        lambda a_BT: jnp.moveaxis(a_BT, 1, 0),
        (q_BTNH, KeysValues(*keys), inputs.query_tokens),
    )
    _, o_TBNH = jax.lax.scan(step, kind.init_cache(KeysValues(*keys), T, PAST), qkv)
    return jnp.moveaxis(o_TBNH, 0, 1)


def by_definition(kind, inputs, qkv):
    """Return the `definition` with the decays of padding set to 0."""
    q_BTNH, k_BSKH, v_BSKH, decay_BSKR = qkv
    real_BS11 = (np.asarray(inputs.key_tokens.segments_BT) != 0)[..., None, None]
    return definition(
        kind,
        q_BTNH,
        k_BSKH,
        v_BSKH,
        decay_BSKR * real_BS11,
        np.asarray(inputs.allowed_BTS()),
    )


# --- Forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(('feature', 'decay'), PAIRS)
def test_chunks_and_recurrence_are_the_definition(feature, decay):
    kind, inputs = Linear(feature, decay, chunk=5), AttentionInputs(PAST, ROWS, ROWS)
    qkv = arrays(kind)
    forms = jax.jit(lambda *x: (attend(kind, inputs, *x), recurrent(kind, inputs, *x)))(*qkv)
    expected = by_definition(kind, inputs, qkv)
    for form in forms:
        np.testing.assert_allclose(form, expected, atol=2e-6 * max(1, np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize('chunk', [0, 2, 12, 50])
@pytest.mark.parametrize('text', ['linear', 'linear(feature=none, decay=gated)'])
def test_the_size_of_a_chunk_does_not_matter(text, chunk):
    kind, inputs = spec.parse(text, KINDS, 'attention'), AttentionInputs(PAST, ROWS, ROWS)
    kind = dataclasses.replace(kind, chunk=chunk)
    qkv = arrays(kind, seed=1)
    np.testing.assert_allclose(
        forward(kind, inputs, *qkv),
        by_definition(kind, inputs, qkv),
        atol=3e-6,
    )


@pytest.mark.parametrize(
    ('text', 'splits'),
    [('linear(chunk=4)', (0, 9, 10, T)), ('linear(feature=none, decay=gated, chunk=3)', (0, 6, T))],
)
def test_steps_of_any_size_are_the_definition(text, splits):
    kind, inputs = spec.parse(text, KINDS, 'attention'), AttentionInputs(PAST, ROWS, ROWS)
    qkv = arrays(kind, seed=2)
    o_BTNH = jax.jit(lambda *x: stepwise(kind, inputs, splits, *x))(*qkv)
    np.testing.assert_allclose(o_BTNH, by_definition(kind, inputs, qkv), atol=3e-6)


@pytest.mark.parametrize('feature', FEATURES[1:], ids=lambda feature: type(feature).__name__)
def test_across_is_the_definition(feature):
    """Cross-attention agrees with its definition in one tile (chunk=T) and with states (chunk=4).

    Segments 1 and 2 are at other places of the key row, and segment 3 is not there.
    """
    keys = Tokens(
        np.zeros((B, 9), np.int32),
        np.array([[0, 1, 1, 2, 2, 2, 2, 3, 0], [2, 2, 1, 1, 1, 1, 1, 0, 0]]),
    )
    inputs, kinds = (
        AttentionInputs(Segments(), ROWS, keys),
        [Linear(feature, chunk=chunk) for chunk in (4, T)],
    )
    qkv = arrays(kinds[0], keys=9)
    expected = by_definition(kinds[0], inputs, qkv)
    assert not expected[0, 5].any()
    for o_BTNH in jax.jit(lambda *x: [attend(kind, inputs, *x) for kind in kinds])(*qkv):
        np.testing.assert_allclose(o_BTNH, expected, atol=2e-6)


def test_both_ways_is_the_definition():
    inputs, kinds = (
        AttentionInputs(Segments(), ROWS, ROWS),
        [Linear(chunk=chunk) for chunk in (1, 5, T)],
    )
    qkv = arrays(kinds[0])
    for o_BTNH in jax.jit(lambda *x: [attend(kind, inputs, *x) for kind in kinds])(*qkv):
        np.testing.assert_allclose(o_BTNH, by_definition(kinds[0], inputs, qkv), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'mask'),
    [
        (Linear(chunk=3), PAST),
        (Linear(chunk=3), Segments()),
        (Linear(Taylor(), Fixed(), chunk=4), PAST),
        (Linear(Identity(), Gated(), chunk=5), PAST),
        (Linear(Favor(features=6), chunk=3), PAST),
        (Linear(Relu(), chunk=T), Segments()),
    ],
    ids=['elu', 'both ways', 'fixed', 'gated', 'favor', 'all pairs'],
)
def test_gradients_are_the_definitions(kind, mask, slope):
    inputs, qkv = AttentionInputs(mask, ROWS, ROWS), arrays(kind, seed=3)
    r_BTNH = np.random.default_rng(4).normal(size=(B, T, N, VALUE_H))
    grads = jax.jit(
        jax.grad(lambda *x: (attend(kind, inputs, *x) * r_BTNH).sum(), argnums=(0, 1, 2, 3))
    )(*qkv)
    for index, grad in enumerate(grads[:3] if kind.decay == NoDecay() else grads):
        directions = [
            np.random.default_rng(5).normal(size=x.shape) * (i == index) for i, x in enumerate(qkv)
        ]
        expected = slope(
            lambda *x: (by_definition(kind, inputs, x) * r_BTNH).sum(), qkv, directions
        )
        found = (np.asarray(grad, np.float64) * directions[index]).sum()
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5 * float(np.linalg.norm(grad)))


def test_weights_are_rows_of_a_stochastic_matrix():
    inputs, (q_BTNH, *keys) = AttentionInputs(PAST, ROWS, ROWS), arrays(Linear())
    weights_BNTS = jax.jit(Linear(chunk=4).weights)(q_BTNH, KeysValues(*keys), inputs)
    seen_BTS = np.asarray(inputs.allowed_BTS())
    np.testing.assert_array_equal(
        np.asarray(weights_BNTS) > 0, np.broadcast_to(seen_BTS[:, None], (B, N, T, T))
    )
    np.testing.assert_allclose(
        weights_BNTS.sum(-1), np.broadcast_to(seen_BTS.any(-1)[:, None], (B, N, T)), atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ('text', 'mask'),
    [('linear', PAST), ('linear', Segments()), ('linear(feature=none, decay=gated)', PAST)],
)
def test_memory_is_linear_in_the_length(text, mask):
    kind = spec.parse(text, KINDS, 'attention')

    def bytes_of(length):
        qkv = jax.eval_shape(lambda: tuple(map(jnp.asarray, arrays(kind, length=length))))
        ids = jax.ShapeDtypeStruct((B, length), jnp.int32)

        def loss(positions_BT, segments_BT, *qkv):
            tokens = Tokens(positions_BT, segments_BT)
            return attend(kind, AttentionInputs(mask, tokens, tokens), *qkv).sum()

        gradient = jax.jit(jax.value_and_grad(loss, argnums=(2, 3, 4, 5))).lower(ids, ids, *qkv)
        return gradient.compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(4096) / bytes_of(1024) <= 4.4


def test_the_state_of_a_step_knows_no_length():
    *_, k_BSKH, v_BSKH, decay_BSKR = arrays(Linear())
    keys = KeysValues(k_BSKH, v_BSKH.astype(jnp.bfloat16), decay_BSKR)
    for length in (1, 1000):
        state = Linear(Taylor()).init_cache(keys, length, PAST)
        assert state.sums_BKRH.shape == (B, K, 1 + H + H * H, VALUE_H + 1)
        assert state.sums_BKRH.dtype == jnp.float32


# --- Features -------------------------------------------------------------------------------------


@pytest.mark.parametrize('feature', FEATURES, ids=lambda feature: type(feature).__name__)
def test_features_are_the_papers(feature):
    x_BTNH = 2 * np.random.default_rng(0).normal(size=(2, 3, 2, H)).astype(np.float32)
    for query, found in ((False, feature.map_keys(x_BTNH)), (True, feature.map_queries(x_BTNH))):
        assert found.shape == (2, 3, 2, feature.size(H))
        expected = [
            [[phi(feature, x_H, query) for x_H in x_NH] for x_NH in x_TNH] for x_TNH in x_BTNH
        ]
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


def test_elu_keeps_what_is_small():
    x_BTNH = np.array([-30.0, -10.0, 0.0, 1e-4], np.float32).reshape(1, 1, 1, 4)
    np.testing.assert_allclose(
        Elu().map_keys(x_BTNH).ravel(), [math.exp(-30), math.exp(-10), 1, 1.0001], rtol=1e-6
    )


def test_taylor_products_are_the_second_order_of_the_exponential():
    q_TH, k_TH = np.random.default_rng(0).normal(size=(2, 50, 16))
    s_T = (q_TH * k_TH).sum(-1) / 4
    q_TR, k_TR = (
        np.asarray(Taylor().map_keys(x_TH[None, :, None].astype(np.float32))[0, :, 0])
        for x_TH in (q_TH, k_TH)
    )
    np.testing.assert_allclose((q_TR * k_TR).sum(-1), 1 + s_T + s_T**2 / 2, rtol=1e-5)


def test_random_features_are_orthogonal_in_blocks_with_norms_of_gaussians():
    blocks, size = 400, 8
    w_RH = orthogonal_gaussians(blocks * size, size, 3).astype(np.float64)
    for block in w_RH.reshape(blocks, size, size):
        products = block @ block.T
        np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-5)
    norms_R = np.linalg.norm(w_RH, axis=-1)
    assert (norms_R**2).mean() == pytest.approx(size, rel=0.03)  # χ²: mean d, variance 2d
    assert (norms_R**2).var() == pytest.approx(2 * size, rel=0.1)
    # Uniform directions: without the signs of R's diagonal, the first entry is
    # always negative.
    assert np.abs(w_RH.reshape(blocks, size, size).mean(0)).max() < 5 / math.sqrt(blocks)
    assert orthogonal_gaussians(11, size, 3).shape == (11, size)
    np.testing.assert_array_equal(orthogonal_gaussians(11, size, 3), w_RH[:11].astype(np.float32))
    assert np.abs(orthogonal_gaussians(11, size, 4) - w_RH[:11]).min() > 0


def test_favor_approaches_softmax_as_one_over_the_root_of_its_features():
    # Larger queries and keys need more features before the error follows this law: the variance of
    # the weights grows exponentially with their size.
    rng, length = np.random.default_rng(0), 12
    q_BTNH, k_BTNH, v_BTNH = rng.normal(size=(3, 1, length, 2, 16)) * np.array(
        [0.25, 0.25, 1]
    ).reshape(3, 1, 1, 1, 1)
    weights_NTS = np.exp(np.einsum('TNH,SNH->NTS', q_BTNH[0], k_BTNH[0]) / 4)
    expected = np.einsum(
        'NTS,SNH->TNH', weights_NTS / weights_NTS.sum(-1, keepdims=True), v_BTNH[0]
    )
    tokens = Tokens(np.arange(length)[None], np.ones((1, length), np.int32))
    qkv = (
        *(x.astype(np.float32) for x in (q_BTNH, k_BTNH, v_BTNH)),
        np.zeros((1, length, 1, 1), np.float32),
    )
    sizes, errors = [16, 64, 256, 1024], []
    for size in sizes:
        kinds = [Linear(Favor(size, seed)) for seed in range(8)]
        outputs = [
            attend(kind, AttentionInputs(Segments(), tokens, tokens), *qkv)[0] for kind in kinds
        ]
        errors.append(math.sqrt(np.mean([np.square(o_TNH - expected) for o_TNH in outputs])))
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(-0.5, abs=0.05)
    assert errors[-1] < 0.01


def test_favor_has_no_maximum_over_the_future():
    kind, inputs = Linear(Favor(features=16), chunk=4), AttentionInputs(PAST, ROWS, ROWS)
    q_BTNH, k_BSKH, v_BSKH, decay_BSKR = arrays(kind)
    louder_BSKH = k_BSKH.copy()
    louder_BSKH[:, 6:] *= 12
    before, after = (
        forward(kind, inputs, q_BTNH, k, v_BSKH, decay_BSKR) for k in (k_BSKH, louder_BSKH)
    )
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.isfinite(after).all()


def test_favor_takes_large_queries_and_keys():
    kind, inputs = Linear(Favor(features=64), chunk=4), AttentionInputs(PAST, ROWS, ROWS)
    q_BTNH, k_BSKH, v_BSKH, decay_BSKR = arrays(kind)
    unit_BSKH = k_BSKH / np.linalg.norm(k_BSKH, axis=-1, keepdims=True)
    for size in (
        100,
        10_000,
    ):  # |k|² / √d: within the range that the docstring gives, and far beyond it
        qkv = 300 * q_BTNH, math.sqrt(2 * size) * unit_BSKH, v_BSKH, decay_BSKR
        o_BTNH = forward(kind, inputs, *qkv)
        assert np.isfinite(o_BTNH).all()
        assert (np.abs(o_BTNH[1, :6]).min() > 0) == (size == 100)


# --- Decays ---------------------------------------------------------------------------------------


def projected(function, heads, *arguments, position=None):
    module = Projection(function, heads, 0, position or Position())
    result, variables = module.init_with_output(jax.random.PRNGKey(0), *arguments)
    return result, nn.meta.unbox(variables).get('params', {})


def test_fixed_decays_are_retnets():
    log_BSKR, params = projected(
        Fixed().log, HeadDims(8, 8, H, H), np.zeros((1, 3, 5), np.float32), H
    )
    assert not params
    np.testing.assert_allclose(
        np.exp(log_BSKR[0, :, :, 0]),
        [
            [
                0.96875,
                0.984375,
                0.9921875,
                0.99609375,
                0.998046875,
                0.9990234375,
                0.99951171875,
                0.999755859375,
            ]
        ]
        * 3,
        rtol=1e-7,
    )


def test_gated_decays_are_glas():
    x_BSD = np.random.default_rng(0).normal(size=(B, 3, 5)).astype(np.float32)
    log_BSKR, params = projected(Gated(rank=2, tau=16.0).log, HeadDims(N, K, H, H), x_BSD, 7)
    assert {name: leaf.shape for name, leaf in params.items()} == {
        'decay_in': (5, 2),
        'decay_out': (2, K, 7),
        'decay_bias': (K, 7),
    }
    params = {name: np.asarray(leaf, np.float64) + 0.1 for name, leaf in params.items()}
    log_BSKR = Projection(Gated(rank=2).log, HeadDims(N, K, H, H), 0, Position()).apply(
        {'params': params}, x_BSD, 7
    )
    for b, s, k, r in np.ndindex(*log_BSKR.shape):
        logit = x_BSD[b, s].astype(np.float64) @ params['decay_in'] @ params['decay_out'][:, k, r]
        gate = (1 / (1 + math.exp(-logit - params['decay_bias'][k, r]))) ** (1 / 16)
        assert math.exp(log_BSKR[b, s, k, r]) == pytest.approx(gate, rel=1e-5)


def test_strong_decays_overflow_nowhere_and_hide_no_weak_ones():
    kind, inputs = Linear(Identity(), Gated(), chunk=5), AttentionInputs(PAST, ROWS, ROWS)
    q_BTNH, k_BSKH, v_BSKH, decay_BSKR = arrays(kind)
    decay_BSKR[:, 1::5] = -1e7  # exp(1e7) overflows, and 1e7 + 0.1 is 1e7 in float32
    qkv = q_BTNH, k_BSKH, v_BSKH, decay_BSKR
    grads = jax.jit(jax.grad(lambda *x: attend(kind, inputs, *x).sum(), argnums=(0, 1, 2, 3)))(*qkv)
    assert all(np.isfinite(grad).all() for grad in grads)
    np.testing.assert_allclose(
        forward(kind, inputs, *qkv),
        by_definition(kind, inputs, qkv),
        atol=2e-6,
    )


def test_with_a_decay_each_head_has_its_norm():
    o_BTNH = np.random.default_rng(0).normal(size=(B, T, N, VALUE_H)).astype(np.float32)
    for kind in (Linear(Identity(), Fixed()), Linear(Elu(), Gated())):
        parameters, params = projected(kind.attention_params, HeadDims(N, K, H, VALUE_H))
        assert params['head_norm'].shape == (VALUE_H,)
        y_BTNH = kind.postprocess_heads(o_BTNH, {'norm_H': 2 * parameters['norm_H']})
        expected = 2 * o_BTNH / np.sqrt((o_BTNH.astype(np.float64) ** 2).mean(-1, keepdims=True))
        np.testing.assert_allclose(y_BTNH, expected, rtol=1e-4)
    assert not projected(Linear().attention_params, HeadDims(N, K, H, VALUE_H))[1]
    assert Linear().postprocess_heads(o_BTNH, {}) is o_BTNH


# --- Options --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Turned(Position):
    """A position encoding that stands for any rotation."""

    def rotate(self, x_BTNH, positions_BT):
        return x_BTNH * (1 + positions_BT[..., None, None])


def test_queries_and_keys_are_turned_before_their_features():
    x_BTD = np.random.default_rng(0).normal(size=(B, T, 5)).astype(np.float32)
    heads = HeadDims(N, K, H, VALUE_H)
    factor_BT11 = 1 + ROWS.positions_BT[..., None, None]
    plain, turned = (
        projected(Linear().project_queries, heads, x_BTD, ROWS, position=p)[0]
        for p in (Position(), Turned())
    )
    np.testing.assert_array_equal(turned, plain * factor_BT11)
    plain, turned = (
        projected(Linear().project_keys_values, heads, x_BTD, ROWS, position=p)[0]
        for p in (Position(), Turned())
    )
    np.testing.assert_array_equal(turned.k_BSKH, plain.k_BSKH * factor_BT11)
    np.testing.assert_array_equal(turned.v_BSKH, plain.v_BSKH)


def test_what_it_supports_depends_on_its_decay():
    causal = {'causal', 'padding', 'segments', 'decode', 'context'}
    assert Linear().supports() == causal | {'encoder', 'cross'}
    assert Linear(Identity(), Fixed()).supports() == Linear(Elu(), Gated()).supports() == causal


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        (
            'linear(feature=none)',
            'takes decay=fixed or decay=gated; without decay use elu, relu, taylor, favor',
        ),
        ('linear(chunk=-1)', 'chunk=-1 is outside'),
        ('linear(feature=favor(features=0))', 'features=0 is outside'),
        ('linear(feature=favor(seed=-1))', 'seed=-1 is outside'),
        ('linear(decay=gated(rank=0))', 'rank=0 is outside'),
        ('linear(decay=gated(tau=0.0))', r'tau=0\.0 is outside'),
    ],
)
def test_impossible_options_are_refused(text, why):
    with pytest.raises(ConfigError, match=why):
        spec.parse(text, KINDS, 'model.attention')


@pytest.mark.parametrize(
    'text',
    [
        'linear',
        'linear(feature=favor(features=64, seed=2), chunk=32)',
        'linear(decay=gated(tau=8.0))',
        "linear(gate='element', feature=none, decay=fixed)",
    ],
)
def test_specs_are_printed_as_they_are_read(text):
    kind = spec.parse(text, KINDS, 'model.attention')
    assert spec.parse(spec.text(kind, KINDS), KINDS, 'model.attention') == kind
