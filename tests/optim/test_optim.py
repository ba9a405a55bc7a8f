"""Schedules against their formulas, optimizer steps against NumPy in float64, roles of arrays, and
the moving average.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.build import build_model
from helpers.support import experiment, fingerprint, quiet, stop_at

from transformer_jax import spec
from transformer_jax.config import resolve_architecture
from transformer_jax.config.resolve import parse_components
from transformer_jax.inference.trained_run import TrainedRun
from transformer_jax.models.architecture import Architecture
from transformer_jax.optim import OPTIMIZERS, SCHEDULES
from transformer_jax.optim.roles import roles
from transformer_jax.partitioning.rules import partition_specs
from transformer_jax.schema import ExperimentConfig, ModelConfig, OptimConfig, TrainConfig
from transformer_jax.training import train_state
from transformer_jax.training import train_step as step
from transformer_jax.training.train import train

STEPS, D = 100, 16
FORMULAS = {
    'noam(warmup=10)': lambda n: D**-0.5 * min(n**-0.5, n * 10**-1.5),
    'inverse_sqrt(warmup=10)': lambda n: n / 10 if n < 10 else math.sqrt(10 / n),
    'linear(warmup=10, end=0.2)': lambda n: n / 10 if n < 10 else 1 - 0.8 * (n - 10) / 90,
    'linear': lambda n: 1 - n / 100,
    'cosine(warmup=10, end=0.2)': lambda n: (
        n / 10 if n < 10 else 0.2 + 0.4 * (1 + math.cos(math.pi * (n - 10) / 90))
    ),
    'cosine': lambda n: 0.5 * (1 + math.cos(math.pi * n / 100)),
    'constant(warmup=10)': lambda n: min(n / 10, 1),
    'constant': lambda n: 1,
}


@pytest.mark.parametrize('text', FORMULAS)
def test_a_schedule_is_its_formula(text):
    schedule = jax.jit(spec.parse(text, SCHEDULES, 'optim.schedule'), static_argnums=(1, 2))
    for n in range(1, STEPS + 1):
        assert float(schedule(jnp.float32(n), STEPS, D)) == pytest.approx(
            FORMULAS[text](n), rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize('text', ['linear(warmup=10, end=0.2)', 'cosine(end=0.2)'])
def test_after_the_last_step_the_rate_stays(text):
    assert float(
        spec.parse(text, SCHEDULES, 'optim.schedule')(jnp.float32(3 * STEPS), STEPS, D)
    ) == pytest.approx(0.2)


def test_the_papers_rate_peaks_at_its_warmup():
    rates = SCHEDULES['noam'](warmup=4000)(jnp.arange(1.0, 20_000), STEPS, 512)
    assert int(rates.argmax()) + 1 == 4000
    assert float(rates.max()) == pytest.approx(512**-0.5 * 4000**-0.5)


class Bigram(nn.Module):
    """The smallest model that a step can train.

    The logits of the next token depend on the last token; there is a one-dimensional bias.
    """

    V = 7

    architecture: Architecture = resolve_architecture(ModelConfig(dropout=0.0), V)

    def setup(self):
        self.in_VD = self.param('in', nn.initializers.normal(1.0), (self.V, D))
        self.out_VD = self.param('out', nn.initializers.normal(1.0), (self.V, D))
        self.bias_D = self.param('bias', nn.initializers.normal(1.0), (D,))

    def __call__(self, batch):
        return self.features(batch)

    def features(self, batch, rate=None):
        return self.in_VD[batch.inputs_BT] + self.bias_D[None, None]

    def output_table(self):
        return self.out_VD


def mean_gradient(params, batch, smoothing):
    """Compute the gradient of the mean label-smoothed cross-entropy by the chain rule.

    Returns:
        arrays by name: 'in', 'out' and 'bias'.
    """
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    for (b, t), weight in np.ndenumerate(batch.weights_BT):
        x_D = params['in'][batch.inputs_BT[b, t]] + params['bias']
        exp_V = np.exp(params['out'] @ x_D)
        dlogits_V = exp_V / exp_V.sum() - smoothing / Bigram.V
        dlogits_V[batch.targets_BT[b, t]] -= 1 - smoothing
        dlogits_V *= weight / batch.weights_BT.sum()
        grads['in'][batch.inputs_BT[b, t]] += dlogits_V @ params['out']
        grads['bias'] += dlogits_V @ params['out']
        grads['out'] += np.outer(dlogits_V, x_D)
    return grads


def adam_by_hand(params, batches, optim, b1, b2, eps):
    """Compute Adam (Kingma & Ba 2015, Algorithm 1) on the clipped gradient.

    Weight decay is decoupled and acts on matrices only.
    """
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    m = v = dict.fromkeys(params, 0.0)
    norms = []
    for n, batch in enumerate(batches, 1):
        grads = mean_gradient(params, batch, smoothing=0.1)
        norms.append(math.sqrt(sum((g**2).sum() for g in grads.values())))
        clip = min(1, optim.clip / norms[-1]) if optim.clip else 1
        m = {k: b1 * m[k] + (1 - b1) * clip * grads[k] for k in params}
        v = {k: b2 * v[k] + (1 - b2) * (clip * grads[k]) ** 2 for k in params}
        rate = optim.learning_rate * min(n / 2, 1)
        for k in params:
            update = m[k] / (1 - b1**n) / (np.sqrt(v[k] / (1 - b2**n)) + eps)
            decay = optim.weight_decay if k != 'bias' else 0
            params[k] = params[k] - rate * (update + decay * params[k])
    return params, norms


@pytest.mark.parametrize(('clip', 'weight_decay'), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.5)])
def test_three_steps_of_adam_by_hand(clip, weight_decay, make_batch, random_rows):
    # eps is as large as the gradient's elements, so that a wrong place in the formula would show.
    optim = OptimConfig(
        'adam(b1=0.8, b2=0.9, eps=0.01)', 'constant(warmup=2)', 0.1, weight_decay, clip
    )
    config = ExperimentConfig(
        model=ModelConfig(dropout=0.0), train=TrainConfig(steps=STEPS), optim=optim
    )
    batches = [
        make_batch(random_rows([[(1, 3)], [(1, 2)]], Bigram.V, seed), 4) for seed in range(3)
    ]
    state = train_state.init_state(parse_components(config), Bigram())
    expected, norms = adam_by_hand(state.params, batches, optim, 0.8, 0.9, 0.01)
    train = jax.jit(
        lambda state, batch: step.train_step(Bigram(), parse_components(config), state, batch)
    )
    for batch, norm in zip(batches, norms, strict=True):
        state, metrics = train(state, batch)
        assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-5)  # before clipping
    assert max(norms) > 0.3
    for name in expected:
        np.testing.assert_allclose(
            state.params[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name
        )


# --- What is what ---------------------------------------------------------------------------------


def boxed(**shapes):
    """Make a tree of boxed arrays from name=(axes, shape)."""
    return {
        name: nn.LogicallyPartitioned(jnp.zeros(shape), tuple(axes.split()))
        for name, (axes, shape) in shapes.items()
    }


# name: (logical axes, group, dimensions of copies, of inputs, of outputs), see `Role`
ROLES = {
    'query_kernel': ('embed heads head_dim', 'kernel', (), (0,), (1, 2)),
    'out_kernel': ('heads head_dim embed', 'kernel', (), (0, 1), (2,)),
    'in_kernel': ('embed mlp', 'kernel', (), (0,), (1,)),
    'narrow_kernel': ('mlp embed', 'kernel', (), (0,), (1,)),
    'up_value': ('rank kv_heads head_dim', 'kernel', (), (0,), (1, 2)),
    'experts_in': ('experts embed mlp', 'kernel', (0,), (1,), (2,)),
    'router': ('embed experts', 'kernel', (), (0,), (1,)),
    'table': ('vocab embedding', 'embedding', (), (), ()),
    'positions': ('position embed', 'embedding', (), (), ()),
    'query_bias': ('heads head_dim', 'vector', (), (), ()),
    'experts_bias': ('experts mlp', 'vector', (), (), ()),
    'latent_bias': ('rank head_dim', 'vector', (), (), ()),
    'mix_bias': ('position heads', 'vector', (), (), ()),
    'scale': ('norm', 'vector', (), (), ()),
    'talking': ('read_heads norm', 'vector', (), (), ()),
    'length': ('', 'vector', (), (), ()),
}


def test_the_role_of_an_array():
    tree = boxed(
        **{name: (axes, range(3, 3 + len(axes.split()))) for name, (axes, *_) in ROLES.items()}
    )
    for name, role in roles(tree).items():
        assert (role.group, role.batch, role.inputs, role.outputs) == ROLES[name][1:], name
        a = np.random.default_rng(0).normal(size=role.shape)
        np.testing.assert_array_equal(role.whole(role.matrices(a)), a)


def test_a_kernel_of_heads_is_the_matrix_that_it_stands_for():
    tree = roles(
        boxed(
            into=('embed heads head_dim', (6, 2, 5)),
            out=('heads head_dim embed', (2, 5, 6)),
            experts=('experts mlp embed', (3, 4, 6)),
        )
    )
    rng = np.random.default_rng(0)
    w_DNH, w_NHD, w_EFD = (rng.normal(size=tree[name].shape) for name in ('into', 'out', 'experts'))
    x_D, o_NH = rng.normal(size=6), rng.normal(size=(2, 5))
    into, out = tree['into'].matrices(w_DNH)[0], tree['out'].matrices(w_NHD)[0]
    np.testing.assert_allclose((x_D @ into).reshape(2, 5), np.einsum('d,dnh->nh', x_D, w_DNH))
    np.testing.assert_allclose(o_NH.reshape(-1) @ out, np.einsum('nh,nhd->d', o_NH, w_NHD))
    np.testing.assert_array_equal(tree['experts'].matrices(w_EFD), w_EFD)


@pytest.mark.parametrize('decay_embeddings', [True, False])
def test_decay_spares_norms_and_biases_of_any_shape(
    decay_embeddings, tiny, make_batch, random_rows
):
    config = ExperimentConfig(
        model=tiny(
            kind='decoder_only',
            decoder_layers=1,
            attention_bias='all',
            position='learned(max_len=8)',
        ),
        train=TrainConfig(steps=9),
        optim=OptimConfig('adam', 'constant', 0.01, decay_embeddings=decay_embeddings),
    )
    model, batch = build_model(config.model, 12), make_batch(random_rows([[(3, 3)]], 12), 4)
    state = nn.meta.unbox(train_state.init_state(parse_components(config), model))
    state = state.replace(params=jax.tree.map(lambda p: p + 0.5, state.params))  # no bias is 0
    take = jax.jit(
        lambda state: step.train_step(model, parse_components(config), state, batch)[0].params
    )
    without, with_decay = (
        take(state.replace(hyper=state.hyper.replace(weight_decay=jnp.float32(decay))))
        for decay in (0.0, 0.1)
    )
    leaves = map(jax.tree.leaves, (state.params, without, with_decay))
    for (path, _), p, a, b in zip(
        jax.tree_util.tree_leaves_with_path(state.params), *leaves, strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator='.')
        decays = name.endswith('kernel') or (
            decay_embeddings and name.endswith(('table', 'positions'))
        )
        np.testing.assert_allclose(b - a, -0.001 * p * decays, atol=1e-6, err_msg=name)


def test_the_log_says_what_updates_what(tiny):
    keys = tiny(kind='decoder_only', decoder_layers=1, norm_placement='pre')
    model = build_model(keys, 12)

    def line(text, **optim):
        return train_state.optimizer_summary(
            parse_components(ExperimentConfig(model=keys, optim=OptimConfig(text, **optim))), model
        )

    kernels, vectors = 4 * 16 * 16 + 2 * 16 * 32, 3 * 2 * 16 + 32 + 16
    assert line('muon', weight_decay=0.1) == (
        'adam with weight decay: 1 embedding (192 numbers); '
        f'adam: 8 vectors ({vectors:,} numbers); '
        f'muon with weight decay: 6 kernels ({kernels:,} numbers)'
    )
    assert line('adafactor(min_size=12)') == (
        f'adafactor: 1 embedding (192 numbers); adafactor: 6 kernels ({kernels:,} numbers); '
        f'adafactor without factors: 8 vectors ({vectors:,} numbers)'
    )
    assert line('lion').startswith('lion: 1 embedding')


# --- Other optimizers by hand ---------------------------------------------------------------------

ARRAYS = {
    'into': ('embed heads head_dim', (6, 2, 4)),
    'out': ('heads head_dim embed', (2, 4, 6)),
    'experts': ('experts embed mlp', (3, 4, 5)),
    'table': ('vocab embedding', (7, 6)),
    'bias': ('norm', (6,)),
}
MATRICES = {'into': (1, 6, 8), 'out': (1, 8, 6), 'experts': (3, 4, 5)}  # copies, rows, columns
STEPS_BY_HAND = 4


def run(text):
    """Run an optimizer on random gradients.

    Returns:
        (params, the gradients of each step, the directions of each step, the last state).
    """
    rng, tree = np.random.default_rng(0), boxed(**ARRAYS)
    params = {name: rng.normal(size=shape) for name, (_, shape) in ARRAYS.items()}
    grads = [
        {name: rng.normal(size=shape) for name, (_, shape) in ARRAYS.items()}
        for _ in range(STEPS_BY_HAND)
    ]
    transform, found = spec.parse(text, OPTIMIZERS, 'optim.optimizer').transform(roles(tree)), []
    state, update = nn.meta.unbox(transform.init(tree)), jax.jit(transform.update)
    for g in grads:
        direction, state = update(
            jax.tree.map(jnp.float32, g), state, jax.tree.map(jnp.float32, params)
        )
        found.append(direction)
    return params, grads, found, state


def test_lion_by_hand():
    _, grads, found, _ = run('lion(b1=0.7, b2=0.9)')
    for name in ARRAYS:
        m = 0.0
        for g, direction in zip(grads, found, strict=True):
            np.testing.assert_array_equal(direction[name], np.sign(0.7 * m + 0.3 * g[name]))
            m = 0.9 * m + 0.1 * g[name]


@pytest.mark.parametrize('relative', [True, False])
def test_adafactor_by_hand(relative):
    """Check Shazeer & Stern (2018), Algorithms 4 for matrices and 5 for other arrays.

    Each expert of a kernel is a matrix of its own.
    """
    params, grads, found, state = run(
        f'adafactor(decay=0.7, clip=0.9, relative={relative}, min_size=4)'
    )
    for name in ARRAYS:
        matrix = MATRICES.get(name, (1, 7, 6) if name == 'table' else (1, 1, 6))
        rows = columns = v = 0.0
        for n, (g, direction) in enumerate(zip(grads, found, strict=True), 1):
            beta, square = 1 - n**-0.7, g[name].reshape(matrix) ** 2 + 1e-30
            rows = beta * rows + (1 - beta) * square.mean(2, keepdims=True)
            columns = beta * columns + (1 - beta) * square.mean(1, keepdims=True)
            v = beta * v + (1 - beta) * square
            estimate = v if name == 'bias' else rows * columns / rows.mean(1, keepdims=True)
            update = g[name].reshape(matrix) / np.sqrt(estimate)
            update /= max(1, np.sqrt((update**2).mean()) / 0.9)
            if relative:
                update *= max(1e-3, np.sqrt((params[name] ** 2).mean()))
            np.testing.assert_allclose(
                direction[name].reshape(matrix), update, rtol=2e-5, atol=1e-6, err_msg=name
            )
    moments = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 1)
    assert moments == 2 * (6 + 8) + 3 * (4 + 5) + 7 + 6 + 6


def newton_schulz(m, steps):
    """Iterate X ← aX + bAX + cA²X with A = X Xᵀ from X = M / ‖M‖ (Jordan et al. 2024)."""
    x = m / np.linalg.norm(m)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x


@pytest.mark.parametrize('rms', [0.2, 0.0])
def test_muon_by_hand(rms):
    _, grads, found, _ = run(f'muon(beta=0.8, steps=5, rms={rms})')
    for name, (copies, rows, columns) in MATRICES.items():
        m = 0.0
        for n, (g, direction) in enumerate(zip(grads, found, strict=True), 1):
            g = g[name].reshape(copies, rows, columns)
            m = 0.8 * m + 0.2 * g
            # Nesterov's momentum, corrected for its bias towards 0.
            ahead = 0.8 * m / (1 - 0.8 ** (n + 1)) + 0.2 * g / (1 - 0.8**n)
            scale = rms * max(rows, columns) ** 0.5 or max(1, columns / rows) ** 0.5
            made = direction[name].reshape(copies, rows, columns)
            for copy in range(copies):
                expected = scale * newton_schulz(ahead[copy], 5)
                np.testing.assert_allclose(made[copy], expected, rtol=1e-3, atol=1e-3, err_msg=name)
                values = np.linalg.svd(made[copy] / scale, compute_uv=False)
                assert 0.3 < values.min() <= values.max() < 1.3, name


def test_muon_leaves_the_rest_to_adam():
    _, grads, found, _ = run('muon(b1=0.7, b2=0.8, eps=0.01)')
    for name in ('table', 'bias'):
        m = v = 0.0
        for n, (g, direction) in enumerate(zip(grads, found, strict=True), 1):
            m, v = 0.7 * m + 0.3 * g[name], 0.8 * v + 0.2 * g[name] ** 2
            expected = m / (1 - 0.7**n) / (np.sqrt(v / (1 - 0.8**n)) + 0.01)
            np.testing.assert_allclose(
                direction[name], expected, rtol=1e-4, atol=1e-5, err_msg=name
            )


@pytest.mark.parametrize('text', OPTIMIZERS)
def test_every_optimizers_state_can_be_laid_out(text, tiny):
    config = ExperimentConfig(
        model=tiny(ffn='moe(4)'), optim=OptimConfig(text), train=TrainConfig(ema=0.9)
    )
    state = jax.eval_shape(
        lambda: train_state.init_state(parse_components(config), build_model(config.model, 32))
    )
    specs = partition_specs(state, {'data': 1, 'fsdp': 2, 'tensor': 2})
    assert specs.ema == specs.params
    if text == 'muon':
        layer = optax.tree.get(specs.opt_state[1].inner_states['muon'], 'mu')['decoder_0'][
            'attention'
        ]
        assert layer['out'] == specs.params['decoder_0']['attention']['out']


# --- The moving average ---------------------------------------------------------------------------


def test_the_moving_average_by_hand(make_batch, random_rows):
    config = ExperimentConfig(
        model=ModelConfig(dropout=0.0),
        train=TrainConfig(steps=STEPS, ema=0.3),
        optim=OptimConfig('adam', 'constant', 0.1),
    )
    batch = make_batch(random_rows([[(1, 3)], [(1, 2)]], Bigram.V), 4)
    state = train_state.init_state(parse_components(config), Bigram())
    ema = {name: np.asarray(p, np.float64) for name, p in state.params.items()}
    take = jax.jit(
        lambda state, batch: step.train_step(Bigram(), parse_components(config), state, batch)[0]
    )
    for n in range(6):
        state = take(state, batch)
        decay = min(0.3, (1 + n) / (10 + n))
        ema = {
            name: decay * ema[name] + (1 - decay) * np.asarray(p, np.float64)
            for name, p in state.params.items()
        }
    for name in ema:
        np.testing.assert_allclose(state.ema[name], ema[name], rtol=1e-5, atol=1e-6)
        assert abs(state.ema[name] - state.params[name]).max() > 1e-3
    assert state.eval_params is state.ema
    skipped = take(state, batch._replace(weights_BT=batch.weights_BT * np.nan))
    jax.tree.map(np.testing.assert_array_equal, skipped.ema, state.ema)


def test_without_one_evaluation_uses_the_parameters():
    config = ExperimentConfig(train=TrainConfig(steps=STEPS), optim=OptimConfig('adam'))
    state = train_state.init_state(parse_components(config), Bigram())
    assert state.ema is None
    assert state.eval_params is state.params


@pytest.mark.slow
def test_a_resumed_average_is_the_uninterrupted_one_and_is_what_is_evaluated(tmp_path):
    config = experiment(train__ema=0.9, evaluate__every=12, optim__optimizer='muon(steps=1)')
    whole = train(config, tmp_path / 'whole', quiet)
    stop_at(5, config, tmp_path / 'stopped')
    assert train(config, tmp_path / 'stopped', quiet) == whole
    assert fingerprint(tmp_path / 'stopped') == fingerprint(tmp_path / 'whole')
    trained = TrainedRun(tmp_path / 'whole', 'last', quiet, {}, ('validation',))
    assert trained.evaluator.teacher_forced(trained.params, 'validation').scores[
        'loss'
    ] == pytest.approx(whole['value'], rel=1e-5)
