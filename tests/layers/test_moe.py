"""Mixture of experts against loops in float64: routing, capacity, losses and gradients."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.build import build_model, dummy_batch, with_vocabulary

from transformer_jax import spec
from transformer_jax.batch import Tokens
from transformer_jax.config.resolve import parse_components
from transformer_jax.efficiency.flops import forward_flops
from transformer_jax.errors import ConfigError
from transformer_jax.layers import moe
from transformer_jax.layers.feed_forward import FFNS, FeedForward, MixtureOfExperts
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.schema import (
    ExperimentConfig,
    MeshConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from transformer_jax.training import train_state
from transformer_jax.training import train_step as step
from transformer_jax.training.programs import make_program

B, T, D, F = 2, 7, 6, 10
TRAINING = jnp.float32(0.0)  # a dropout rate of 0 means training, with nothing dropped
REAL_BT = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 2, 2, 2, 0]])
ACTIVATIONS = {'relu': lambda x: np.maximum(x, 0), 'swiglu': lambda x: x / (1 + np.exp(-x))}


def layer(text, x_BTD, seed=0):
    """Return (parameters, apply) of a layer; no bias is 0.

    `apply` returns the outputs and, in training, the sown load.
    """
    module = MixtureOfExperts(spec.parse(text, FFNS, 'model.ffn'), F)
    params = nn.meta.unbox(module.init(jax.random.PRNGKey(seed), x_BTD))['params']
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)

    @functools.partial(jax.jit, static_argnames='training')
    def apply(params, x_BTD, training, segments_BT=REAL_BT):
        tokens = Tokens(jnp.zeros_like(segments_BT), segments_BT)
        y_BTD, state = module.apply(
            {'params': params}, x_BTD, tokens, TRAINING if training else None, mutable=['load']
        )
        return y_BTD, state['load']['load'][0] if training else None

    return params, apply


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def expert(params, e, x_D, activation):
    """Apply expert `e` to one token."""
    w = {name: np.asarray(value[e], np.float64) for name, value in params['experts'].items()}

    def affine(name, x):
        return x @ w[f'{name}_kernel'] + w.get(f'{name}_bias', 0)

    h_F = ACTIVATIONS[activation](affine('gate' if activation == 'swiglu' else 'in', x_D))
    return affine('out', h_F * affine('in', x_D) if activation == 'swiglu' else h_F)


def mixture(params, x_BTD, k, *, activation='relu', places=math.inf):
    """Compute the mixture token by token, in order, with `places` for each expert.

    Returns:
        (y_BTD, logits of real tokens, chosen experts, the number of choices served).
    """
    y_BTD, logits, chosen = np.zeros(x_BTD.shape), [], []
    used = np.zeros(params['router_kernel'].shape[1])
    kept = 0
    for b, t in np.ndindex(B, T):
        if not REAL_BT[b, t]:
            continue
        x_D = np.asarray(x_BTD[b, t], np.float64)
        logits.append(x_D @ np.asarray(params['router_kernel'], np.float64))
        p_E = np.exp(logits[-1]) / np.exp(logits[-1]).sum()
        best = np.argsort(-p_E)[:k]
        chosen.append(best)
        for e in best:
            used[e] += 1
            if used[e] <= places:
                kept += 1
                y_BTD[b, t] += (
                    p_E[e] / (p_E[best].sum() if k > 1 else 1) * expert(params, e, x_D, activation)
                )
    return y_BTD, np.array(logits), np.array(chosen), kept


def losses(logits, chosen):
    """Compute (balance, z): Fedus et al. (2021), equations 4–6; Zoph et al. (2022), equation 5."""
    E = logits.shape[1]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    balance = E * sum((chosen == e).mean() * p[:, e].mean() for e in range(E))
    return balance, np.mean(np.log(np.exp(logits).sum(1)) ** 2)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('training', [True, False])
def test_one_expert_is_a_dense_layer(training, bias):
    x_BTD = normal(B, T, D)
    params, apply = layer(f'moe(1, 1, expert=relu(bias={bias}))', x_BTD)
    dense = FeedForward(spec.parse(f'relu(bias={bias})', FFNS, 'model.ffn'), F)
    expected = dense.apply({'params': jax.tree.map(lambda p: p[0], params['experts'])}, x_BTD)
    found, _ = apply(params, x_BTD, training)
    real_BT = REAL_BT > 0
    np.testing.assert_array_equal(found[real_BT], expected[real_BT])
    assert not np.any(found[~real_BT])


@pytest.mark.parametrize(
    ('text', 'k', 'activation'),
    [
        ('moe(4, 1)', 1, 'relu'),
        ('moe(4, 2)', 2, 'relu'),
        ('moe(3, 3, expert=swiglu(equal_parameters=False))', 3, 'swiglu'),
        ('moe(4, 2, expert=swiglu(bias=True, equal_parameters=False))', 2, 'swiglu'),
    ],
)
def test_evaluation_drops_nothing(text, k, activation):
    x_BTD = normal(B, T, D)
    params, apply = layer(text, x_BTD)
    found, _ = apply(params, x_BTD, False)
    np.testing.assert_allclose(
        found, mixture(params, x_BTD, k, activation=activation)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('k', [1, 2])
@pytest.mark.parametrize('capacity', [0.1, 0.5, 1.0, 4.0])
def test_training_has_places_for_its_capacity(capacity, k):
    x_BTD = normal(B, T, D)
    params, apply = layer(f'moe(4, {k}, {capacity}, balance=0.3, z=0.2)', x_BTD)
    places = math.ceil(capacity * B * T * k / 4)
    expected, logits, chosen, kept = mixture(params, x_BTD, k, places=places)
    found, load = apply(params, x_BTD, True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    balance, z = losses(logits, chosen)
    assert float(load.balance) == pytest.approx(balance, rel=1e-5)
    assert float(load.loss) == pytest.approx(0.3 * balance + 0.2 * z, rel=1e-5)
    np.testing.assert_array_equal(load.chosen_E, [(chosen == e).sum() for e in range(4)])
    assert float(load.kept_E.sum()) == kept
    assert (kept < chosen.size) == (capacity < 1.0) or capacity == 1.0


def test_balance_is_1_for_an_even_load_and_the_number_of_experts_for_one_that_takes_all():
    real_Z = jnp.ones(4, bool)
    for logits_ZE, expected in ((50 * jnp.eye(4), 1), (50 * jnp.eye(4)[:1].repeat(4, 0), 4)):
        chosen_E = moe.counts(moe.route(logits_ZE, real_Z, 1).experts_ZJ, 4)
        assert float(moe.balance(logits_ZE, chosen_E, real_Z)) == pytest.approx(expected)


@pytest.mark.parametrize('training', [True, False])
def test_padding_is_not_routed(training):
    x_BTD = normal(B, T, D)
    params, apply = layer('moe(4, 2, 0.8)', x_BTD)
    others_BTD = np.where(REAL_BT[..., None] > 0, x_BTD, 1e30).astype(np.float32)
    for a, b in zip(
        *(jax.tree.leaves(apply(params, x, training)) for x in (x_BTD, others_BTD)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    gradient = jax.grad(lambda p, x: jnp.square(apply(p, x, training)[0]).sum(), argnums=(0, 1))(
        params, others_BTD
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not np.any(gradient[1][REAL_BT == 0])


def test_what_a_token_gets_does_not_depend_on_later_ones_of_its_row():
    x_BTD = normal(B, T, D)
    params, apply = layer('moe(4, 2, 0.5)', x_BTD)
    y_BTD, _ = apply(params, x_BTD, True)
    for b, t in [(0, 1), (0, 3), (1, 2), (1, 5)]:
        later_BTD = x_BTD.copy()
        later_BTD[b, t:] = normal(T - t, D, seed=t)
        np.testing.assert_array_equal(apply(params, later_BTD, True)[0][b, :t], y_BTD[b, :t])


@pytest.mark.slow
@pytest.mark.parametrize(('training', 'k'), [(True, 1), (True, 2), (False, 2)])
def test_gradients_are_the_slopes(training, k, slope):
    x_BTD, c_BTD = normal(B, T, D), normal(B, T, D, seed=1)
    params, apply = layer(f'moe(4, {k}, 0.6, balance=0.5, z=0.1)', x_BTD)
    places = math.ceil(0.6 * B * T * k / 4) if training else math.inf
    share = mixture(params, x_BTD, k)[2]  # f_e has no gradient: its counts are piecewise constant

    def objective(params, x_BTD):
        y_BTD, load = apply(params, x_BTD, training)
        return (y_BTD * c_BTD).sum() + (load.loss if training else 0)

    leaves, structure = jax.tree.flatten((params, x_BTD))

    def by_hand(*points):
        params, x_BTD = jax.tree.unflatten(structure, points)
        y_BTD, logits, chosen, _ = mixture(params, x_BTD, k, places=places)
        assert np.array_equal(chosen, share)
        balance, z = losses(logits, chosen)
        return (y_BTD * c_BTD).sum() + training * (0.5 * balance + 0.1 * z)

    gradients = jax.tree.leaves(jax.grad(objective, argnums=(0, 1))(params, x_BTD))
    for index, gradient in enumerate(gradients):
        directions = [normal(*leaf.shape, seed=9) * (i == index) for i, leaf in enumerate(leaves)]
        expected = slope(by_hand, leaves, directions)
        assert float((gradient * directions[index]).sum()) == pytest.approx(
            expected, rel=2e-3, abs=1e-4
        ), index


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('moe(experts=0)', 'experts=0'),
        ('moe(4, 5)', 'k=5, it takes 1 … experts=4'),
        ('moe(capacity=0.0)', 'capacity=0.0'),
        ('moe(balance=-1.0)', 'balance=-1.0'),
        ('moe(expert=moe)', "unknown 'moe'"),
    ],
)
def test_what_cannot_be_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        spec.parse(text, FFNS, 'model.ffn')


# --- In a model -----------------------------------------------------------------------------------

V, LENGTH = 16, 8


@pytest.fixture(scope='module')
def setting(tiny, make_batch, random_rows):
    """Return (a function from the number of microbatches to a config, a model, a batch)."""
    model_config = tiny(kind='decoder_only', decoder_layers=1, ffn='moe(4, 2, balance=0.5, z=0.1)')
    batch = make_batch(random_rows([[(1, 3 + i % 5)] for i in range(8)], V), LENGTH)
    batch = batch._replace(source_BS=None, source_positions_BS=None, source_segments_BS=None)
    return (
        (
            lambda n, **parallel: ExperimentConfig(
                model=model_config,
                train=TrainConfig(steps=9, accumulate=n, label_smoothing=0.0),
                optim=OptimConfig('adam', 'constant', 0.01),
                parallel=ParallelConfig(**parallel),
            )
        ),
        build_model(model_config, V),
        batch,
    )


@pytest.fixture(scope='module')
def one_step(setting):
    """Return a function from the number of microbatches to a step's (before, after, metrics)."""
    config, model, batch = setting
    state = nn.meta.unbox(train_state.init_state(parse_components(config(1)), model))

    def take(accumulate):
        return state, *jax.jit(
            functools.partial(step.train_step, model, parse_components(config(accumulate)))
        )(state, batch)

    return functools.cache(take)


