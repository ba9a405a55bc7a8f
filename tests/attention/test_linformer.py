"""Linformer against the formula of Wang et al. (2020), and against full attention.

The formula is in loops in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import spec
from transformer_jax.attention import KINDS, AttentionInputs
from transformer_jax.attention.kinds.linformer import KeysValues, Linformer, Queries
from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens
from transformer_jax.errors import ConfigError
from transformer_jax.layers.param_scope import HeadDims

B, T, S, N, H, VALUE_H = 3, 5, 7, 4, 8, 3
LENGTH, RANK = 9, 4
REAL_BT = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 1]])
REAL_BS = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]])


def tokens(real_BT):
    return Tokens(np.broadcast_to(np.arange(real_BT.shape[1]), real_BT.shape), real_BT)


@jax.jit
def attend(q_BTNH, k_BSKH, v_BSKH, mix, real=(REAL_BT, REAL_BS)):
    """Return (outputs, weights) with E and F of any shape."""
    *shape, length, rank = mix[0].shape
    kind = Linformer(length, rank, 'none' if shape else 'heads')
    attention_inputs = AttentionInputs(
        Segments(), *map(tokens, real), params=dict(zip(('keys', 'values'), mix, strict=True))
    )
    arguments = Queries(q_BTNH), KeysValues(k_BSKH, v_BSKH), attention_inputs
    return kind.attend(*arguments), kind.weights(*arguments)


@jax.jit
def gradients(q_BTNH, k_BSKH, v_BSKH, e, f, r_BTNH):
    return jax.grad(
        lambda q, k, v, *mix: (attend(q, k, v, mix)[0] * r_BTNH).sum(), argnums=range(5)
    )(q_BTNH, k_BSKH, v_BSKH, e, f)


def paper(q_BTNH, k_BSKH, v_BSKH, e, f):
    """Return (outputs, weights on keys) by equation 7, in a loop over queries."""
    q_BTNH, k_BSKH, v_BSKH, e, f = (
        np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH, e, f)
    )
    K = v_BSKH.shape[2]
    o_BTNH, weights_BNTS = np.zeros((B, T, N, v_BSKH.shape[-1])), np.zeros((B, N, T, S))
    for b, t, n in np.ndindex(B, T, N):
        if not REAL_BT[b, t] or not REAL_BS[b].any():
            continue
        head = n * K // N
        e_SR, f_SR = (x[head][:S] if x.ndim == 3 else x[:S] for x in (e, f))
        k_SH, v_SH = (x_BSKH[b, :, head] * REAL_BS[b][:, None] for x_BSKH in (k_BSKH, v_BSKH))
        exponentials_R = np.exp((e_SR.T @ k_SH) @ q_BTNH[b, t, n] / np.sqrt(q_BTNH.shape[-1]))
        weights_R = exponentials_R / exponentials_R.sum()
        o_BTNH[b, t, n] = weights_R @ (f_SR.T @ v_SH)
        weights_BNTS[b, n, t] = f_SR @ weights_R * REAL_BS[b]
    return o_BTNH, weights_BNTS


def arrays(K, shared, seed=0):
    rng = np.random.default_rng(seed)
    heads = () if shared else (K,)
    shapes = (
        (B, T, N, H),
        (B, S, K, H),
        (B, S, K, VALUE_H),
        (*heads, LENGTH, RANK),
        (*heads, LENGTH, RANK),
    )
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


CASES = pytest.mark.parametrize(('K', 'shared'), [(4, False), (2, False), (1, False), (2, True)])


@CASES
def test_outputs_and_weights_are_the_papers(K, shared):
    q, k, v, *mix = arrays(K, shared)
    for found, expected in zip(attend(q, k, v, mix), paper(q, k, v, *mix), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
        assert np.abs(expected).max() > 1


@CASES
def test_gradients_are_the_papers(K, shared, slope):
    inputs = arrays(K, shared, seed=1)
    r_BTNH = np.random.default_rng(2).normal(size=(B, T, N, VALUE_H))
    for index, grad in enumerate(gradients(*inputs, r_BTNH)):
        directions = [
            np.random.default_rng(3).normal(size=x.shape) * (i == index)
            for i, x in enumerate(inputs)
        ]
        expected = slope(lambda *x: (paper(*x)[0] * r_BTNH).sum(), inputs, directions)
        found = (np.asarray(grad, np.float64) * directions[index]).sum()
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5 * float(np.linalg.norm(grad)))


def full(q_BTNH, k_BSKH, v_BSKH, absent=0):
    """Return equation 1 of Vaswani et al. (2017) with `absent` more keys of score 0 and value 0."""
    scores_BNTS = np.einsum(
        'btnh,bsnh->bnts', *(np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH))
    ) / np.sqrt(H)
    exponentials_BNTS = np.exp(scores_BNTS)
    weights_BNTS = exponentials_BNTS / (exponentials_BNTS.sum(-1, keepdims=True) + absent)
    return np.einsum('bnts,bsnh->btnh', weights_BNTS, np.asarray(v_BSKH, np.float64))


@pytest.mark.parametrize('shared', [False, True])
def test_identity_projections_are_full_attention(shared):
    q, k, v, *_ = arrays(N, shared)
    identity = np.eye(S) if shared else np.broadcast_to(np.eye(S), (N, S, S))
    everything = np.ones_like(REAL_BT), np.ones_like(REAL_BS)
    o_BTNH, _ = attend(q, k, v, 2 * [jnp.asarray(identity, jnp.float32)], everything)
    np.testing.assert_allclose(o_BTNH, full(q, k, v), atol=2e-6)


def test_a_mixture_without_keys_takes_its_share_of_the_weight():
    q, k, v, *_ = arrays(N, shared=True)
    real_BS = np.ones_like(REAL_BS)
    real_BS[:, 5:] = 0
    o_BTNH, weights_BNTS = attend(q, k, v, 2 * [jnp.eye(S)], (np.ones_like(REAL_BT), real_BS))
    np.testing.assert_allclose(o_BTNH, full(q, k[:, :5], v[:, :5], absent=2), atol=2e-6)
    assert (weights_BNTS.sum(-1) < 0.999).all()


class FakeScope:
    """A scope that records which parameters were declared, and gives ones as projections."""

    heads, layer = HeadDims(4, 2, H, VALUE_H), 0

    def __init__(self):
        self.declared = {}
        self.position = self

    def parameter(self, name, shape, axes, init):
        assert len(shape) == len(axes)
        self.declared[name] = tuple(shape)
        return init(jax.random.PRNGKey(len(self.declared)), shape, jnp.float32)

    def project_to_heads(self, name, x_BTD, heads, size, axis):
        self.declared[name] = heads, size, axis
        return jnp.ones((*x_BTD.shape[:2], heads, size))

    def rotate(self, x_BTNH, positions_BT):
        return x_BTNH * positions_BT[..., None, None]


@pytest.mark.parametrize(
    ('share', 'declared'),
    [
        ('none', {'mix_keys': (2, 512, 64), 'mix_values': (2, 512, 64)}),
        ('heads', {'mix_keys': (512, 64), 'mix_values': (512, 64)}),
        ('kv', {'mix_keys': (512, 64)}),
    ],
)
def test_what_is_shared(share, declared):
    scope = FakeScope()
    parameters = Linformer(share=share).attention_params(scope)
    assert scope.declared == declared
    assert (parameters['keys'] is parameters['values']) == (share == 'kv')
    assert parameters['keys'].std() == pytest.approx(64**-0.5, rel=0.02)


def test_queries_and_keys_are_rotated_where_they_stand():
    x_BSD, where = np.ones((B, S, 2)), tokens(REAL_BS)
    rotated_BS11 = np.broadcast_to(np.arange(S), (B, S))[..., None, None]
    queries, keys = (
        project(FakeScope(), x_BSD, where)
        for project in (Linformer().project_queries, Linformer().project_keys_values)
    )
    np.testing.assert_array_equal(queries.q_BTNH, np.broadcast_to(rotated_BS11, (B, S, 4, H)))
    np.testing.assert_array_equal(keys.k_BSKH, np.broadcast_to(rotated_BS11, (B, S, 2, H)))
    np.testing.assert_array_equal(keys.v_BSKH, np.ones((B, S, 2, VALUE_H)))


def test_more_keys_than_its_length_are_refused():
    assert Linformer(length=6, rank=2).max_len == 6
    q, k, v, *mix = arrays(2, shared=True)
    with pytest.raises(ValueError, match=r'length=6\) was given 7 keys'):
        attend(q, k, v, [x[:6] for x in mix])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('linformer(length=0)', 'length=0 is outside'),
        ('linformer(length=8, rank=9)', 'rank=9, it takes 1 to length=8'),
        ('linformer(share="layers")', "share='layers', it takes none, heads, kv"),
    ],
)
def test_impossible_options_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        spec.parse(text, KINDS, 'model.attention')


def test_dropout_leaves_the_mean():
    q, k, v, *mix = arrays(2, shared=True)
    kind = Linformer(LENGTH, RANK, 'heads')

    def dropped(rng):
        attention_inputs = AttentionInputs(
            Segments(),
            tokens(REAL_BT),
            tokens(REAL_BS),
            dropout=(rng, 0.3),
            params=dict(zip(('keys', 'values'), mix, strict=True)),
        )
        return kind.attend(Queries(q), KeysValues(k, v), attention_inputs)

    several = jax.jit(jax.vmap(dropped))(jax.random.split(jax.random.PRNGKey(0), 500))
    expected_BTNH, _ = attend(q, k, v, mix)
    np.testing.assert_allclose(
        several.mean(0), expected_BTNH, atol=6 * float(several.std(0).max()) / 500**0.5
    )
    assert several.std(0).max() > 0.1


@pytest.mark.slow
def test_memory_is_linear_in_time():
    def temporary_bytes(length):
        def loss(q_BTNH, keys, mix):
            attention_inputs = AttentionInputs(
                Segments(),
                *2 * [tokens(np.ones((1, length), np.int32))],
                params={'keys': mix, 'values': mix},
            )
            return Linformer(2048, 16, 'kv').attend(Queries(q_BTNH), keys, attention_inputs).sum()

        x_BTNH = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        compiled = (
            jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            .lower(
                x_BTNH, KeysValues(x_BTNH, x_BTNH), jax.ShapeDtypeStruct((2048, 16), jnp.float32)
            )
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(2048) < 2.2 * temporary_bytes(1024)
