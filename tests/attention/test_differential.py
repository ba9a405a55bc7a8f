"""Differential attention against the equations of Ye et al. (2024) and against softmax."""

import dataclasses
import math

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
from laws.contract import (
    Case,
    D,
    N,
    cached_is_teacher_forced,
    distance,
    packed_is_separate,
    site,
    whole,
)

from transformer_jax import config as config_lib
from transformer_jax import spec
from transformer_jax.attention import KINDS, AttentionInputs
from transformer_jax.attention.kinds.differential import (
    Differential,
    KeysValues,
    Queries,
    lambda_init,
)
from transformer_jax.attention.kinds.softmax import KeysValues as SoftmaxKeysValues
from transformer_jax.attention.kinds.softmax import Queries as SoftmaxQueries
from transformer_jax.attention.kinds.softmax import Softmax
from transformer_jax.attention.masks import Causal
from transformer_jax.errors import ConfigError
from transformer_jax.schema import ExperimentConfig, ModelConfig


def paper_lambda(mix, init):
    """Return λ by equation 2 of Ye et al. (2024)."""
    return (
        math.exp(mix['lambda_q1'] @ mix['lambda_k1'])
        - math.exp(mix['lambda_q2'] @ mix['lambda_k2'])
        + init
    )


@pytest.mark.parametrize(
    ('kv_heads', 'name', 'position'), [(2, 'decoder', 'rope'), (1, 'cross', 'none')]
)
def test_outputs_and_weights_are_the_papers(kv_heads, name, position):
    at = site(Case('differential', position, kv_heads), name)
    (x_BTD, tokens, x_BSD, key_tokens), o_BTD, weights_BNTS = outputs_and_weights(at)
    # Layer 1 here is layer 2 in the paper, which counts from 1.
    params, init = (
        double(at.params),
        0.8 - 0.6 * math.exp(-0.3),
    )
    maps = []
    for half in np.split(np.arange(4), 2):
        q_BTNH = projected(x_BTD, params['queries']['query'])[..., half]
        k_BSKH = projected(x_BSD, params['keys']['key'])[..., half]
        if position == 'rope':
            q_BTNH, k_BSKH = (
                rotated(q_BTNH, tokens.positions_BT),
                rotated(k_BSKH, key_tokens.positions_BT),
            )

        def score(b, n, t, s, q_BTNH=q_BTNH, k_BSKH=k_BSKH):
            return q_BTNH[b, t, n] @ k_BSKH[b, s, n * kv_heads // N] / math.sqrt(2)

        maps.append(softmax_weights(score, tokens, key_tokens, name == 'decoder'))
    expected = maps[0] - paper_lambda(params['mix'], init) * maps[1]
    np.testing.assert_allclose(weights_BNTS, expected, atol=2e-6)
    o_BTNH = mixed(expected, projected(x_BSD, params['keys']['value']))
    for b, t, n in np.ndindex(o_BTNH.shape[:3]):
        root = math.sqrt((o_BTNH[b, t, n] ** 2).mean() + 1e-6)
        o_BTNH[b, t, n] *= (1 - init) * params['mix']['norm'] / root
    assert distance(o_BTD, out(o_BTNH, params)) < 3e-6


def test_lambda_starts_from_the_depth_of_the_layer():
    for layer, expected in [
        (0, 0.2),
        (1, 0.3555),
        (11, 0.7779),
        (100, 0.8),
    ]:  # l of the paper is layer + 1
        assert lambda_init(layer) == pytest.approx(expected, abs=1e-4)
    assert spec.parse('differential(lambda_init=0.5)', KINDS, 'attention').lambda_init == 0.5
    for wrong, why in (
        ('1.0', 'is outside 0 ≤ value < 1'),
        ('-0.1', 'is outside 0 ≤ value < 1'),
        ('"layer"', 'it takes depth or a number from 0 to below 1'),
    ):
        with pytest.raises(ConfigError, match=why):
            spec.parse(f'differential(lambda_init={wrong})', KINDS, 'attention')


def halves(seed=0, equal=False):
    """Return (queries, keys) of 2 rows with 5 tokens, in 4 query heads and 2 key heads."""
    rng = np.random.default_rng(seed)
    q1, q2, k1, k2, v = (
        jnp.asarray(rng.normal(size=(2, 5, heads, 6)), jnp.float32) for heads in (4, 4, 2, 2, 2)
    )
    return Queries(q1, q1 if equal else q2), KeysValues(k1, k1 if equal else k2, v)


def attention_inputs(kind, lambda_, **changes):
    tokens = whole(2, 5)
    return AttentionInputs(
        Causal(),
        tokens,
        tokens,
        params={'normalizer': (), 'lambda': jnp.float32(lambda_)},
        **changes,
    )


@pytest.mark.parametrize('engine', ['dense', 'chunked'])
def test_it_is_exactly_one_softmax_attention_less_lambda_times_another(engine):
    queries, keys = halves()
    inputs = attention_inputs(Differential(), 0.3, engine=engine)
    first, second = (
        Softmax().attend(SoftmaxQueries(q), SoftmaxKeysValues(k, keys.v_BSKH), inputs)
        for q, k in zip(queries, keys[:2], strict=True)
    )
    np.testing.assert_array_equal(
        Differential().attend(queries, keys, inputs), first - jnp.float32(0.3) * second
    )
    np.testing.assert_array_equal(
        Differential().attend(queries, keys, attention_inputs(None, 0, engine=engine)), first
    )


def test_dropout_falls_on_the_same_places_of_both_maps():
    queries, keys = halves(equal=True)
    inputs = attention_inputs(Differential(), 1.0, dropout=(jax.random.PRNGKey(0), 0.5))
    assert not np.any(Differential().attend(queries, keys, inputs))
    assert np.any(
        Differential().attend(
            queries, keys, inputs.replace(params=attention_inputs(None, 0.5).params)
        )
    )


def test_a_head_has_as_many_parameters_as_one_of_softmax():
    shapes = jax.tree.map(jnp.shape, site(Case('differential', 'rope', 2), 'decoder').params)
    assert shapes['queries'] == {'query': {'kernel': (D, N, 4)}}
    assert shapes['keys'] == {'key': {'kernel': (D, 2, 4)}, 'value': {'kernel': (D, 2, 4)}}
    vectors = [f'lambda_{name}' for name in ('q1', 'k1', 'q2', 'k2')]
    assert shapes['mix'] == dict.fromkeys(vectors, (2,)) | {'norm': (4,)}


def test_positions_that_read_queries_meet_the_halves():
    at = site(Case('differential', 'shaw'), 'decoder')
    assert {name: leaf.shape[1] for name, leaf in at.params['relative'].items()} == {
        'keys': 2,
        'values': 4,
    }
    packed_is_separate(at)
    cached_is_teacher_forced(at)


def test_an_odd_head_is_refused_before_anything_runs():
    model = ModelConfig(attention='differential', position='none', d_model=10, num_heads=2)
    with pytest.raises(
        ConfigError, match='head_dim=5 is odd: differential attention halves queries and keys'
    ):
        config_lib.replace(ExperimentConfig(), model=model)
    model = dataclasses.replace(model, d_model=12, position='rope')  # halves of 3 dimensions
    with pytest.raises(ConfigError, match='works on pairs of dimensions'):
        config_lib.replace(ExperimentConfig(), model=model)


def test_gradients_are_finite_where_heads_cancel():
    queries, keys = halves(equal=True)
    inputs = attention_inputs(Differential(), 1.0)

    def total(v_BSKH, scale_H):
        o_BTNH = Differential().attend(queries, keys._replace(v_BSKH=v_BSKH), inputs)
        return Differential().postprocess_heads(o_BTNH, {'scale_H': scale_H}).sum()

    grads = jax.grad(total, argnums=(0, 1))(keys.v_BSKH, jnp.ones(6))
    assert all(np.isfinite(grad).all() for grad in grads)