@pytest.mark.slow
def test_the_loss_has_the_mean_of_its_microbatches(setting, one_step):
    _, model, batch = setting
    state, _, metrics = one_step(2)
    weighted, chosen, dropped = 0.0, 0.0, 0.0
    for i in range(2):
        micro = jax.tree.map(lambda a, i=i: a[i::2], batch)
        _, sown = model.apply(
            {'params': state.params},
            micro,
            TRAINING,
            method='features',
            mutable=['load'],
            rngs={'dropout': jax.random.PRNGKey(0)},
        )
        load = sown['load']['decoder_0']['ffn']['load'][0]
        weighted += float(load.loss) * micro.weights_BT.sum()
        chosen = chosen + np.asarray(load.chosen_E)
        dropped += float((load.chosen_E - load.kept_E).sum())
    assert chosen.sum() == 2 * batch.weights_BT.sum()
    assert float(metrics['loss'] - metrics['nll']) == pytest.approx(
        weighted / batch.weights_BT.sum(), rel=1e-4
    )
    assert float(metrics['experts_load_max']) == pytest.approx(
        chosen.max() / chosen.mean(), rel=1e-5
    )
    assert float(metrics['experts_load_min']) == pytest.approx(
        chosen.min() / chosen.mean(), rel=1e-5
    )
    assert float(metrics['experts_dropped']) == pytest.approx(dropped / chosen.sum(), abs=1e-6)
    assert 1 <= float(metrics['experts_balance']) <= 4


