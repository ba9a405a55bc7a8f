"""The values and gradients of the label-smoothed cross-entropy, against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.losses import chunks
from transformer_jax.losses import cross_entropy as losses
from transformer_jax.losses.cross_entropy import TokenSums, cross_entropy
from transformer_jax.partitioning.partitioner import Partitioner
from transformer_jax.schema import MeshConfig

B, T, D, V = 3, 8, 6, 11


def paper(x_BTD, w_VD, targets_BT, weights_BT, smoothing, softcap=math.inf):
    """Compute {loss, nll, correct, weight} token by token; targets are (1−ε)·onehot + ε/V."""
    x_BTD, w_VD = np.asarray(x_BTD, np.float64), np.asarray(w_VD, np.float64)
    sums = dict.fromkeys(TokenSums._fields, 0.0)
    for b, t in np.ndindex(*targets_BT.shape):
        logits = w_VD @ x_BTD[b, t]
        if softcap < math.inf:
            logits = softcap * np.tanh(logits / softcap)
        logp = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        q = np.full(len(w_VD), smoothing / len(w_VD))
        q[targets_BT[b, t]] += 1 - smoothing
        sums['loss'] -= weights_BT[b, t] * (q * logp).sum()
        sums['nll'] -= weights_BT[b, t] * logp[targets_BT[b, t]]
        sums['correct'] += weights_BT[b, t] * (logits.argmax() == targets_BT[b, t])
        sums['weight'] += weights_BT[b, t]
    return sums


def inputs(scale=1.0, seed=0):
    """Make features, table, targets and weights.

    Some weights are 0 and one is a fraction; every third token is predicted well.
    """
    rng = np.random.default_rng(seed)
    x_BTD = scale * rng.normal(size=(B, T, D)).astype(np.float32)
    w_VD = rng.normal(size=(V, D)).astype(np.float32)
    targets_BT = rng.integers(V, size=(B, T)).astype(np.int32)
    targets_BT[:, ::3] = (x_BTD @ w_VD.T).argmax(-1)[:, ::3]
    weights_BT = (rng.random((B, T)) < 0.7).astype(np.float32)
    weights_BT[0, 0] = 0.25
    return x_BTD, w_VD, targets_BT, weights_BT


values = jax.jit(cross_entropy)
gradients = jax.jit(jax.grad(lambda *args: cross_entropy(*args).loss, argnums=(0, 1)))


def test_what_does_not_count_is_not_even_computed(monkeypatch):
    monkeypatch.setattr(chunks, 'CHUNK_TOKENS', 2 * B)  # a chunk has the tokens of two times
    x_BTD, w_VD, targets_BT, _ = inputs()
    weights_BT = np.zeros((B, T), np.float32)
    for row, counted in enumerate(([0, 5], [2, 7], [3, 4])):
        weights_BT[row, counted] = 1
    expected = paper(x_BTD, w_VD, targets_BT, weights_BT, 0.1)
    x_BTD[weights_BT == 0] = np.nan  # nan times 0 would be nan
    loss, (dx_BTD, dw_VD) = jax.value_and_grad(
        lambda *args: cross_entropy(*args, targets_BT, weights_BT, 0.1).loss, argnums=(0, 1)
    )(x_BTD, w_VD)
    for found in (loss, cross_entropy(x_BTD, w_VD, targets_BT, weights_BT, 0.1).loss):
        assert float(found) == pytest.approx(expected['loss'], rel=1e-5)
    assert np.isfinite(dw_VD).all()
    np.testing.assert_array_equal(np.any(dx_BTD, axis=-1), weights_BT != 0)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.5])
@pytest.mark.parametrize('scale', [1.0, 1000.0])  # 1000: exp of a logit would overflow
def test_sums_are_the_papers(smoothing, scale):
    args = inputs(scale)
    expected = paper(*args, smoothing)
    for name, value in values(*args, smoothing)._asdict().items():
        assert value.dtype == jnp.float32
        assert float(value) == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('scale', [1.0, 30.0])
def test_gradients_are_the_papers(smoothing, scale, slope):
    x_BTD, w_VD, *rest = inputs(scale)
    for index, grad in enumerate(gradients(x_BTD, w_VD, *rest, smoothing)):
        for seed in range(3):
            directions = [
                np.random.default_rng(seed).normal(size=x.shape) * (i == index)
                for i, x in enumerate((x_BTD, w_VD))
            ]
            expected = slope(
                lambda x, w: paper(x, w, *rest, smoothing)['loss'], (x_BTD, w_VD), directions
            )
            assert float((grad * directions[index]).sum()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize('softcap', [0.5, 3.0, 30.0])  # logits are around 2.5
def test_capped_logits_and_their_gradients(softcap, slope):
    x_BTD, w_VD, *rest = args = inputs()
    expected = paper(*args, 0.1, softcap)
    for name, value in cross_entropy(*args, 0.1, softcap)._asdict().items():
        assert float(value) == pytest.approx(expected[name], rel=1e-5), name
    grads = jax.grad(lambda x, w: cross_entropy(x, w, *rest, 0.1, softcap).loss, argnums=(0, 1))(
        x_BTD, w_VD
    )
    for index, grad in enumerate(grads):
        directions = [
            np.random.default_rng(5).normal(size=x.shape) * (i == index)
            for i, x in enumerate((x_BTD, w_VD))
        ]
        derivative = slope(
            lambda x, w: paper(x, w, *rest, 0.1, softcap)['loss'], (x_BTD, w_VD), directions
        )
        assert float((grad * directions[index]).sum()) == pytest.approx(derivative, rel=1e-4)


def test_the_gradient_of_a_mean_is_scaled():
    args = inputs()
    mean = jax.grad(lambda x, w: cross_entropy(x, w, *args[2:], 0.1).loss / 7, argnums=(0, 1))(
        *args[:2]
    )
    for a, b in zip(mean, gradients(*args, 0.1), strict=True):
        np.testing.assert_allclose(a, b / 7, rtol=1e-5, atol=1e-7)


def test_tokens_of_weight_0_have_no_influence():
    x_BTD, w_VD, targets_BT, weights_BT = inputs()
    before = values(x_BTD, w_VD, targets_BT, weights_BT, 0.1)
    dx_BTD, _ = gradients(x_BTD, w_VD, targets_BT, weights_BT, 0.1)
    ignored = weights_BT == 0
    assert not np.any(np.asarray(dx_BTD)[ignored])
    x_BTD[ignored] += 5
    targets_BT[ignored] = 0
    assert values(x_BTD, w_VD, targets_BT, weights_BT, 0.1) == before


@pytest.mark.parametrize('tokens', [1, 6, 10**6])  # chunks of 1, 2 and all 8 steps of 3 rows
def test_chunked_is_unchunked(monkeypatch, tokens):
    args = inputs()
    expected, expected_grads = values(*args, 0.1), gradients(*args, 0.1)
    shapes = []
    chunk = losses._chunk
    monkeypatch.setattr(chunks, 'CHUNK_TOKENS', tokens)
    monkeypatch.setattr(
        losses, '_chunk', lambda x, *rest: shapes.append(x.shape) or chunk(x, *rest)
    )
    found = cross_entropy(*args, 0.1)
    grads = jax.grad(lambda *x: cross_entropy(*x, *args[2:], 0.1).loss, argnums=(0, 1))(*args[:2])
    assert {math.prod(shape[:-1]) for shape in shapes} == {B * min(T, -(-tokens // B))}
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_logits_of_a_long_batch_are_never_held_at_once():
    rows, length, vocab = 8, 512, 1000
    shapes = [(rows, length, 4), (vocab, 4)]
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes] + [
        jax.ShapeDtypeStruct((rows, length), dtype) for dtype in (jnp.int32, jnp.float32)
    ]
    memory = gradients.lower(*args, 0.1).compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows * length * vocab * 4 / 2


def test_smoothing_is_traced():
    args = inputs()
    before = values._cache_size()
    found = [float(values(*args, jnp.float32(smoothing)).loss) for smoothing in (0.0, 0.1, 0.2)]
    assert values._cache_size() - before <= 1
    assert len(set(found)) == 3


def test_bfloat16_features_are_summed_in_float32():
    x_BTD, w_VD, *rest = inputs()
    x_BTD = jnp.asarray(x_BTD, jnp.bfloat16)
    rounded = np.asarray(x_BTD, np.float32), np.asarray(jnp.asarray(w_VD, jnp.bfloat16), np.float32)
    found = values(x_BTD, w_VD, *rest, 0.1)
    assert found.loss.dtype == jnp.float32
    assert float(found.loss) == pytest.approx(paper(*rounded, *rest, 0.1)['loss'], rel=1e-5)
    dx_BTD, dw_VD = gradients(x_BTD, w_VD, *rest, 0.1)
    assert (dx_BTD.dtype, dw_VD.dtype) == (jnp.bfloat16, jnp.float32)
    for a, b in zip((dx_BTD, dw_VD), gradients(*rounded, *rest, 0.1), strict=True):
        assert float(jnp.linalg.norm(a.astype(jnp.float32) - b)) < 0.01 * float(jnp.linalg.norm(b))


def test_sums_add_field_by_field():
    assert TokenSums(1, 2, 3, 4) + TokenSums(10, 20, 30, 40) == TokenSums(11, 22, 33, 44)


def test_chunks_grow_with_the_devices_that_share_the_rows():
    """The gradient of the table is added up over devices after every chunk."""
    x_BTD = jnp.zeros((16, 256, 1))
    assert chunks.time_chunks(x_BTD).shape == (8, 512, 1)
    partitioner = Partitioner(MeshConfig(data=2, fsdp=2, tensor=2))
    with partitioner.context():
        assert chunks.time_chunks(x_BTD).shape == (2, 2048, 1)  # 512 on each of 4
