"""Layers against NumPy in float64, and dropout against its distribution."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import spec
from transformer_jax.layers.dropout import dropout
from transformer_jax.layers.embedding import Embedding
from transformer_jax.layers.feed_forward import FFNS, FeedForward, Relu
from transformer_jax.layers.linear import ProjectFromHeads, ProjectToHeads
from transformer_jax.layers.norms import LayerNorm, Norm, RmsNorm

B, T, D, F = 2, 3, 16, 24


def normal(*shape, seed=0, scale=1.0, shift=0.0):
    return (shift + scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def initialized(module, *args):
    """Return (random parameters, the apply function).

    Every parameter is random, so that no test passes only because a bias is 0 or a scale is 1.
    """
    params = nn.meta.unbox(module.init(jax.random.PRNGKey(0), *args))['params']
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(
        tree, [normal(*leaf.shape, seed=i + 1) for i, leaf in enumerate(leaves)]
    )
    return params, jax.jit(lambda params, *args: module.apply({'params': params}, *args))


def paper_layer_norm(x_BTD, scale_D, bias_D, eps):
    """Compute layer norm by Ba et al. (2016), equations 3 and 4."""
    mean_BT1 = x_BTD.mean(-1, keepdims=True)
    deviation_BT1 = np.sqrt(((x_BTD - mean_BT1) ** 2).mean(-1, keepdims=True) + eps)
    return (x_BTD - mean_BT1) / deviation_BT1 * scale_D + bias_D


@pytest.mark.parametrize(('scale', 'shift'), [(1.0, 0.0), (1e-3, 0.0), (1.0, 1000.0)])
def test_layer_norm_is_the_papers(scale, shift):
    x_BTD = normal(B, T, D, scale=scale, shift=shift)
    params, apply = initialized(Norm(LayerNorm(eps=1e-6)), x_BTD)
    expected = paper_layer_norm(x_BTD.astype(np.float64), params['scale'], params['bias'], 1e-6)
    np.testing.assert_allclose(apply(params, x_BTD), expected, rtol=1e-4, atol=1e-5 + 2e-7 * shift)


def test_layer_norm_gradients_are_the_papers(slope):
    x_BTD, r_BTD = normal(B, T, D), normal(B, T, D, seed=9)
    params, apply = initialized(Norm(LayerNorm()), x_BTD)
    inputs = x_BTD, params['scale'], params['bias']
    grads = jax.grad(
        lambda x, s, b: (apply({'scale': s, 'bias': b}, x) * r_BTD).sum(), argnums=(0, 1, 2)
    )(*inputs)
    for index, grad in enumerate(grads):
        directions = [normal(*x.shape, seed=5) * (i == index) for i, x in enumerate(inputs)]
        expected = slope(lambda *x: (paper_layer_norm(*x, 1e-6) * r_BTD).sum(), inputs, directions)
        assert float((grad * directions[index]).sum()) == pytest.approx(expected, rel=1e-4)


def test_layer_norm_of_bfloat16_is_taken_in_float32():
    x_BTD = jnp.asarray(normal(B, T, D, shift=30.0), jnp.bfloat16)
    params, apply = initialized(Norm(LayerNorm()), x_BTD)
    y_BTD = apply(params, x_BTD)
    assert y_BTD.dtype == jnp.bfloat16
    expected = paper_layer_norm(
        np.asarray(x_BTD, np.float64), params['scale'], params['bias'], 1e-6
    )
    # The tolerance is that of a single rounding.
    np.testing.assert_allclose(y_BTD.astype(np.float32), expected, rtol=2**-8, atol=1e-5)


def test_layer_norm_without_its_bias():
    x_BTD = normal(B, T, D)
    params, apply = initialized(Norm(LayerNorm(bias=False)), x_BTD)
    assert set(params) == {'scale'}
    expected = paper_layer_norm(x_BTD.astype(np.float64), params['scale'], 0, 1e-6)
    np.testing.assert_allclose(apply(params, x_BTD), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('offset', [False, True])
@pytest.mark.parametrize('scale', [1.0, 1e-3])  # 1e-3: the mean square is as small as ε
def test_rms_norm_is_the_papers(scale, offset):
    """Check Zhang & Sennrich (2019), equation 4; Gemma's factor is 1 + w."""
    x_BTD = normal(B, T, D, scale=scale, shift=0.3 * scale)
    params, apply = initialized(Norm(RmsNorm(eps=1e-6, offset=offset)), x_BTD)
    x64_BTD, w_D = x_BTD.astype(np.float64), params['scale'] + offset
    expected = np.stack(
        [[x_D / math.sqrt(sum(x_D**2) / D + 1e-6) * w_D for x_D in x_TD] for x_TD in x64_BTD]
    )
    np.testing.assert_allclose(apply(params, x_BTD), expected, rtol=1e-5, atol=1e-6)
    assert apply(params, jnp.asarray(x_BTD, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize('offset', [False, True])
def test_rms_norm_starts_with_the_factor_1(offset):
    module, x_BTD = Norm(RmsNorm(offset=offset)), normal(B, T, D, scale=5.0)
    y_BTD, params = module.init_with_output(jax.random.PRNGKey(0), x_BTD)
    np.testing.assert_allclose(jnp.square(y_BTD).mean(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        nn.meta.unbox(params)['params']['scale'], np.full(D, 1 - offset, np.float32)
    )


def phi(x):
    """Compute the standard normal distribution function."""
    return (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def tanh_gelu(x):
    """Compute GELU by tanh (Hendrycks & Gimpel 2016, section 2)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    'relu': lambda x: np.where(x > 0, x, 0),
    'relu(bias=False)': lambda x: np.where(x > 0, x, 0),
    'relu2': lambda x: np.where(x > 0, x**2, 0),
    'gelu': tanh_gelu,
    'gelu(approximate=False)': lambda x: x * phi(x),
    'swiglu': lambda x: x / (1 + np.exp(-x)),
    'swiglu(bias=True, equal_parameters=False)': lambda x: x / (1 + np.exp(-x)),
    'geglu': tanh_gelu,
    'geglu(approximate=False)': lambda x: x * phi(x),
}


@pytest.mark.parametrize('text', ACTIVATIONS)
def test_feed_forwards_are_the_papers(text):
    x_BTD, f = normal(B, T, D), ACTIVATIONS[text]
    kind, h = spec.parse(text, FFNS, 'model.ffn'), np.linspace(-4, 4, 99)
    # The two forms of GELU differ by 5e-4.
    np.testing.assert_allclose(kind.activation(jnp.float32(h)), f(h), atol=3e-6)
    params, apply = initialized(FeedForward(kind, F), x_BTD)
    gated = 'glu' in text
    names = ['gate', 'in', 'out'] if gated else ['in', 'out']
    kinds = ['kernel', 'bias'] if kind.bias else ['kernel']
    assert set(params) == {f'{name}_{what}' for name in names for what in kinds}
    assert params['in_kernel'].shape[1] == (2 * F // 3 if gated and kind.equal_parameters else F)

    def affine(name, x):
        return x @ params[f'{name}_kernel'].astype(np.float64) + params.get(f'{name}_bias', 0)

    h_BTF = f(affine('gate', x_BTD)) * affine('in', x_BTD) if gated else f(affine('in', x_BTD))
    expected = affine('out', h_BTF)
    np.testing.assert_allclose(
        apply(params, x_BTD), expected, rtol=1e-4, atol=1e-5 * abs(expected).max()
    )


@pytest.mark.parametrize('kind', ['swiglu', 'geglu'])
@pytest.mark.parametrize('d_ff', [24, 25, 26, 2048])
def test_a_gated_layer_has_the_parameters_of_a_plain_one(kind, d_ff):
    def count(text):
        module = FeedForward(spec.parse(text, FFNS, 'model.ffn'), d_ff)
        variables = jax.eval_shape(module.init, jax.random.PRNGKey(0), normal(1, 1, D))
        return sum(leaf.size for leaf in jax.tree.leaves(variables))

    plain = count('relu(bias=False)')
    assert plain == 2 * D * d_ff
    assert plain - 2 * D <= count(kind) <= plain
    assert count(kind) == plain or d_ff % 3
    assert count(f'{kind}(equal_parameters=False)') == 1.5 * plain


def test_heads_are_slices_of_one_projection():
    x_BTD, N, H = normal(B, T, D), 4, 5  # H need not be D / N
    params, apply = initialized(ProjectToHeads(N, H, 'heads'), x_BTD)
    q_BTNH = np.asarray(apply(params, x_BTD))
    assert q_BTNH.shape == (B, T, N, H)
    for n in range(N):
        np.testing.assert_allclose(
            q_BTNH[:, :, n], x_BTD @ params['kernel'][:, n], rtol=1e-4, atol=1e-4
        )
    params, apply = initialized(ProjectFromHeads(D), q_BTNH)
    concatenated = q_BTNH.reshape(B, T, N * H).astype(np.float64)
    w_O = params['kernel'].reshape(N * H, D)
    np.testing.assert_allclose(apply(params, q_BTNH), concatenated @ w_O, rtol=1e-3, atol=1e-3)


def test_projections_add_their_bias():
    x_BTD, N, H = normal(B, T, D), 4, 5
    params, apply = initialized(ProjectToHeads(N, H, 'heads', bias=True), x_BTD)
    q_BTNH = np.einsum('btd,dnh->btnh', x_BTD.astype(np.float64), params['kernel']) + params['bias']
    np.testing.assert_allclose(apply(params, x_BTD), q_BTNH, rtol=1e-4, atol=1e-4)
    q_BTNH = q_BTNH.astype(np.float32)
    params, apply = initialized(ProjectFromHeads(D, bias=True), q_BTNH)
    expected = (
        np.einsum('btnh,nhd->btd', q_BTNH.astype(np.float64), params['kernel']) + params['bias']
    )
    np.testing.assert_allclose(apply(params, q_BTNH), expected, rtol=1e-4, atol=1e-3)


def test_embeddings_are_rows_times_their_scale():
    tokens_BT = np.array([[5, 0, 5], [6, 1, 2]])
    params, apply = initialized(Embedding(7, D, 'float32', 3.0), tokens_BT)
    np.testing.assert_allclose(apply(params, tokens_BT), params['table'][tokens_BT] * 3, rtol=1e-6)
    assert (
        initialized(Embedding(7, D, 'bfloat16', 3.0), tokens_BT)[1](params, tokens_BT).dtype
        == jnp.bfloat16
    )


def test_initial_scales():
    rng = jax.random.PRNGKey(0)
    table = nn.meta.unbox(Embedding(4000, D, 'float32').init(rng, np.zeros((1, 1), int)))['params'][
        'table'
    ]
    assert float(table.std()) == pytest.approx(D**-0.5, rel=0.02)
    x_BTD = normal(1, 1, 64)
    ffn = nn.meta.unbox(FeedForward(Relu(), 256).init(rng, x_BTD))['params']
    heads = nn.meta.unbox(ProjectToHeads(4, 32, 'heads').init(rng, x_BTD))['params']
    out = nn.meta.unbox(ProjectFromHeads(64).init(rng, normal(1, 1, 4, 32)))['params']
    for kernel, fans in (
        (ffn['in_kernel'], 64 + 256),
        (ffn['out_kernel'], 256 + 64),
        (heads['kernel'], 64 + 4 * 32),
        (out['kernel'], 4 * 32 + 64),
    ):
        limit = (6 / fans) ** 0.5  # Glorot & Bengio (2010), equation 16
        assert 0.98 * limit < float(abs(kernel).max()) <= limit
        assert float(kernel.std()) == pytest.approx(limit / 3**0.5, rel=0.03)


class Dropout(nn.Module):
    """A module that only applies dropout."""

    @nn.compact
    def __call__(self, x_BTD, rate):
        return dropout(self, x_BTD, rate)


@jax.jit
def dropped(x_BTD, rate, seed=0):
    return Dropout().apply({}, x_BTD, rate, rngs={'dropout': jax.random.PRNGKey(seed)})


@pytest.mark.parametrize('rate', [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize('width', [64, 33])  # even and odd: two decisions share a random word
def test_dropout_zeroes_at_its_rate_and_keeps_the_mean(rate, width):
    x_BTD = np.full((40, 50, width), 3.0, np.float32)
    y_BTD = np.asarray(dropped(x_BTD, jnp.float32(rate)))
    np.testing.assert_allclose(y_BTD[y_BTD != 0], 3 / (1 - rate), rtol=1e-6)
    sigma = (rate * (1 - rate) / x_BTD.size) ** 0.5
    assert abs((y_BTD == 0).mean() - rate) < 5 * sigma
    assert abs(y_BTD.mean() / 3 - 1) < 5 * sigma / (1 - rate)
    # The two decisions of a random word are independent.
    pairs = (y_BTD[..., : width // 2 * 2 : 2] == 0) & (y_BTD[..., 1::2] == 0)
    assert abs(pairs.mean() - rate**2) < 5 * (rate**2 * (1 - rate**2) / pairs.size) ** 0.5


def test_the_rate_is_traced():
    x_BTD = normal(2, 3, D)
    before = dropped._cache_size()
    kept = [int((dropped(x_BTD, jnp.float32(rate)) != 0).sum()) for rate in (0.0, 0.2, 0.6, 0.95)]
    assert dropped._cache_size() == before + 1
    assert kept[0] == x_BTD.size > kept[1] > kept[2] > kept[3]


def test_rate_0_and_no_rate_leave_everything():
    x_BTD = normal(2, 3, D)
    np.testing.assert_array_equal(dropped(x_BTD, jnp.float32(0)), x_BTD)
    np.testing.assert_array_equal(Dropout().apply({}, x_BTD, None), x_BTD)


def test_masks_differ_by_key_and_repeat_with_it():
    x_BTD = np.ones((2, 3, D), np.float32)
    masks = [np.asarray(dropped(x_BTD, jnp.float32(0.5), seed)) for seed in (0, 1, 0)]
    assert np.any(masks[0] != masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])
