"""Eight devices give one device's answer, however parameters and rows are laid out over them."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.build import build_model, with_vocabulary
from helpers.one_device import assert_same_training, one_device, train

from transformer_jax.config.resolve import parse_components
from transformer_jax.errors import ConfigError
from transformer_jax.losses.model_loss import loss_sums
from transformer_jax.schema import (
    ExperimentConfig,
    MeshConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from transformer_jax.training import train_state
from transformer_jax.training.programs import make_program

V, LENGTH, ROWS, STEPS = 32, 16, 16, 20
LAYOUTS = {
    'data8': ('jit', (8, 1, 1)),
    'fsdp8': ('jit', (1, 8, 1)),
    'tensor4-data2': ('jit', (2, 1, 4)),
    '2x2x2': ('jit', (2, 2, 2)),
    'pmap8': ('pmap', (8, 1, 1)),
}
FAST = ('2x2x2', 'pmap8')  # all axes at once, and the other mode; each layout compiles for 20 s
BATCHES = ('bucketed', 'packed')


@pytest.fixture(scope='module')
def setting(tiny, make_batch, random_rows):
    """(config, model, {kind: batches}): of one shape, so that a layout compiles once; some rows are
    padding alone.
    """
    config = ExperimentConfig(
        model=tiny(encoder_layers=1, decoder_layers=1),
        train=TrainConfig(steps=100),
        optim=OptimConfig(schedule='constant', learning_rate=3e-3),
    )
    rng = np.random.default_rng(0)
    lengths = {
        'bucketed': lambda: (
            [[tuple(rng.integers(1, LENGTH + 1, 2))] for _ in range(ROWS - 3)] + [[]] * 3
        ),
        'packed': lambda: [
            [tuple(rng.integers(1, 5, 2)) for _ in range(1 + row % 4)] for row in range(ROWS)
        ],
    }
    batches = {
        kind: [make_batch(random_rows(draw(), V, seed), LENGTH) for seed in range(3)]
        for kind, draw in lengths.items()
    }
    return config, build_model(config.model, V), batches


@pytest.fixture(scope='module')
def single(setting):
    """The answers of one device, by kind of batch; no mesh, no shardings."""
    config, model, batches = setting
    functions = one_device(config, model)
    return {kind: train(*functions, batches[kind], STEPS) for kind in BATCHES}


@pytest.fixture(
    scope='module',
    params=[pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in LAYOUTS],
)
def layout(request, setting):
    config, _, _ = setting
    mode, mesh = LAYOUTS[request.param]
    config = ExperimentConfig(
        config.model,
        train=config.train,
        optim=config.optim,
        parallel=ParallelConfig(mode, MeshConfig(*mesh)),
    )
    return make_program(with_vocabulary(config, V))


@pytest.mark.parametrize('kind', BATCHES)
def test_eight_devices_are_one(layout, kind, setting, single):
    batches = [layout.place(batch) for batch in setting[2][kind]]
    found = train(layout.init_state, layout.train_step, batches, STEPS)
    assert_same_training(found, single[kind])


def test_the_state_is_cut_as_its_layout_says(layout, setting):
    config, model, _ = setting
    state = layout.init_state()
    unsharded = nn.meta.unbox(train_state.init_state(parse_components(config), model))
    jax.tree.map(
        np.testing.assert_array_equal, state.params, unsharded.params
    )  # the numbers do not depend on it
    for array, abstract in zip(*map(jax.tree.leaves, (state, layout.abstract)), strict=True):
        assert array.sharding.is_equivalent_to(abstract.sharding, array.ndim)
    table = state.params['target_embedding']['table']
    parts = layout.partitioner.mesh.shape['fsdp'] * layout.partitioner.mesh.shape['tensor']
    assert table.addressable_shards[0].data.shape == (V // parts, config.model.d_model)


def test_evaluation_is_that_of_one_device(layout, setting):
    _, model, batches = setting
    batch = batches['packed'][0]
    state = layout.init_state()
    evaluate = layout.partitioner.compile(lambda params, batch: loss_sums(model, params, batch)[0])
    found = evaluate(state.params, layout.partitioner.put(batch))
    params = jax.tree.map(np.asarray, state.params)
    expected, _ = jax.jit(functools.partial(loss_sums, model))(params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rows_must_fill_the_devices(layout):
    rows = layout.partitioner.mesh.shape['data'] * layout.partitioner.mesh.shape['fsdp']
    assert layout.rows_multiple == rows
    assert layout.partitioner.local_rows(2 * rows) == (0, 2 * rows)  # one process has them all


@pytest.mark.slow
def test_devices_drop_out_differently(setting):
    # Under pmap every device has the same code and key: equal rows must still lose
    # different elements.
    config, _, batches = setting
    drops = dataclasses.replace(config.model, dropout=0.5)
    row = jax.tree.map(lambda a: np.repeat(a[:1], 8, axis=0), batches['bucketed'][0])
    losses = []
    for mask in (np.ones(8), np.eye(8)[0]):
        config = ExperimentConfig(
            drops,
            train=config.train,
            optim=config.optim,
            parallel=ParallelConfig('pmap', MeshConfig(8)),
        )
        layout = make_program(with_vocabulary(config, V))
        state = layout.init_state()
        batch = row._replace(weights_BT=row.weights_BT * mask[:, None].astype(np.float32))
        losses.append(float(layout.train_step(state, layout.place(batch))[1]['loss']))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_what_does_not_fit_is_refused_before_compilation(tiny):
    for changes, mesh, message in (
        ({}, (3, 1, 1), 'needs 3 devices, there are 8'),
        ({'d_ff': 30}, (1, 2, 4), "dimension 'mlp' of size 30"),
        ({'num_heads': 2}, (2, 1, 4), "dimension 'kv_heads' of size 2"),
    ):
        model_config = tiny(encoder_layers=1, decoder_layers=1, **changes)
        config = ExperimentConfig(model_config, parallel=ParallelConfig('jit', MeshConfig(*mesh)))
        with pytest.raises(ConfigError, match=message):
            make_program(with_vocabulary(config, V))