@pytest.mark.slow
def test_every_array_learns_and_evaluation_has_no_other_loss(setting, one_step):
    _, model, batch = setting
    before, after, _ = one_step(1)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(before.params), jax.tree.leaves(after.params)
    ):
        assert np.any(a != b), jax.tree_util.keystr(path)
    sums, _ = loss_sums(model, before.params, batch)
    assert float(sums.loss) == pytest.approx(float(sums.nll), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('rules', ['', 'experts=data'])
def test_eight_devices_are_one(rules, setting, one_step):
    config, model, batch = setting
    layout = config(1, mesh=MeshConfig(2, 2, 2), rules=rules)
    program = make_program(with_vocabulary(layout, V))
    before, _, metrics = one_step(1)
    state, found = program.train_step(program.init_state(), program.place(batch))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in metrics.items()}, rel=1e-4, abs=1e-6
    )
    kernel = state.params['decoder_0']['ffn']['experts']['in_kernel']
    assert kernel.addressable_shards[0].data.shape == (4 // (2 if rules else 1), 8, 16)
    sums = program.partitioner.compile(lambda params, batch: loss_sums(model, params, batch)[0])(
        program.init_state().params, program.place(batch)
    )
    assert float(sums.nll) == pytest.approx(
        float(loss_sums(model, before.params, batch)[0].nll), rel=1e-5
    )


@pytest.mark.slow
def test_step_by_step_is_all_at_once(setting, one_step):
    _, model, batch = setting
    variables = {'params': one_step(1)[0].params}
    logits_BTV = model.apply(variables, batch)
    nothing = jnp.zeros((8, 1), jnp.int32)
    cache, memory = model.apply(
        variables, nothing, Tokens(nothing, nothing), LENGTH, method='start'
    )
    advance = jax.jit(functools.partial(model.apply, method='step'))
    for t in range(3):  # the shortest row has 3 tokens
        logits_BV, cache = advance(variables, batch.inputs_BT[:, t], cache, memory)
        np.testing.assert_allclose(logits_BV, logits_BTV[:, t], rtol=1e-4, atol=1e-4)


def test_flops_are_those_of_the_chosen_experts(tiny):
    def flops(ffn):
        model = build_model(tiny(kind='decoder_only', decoder_layers=1, ffn=ffn), V)
        params = nn.meta.unbox(
            jax.eval_shape(model.init, jax.random.PRNGKey(0), dummy_batch(kind='decoder_only'))
        )['params']
        return forward_flops(model, params, 2, LENGTH)

    tokens, network, weighted_sum = 2 * LENGTH, 2 * 2 * 16 * 32, 2 * 16
    for experts, k in ((4, 1), (8, 2)):
        router = 2 * 16 * experts
        assert flops(f'moe({experts}, {k})') - flops('relu') == tokens * (
            router + (k - 1) * network + k * weighted_sum
        )
