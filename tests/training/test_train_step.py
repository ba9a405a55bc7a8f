"""The training step: sums divided once, nothing non-finite in the state, numbers that vary without
recompiling.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.build import build_model

from transformer_jax.config.resolve import parse_components
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.schema import ExperimentConfig, OptimConfig, TrainConfig
from transformer_jax.training import train_state
from transformer_jax.training import train_step as step

V, LENGTH = 20, 8
ROWS = [
    [(3, 8)],
    [(8, 1)],
    [(2, 2)],
    [(5, 1)],
    [(1, 7)],
    [(4, 4)],
    [(8, 8)],
    [(2, 3)],
]  # uneven over microbatches


class Trainer:
    """A tiny model with its compiled step, which can drop and does not until `with_hyper`
    says so.
    """

    def __init__(self, model_config, **train):
        self.config = ExperimentConfig(
            model=dataclasses.replace(model_config, dropout=0.1),
            train=TrainConfig(steps=100, **train),
            optim=OptimConfig(schedule='constant', learning_rate=0.01, clip=1.0),
        )
        self.model = build_model(self.config.model, V)
        components = parse_components(self.config)
        state = nn.meta.unbox(train_state.init_state(components, self.model))
        self.state = with_hyper(state, dropout=0)
        self.step = jax.jit(
            lambda state, batch: step.train_step(self.model, components, state, batch)
        )
        self.eval = jax.jit(lambda params, batch: loss_sums(self.model, params, batch, 0.1)[0])


@pytest.fixture(scope='module')
def trainers(tiny):
    return functools.cache(
        lambda accumulate=1: Trainer(
            tiny(encoder_layers=1, decoder_layers=1), accumulate=accumulate
        )
    )


@pytest.fixture(scope='module')
def batch(make_batch, random_rows):
    return make_batch(random_rows(ROWS, V), LENGTH)


def close(found, expected, tolerance=1e-5):
    """Asserts that two trees agree, tensor by tensor, to a relative tolerance."""
    whole = float(optax.tree.norm(expected))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        error, size = np.linalg.norm(np.asarray(a) - b), np.linalg.norm(b)
        assert error <= tolerance * max(size, 1e-3 * whole), jax.tree_util.keystr(path)


def identical(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def with_hyper(state, **values):
    """The state with other numbers in its `hyper`."""
    return state.replace(
        hyper=state.hyper.replace(**{name: jnp.float32(value) for name, value in values.items()})
    )


def gradient(state):
    """The (clipped) mean gradient of a first step: Adam's first moment is (1 − b1) of it."""
    return jax.tree.map(lambda m: m / 0.1, optax.tree.get(state.opt_state, 'mu'))


def test_metrics_are_per_token(trainers, batch):
    trainer = trainers()
    state, metrics = trainer.step(trainer.state, batch)
    tokens = sum(pairs[0][1] for pairs in ROWS)
    sums = trainer.eval(trainer.state.params, batch)
    assert metrics['tokens'] == tokens == sums.weight
    for name, total in (('loss', sums.loss), ('nll', sums.nll), ('accuracy', sums.correct)):
        assert float(metrics[name]) == pytest.approx(float(total) / tokens, rel=1e-5)
    assert float(metrics['learning_rate']) == pytest.approx(0.01)
    assert metrics['finite']
    assert (state.step, state.skipped) == (1, 0)


def test_four_microbatches_are_one(trainers, batch):
    (one, metrics), (four, metrics_of_four) = (
        trainers(accumulate=n).step(trainers().state, batch) for n in (1, 4)
    )
    close(gradient(four), gradient(one))
    for name, value in metrics.items():
        assert float(metrics_of_four[name]) == pytest.approx(float(value), rel=1e-5), name


def test_microbatches_drop_out_differently(trainers, batch):
    trainer = trainers(accumulate=4)
    equal = jax.tree.map(
        lambda a: np.repeat(a[:2], 4, axis=0), batch
    )  # microbatch i has rows i and i + 4
    only_first = equal._replace(
        weights_BT=equal.weights_BT * (np.arange(8) % 4 == 0)[:, None].astype(np.float32)
    )
    for dropout in (0.0, 0.5):  # without dropout the mean gradients are the same
        (of_all, _), (of_first, _) = (
            trainer.step(with_hyper(trainer.state, dropout=dropout), b) for b in (equal, only_first)
        )
        if dropout:
            with pytest.raises(AssertionError):
                close(gradient(of_all), gradient(of_first), tolerance=0.01)
        else:
            close(gradient(of_all), gradient(of_first))


