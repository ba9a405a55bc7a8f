"""Reformer against section 2 and appendix A of Kitaev et al. (2020), in loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import spec
from transformer_jax.attention import KINDS, AttentionInputs
from transformer_jax.attention.kinds.reformer import Queries, Reformer, Values, hash_buckets
from transformer_jax.attention.masks import Segments
from transformer_jax.batch import Tokens
from transformer_jax.errors import ConfigError
from transformer_jax.layers.param_scope import HeadDims

B, T, N, H, VALUE_H = 2, 13, 4, 6, 3
REAL_BT = np.ones((B, T), np.int32)
REAL_BT[1, [3, 10, 11, 12]] = 0
KINDS_TRIED = [
    (Reformer(4, 4, 3), 4),
    (Reformer(2, 3, 2, seed=1), 2),
    (Reformer(6, 5, 1), 1),
    (Reformer(4, 16, 2), 4),
]


class FakeScope:
    """A scope with heads and a position encoding, which gives ones as projections."""

    heads, layer = HeadDims(N, 2, H, VALUE_H), 0

    def __init__(self, layer=0):
        self.layer, self.position = layer, self

    def project_to_heads(self, name, x_BTD, heads, size, axis):
        return jnp.ones((*x_BTD.shape[:2], heads, size), x_BTD.dtype)

    def rotate(self, x_BTNH, positions_BT):
        return x_BTNH * positions_BT[..., None, None]


def attention_inputs(kind, real_BT, **changes):
    tokens = Tokens(
        jnp.broadcast_to(jnp.arange(real_BT.shape[1])[None], real_BT.shape), jnp.asarray(real_BT)
    )
    return AttentionInputs(
        Segments(), tokens, tokens, params=kind.attention_params(FakeScope()), **changes
    )


@functools.partial(jax.jit, static_argnums=0)
def attend(kind, qk_BTNH, v_BTKH, real_BT):
    return kind.attend(Queries(qk_BTNH), Values(v_BTKH), attention_inputs(kind, real_BT))


@functools.partial(jax.jit, static_argnums=0)
def run(kind, qk_BTNH, v_BTKH, real_BT, r_BTNH):
    """Return (outputs, gradients of their product with r)."""

    def product(*x):
        o_BTNH = attend(kind, *x, real_BT)
        return (o_BTNH * r_BTNH).sum(), o_BTNH

    grads, o_BTNH = jax.grad(product, (0, 1), has_aux=True)(qk_BTNH, v_BTKH)
    return o_BTNH, grads


def rounds_of(kind, qk_TH, real_T, a_RHE):
    """Return which tokens each token sees in each round: a list of sets for every round."""
    result = []
    for a_HE in a_RHE:
        y_TE = qk_TH @ a_HE
        bucket_T = np.concatenate([y_TE, -y_TE], axis=1).argmax(1)
        order = sorted(np.flatnonzero(real_T), key=lambda t: (bucket_T[t], t))
        chunk = {t: place // kind.chunk for place, t in enumerate(order)}
        result.append(
            [
                {
                    j
                    for j in order
                    if bucket_T[i] == bucket_T[j] and chunk[i] - 1 <= chunk[j] <= chunk[i]
                }
                if real_T[i]
                else set()
                for i in range(len(real_T))
            ]
        )
    return result


def paper(kind, qk_BTNH, v_BTKH, real_BT):
    """Return the outputs by appendix A, in a loop over tokens.

    z and o of each round with the corrections m, then the sum over the rounds.
    """
    qk_BTNH, v_BTKH = np.asarray(qk_BTNH, np.float64), np.asarray(v_BTKH, np.float64)
    a_RNHE = np.asarray(kind.attention_params(FakeScope())['directions'], np.float64)
    o_BTNH = np.zeros((*qk_BTNH.shape[:3], v_BTKH.shape[-1]))
    for b, n in np.ndindex(len(qk_BTNH), N):
        q_TH, v_TH = qk_BTNH[b, :, n], v_BTKH[b, :, n * v_BTKH.shape[2] // N]
        seen = rounds_of(kind, q_TH, real_BT[b], a_RNHE[:, n])
        for i in np.flatnonzero(real_BT[b]):
            rounds = []
            for r in range(kind.rounds):
                keys = sorted(seen[r][i])
                count = np.array(
                    [sum(j in seen[other][i] for other in range(kind.rounds)) for j in keys]
                )
                m = np.where(np.array(keys) == i, 1e5, np.log(count))
                k_SH = q_TH[keys] / np.linalg.norm(q_TH[keys], axis=1, keepdims=True)
                scores = k_SH @ q_TH[i] / np.sqrt(H) - m
                z = scores.max() + np.log(np.exp(scores - scores.max()).sum())
                rounds.append((z, np.exp(scores - z) @ v_TH[keys]))
            z_R = np.array([z for z, _ in rounds])
            z = z_R.max() + np.log(np.exp(z_R - z_R.max()).sum())
            # Where a token sees only itself, z is near −1e5, and rounding leaves a sum of 1 within
            # 1e-10.
            o_BTNH[b, i, n] = sum(np.exp(z_r - z) * o_r for z_r, o_r in rounds)
    return o_BTNH


def union(kind, qk_BTNH, real_BT):
    """Return weights_BNTS, the softmax over all tokens that are seen in any round.

    That is what appendix A amounts to. A token sees itself only where it sees nothing else.
    """
    a_RNHE = np.asarray(kind.attention_params(FakeScope())['directions'], np.float64)
    weights_BNTS = np.zeros((B, N, T, T))
    for b, n in np.ndindex(B, N):
        q_TH = np.asarray(qk_BTNH[b, :, n], np.float64)
        seen = rounds_of(kind, q_TH, real_BT[b], a_RNHE[:, n])
        for i in np.flatnonzero(real_BT[b]):
            keys = sorted(set().union(*(seen[r][i] for r in range(kind.rounds))) - {i}) or [i]
            exponentials = np.exp(
                q_TH[keys] @ q_TH[i] / np.linalg.norm(q_TH[keys], axis=1) / np.sqrt(H)
            )
            weights_BNTS[b, n, i, keys] = exponentials / exponentials.sum()
    return weights_BNTS


def arrays(K, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=shape).astype(np.float32) for shape in ((B, T, N, H), (B, T, K, VALUE_H))
    ]


R_BTNH = np.random.default_rng(2).normal(size=(B, T, N, VALUE_H)).astype(np.float32)
tried = pytest.mark.parametrize(('kind', 'K'), KINDS_TRIED)


@tried
def test_outputs_are_the_papers(kind, K):
    qk, v = arrays(K)
    o_BTNH, _ = run(kind, qk, v, REAL_BT, R_BTNH)
    np.testing.assert_allclose(o_BTNH, paper(kind, qk, v, REAL_BT), atol=3e-6)


@tried
def test_outputs_are_one_softmax_over_what_any_round_sees(kind, K):
    qk, v = arrays(K)
    o_BTNH, _ = run(kind, qk, v, REAL_BT, R_BTNH)
    v_BSNH = np.repeat(v, N // K, axis=2).astype(np.float64)
    np.testing.assert_allclose(
        o_BTNH, np.einsum('bnts,bsnh->btnh', union(kind, qk, REAL_BT), v_BSNH), atol=3e-6
    )


def test_weights_are_those_of_the_union():
    (kind, K), (qk, v) = KINDS_TRIED[0], arrays(N)
    assert K == N
    weights_BNTS = jax.jit(kind.weights)(Queries(qk), Values(v), attention_inputs(kind, REAL_BT))
    expected_BNTS = union(kind, qk, REAL_BT)
    np.testing.assert_allclose(weights_BNTS, expected_BNTS, atol=1e-6)
    seen_BNT = (expected_BNTS > 0).sum(-1)
    assert set(np.unique(seen_BNT)) > {
        0,
        1,
        2,
        5,
    }  # padding, tokens that see only themselves, and all others
    assert seen_BNT.max() < T - 1


@tried
def test_gradients_are_the_papers(kind, K, slope):
    inputs = arrays(K)
    _, grads = run(kind, *inputs, REAL_BT, R_BTNH)
    for index, grad in enumerate(grads):
        directions = [
            np.random.default_rng(3).normal(size=x.shape) * (i == index)
            for i, x in enumerate(inputs)
        ]
        expected = slope(
            lambda *x: (paper(kind, *x, REAL_BT) * R_BTNH).sum(), inputs, directions, h=1e-6
        )
        found = (np.asarray(grad, np.float64) * directions[index]).sum()
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5 * float(np.linalg.norm(grad)))


def test_one_bucket_and_one_chunk_are_full_attention_to_unit_keys_without_oneself():
    qk, v = arrays(2)
    o_BTNH = attend(Reformer(1, 16, 3), qk, v, np.ones((B, T), np.int32))
    qk, v = np.asarray(qk, np.float64), np.repeat(np.asarray(v, np.float64), 2, axis=2)
    k = qk / np.sqrt((qk**2).sum(-1, keepdims=True))
    weights_BNTS = np.exp(np.einsum('btnh,bsnh->bnts', qk, k) / np.sqrt(H)) * (1 - np.eye(T))
    weights_BNTS /= weights_BNTS.sum(-1, keepdims=True)
    np.testing.assert_allclose(o_BTNH, np.einsum('bnts,bsnh->btnh', weights_BNTS, v), atol=2e-6)


def test_a_token_alone_attends_to_itself():
    qk, v = arrays(N)
    alone_BT = np.zeros((B, T), np.int32)
    alone_BT[0, 7] = 1
    o_BTNH, grads = run(KINDS_TRIED[0][0], qk, v, alone_BT, R_BTNH)
    np.testing.assert_allclose(o_BTNH[0, 7], v[0, 7], rtol=1e-6)
    assert not np.delete(np.asarray(o_BTNH).reshape(B * T, -1), 7, axis=0).any()
    np.testing.assert_allclose(grads[0], 0, atol=1e-6)


@pytest.mark.parametrize(('kind', 'K'), KINDS_TRIED[:2])
def test_more_padding_changes_nothing_whatever_it_holds(kind, K):
    """T = 13 and T = 30 give the same outputs: the real tokens are in the same chunks."""

    def longer(x, fill):
        return np.concatenate([x, np.full((B, 17, *x.shape[2:]), fill, x.dtype)], axis=1)

    qk, v = arrays(K)
    expected_BTNH, expected = run(kind, qk, v, REAL_BT, R_BTNH)
    o_BTNH, grads = run(
        kind, longer(qk, 1e30), longer(v, -1e30), longer(REAL_BT, 0), longer(R_BTNH, 1)
    )
    np.testing.assert_allclose(o_BTNH[:, :T], expected_BTNH, atol=1e-6)
    for grad, other in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad[:, :T], other, atol=2e-6)
        assert not grad[:, T:].any()


def test_gradients_are_finite_where_queries_are_zero():
    (kind, _), (qk, v) = KINDS_TRIED[0], arrays(N)
    o_BTNH, grads = run(kind, 0 * qk, v, REAL_BT, R_BTNH)
    assert all(np.isfinite(leaf).all() for leaf in (o_BTNH, *grads))


def test_near_vectors_collide_more_often_than_far_ones():
    """Of 1000 pairs at each angle: equal vectors always collide, opposite ones never."""
    rng, pairs = np.random.default_rng(0), 1000
    a_RNHE = jnp.asarray(rng.normal(size=(4, 1, 16, 4)), jnp.float32)
    x_TH, other_TH = np.linalg.qr(rng.normal(size=(pairs, 16, 2)))[0].transpose(2, 0, 1)
    rates = []
    for angle in (0, 0.2, 0.5, 1.0, 1.5, 2.2, np.pi):
        y_TH = np.cos(angle) * x_TH + np.sin(angle) * other_TH
        x_BTNH = jnp.asarray(np.stack([x_TH, y_TH])[:, :, None], jnp.float32)
        buckets_BNRL = hash_buckets(x_BTNH, a_RNHE)
        rates.append(float((buckets_BNRL[0] == buckets_BNRL[1]).mean()))
    assert rates[0] == 1
    assert rates[-1] == 0
    assert (np.diff(rates) < -0.01).all()
    # 1.5 is nearly a right angle: nearly independent.
    assert rates[4] == pytest.approx(1 / 8, abs=0.03)
    counts = np.bincount(np.asarray(buckets_BNRL).ravel(), minlength=8)
    assert counts.min() > 0.5 * counts.mean()


def test_directions_come_from_the_seed_and_the_layer():
    first, again, other_seed, other_layer = (
        Reformer(seed=seed).attention_params(FakeScope(layer))['directions']
        for seed, layer in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert first.shape == (4, N, H, 8)
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other_seed).any()
    assert not np.isclose(first, other_layer).any()


def test_the_hash_reads_float32_and_rotated_queries():
    x_BTD = jnp.ones((B, T, 2), jnp.bfloat16)
    tokens = attention_inputs(Reformer(), REAL_BT).query_tokens
    queries, values = (
        Reformer().project_queries(FakeScope(), x_BTD, tokens),
        Reformer().project_keys_values(FakeScope(), x_BTD, tokens),
    )
    assert queries.qk_BTNH.dtype == jnp.float32
    np.testing.assert_array_equal(
        queries.qk_BTNH[..., 0], np.broadcast_to(np.arange(T)[None, :, None], (B, T, N))
    )
    assert values.v_BSKH.dtype == jnp.bfloat16
    assert values.v_BSKH.shape == (B, T, 2, VALUE_H)


def test_dropout_leaves_the_mean_of_the_weights():
    (kind, _), (qk, v) = KINDS_TRIED[0], arrays(N)

    @jax.jit
    def dropped(rng):
        return kind.attend(
            Queries(qk),
            Values(np.ones_like(v)),
            attention_inputs(kind, REAL_BT, dropout=(rng, 0.3)),
        )

    total = np.asarray(dropped(jax.random.PRNGKey(0)))[REAL_BT > 0]
    assert total.std() > 0.1
    assert total.mean() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('reformer(buckets=7)', 'buckets=7, it takes 1 or an even number'),
        ('reformer(buckets=0)', 'buckets=0 is outside'),
        ('reformer(chunk=0)', 'chunk=0 is outside'),
        ('reformer(rounds=0)', 'rounds=0 is outside'),
        ('reformer(seed=-1)', 'seed=-1 is outside'),
    ],
)
def test_impossible_options_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        spec.parse(text, KINDS, 'model.attention')


@pytest.mark.slow
def test_memory_is_linear_in_time():
    def temporary_bytes(length):
        def loss(qk_BTNH, v_BTKH):
            kind = Reformer(8, 16, 2)
            return kind.attend(
                Queries(qk_BTNH),
                Values(v_BTKH),
                attention_inputs(kind, np.ones((1, length), np.int32)),
            ).sum()

        x_BTNH = jax.ShapeDtypeStruct((1, length, N, H), jnp.float32)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x_BTNH, x_BTNH).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(1024) < 2.2 * temporary_bytes(512)