def test_a_few_steps_learn(trainers, batch):
    trainer = trainers()
    state, losses = trainer.state, []
    for _ in range(60):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics['nll']))
    assert losses[0] > 2.5
    assert losses[-1] < 0.5
    assert metrics['accuracy'] > 0.9


def poisoned(name, state, batch):
    """A state and batch whose loss, gradient or update is not finite."""
    if name == 'update':
        return with_hyper(state, learning_rate=np.inf), batch
    weights_BT = np.zeros_like(batch.weights_BT)
    # Two tokens that weigh 1e30 and −1e30 have a finite loss, but the squares of their
    # gradient overflow.
    weights_BT[0, :2] = (np.nan, np.nan) if name == 'loss' else (1e30, -1e30)
    return state, batch._replace(weights_BT=weights_BT)


@pytest.mark.parametrize('name', ['loss', 'gradient', 'update'])
def test_nothing_non_finite_enters_the_state(name, trainers, batch):
    trainer = trainers()
    before, _ = trainer.step(trainer.state, batch)
    after, metrics = trainer.step(*poisoned(name, before, batch))
    assert not metrics['finite']
    assert np.isfinite(metrics['loss']) == (name != 'loss')
    identical((after.params, after.opt_state), (before.params, before.opt_state))
    assert (after.step, after.skipped) == (2, 1)
    recovered, metrics = trainer.step(after.replace(hyper=before.hyper), batch)
    assert metrics['finite']
    expected, _ = trainer.step(before.replace(step=jnp.int32(2)), batch)
    identical(recovered.params, expected.params)
    assert (recovered.step, recovered.skipped) == (3, 1)


def test_hyperparameters_do_not_recompile(trainers, batch):
    trainer = trainers()
    start = with_hyper(trainer.state, dropout=0.1)
    base = trainer.step(start, batch)
    changes = {'learning_rate': 0.02, 'dropout': 0.4, 'label_smoothing': 0.3, 'weight_decay': 0.2}
    for name, value in changes.items():
        state, metrics = trainer.step(with_hyper(start, **{name: value}), batch)
        assert np.any(
            state.params['target_embedding']['table'] != base[0].params['target_embedding']['table']
        ), name
        assert (metrics['loss'] == base[1]['loss']) == (name in ('learning_rate', 'weight_decay'))
    assert trainer.step._cache_size() == 1


def test_each_step_drops_out_anew_and_repeats_exactly(trainers, batch):
    trainer = trainers()
    state = still = with_hyper(trainer.state, dropout=0.1, learning_rate=0)
    losses = []
    for _ in range(3):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics['loss']))
    assert len(set(losses)) == 3
    identical(state.params, still.params)
    assert float(trainer.step(still, batch)[1]['loss']) == losses[0]
    other = still.replace(rng=jax.random.PRNGKey(99))
    assert float(trainer.step(other, batch)[1]['loss']) != losses[0]


def test_the_seed_decides_the_first_state(tiny, trainers):
    config = tiny(encoder_layers=1, decoder_layers=1)
    same, other = Trainer(config, seed=0).state, Trainer(config, seed=1).state
    identical(same, trainers().state)
    assert np.any(
        same.params['target_embedding']['table'] != other.params['target_embedding']['table']
    )
    assert np.any(same.rng != other.rng)


def test_no_masks_are_drawn_where_the_configuration_has_no_dropout(trainers, batch):
    trainer = trainers()

    def program(dropout):
        model = dataclasses.replace(trainer.config.model, dropout=dropout)
        config = dataclasses.replace(trainer.config, model=model)
        changed = build_model(model, V)
        return str(
            jax.make_jaxpr(functools.partial(step.train_step, changed, parse_components(config)))(
                trainer.state, batch
            )
        )

    assert 'random_bits' in program(0.1)
    assert 'random_bits' not in program(0.0)


def test_evaluation_drops_nothing(trainers, batch):
    trainer = trainers()
    _, without = trainer.step(trainer.state, batch)
    _, dropped = trainer.step(with_hyper(trainer.state, dropout=0.5), batch)
    loss = float(trainer.eval(trainer.state.params, batch).loss / without['tokens'])
    assert loss == pytest.approx(float(without['loss']), rel=1e-5)
    assert loss != pytest.approx(float(dropped['loss']), rel=1e-5)
